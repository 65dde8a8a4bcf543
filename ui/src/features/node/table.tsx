import { type KeyboardEvent, type ReactNode, useDeferredValue, useEffect, useMemo, useRef, useState } from "react";
import type { Cvlan, Node, Tenant } from "../../api/types";
import { IconButton } from "../../kit/button";
import { Icon } from "../../kit/icon";
import { Dot, Pill, Waiting } from "../../kit/panel";
import { ProblemBox } from "../../kit/problem";
import { age, count, timeFull } from "../../lib/format";
import { useNow, useShortcut, useWindowed } from "../../lib/hooks";
import { routeGo, routeHref } from "../../lib/route";
import { NODES_MAX, useNodes } from "./api";
import { nodePresence } from "./presence";
import { nodeMatches, nodesSort, type Sort, type SortKey } from "./sort";

/** Pixels; the same in the stylesheet's words: h-8.5. */
const ROW_HEIGHT = 34;
const HEAD_HEIGHT = 30;

interface TableProps {
  tenant: Tenant;
  cvlan: Cvlan;
  selected: string;
  mayDelete: boolean;
  onDelete: (node: Node) => void;
  empty: ReactNode;
}

/** The machines of one CVLAN. Arrow keys walk, Enter opens, Delete deletes, / searches. */
export function NodeTable({ tenant, cvlan, selected, mayDelete, onDelete, empty }: TableProps) {
  const [text, setText] = useState("");
  const [sort, setSort] = useState<Sort>({ key: "name", descending: false });
  const field = useRef<HTMLInputElement>(null);
  useShortcut("/", () => field.current?.focus());

  const all = useNodes(tenant.id, cvlan.id, "");
  const partial = all.data?.complete === false;
  const asked = useDeferredValue(text.trim());
  const searched = useNodes(partial && asked ? tenant.id : "", cvlan.id, asked);
  const source = partial && asked ? searched : all;
  const items = source.data?.items;
  const rows = useMemo(
    () =>
      nodesSort(
        (items ?? []).filter((node) => partial || nodeMatches(node, asked)),
        sort,
      ),
    [items, partial, asked, sort],
  );

  if (all.error && !all.data) {
    return (
      <div className="p-4">
        <ProblemBox error={all.error} onRetry={() => void all.refetch()} />
      </div>
    );
  }
  if (!all.data) return <Waiting />;
  if (all.data.items.length === 0) return <div className="min-h-0 flex-1 overflow-auto">{empty}</div>;
  return (
    <section aria-label={`Nodes of ${cvlan.name}`} className="flex min-h-0 flex-1 flex-col">
      <div className="flex h-10 shrink-0 items-center gap-2 border-b px-3">
        <h3 className="font-semibold">Nodes</h3>
        <span className="num text-muted">
          {asked || partial
            ? `${count(rows.length)} of ${count(Math.max(cvlan.nodeCount, all.data.items.length))}`
            : count(rows.length)}
        </span>
        <label className="relative ml-auto w-56">
          <span className="sr-only">Find nodes</span>
          <Icon name="search" className="pointer-events-none absolute top-1.75 left-2 text-muted" />
          <input
            ref={field}
            type="search"
            className="input h-7.5 pr-2 pl-7.5"
            placeholder="Name, address, tag…   /"
            value={text}
            onChange={(event) => setText(event.target.value)}
            onKeyDown={(event) => {
              if (event.key === "Escape") setText("");
            }}
          />
        </label>
      </div>
      {partial && !asked && (
        <p className="border-b bg-warn-wash px-3 py-1 text-xs text-warn">
          The first {count(NODES_MAX)} are listed. A search looks at all of them.
        </p>
      )}
      <Rows {...{ tenant, cvlan, rows, selected, sort, setSort, mayDelete, onDelete }} />
      {rows.length === 0 && (
        <p className="p-6 text-center text-muted" role="status">
          No node matches “{asked}”.
        </p>
      )}
    </section>
  );
}

interface RowsProps extends Omit<TableProps, "empty"> {
  rows: readonly Node[];
  sort: Sort;
  setSort: (sort: Sort) => void;
}

function Rows({ tenant, cvlan, rows, selected, sort, setSort, mayDelete, onDelete }: RowsProps) {
  const now = useNow();
  const scroller = useRef<HTMLDivElement>(null);
  const { first, last } = useWindowed(scroller, rows.length, ROW_HEIGHT, HEAD_HEIGHT);
  const at = rows.findIndex((node) => node.name === selected);

  useEffect(() => {
    const element = scroller.current;
    if (!element || at < 0) return;
    const top = at * ROW_HEIGHT;
    const sight = element.clientHeight - HEAD_HEIGHT - ROW_HEIGHT;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top > element.scrollTop + sight) element.scrollTop = top - sight;
  }, [at]);

  // A step of the keyboard may go to a row that is drawn only after the list has scrolled to it.
  const stepped = useRef(false);
  useEffect(() => {
    if (!stepped.current || at < first || at >= last) return;
    stepped.current = false;
    scroller.current?.querySelector<HTMLElement>("a[aria-current]")?.focus({ preventScroll: true });
  }, [at, first, last]);
  const press = (event: KeyboardEvent) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    const node = rows[at];
    if (step !== undefined) {
      const next = rows[Math.min(rows.length - 1, Math.max(0, Math.max(0, at) + step))];
      if (next) {
        stepped.current = true;
        routeGo(routeHref(tenant.slug, cvlan.name, next.name), true);
      }
    } else if (event.key === "Delete" && node && mayDelete) onDelete(node);
    else if (event.key === "Escape") routeGo(routeHref(tenant.slug, cvlan.name));
    else return;
    event.preventDefault();
  };

  const head = (key: SortKey, label: string, className = "") => (
    <SortHead {...{ sort, setSort, label, className }} name={key} />
  );
  return (
    <div ref={scroller} className="@container min-h-0 flex-1 overflow-auto">
      <table className="w-full table-fixed border-separate border-spacing-0" aria-rowcount={rows.length + 1}>
        <thead>
          <tr className="h-7.5">
            {head("name", "Name", "@min-[560px]:w-[22%]")}
            {head("ipv4", "IPv4", "w-28")}
            <Head label="IPv6" className="hidden w-42 @min-[760px]:table-cell" />
            {head("presence", "Status", "w-26")}
            <Head label="Endpoints" className="hidden @min-[560px]:table-cell" />
            {head("age", "Age", "w-14")}
            <th className="sticky top-0 z-10 w-9 border-b bg-panel">
              <span className="sr-only">Actions</span>
            </th>
          </tr>
        </thead>
        <tbody onKeyDown={press}>
          <Spacer rows={first} />
          {rows.slice(first, last).map((node, offset) => (
            <Row
              key={node.id}
              node={node}
              index={first + offset}
              href={routeHref(tenant.slug, cvlan.name, node.name)}
              current={first + offset === at}
              focusable={at < 0 ? first + offset === 0 : first + offset === at}
              now={now}
              onDelete={mayDelete ? onDelete : undefined}
            />
          ))}
          <Spacer rows={rows.length - last} />
        </tbody>
      </table>
    </div>
  );
}

/** Rows that are not in sight, as one of their height. */
function Spacer({ rows }: { rows: number }) {
  if (rows <= 0) return null;
  return (
    <tr>
      <td colSpan={7} height={rows * ROW_HEIGHT} className="p-0" />
    </tr>
  );
}

interface RowProps {
  node: Node;
  index: number;
  href: string;
  current: boolean;
  focusable: boolean;
  now: number;
  onDelete: ((node: Node) => void) | undefined;
}

function Row({ node, index, href, current, focusable, now, onDelete }: RowProps) {
  const presence = nodePresence(node, now);
  const cell = "truncate border-b border-line/60 px-2.5 first:pl-3";
  const [endpoint = "–", ...others] = node.endpoints;
  return (
    <tr
      aria-rowindex={index + 2}
      className={`group relative h-8.5 ${current ? "bg-wash" : "hover:bg-raised/60"} ${node.status === "disabled" ? "text-muted" : ""}`}
    >
      <td className={cell}>
        <span className="flex min-w-0 items-center gap-2.5">
          <Dot state={presence.dot} />
          <a
            href={href}
            data-name={node.name}
            tabIndex={focusable ? 0 : -1}
            aria-current={current || undefined}
            className="min-w-0 truncate font-medium after:absolute after:inset-0"
          >
            {node.name}
          </a>
          {node.tags.slice(0, 2).map((tag) => (
            <span key={tag} className="shrink-0 rounded bg-raised px-1.25 text-2xs text-muted">
              {tag}
            </span>
          ))}
        </span>
      </td>
      <td className={`${cell} mono`}>{node.ipv4 || "–"}</td>
      <td className={`${cell} mono hidden text-muted @min-[760px]:table-cell`} title={node.ipv6}>
        {node.ipv6 || "–"}
      </td>
      <td className={cell}>
        {node.status === "disabled" ? (
          <Pill tone="warn">disabled</Pill>
        ) : (
          <span className={presence.dot === "on" ? "text-ok" : "text-muted"}>{presence.text}</span>
        )}
      </td>
      <td className={`${cell} mono hidden text-muted @min-[560px]:table-cell`} title={node.endpoints.join("\n")}>
        {endpoint}
        {others.length > 0 && ` +${others.length}`}
      </td>
      <td className={`${cell} num text-muted`} title={timeFull(node.createdAt)}>
        {age(node.createdAt, now)}
      </td>
      <td className="border-b border-line/60 pr-1.5">
        {onDelete && (
          <IconButton
            icon="trash"
            label={`Delete ${node.name}`}
            tabIndex={focusable ? 0 : -1}
            className="relative z-1 opacity-0 group-hover:opacity-100 focus-visible:opacity-100"
            onClick={() => onDelete(node)}
          />
        )}
      </td>
    </tr>
  );
}

const HEAD = "sticky top-0 z-10 border-b bg-panel px-2.5 first:pl-3 text-left";

function Head({ label, className }: { label: string; className: string }) {
  return (
    <th scope="col" className={`${HEAD} ${className}`}>
      <span className="label">{label}</span>
    </th>
  );
}

interface SortHeadProps {
  name: SortKey;
  label: string;
  className: string;
  sort: Sort;
  setSort: (sort: Sort) => void;
}

function SortHead({ name, label, className, sort, setSort }: SortHeadProps) {
  const current = sort.key === name;
  const direction = sort.descending ? "descending" : "ascending";
  return (
    <th scope="col" aria-sort={current ? direction : undefined} className={`${HEAD} ${className}`}>
      <button
        type="button"
        className={`label inline-flex items-center gap-1 hover:text-text ${current ? "text-text" : ""}`}
        onClick={() => setSort({ key: name, descending: current && !sort.descending })}
      >
        {label}
        <Icon name="up" className={`size-3 ${current ? "" : "invisible"} ${sort.descending ? "rotate-180" : ""}`} />
      </button>
    </th>
  );
}
