/** Where the picture of a cluster puts the members around the leader. Pure. */
import type { Place } from "../node/layout";

/** Up to here with a name and what it does at each; above, dots. */
export const NAMED_MAX = 8;
/** Up to here with the figures on every line; above, where something is wrong. */
export const FIGURES_MAX = 5;
/** One axis may be stretched so much more than the other. */
const STRETCH_MAX = 1.7;

export interface Box {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/** Around the leader, mirrored left and right: two below it, more on a ring that begins at its upper left. */
function around(total: number): Place[] {
  const angles =
    total === 2
      ? [1.3 * Math.PI, 0.7 * Math.PI]
      : Array.from({ length: total }, (_, at) => (Math.PI * (2 * at - 1)) / total);
  return angles.map((angle) => ({ x: Math.sin(angle), y: -Math.cos(angle) }));
}

/** A cluster is drawn with room for so many others: nothing moves while the first three come in. */
const OTHERS_MIN = 2;

/** The leader's place and those of `total` others, or of two, as large as the box allows and in its middle. */
export function membersPlace(total: number, box: Box): { leader: Place; others: Place[] } {
  const units = [{ x: 0, y: 0 }, ...around(Math.max(total, OTHERS_MIN))];
  const [xs, ys] = [units.map(({ x }) => x), units.map(({ y }) => y)];
  const range = (values: number[]) => ({ low: Math.min(...values), high: Math.max(...values) });
  const [rangeX, rangeY] = [range(xs), range(ys)];
  const scaleTo = (room: number, { low, high }: { low: number; high: number }) => Math.max(0, room) / (high - low);
  const [fitX, fitY] = [scaleTo(box.right - box.left, rangeX), scaleTo(box.bottom - box.top, rangeY)];
  const scaleX = Math.min(fitX, fitY * STRETCH_MAX);
  const scaleY = Math.min(fitY, fitX * STRETCH_MAX);
  const middle = (low: number, high: number) => (low + high) / 2;
  const origin = {
    x: middle(box.left, box.right) - middle(rangeX.low, rangeX.high) * scaleX,
    y: middle(box.top, box.bottom) - middle(rangeY.low, rangeY.high) * scaleY,
  };
  const [leader = origin, ...others] = units.map(({ x, y }) => ({
    x: origin.x + x * scaleX,
    y: origin.y + y * scaleY,
  }));
  return { leader, others };
}
