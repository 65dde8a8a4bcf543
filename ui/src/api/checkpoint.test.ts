import { describe, expect, it } from "vitest";
import { checkpointLater, checkpointParse } from "./checkpoint";

const A = "a".repeat(32);
const B = "b".repeat(32);

describe("checkpointParse", () => {
  it.each([
    [`${A}.12`, { epoch: A, seq: 12 }],
    [`${A}.`, undefined],
    [`${A.toUpperCase()}.1`, undefined],
    ["12", undefined],
    ["", undefined],
    [null, undefined],
  ])("%s", (text, parsed) => expect(checkpointParse(text)).toEqual(parsed));
});

describe("checkpointLater", () => {
  it.each([
    ["nothing was seen", undefined, { epoch: A, seq: 1 }, { epoch: A, seq: 1 }],
    ["nothing came", { epoch: A, seq: 1 }, undefined, { epoch: A, seq: 1 }],
    ["later", { epoch: A, seq: 1 }, { epoch: A, seq: 2 }, { epoch: A, seq: 2 }],
    ["from a member behind", { epoch: A, seq: 2 }, { epoch: A, seq: 1 }, { epoch: A, seq: 2 }],
    ["another log", { epoch: A, seq: 9 }, { epoch: B, seq: 1 }, { epoch: B, seq: 1 }],
  ])("%s", (_, seen, next, later) => expect(checkpointLater(seen, next)).toEqual(later));
});
