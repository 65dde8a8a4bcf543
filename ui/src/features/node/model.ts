/** Nodes: what the list becomes by each event, and how the events read. */
import type { Node } from "../../api/types";
import { type Fold, itemAdd, itemChange, itemRemove, stamp } from "../../live/fold";
import { type Describe, thing, who } from "../sentence";

export const NODE: Node = {
  id: "",
  tenantId: "",
  cvlanId: "",
  name: "",
  wgPublicKey: "",
  ipv4: "",
  ipv6: "",
  endpoints: [],
  tags: [],
  ownerId: "",
  status: "active",
  hostname: "",
  os: "",
  agentVersion: "",
  revision: "0",
  online: false,
  tokenId: "",
};

/** Scope: [tenant id, CVLAN id, text searched for]. */
export const nodeFold: Fold<Node> = (items, event, { args: [, cvlanId, search], complete }) => {
  const { created, updated, deleted, endpointsChanged } = event.node ?? {};
  if (created) {
    if (created.cvlanId !== cvlanId) return items;
    // Whether it belongs on this page of a longer or a searched list, only the controller knows.
    if (search || !complete) return undefined;
    const { nodeId: id, name, ipv4 = "", ipv6 = "", hostname = "", os = "", agentVersion = "" } = created;
    return itemAdd(items, {
      ...NODE,
      ...{ id, tenantId: event.tenantId, cvlanId, name, ipv4, ipv6, hostname, os, agentVersion },
      // `bytes` are base64 in JSON, whatever the generated type says; so is a node's key.
      wgPublicKey: String(created.wgPublicKey ?? ""),
      endpoints: created.endpoints ?? [],
      tags: created.tags ?? [],
      tokenId: created.enrolment?.tokenId ?? "",
      createdAt: event.time,
      ...stamp(event),
    });
  }
  if (updated) {
    return itemChange(items, updated.nodeId, (item) => ({
      ...item,
      name: updated.name ?? item.name,
      status: updated.status ?? item.status,
      ...stamp(event),
    }));
  }
  if (deleted) return itemRemove(items, deleted.nodeId);
  if (endpointsChanged) {
    const { nodeId, endpoints = [] } = endpointsChanged;
    return itemChange(items, nodeId, (item) => ({ ...item, endpoints, ...stamp(event) }));
  }
  return items;
};

const STATUS_VERBS: Record<string, string> = { active: " enabled ", disabled: " disabled " };

export const nodeDescribe: Describe = (event, nameOf) => {
  const { created, updated, deleted, endpointsChanged } = event.node ?? {};
  const actor = who(event, nameOf);
  if (created) {
    const node = thing(created.nodeId, created.name);
    const cvlan = thing(created.cvlanId, nameOf(created.cvlanId));
    const address = created.ipv4 || created.ipv6;
    const at = address ? ` as ${address}` : "";
    if (created.enrolment) return { tone: "add", parts: [node, " joined ", cvlan, at] };
    return { tone: "add", parts: [actor, " added device ", node, " to ", cvlan, at] };
  }
  if (updated) {
    const node = thing(updated.nodeId, nameOf(updated.nodeId));
    if (updated.status !== undefined) {
      const verb = STATUS_VERBS[updated.status];
      if (verb) return { tone: "change", parts: [actor, verb, node] };
      return { tone: "change", parts: [actor, " set ", node, ` to ${updated.status}`] };
    }
    return { tone: "change", parts: [actor, " renamed a node to ", thing(updated.nodeId, updated.name ?? node.name)] };
  }
  if (deleted) {
    return { tone: "remove", parts: [actor, " deleted node ", thing(deleted.nodeId, nameOf(deleted.nodeId))] };
  }
  if (endpointsChanged) {
    const node = thing(endpointsChanged.nodeId, nameOf(endpointsChanged.nodeId));
    const [first, ...others] = endpointsChanged.endpoints ?? [];
    if (!first) return { tone: "quiet", parts: [node, " has no endpoint any more"] };
    const more = others.length > 0 ? ` and ${others.length} more` : "";
    return { tone: "quiet", parts: [node, ` is reachable at ${first}${more}`] };
  }
  return undefined;
};
