import type { Node } from "../../api/types";
import { age } from "../../lib/format";

interface Presence {
  dot: "on" | "off" | "none";
  text: string;
  /** For sorting: online first. */
  rank: number;
}

/** Whether a machine is there. A plain WireGuard device has no agent to tell. */
export function nodePresence(node: Node, now?: number): Presence {
  if (node.online) return { dot: "on", text: "online", rank: 0 };
  if (!node.tokenId) return { dot: "none", text: "device", rank: 2 };
  if (now !== undefined && node.lastSeenAt) {
    return { dot: "off", text: `seen ${age(node.lastSeenAt, now)} ago`, rank: 1 };
  }
  return { dot: "off", text: "offline", rank: 1 };
}
