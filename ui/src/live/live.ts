/**
 * The live half of the page: follows the log over server-sent events, keeps the newest events for the timeline, and
 * hands everything to the lists.
 *
 *   GET /log/events?follow=true&from=SEQ ──▶ event ────▶ timeline, directory of names, folds into cached lists
 *                                        └─▶ presence ─▶ cached node lists
 *
 * After a cut it goes on from the event after the last one: nothing is missed, no event read twice. Presence has no
 * numbers of its own, so it may come twice, and node lists are read again after each reconnect.
 */
import type { QueryClient } from "@tanstack/react-query";
import { checkpointLog, checkpointNewest } from "../api/checkpoint";
import { problemOf } from "../api/problem";
import { request, requestJson } from "../api/session";
import type { LogEvent } from "../api/types";
import { storeCreate, useStore } from "../lib/store";
import { directoryClear, directoryLearnEvent } from "./directory";
import { EVENTS_MAX, eventsAppend, eventsPrepend, type Live } from "./events";
import { eventSeq } from "./fold";
import { listsKeep } from "./lists";
import { type SseMessage, sseRead } from "./sse";

/** Events to begin with, before the newest. */
export const EVENTS_BEFORE = 300;
const OLDER_PAGE = 500;
/** Pages to look through for a tenant's older events among everybody's. */
const OLDER_TRIES = 8;
/** The controller sends a comment more often than this, with room for a slow network. */
const SILENCE_MS = 75_000;
/** A stream that lasted so long and then ended was ended on purpose. */
const ORDERLY_MS = 5_000;
const BACKOFF_MIN_MS = 300;
const BACKOFF_MAX_MS = 8_000;
const POLL_MS = 5_000;

const NOTHING: Live = { link: "connecting", events: [], from: 1 };

export const live = storeCreate<Live>(NOTHING);
export const useLink = () => useStore(live, (value) => value.link);

/** Lists follow the stream; without one they are asked for. */
export const usePolling = () => (useLink() === "live" ? false : POLL_MS);

function reset(): void {
  live.set(NOTHING);
  directoryClear();
}

/** What the messages say; one that is not understood is left out. */
function messagesParse(messages: readonly SseMessage[]) {
  const events: LogEvent[] = [];
  const presence = new Map<string, boolean>();
  for (const { event, data } of messages) {
    try {
      if (event === "event") events.push(JSON.parse(data) as LogEvent);
      else if (event === "presence") {
        const { nodeId, online = false } = JSON.parse(data) as { nodeId?: string; online?: boolean };
        if (nodeId) presence.set(nodeId, online);
      }
    } catch {
      // Not ours to repair; the next one counts.
    }
  }
  return { events, presence };
}

/** Where to go on: after the last event, or shortly before the newest. */
async function followFrom(signal: AbortSignal): Promise<number> {
  const last = live.get().events.at(-1);
  if (last) return eventSeq(last) + 1;
  if (!checkpointNewest()) await requestJson("GET", "/me", { signal });
  const from = Math.max(1, (checkpointNewest()?.seq ?? 1) - EVENTS_BEFORE + 1);
  live.set({ ...live.get(), from });
  return from;
}

/** Follows the log until stopped. One at a time: the page has one log. */
export function liveStart(client: QueryClient): () => void {
  const stop = new AbortController();
  const { signal } = stop;
  const lists = listsKeep(client, () => live.get().events);
  let log = checkpointLog();
  let backoff = BACKOFF_MIN_MS;
  let wake = () => {};

  /** Answers come from another log than before (a restored cluster): nothing that this page knows holds. */
  const otherLog = () => {
    if (log === checkpointLog()) return false;
    log = checkpointLog();
    reset();
    void client.resetQueries();
    return true;
  };

  const follow = async () => {
    otherLog();
    const path = `/log/events?follow=true&from=${await followFrom(signal)}`;
    const { body } = await request("GET", path, { accept: "text/event-stream", signal });
    if (!body || otherLog()) {
      await body?.cancel();
      return false;
    }
    live.set({ ...live.get(), link: "live" });
    lists.reconnected();
    const since = Date.now();
    for await (const batch of sseRead(body, SILENCE_MS, signal)) {
      backoff = BACKOFF_MIN_MS;
      const { events, presence } = messagesParse(batch);
      for (const event of events) directoryLearnEvent(event);
      live.set(eventsAppend(live.get(), events));
      lists.take(events, presence);
    }
    // A stream ends with its access token: that is no trouble, and nothing to show.
    return Date.now() - since >= ORDERLY_MS;
  };

  const pause = () =>
    new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, backoff * (0.5 + Math.random() / 2));
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });

  const run = async () => {
    while (!signal.aborted) {
      let denied = false;
      try {
        if (await follow()) continue;
      } catch (error) {
        denied = problemOf(error).status === 403;
      }
      if (signal.aborted) return;
      live.set({ ...live.get(), link: denied ? "denied" : "lost" });
      if (denied) return;
      await pause();
      backoff = Math.min(backoff * 2, BACKOFF_MAX_MS);
    }
  };

  const hurry = () => wake();
  window.addEventListener("online", hurry);
  window.addEventListener("focus", hurry);
  void run();
  return () => {
    stop.abort();
    wake();
    lists.stop();
    window.removeEventListener("online", hurry);
    window.removeEventListener("focus", hurry);
    reset();
  };
}

/** Reads events from before the oldest one here. */
export async function olderLoad(): Promise<void> {
  for (let tries = 0; tries < OLDER_TRIES; tries += 1) {
    const before = live.get().from;
    if (before <= 1 || live.get().events.length >= EVENTS_MAX) return;
    const from = Math.max(1, before - OLDER_PAGE);
    const path = `/log/events?from=${from}&to=${before - 1}&limit=${OLDER_PAGE}`;
    const response = await request("GET", path, { accept: "application/x-ndjson" });
    const older = (await response.text())
      .split("\n")
      .filter((line) => line.trim() !== "")
      .map((line) => JSON.parse(line) as LogEvent);
    const state = live.get();
    // Meanwhile the oldest were dropped, or the log became another one: what was read no longer fits.
    if (state.from !== before) return;
    for (const event of older) directoryLearnEvent(event);
    const next = eventsPrepend(state, from, older);
    live.set(next);
    if (next.events.length > state.events.length) return;
  }
}
