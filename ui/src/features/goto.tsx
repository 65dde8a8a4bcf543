import { useQueryClient } from "@tanstack/react-query";
import { type KeyboardEvent, useMemo, useRef, useState } from "react";
import type { Cvlan, Node, Tenant } from "../api/types";
import { Dialog } from "../kit/dialog";
import { ROUTE_CLUSTER, routeGo, routeHref } from "../lib/route";
import type { Snapshot } from "../live/fold";

const SHOWN = 40;

interface Target {
  kind: "page" | "tenant" | "CVLAN" | "node";
  text: string;
  more: string;
  href: string;
}

/** Everything with a name that this page holds. */
function useTargets(): Target[] {
  const client = useQueryClient();
  return useMemo(() => {
    const lists = <T,>(noun: string) =>
      client.getQueriesData<Snapshot<T>>({ queryKey: [noun] }).flatMap(([, data]) => data?.items ?? []);
    const slugs = new Map(lists<Tenant>("tenants").map((tenant) => [tenant.id, tenant.slug]));
    const cvlans = new Map(lists<Cvlan>("cvlans").map((cvlan) => [cvlan.id, cvlan]));
    const nodes = new Map(lists<Node>("nodes").map((node) => [node.id, node]));
    const slugOf = (tenantId: string) => slugs.get(tenantId) ?? "";
    const cluster: Target = {
      kind: "page",
      text: "Cluster",
      more: "members, quorum, leader",
      href: routeHref(ROUTE_CLUSTER),
    };
    return [
      ...(client.getQueryData(["cluster"]) ? [cluster] : []),
      ...lists<Tenant>("tenants").map(
        ({ slug, name }): Target => ({ kind: "tenant", text: slug, more: name, href: routeHref(slug) }),
      ),
      ...[...cvlans.values()].map(({ name, tenantId, ipv4Cidr }): Target => {
        const slug = slugOf(tenantId);
        return { kind: "CVLAN", text: `${slug} / ${name}`, more: ipv4Cidr, href: routeHref(slug, name) };
      }),
      ...[...nodes.values()].map(({ name, tenantId, cvlanId, ipv4 }): Target => {
        const slug = slugOf(tenantId);
        const cvlan = cvlans.get(cvlanId)?.name ?? "";
        return { kind: "node", text: name, more: `${ipv4} · ${slug} / ${cvlan}`, href: routeHref(slug, cvlan, name) };
      }),
    ];
  }, [client]);
}

/** Ctrl-K: to anything by a part of its name or address. */
export function GoTo({ onClose }: { onClose: () => void }) {
  const targets = useTargets();
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const list = useRef<HTMLDivElement>(null);
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = targets
    .filter(({ text: name, more, kind }) =>
      words.every((word) => `${name} ${more} ${kind}`.toLowerCase().includes(word)),
    )
    .slice(0, SHOWN);

  const go = (target: Target | undefined) => {
    if (!target) return;
    onClose();
    routeGo(target.href);
  };
  const press = (event: KeyboardEvent) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      const next = Math.min(found.length - 1, Math.max(0, at + step));
      setAt(next);
      list.current?.children[next]?.scrollIntoView({ block: "nearest" });
    } else if (event.key === "Enter") go(found[at]);
    else return;
    event.preventDefault();
  };
  return (
    <Dialog title="Go to" onClose={onClose}>
      <div className="p-3">
        <input
          role="combobox"
          aria-label="Tenant, CVLAN or node"
          aria-expanded="true"
          aria-controls="goto-list"
          aria-activedescendant={found[at] ? `goto-${at}` : undefined}
          placeholder="Tenant, CVLAN, node or address…"
          className="input"
          value={text}
          autoComplete="off"
          onChange={(event) => {
            setText(event.target.value);
            setAt(0);
          }}
          onKeyDown={press}
        />
      </div>
      <div ref={list} id="goto-list" role="listbox" aria-label="Found" className="h-72 overflow-auto border-t p-1.5">
        {found.map((target, index) => (
          // biome-ignore lint/a11y/useKeyWithClickEvents: the field has the keys, as in every combobox
          <div
            key={target.href}
            id={`goto-${index}`}
            role="option"
            aria-selected={index === at}
            tabIndex={-1}
            onClick={() => go(target)}
            className={`flex cursor-pointer items-baseline gap-2.5 rounded-md px-2.5 py-1.25 ${index === at ? "bg-wash" : "hover:bg-raised"}`}
          >
            <span className="truncate font-medium">{target.text}</span>
            <span className={`truncate text-muted ${["tenant", "page"].includes(target.kind) ? "" : "mono"}`}>
              {target.more}
            </span>
            <span className="ml-auto text-2xs text-muted">{target.kind}</span>
          </div>
        ))}
        {found.length === 0 && (
          <div className="px-2.5 py-2 text-muted">Nothing that this page has read has this name.</div>
        )}
      </div>
    </Dialog>
  );
}
