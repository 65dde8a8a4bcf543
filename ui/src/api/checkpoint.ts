/**
 * Checkpoints: `EPOCH.SEQ`, up to which someone has seen everything.
 *
 * Every answer names one. The newest goes back with every read, so that a read sees at least what this page has
 * already seen or written, whichever member answers it.
 */

export interface Checkpoint {
  /** Which incarnation of the log: 32 hex digits. */
  epoch: string;
  seq: number;
}

/** The parsed form, or undefined where it is none. */
export function checkpointParse(text: string | null | undefined): Checkpoint | undefined {
  const match = /^([0-9a-f]{32})\.(\d{1,16})$/.exec(text ?? "");
  return match?.[1] && match[2] ? { epoch: match[1], seq: Number(match[2]) } : undefined;
}

/** The later of the two. Another epoch is another log (a restored cluster): what was seen before no longer counts. */
export function checkpointLater(seen: Checkpoint | undefined, next: Checkpoint | undefined): Checkpoint | undefined {
  if (!next) return seen;
  if (!seen || seen.epoch !== next.epoch || next.seq > seen.seq) return next;
  return seen;
}

let newest: Checkpoint | undefined;
let logs = 0;

export const checkpointNewest = () => newest;

/** Changes where answers come from another log than before: then nothing that was read from the old one holds. */
export const checkpointLog = () => logs;

/** The controller does not know what this page has seen: its log is another one, or was set back. */
export function checkpointForget(): void {
  newest = undefined;
  logs += 1;
}

export function checkpointSeen(next: Checkpoint | undefined): void {
  if (newest && next && newest.epoch !== next.epoch) logs += 1;
  newest = checkpointLater(newest, next);
}
