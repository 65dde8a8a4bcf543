/** CVLANs: what the list becomes by each event, and how the events read. */
import type { Cvlan } from "../../api/types";
import { type Fold, itemAdd, itemChange, itemRemove, stamp } from "../../live/fold";
import { type Describe, thing, who } from "../sentence";

export const CVLAN: Cvlan = {
  id: "",
  tenantId: "",
  name: "",
  ipv4Cidr: "",
  ipv6Cidr: "",
  nodeCount: 0,
  revision: "0",
};

const counted = (items: Cvlan[], id: string, by: number) =>
  itemChange(items, id, (item) => ({ ...item, nodeCount: Math.max(0, item.nodeCount + by) }));

/** Scope: [tenant id]. */
export const cvlanFold: Fold<Cvlan> = (items, event, { args: [tenantId] }) => {
  if (event.tenantId !== tenantId) return items;
  const { created, updated, deleted } = event.cvlan ?? {};
  if (created) {
    const { cvlanId: id, name, ipv4Cidr = "", ipv6Cidr = "" } = created;
    return itemAdd(items, { ...CVLAN, id, tenantId, name, ipv4Cidr, ipv6Cidr, createdAt: event.time, ...stamp(event) });
  }
  if (updated) {
    return itemChange(items, updated.cvlanId, (item) => ({
      ...item,
      name: updated.name ?? item.name,
      ...stamp(event),
    }));
  }
  if (deleted) return itemRemove(items, deleted.cvlanId);
  if (event.node?.created) return counted(items, event.node.created.cvlanId, 1);
  if (event.node?.deleted) return counted(items, event.node.deleted.cvlanId, -1);
  return items;
};

export const cvlanDescribe: Describe = (event, nameOf) => {
  const { created, updated, deleted } = event.cvlan ?? {};
  const actor = who(event, nameOf);
  if (created) {
    const ranges = [created.ipv4Cidr, created.ipv6Cidr].filter(Boolean).join(" and ");
    return {
      tone: "add",
      parts: [actor, " created CVLAN ", thing(created.cvlanId, created.name), ranges ? `, ${ranges}` : ""],
    };
  }
  if (updated) {
    return {
      tone: "change",
      parts: [actor, " renamed a CVLAN to ", thing(updated.cvlanId, updated.name ?? nameOf(updated.cvlanId))],
    };
  }
  if (deleted) {
    return { tone: "remove", parts: [actor, " deleted CVLAN ", thing(deleted.cvlanId, nameOf(deleted.cvlanId))] };
  }
  return undefined;
};
