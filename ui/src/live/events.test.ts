import { describe, expect, it } from "vitest";
import { event } from "../features/fixtures";
import { eventsAppend, eventsPrepend, type Live } from "./events";

const at = (...seqs: number[]) => seqs.map((seq) => event(seq, {}));
const state = (from: number, ...seqs: number[]): Live => ({ link: "live", from, events: at(...seqs) });
const seqs = ({ events }: Live) => events.map(({ seq }) => Number(seq));

describe("eventsAppend", () => {
  it.each([
    ["new ones", [1, 2], [3, 4], [1, 2, 3, 4]],
    ["a gap, where others' events are", [1], [7, 9], [1, 7, 9]],
    ["some that came before", [1, 2, 3], [2, 3, 4], [1, 2, 3, 4]],
    ["one twice", [], [1, 1, 2], [1, 2]],
  ])("%s", (_, before, incoming, after) => {
    expect(seqs(eventsAppend(state(1, ...before), at(...incoming)))).toEqual(after);
  });

  it("is the same object where nothing is new", () => {
    const before = state(1, 1, 2);
    expect(eventsAppend(before, at(1, 2))).toBe(before);
  });

  it("drops the oldest beyond the bound, and knows that they can be read again", () => {
    const after = eventsAppend(state(1, 1, 2, 3), at(4, 5), 4);
    expect(seqs(after)).toEqual([2, 3, 4, 5]);
    expect(after.from).toBe(2);
  });
});

describe("eventsPrepend", () => {
  it("adds what is older, and remembers how far was read", () => {
    const after = eventsPrepend(state(10, 12, 13), 5, at(6, 9, 12));
    expect(seqs(after)).toEqual([6, 9, 12, 13]);
    expect(after.from).toBe(5);
  });
});
