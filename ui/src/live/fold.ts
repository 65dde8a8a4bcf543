/**
 * Live lists: a list read from the controller plus the events after it, as everything in CVLAN is a fold over the log.
 *
 *   GET list ──▶ Snapshot { seq, items } ──┐
 *   event stream ──▶ events after seq ─────┴─ fold ──▶ Snapshot { later seq, items }
 *
 * A fold is pure, and an event at or before the snapshot's seq changes nothing: events may come twice, or in the
 * answer and on the stream, in any interleaving. A fold that cannot know the outcome says so, and the list is read
 * again.
 */
import type { LogEvent } from "../api/types";

export interface Snapshot<T> {
  /** Everything up to here is in `items`. */
  seq: number;
  items: T[];
  /** False: there is more than this page holds. */
  complete: boolean;
}

/** `undefined`: read the list again. The same array: nothing changed. */
export type Fold<T> = (items: T[], event: LogEvent, scope: Scope) => T[] | undefined;

export interface Scope {
  /** What the list was asked for: the rest of its query key. */
  args: readonly string[];
  complete: boolean;
}

export const eventSeq = (event: LogEvent) => Number(event.seq ?? 0);

export function snapshotFold<T>(
  snapshot: Snapshot<T>,
  events: readonly LogEvent[],
  fold: Fold<T>,
  args: readonly string[],
): Snapshot<T> | undefined {
  let { seq, items } = snapshot;
  for (const event of events) {
    if (eventSeq(event) <= seq) continue;
    const next = fold(items, event, { args, complete: snapshot.complete });
    if (!next) return undefined;
    items = next;
    seq = eventSeq(event);
  }
  return items === snapshot.items ? snapshot : { ...snapshot, seq, items };
}

/** `items` with the one named `id` changed; the same array if it is not there. */
export function itemChange<T extends { id: string }>(items: T[], id: string, change: (item: T) => T): T[] {
  const at = items.findIndex((item) => item.id === id);
  const item = items[at];
  return item === undefined ? items : items.with(at, change(item));
}

export function itemRemove<T extends { id: string }>(items: T[], id: string): T[] {
  return items.some((item) => item.id === id) ? items.filter((item) => item.id !== id) : items;
}

/** Adds what is not there yet. What is there was read from the controller, which knows more than the event. */
export function itemAdd<T extends { id: string }>(items: T[], item: T): T[] {
  return items.some((other) => other.id === item.id) ? items : [...items, item];
}

/** What each change sets besides its own fields. */
export const stamp = (event: LogEvent) => ({ updatedAt: event.time, revision: String(eventSeq(event)) });
