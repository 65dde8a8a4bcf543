/**
 * Keeps the lists that React Query holds up to the stream: folds events into them, lays presence over the nodes, and
 * asks again for what cannot be folded.
 */
import type { QueryClient, QueryKey } from "@tanstack/react-query";
import type { LogEvent, Node } from "../api/types";
import { FOLDS } from "../features/registry";
import { directoryLearnList } from "./directory";
import { type Snapshot, snapshotFold } from "./fold";

/** Lists that cannot be folded, and the cluster's figures, are read again at most this often. */
export const REFRESH_MS = 600;
const PRESENCE_MAX = 20_000;

export interface Lists {
  take(events: readonly LogEvent[], presence: ReadonlyMap<string, boolean>): void;
  /** A new stream: presence may have changed meanwhile, and comes again from the last event on. */
  reconnected(): void;
  stop(): void;
}

/** `recent`: the events at hand, for answers that land after them. */
export function listsKeep(client: QueryClient, recent: () => readonly LogEvent[]): Lists {
  const online = new Map<string, boolean>();
  const refresher = refresherCreate(client);

  const foldInto = (key: QueryKey, events: readonly LogEvent[]) => {
    const [noun, ...args] = key as string[];
    const fold = FOLDS[noun ?? ""];
    const before = client.getQueryData<Snapshot<never>>(key);
    if (!fold || !before) return;
    const folded = snapshotFold(before, events, fold, args);
    if (!folded) return refresher.ask(key);
    const after = noun === "nodes" ? presenceOverlay(folded, online) : folded;
    if (after !== before) client.setQueryData(key, after);
  };

  // An answer is brought up to the stream after it has landed, so that no event falls between the two.
  const unsubscribe = client.getQueryCache().subscribe(({ type, query, ...rest }) => {
    if (type !== "updated" || !("action" in rest) || rest.action.type !== "success" || rest.action.manual) return;
    const [noun] = query.queryKey as string[];
    if (!noun || !FOLDS[noun]) return;
    directoryLearnList(noun, (query.state.data as Snapshot<{ id: string }>).items);
    foldInto(query.queryKey, recent());
  });

  return {
    take(events, presence) {
      for (const [nodeId, state] of presence) {
        online.delete(nodeId);
        online.set(nodeId, state);
      }
      for (const nodeId of online.keys()) {
        if (online.size <= PRESENCE_MAX) break;
        online.delete(nodeId);
      }
      for (const query of client.getQueryCache().getAll()) foldInto(query.queryKey, events);
      refresher.ask(["cluster"]);
    },
    reconnected() {
      online.clear();
      void client.invalidateQueries({ predicate: ({ queryKey: [noun] }) => noun === "nodes" || noun === "cluster" });
    },
    stop() {
      unsubscribe();
      refresher.stop();
    },
  };
}

function presenceOverlay(snapshot: Snapshot<Node>, online: ReadonlyMap<string, boolean>): Snapshot<Node> {
  if (online.size === 0) return snapshot;
  let changed = false;
  const items = snapshot.items.map((node) => {
    const state = online.get(node.id);
    if (state === undefined || state === node.online) return node;
    changed = true;
    return state ? { ...node, online: true } : { ...node, online: false, lastSeenAt: new Date().toISOString() };
  });
  return changed ? { ...snapshot, items } : snapshot;
}

/** Reads queries again, all that were asked for in a short while at once. */
function refresherCreate(client: QueryClient) {
  const waiting = new Map<string, QueryKey>();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const flush = () => {
    const keys = [...waiting.values()];
    waiting.clear();
    for (const queryKey of keys) void client.invalidateQueries({ queryKey, exact: true });
  };
  return {
    ask(key: QueryKey) {
      if (waiting.size === 0) timer = setTimeout(flush, REFRESH_MS);
      waiting.set(JSON.stringify(key), key);
    },
    stop: () => clearTimeout(timer),
  };
}
