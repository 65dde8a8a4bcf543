/** Numbers, times and addresses for people. */

const NUMBER = new Intl.NumberFormat("en");
export const count = (value: number) => NUMBER.format(value);

/** 1 node, 2 nodes. */
export const plural = (value: number, one: string, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

const AGES: readonly [number, string][] = [
  [86_400 * 365, "y"],
  [86_400 * 7, "w"],
  [86_400, "d"],
  [3_600, "h"],
  [60, "m"],
  [1, "s"],
];

/** The largest unit alone: 42s, 3m, 5h, 2d. */
export function seconds(value: number): string {
  const whole = Math.max(0, Math.floor(value));
  for (const [unit, letter] of AGES) if (whole >= unit) return `${Math.floor(whole / unit)}${letter}`;
  return "0s";
}

/** A short time: 12 ms, 7.2 s, 34 s, 3m. */
export function millis(value: number): string {
  if (value < 1_000) return `${Math.round(value)} ms`;
  if (value >= 60_000) return seconds(value / 1_000);
  return `${(value / 1_000).toFixed(value < 10_000 ? 1 : 0)} s`;
}

/** How long ago, or how long to go. */
export const age = (time: string | undefined, now: number) => (time ? seconds((now - Date.parse(time)) / 1000) : "–");
export const remaining = (time: string | undefined, now: number) =>
  time ? seconds((Date.parse(time) - now) / 1000) : "–";

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en", { weekday: "short", day: "numeric", month: "short", year: "numeric" });
const FULL = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "long" });

export const clock = (time: string | undefined) => (time ? CLOCK.format(Date.parse(time)) : "");
export const day = (time: string | undefined) => (time ? DAY.format(Date.parse(time)) : "");
export const timeFull = (time: string | undefined) => (time ? FULL.format(Date.parse(time)) : "");

/** The first digits of a hash or an id: enough to compare by eye. */
export const short = (text: string, length = 8) => text.slice(0, length);

/** `bytes` in proto3 JSON are base64, though the generated types say Uint8Array. Anything else gives "". */
export function hexOf(bytes: unknown): string {
  if (typeof bytes !== "string") return "";
  try {
    return [...atob(bytes)].map((c) => c.charCodeAt(0).toString(16).padStart(2, "0")).join("");
  } catch {
    return "";
  }
}

/** Addresses that an IPv4 CVLAN can give to nodes: all but network, broadcast, and the first and last usable one. */
export function ipv4Capacity(cidr: string): number | undefined {
  const length = Number(/\/(\d{1,2})$/.exec(cidr)?.[1] ?? Number.NaN);
  return length >= 0 && length <= 32 ? Math.max(0, 2 ** (32 - length) - 4) : undefined;
}

/** For sorting: 10.0.0.9 before 10.0.0.10. */
export const ipv4Number = (address: string) =>
  address.split(".").reduce((sum, part) => sum * 256 + (Number(part) || 0), 0);

/** One word for a POSIX shell. */
export const shellWord = (text: string) =>
  /^[A-Za-z0-9_./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
