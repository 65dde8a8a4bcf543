import { type RefObject, useEffect, useEffectEvent, useLayoutEffect, useState, useSyncExternalStore } from "react";

const TICK_MS = 1_000;

let now = Date.now();
let timer: ReturnType<typeof setInterval> | undefined;
const watchers = new Set<() => void>();

function nowSubscribe(watcher: () => void): () => void {
  if (!timer) now = Date.now();
  watchers.add(watcher);
  timer ??= setInterval(() => {
    now = Date.now();
    for (const each of watchers) each();
  }, TICK_MS);
  return () => {
    watchers.delete(watcher);
    if (watchers.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
  };
}

/** The time, once a second, for everyone who shows an age. */
export const useNow = () => useSyncExternalStore(nowSubscribe, () => now);

/** Typing in a field is not a shortcut. */
const typing = (target: EventTarget | null) =>
  target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));

/** A key pressed anywhere on the page, outside of fields and dialogs. `mod` is Ctrl or Command, and works in fields. */
export function useShortcut(key: string, action: () => void, mod = false): void {
  const act = useEffectEvent(action);
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      if (event.key !== key || event.altKey || (event.ctrlKey || event.metaKey) !== mod || event.defaultPrevented)
        return;
      if (document.querySelector("dialog[open]") || (!mod && typing(event.target))) return;
      event.preventDefault();
      act();
    };
    window.addEventListener("keydown", press);
    return () => window.removeEventListener("keydown", press);
  }, [key, mod]);
}

/** The rows of a long list that are in sight, and a few around them; all have the same height. */
export function useWindowed(scroller: RefObject<HTMLElement | null>, rows: number, rowHeight: number, offset: number) {
  const [range, setRange] = useState({ first: 0, last: 60 });
  useLayoutEffect(() => {
    const element = scroller.current;
    if (!element) return;
    const measure = () => {
      const first = Math.max(0, Math.floor((element.scrollTop - offset) / rowHeight) - 10);
      const last = Math.min(rows, Math.ceil((element.scrollTop - offset + element.clientHeight) / rowHeight) + 10);
      setRange((before) => (before.first === first && before.last === last ? before : { first, last }));
    };
    measure();
    element.addEventListener("scroll", measure, { passive: true });
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => {
      element.removeEventListener("scroll", measure);
      observer.disconnect();
    };
  }, [scroller, rows, rowHeight, offset]);
  return { first: Math.min(range.first, rows), last: Math.min(range.last, rows) };
}

/** The size of an element, in pixels, as it changes. */
export function useSize(target: RefObject<HTMLElement | null>) {
  const [size, setSize] = useState({ width: 0, height: 0 });
  useLayoutEffect(() => {
    const element = target.current;
    if (!element) return;
    const measure = () => setSize({ width: element.clientWidth, height: element.clientHeight });
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, [target]);
  return size;
}
