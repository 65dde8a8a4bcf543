/** The events that the page holds for its timeline. */
import type { LogEvent } from "../api/types";
import { eventSeq } from "./fold";

/** `denied`: this user may not read events; lists are polled instead. */
export type Link = "connecting" | "live" | "lost" | "denied";

export interface Live {
  link: Link;
  /** Oldest first, no gap that this user could see. */
  events: readonly LogEvent[];
  /** The log was read from here; before it is more, unless this is 1. */
  from: number;
}

export const EVENTS_MAX = 5_000;

/** Adds what is new, in order; drops the oldest beyond the bound. */
export function eventsAppend(state: Live, incoming: readonly LogEvent[], max = EVENTS_MAX): Live {
  const last = state.events.at(-1);
  let seq = last ? eventSeq(last) : 0;
  const fresh = incoming.filter((event) => {
    if (eventSeq(event) <= seq) return false;
    seq = eventSeq(event);
    return true;
  });
  if (fresh.length === 0) return state;
  const all = [...state.events, ...fresh];
  const events = all.slice(-max);
  return { ...state, events, from: events.length < all.length && events[0] ? eventSeq(events[0]) : state.from };
}

/** Adds events from before the oldest. */
export function eventsPrepend(state: Live, from: number, older: readonly LogEvent[]): Live {
  const before = older.filter((event) => eventSeq(event) < state.from);
  return { ...state, from, events: [...before, ...state.events] };
}
