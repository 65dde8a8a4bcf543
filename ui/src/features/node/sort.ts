import type { Node } from "../../api/types";
import { ipv4Number } from "../../lib/format";
import { nodePresence } from "./presence";

export type SortKey = "name" | "ipv4" | "presence" | "age";
export interface Sort {
  key: SortKey;
  descending: boolean;
}

const byName = new Intl.Collator("en", { numeric: true }).compare;

const COMPARES: Record<SortKey, (a: Node, b: Node) => number> = {
  name: (a, b) => byName(a.name, b.name),
  ipv4: (a, b) => ipv4Number(a.ipv4) - ipv4Number(b.ipv4),
  presence: (a, b) => nodePresence(a).rank - nodePresence(b).rank,
  // The youngest has the least age.
  age: (a, b) => (b.createdAt ?? "").localeCompare(a.createdAt ?? ""),
};

/** Sorted, names breaking ties; web-2 before web-10. */
export function nodesSort(nodes: readonly Node[], { key, descending }: Sort): Node[] {
  const compare = COMPARES[key];
  const sign = descending ? -1 : 1;
  return nodes.toSorted((a, b) => sign * compare(a, b) || byName(a.name, b.name));
}

/** Does a node answer to what was typed: every word in its name, addresses, tags, host name or system. */
export function nodeMatches(node: Node, text: string): boolean {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return true;
  const { name, ipv4, ipv6, tags, endpoints, hostname, os, status, id } = node;
  const here = node.online ? "online" : "offline";
  const hay = [name, ipv4, ipv6, ...tags, ...endpoints, hostname, os, status, here, id].join(" ").toLowerCase();
  return words.every((word) => hay.includes(word));
}
