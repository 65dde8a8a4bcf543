/** Tenants: what the list becomes by each event, and how the events read. */
import type { LogEvent, Tenant } from "../../api/types";
import { type Fold, itemAdd, itemChange, itemRemove, stamp } from "../../live/fold";
import { type Describe, thing, who } from "../sentence";

export const TENANT: Tenant = {
  id: "",
  slug: "",
  name: "",
  signingKeys: [],
  revision: "0",
  cvlanCount: 0,
  nodeCount: 0,
};

const counted = (items: Tenant[], event: LogEvent, field: "cvlanCount" | "nodeCount", by: number) =>
  itemChange(items, event.tenantId ?? "", (item) => ({ ...item, [field]: Math.max(0, item[field] + by) }));

export const tenantFold: Fold<Tenant> = (items, event) => {
  const { created, updated, deleted } = event.tenant ?? {};
  if (created) {
    const { tenantId, slug, name, signingKey } = created;
    const signingKeys = signingKey ? [signingKey] : [];
    return itemAdd(items, { ...TENANT, id: tenantId, slug, name, signingKeys, createdAt: event.time, ...stamp(event) });
  }
  if (updated) {
    return itemChange(items, updated.tenantId, (item) => ({
      ...item,
      name: updated.name ?? item.name,
      ...stamp(event),
    }));
  }
  if (deleted) return itemRemove(items, deleted.tenantId);
  if (event.cvlan?.created) return counted(items, event, "cvlanCount", 1);
  if (event.cvlan?.deleted) return counted(items, event, "cvlanCount", -1);
  if (event.node?.created) return counted(items, event, "nodeCount", 1);
  if (event.node?.deleted) return counted(items, event, "nodeCount", -1);
  return items;
};

export const tenantDescribe: Describe = (event, nameOf) => {
  const { created, updated, deleted } = event.tenant ?? {};
  const actor = who(event, nameOf);
  if (created) {
    const long = created.name && created.name !== created.slug ? ` (${created.name})` : "";
    return { tone: "add", parts: [actor, " created tenant ", thing(created.tenantId, created.slug), long] };
  }
  if (updated) {
    const what = thing(updated.tenantId, nameOf(updated.tenantId));
    return { tone: "change", parts: [actor, " renamed tenant ", what, ` to “${updated.name ?? ""}”`] };
  }
  if (deleted) {
    return {
      tone: "remove",
      parts: [actor, " deleted tenant ", thing(deleted.tenantId, nameOf(deleted.tenantId))],
    };
  }
  return undefined;
};
