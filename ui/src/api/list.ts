/** Lists: every page up to a bound, as one snapshot. */
import type { Snapshot } from "../live/fold";
import { requestJson } from "./session";
import { filled, type Wire } from "./types";

interface ListAnswer<T> {
  items: Wire<T>[];
  nextCursor: string;
}

/** The controller's own limit for one page. */
const PAGE = 1_000;

/**
 * Reads `path` page by page until its end or `max` items. The snapshot is as old as its first page: later pages may
 * know more, and folding an event that they already know changes nothing.
 */
export async function listRead<T>(
  path: string,
  params: Readonly<Record<string, string>>,
  defaults: T,
  max: number,
  signal: AbortSignal,
): Promise<Snapshot<T>> {
  const items: T[] = [];
  let seq: number | undefined;
  let cursor = "";
  do {
    const query = new URLSearchParams({ ...params, limit: String(Math.min(PAGE, max)) });
    if (cursor) query.set("cursor", cursor);
    const page = await requestJson<ListAnswer<T>>("GET", `${path}?${query}`, { signal });
    for (const item of page.body.items ?? []) items.push(filled(defaults, item));
    seq ??= page.seq;
    cursor = page.body.nextCursor ?? "";
  } while (cursor && items.length < max);
  return { seq, items, complete: cursor === "" };
}

/** One segment of a path. */
export const segment = encodeURIComponent;
