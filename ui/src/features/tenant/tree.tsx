import { type KeyboardEvent, type ReactNode, useState } from "react";
import type { Cvlan, Tenant } from "../../api/types";
import { IconButton } from "../../kit/button";
import { Icon } from "../../kit/icon";
import { Waiting } from "../../kit/panel";
import { ProblemBox } from "../../kit/problem";
import { count, plural } from "../../lib/format";
import { type Route, routeHref } from "../../lib/route";
import { useCvlans } from "../cvlan/api";
import { useTenants } from "./api";

/** With more tenants than this, only the chosen one is open at first. */
const OPEN_MAX = 8;
/** With more than this, a field to find one. */
const FIND_ABOVE = 10;

const bySlug = (a: Tenant, b: Tenant) => a.slug.localeCompare(b.slug, "en", { numeric: true });
const byName = (a: Cvlan, b: Cvlan) => a.name.localeCompare(b.name, "en", { numeric: true });

interface TreeProps {
  route: Route;
  /** What stands above the tenants. */
  top?: ReactNode;
  /** Undefined: may not. */
  onTenantCreate: (() => void) | undefined;
  onCvlanCreate: ((tenant: Tenant) => void) | undefined;
}

/** Tenants and their CVLANs: where to go. Arrow keys walk the lines. */
export function TenantTree({ route, top, onTenantCreate, onCvlanCreate }: TreeProps) {
  const tenants = useTenants();
  const [text, setText] = useState("");
  const all = (tenants.data?.items ?? []).toSorted(bySlug);
  const words = text.trim().toLowerCase();
  const shown = all.filter(({ slug, name }) => `${slug} ${name}`.toLowerCase().includes(words));

  const walk = (event: KeyboardEvent<HTMLElement>) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const lines = [...event.currentTarget.querySelectorAll<HTMLElement>("a")];
    const at = lines.indexOf(document.activeElement as HTMLElement);
    lines[at + step]?.focus();
    event.preventDefault();
  };

  return (
    <nav aria-label="Tenants and CVLANs" className="flex min-h-0 flex-col border-r bg-panel" onKeyDown={walk}>
      {top && <div className="border-b">{top}</div>}
      <div className="flex h-10 shrink-0 items-center gap-2 border-b pr-2 pl-4">
        <h2 className="label">Tenants</h2>
        <span className="num text-xs text-muted">{all.length > 0 && count(all.length)}</span>
        {onTenantCreate && <IconButton icon="plus" label="New tenant" className="ml-auto" onClick={onTenantCreate} />}
      </div>
      {all.length > FIND_ABOVE && (
        <div className="border-b p-2">
          <input
            type="search"
            aria-label="Find a tenant"
            placeholder="Find a tenant…"
            className="input h-7.5"
            value={text}
            onChange={(event) => setText(event.target.value)}
          />
        </div>
      )}
      <div className="min-h-0 flex-1 overflow-auto py-1.5">
        {tenants.isPending && <Waiting rows={3} />}
        {tenants.error && !tenants.data && (
          <div className="p-2">
            <ProblemBox error={tenants.error} onRetry={() => void tenants.refetch()} />
          </div>
        )}
        {tenants.data && all.length === 0 && <p className="px-4 py-3 text-muted">No tenant yet.</p>}
        <ul>
          {shown.map((tenant) => (
            <Branch
              key={tenant.id}
              tenant={tenant}
              route={route}
              openAtFirst={all.length <= OPEN_MAX}
              onCvlanCreate={onCvlanCreate}
            />
          ))}
        </ul>
      </div>
    </nav>
  );
}

interface BranchProps {
  tenant: Tenant;
  route: Route;
  openAtFirst: boolean;
  onCvlanCreate: ((tenant: Tenant) => void) | undefined;
}

const LINE = "group relative mx-1.5 flex items-center rounded-md";

function Branch({ tenant, route, openAtFirst, onCvlanCreate }: BranchProps) {
  const here = route.tenant === tenant.slug;
  const [wish, setWish] = useState<boolean>();
  const open = wish ?? (openAtFirst || here);
  const cvlans = useCvlans(open ? tenant.id : "");
  const current = here && !route.cvlan;
  return (
    <li>
      <div className={`${LINE} h-8 ${current ? "bg-wash" : "hover:bg-raised"}`}>
        <button
          type="button"
          aria-label={`${open ? "Close" : "Open"} ${tenant.slug}`}
          aria-expanded={open}
          className="relative z-1 ml-0.5 grid size-6 place-items-center rounded text-muted hover:text-text"
          onClick={() => setWish(!open)}
        >
          <Icon name="chevron" className={`size-3.5 transition-transform ${open ? "rotate-90" : ""}`} />
        </button>
        <a
          href={routeHref(tenant.slug)}
          aria-current={current ? "page" : undefined}
          className={`min-w-0 flex-1 truncate pl-0.5 font-semibold after:absolute after:inset-0 ${current ? "text-accent" : ""}`}
        >
          {tenant.slug}
          {tenant.name && tenant.name !== tenant.slug && (
            <span className="ml-2 text-xs font-normal text-muted">{tenant.name}</span>
          )}
        </a>
        <span
          className={`num px-2 text-xs text-muted ${onCvlanCreate ? "group-focus-within:invisible group-hover:invisible" : ""}`}
          title={plural(tenant.nodeCount, "node")}
        >
          {count(tenant.nodeCount)}
        </span>
        {onCvlanCreate && (
          <IconButton
            icon="plus"
            label={`New CVLAN in ${tenant.slug}`}
            className="absolute right-0.5 z-1 opacity-0 group-focus-within:opacity-100 group-hover:opacity-100"
            onClick={() => onCvlanCreate(tenant)}
          />
        )}
      </div>
      {open && cvlans.data && (
        <ul aria-label={`CVLANs of ${tenant.slug}`} className="mb-1">
          {cvlans.data.items.toSorted(byName).map((cvlan) => (
            <Leaf key={cvlan.id} tenant={tenant} cvlan={cvlan} current={here && route.cvlan === cvlan.name} />
          ))}
          {cvlans.data.items.length === 0 && <li className="py-1 pl-9 text-xs text-muted">No CVLAN yet</li>}
        </ul>
      )}
    </li>
  );
}

function Leaf({ tenant, cvlan, current }: { tenant: Tenant; cvlan: Cvlan; current: boolean }) {
  return (
    <li className={`${LINE} py-1 pl-7.5 ${current ? "bg-wash" : "hover:bg-raised"}`}>
      <a
        href={routeHref(tenant.slug, cvlan.name)}
        aria-current={current ? "page" : undefined}
        className="min-w-0 flex-1 after:absolute after:inset-0"
      >
        <span className={`block truncate font-medium ${current ? "text-accent" : ""}`}>{cvlan.name}</span>
        <span className="mono block truncate text-2xs text-muted" title={cvlan.ipv6Cidr}>
          {cvlan.ipv4Cidr}
          {cvlan.ipv6Cidr && <span className="ml-1.5">+ IPv6</span>}
        </span>
      </a>
      <span className="num px-2 text-xs text-muted" title={plural(cvlan.nodeCount, "node")}>
        {count(cvlan.nodeCount)}
      </span>
    </li>
  );
}
