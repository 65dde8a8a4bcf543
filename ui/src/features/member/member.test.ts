import { describe, expect, it } from "vitest";
import type { Member } from "../../api/types";
import { alertsOf } from "./alerts";
import { type Box, membersPlace } from "./layout";
import {
  BEHIND_MAX,
  joinCommand,
  LOST_MS,
  MEMBER,
  memberHeard,
  memberPart,
  memberSkew,
  otherDoors,
  quorumOf,
  quorumSentence,
  quorumWithout,
  SKEW_MAX_MS,
  skewToLeader,
  skewWords,
  successors,
} from "./model";

const NOW = Date.parse("2026-01-02T03:04:05Z");
const at = (seconds: number) => new Date(NOW + seconds * 1_000).toISOString();

const voter = (id: number, more: Partial<Member> = {}): Member => ({
  ...MEMBER,
  ...{ id: String(id), name: `m${id}`, state: "joined", role: "follower", voter: true, version: "0.1.0" },
  ...{ heardMs: "100", skewMs: "2", behind: "0" },
  ...more,
});
const leader = (more: Partial<Member> = {}) => voter(1, { role: "leader", heardMs: "0", skewMs: "0", ...more });
const learner = (id: number, more: Partial<Member> = {}) => voter(id, { role: "learner", voter: false, ...more });
const lost = (id: number) => voter(id, { heardMs: String(LOST_MS + 1) });
const admitted = (id: number, expiresAt: string): Member => ({
  ...MEMBER,
  ...{ id: String(id), name: `m${id}`, state: "admitted", expiresAt },
});

describe("what a member does", () => {
  it.each<[string, Member]>([
    ["leader", leader()],
    ["voter", voter(2)],
    ["learner", learner(2)],
    ["joining", { ...MEMBER, state: "joined" }],
    ["admitted", admitted(2, at(1))],
    ["expired", admitted(2, at(0))],
  ])("%s", (part, member) => expect(memberPart(member, NOW)).toBe(part));

  it.each<[string, Partial<Member>]>([
    ["own", { id: "1", heardMs: undefined }],
    ["heard", { heardMs: String(LOST_MS) }],
    ["lost", { heardMs: String(LOST_MS + 1) }],
    ["never", { heardMs: undefined }],
  ])("is %s", (heard, more) => expect(memberHeard(voter(2, more), "1")).toBe(heard));

  it("has a skew only as long as it is heard", () => {
    expect(memberSkew(voter(2, { skewMs: "-7" }), "1")).toBe(-7);
    expect(memberSkew(voter(2, { skewMs: undefined }), "1")).toBeUndefined();
    expect(memberSkew({ ...lost(2), skewMs: "9000" }, "1")).toBeUndefined();
  });

  it("differs from the leader, whichever member answers", () => {
    const [first, other] = [leader({ heardMs: "90", skewMs: "40" }), voter(3, { skewMs: "-10" })];
    expect(skewToLeader(other, first, "2")).toBe(-50);
    expect(skewToLeader(voter(2, { skewMs: "0" }), first, "2")).toBe(-40);
    expect(skewToLeader(other, { ...first, heardMs: undefined }, "2")).toBeUndefined();
    expect([skewWords(7_240), skewWords(-12)]).toEqual(["7.2 s ahead", "12 ms behind"]);
  });

  it("may lead where it votes and does not lead yet", () => {
    expect(successors([leader(), voter(2), learner(3), admitted(4, at(9))]).map(({ id }) => id)).toEqual(["2"]);
  });
});

describe("the quorum", () => {
  it.each<[string, Member[]]>([
    ["One member decides alone; none may be lost", [leader()]],
    ["One member decides alone; none may be lost", [leader(), admitted(2, at(9))]],
    ["1 of 2 votes; none may be lost", [leader(), learner(2)]],
    ["2 of 2 vote; none may be lost", [leader(), voter(2)]],
    ["3 of 3 vote; 1 may be lost", [leader(), voter(2), voter(3)]],
    ["3 of 4 vote; 1 may be lost", [leader(), voter(2), voter(3), learner(4)]],
    ["3 of 3 vote, 1 of them not heard; none may be lost", [leader(), voter(2), lost(3)]],
    ["5 of 5 vote, 1 of them not heard; 1 may still be lost", [leader(), voter(2), voter(3), voter(4), lost(5)]],
    ["1 of 3 voters is heard; 2 are needed to decide", [voter(1), lost(2), lost(3)]],
    ["0 of 1 voters are heard; 1 is needed to decide", [lost(2), learner(1)]],
    ["2 of 5 voters are heard; 3 are needed to decide", [voter(1), voter(2), lost(3), lost(4), lost(5)]],
  ])("%s", (sentence, members) => expect(quorumSentence(quorumOf(members, "1"))).toBe(sentence));

  it("without one of them", () => {
    const members = [leader(), voter(2), voter(3)];
    expect(quorumSentence(quorumWithout(members, "3", "1"))).toBe("2 of 2 vote; none may be lost");
    expect(quorumWithout([leader(), lost(2), voter(3)], "3", "1").spare).toBe(-1);
  });
});

describe("alerts", () => {
  const three = [leader(), voter(2), voter(3)];
  const ahead = String(SKEW_MAX_MS + 1);
  const expectAlerts = (members: Member[], wanted: string[], more: { role?: string; divergedSeq?: string } = {}) => {
    const said = alertsOf({ members, memberId: "1", role: "leader", ...more }, NOW);
    expect(said.map(({ tone, title }) => `${tone}: ${title}`)).toEqual(wanted);
    expect(new Set(said.map(({ key }) => key)).size).toBe(said.length);
  };

  it.each<[string, Member[], string[]]>([
    ["one alone", [leader()], []],
    ["three", three, []],
    [
      "at the bounds",
      [leader(), voter(2, { behind: String(BEHIND_MAX) }), voter(3, { skewMs: String(-SKEW_MAX_MS) })],
      [],
    ],
    ["two that vote", [leader(), voter(2)], ["warn: No quorum margin"]],
    ["one of three lost", [leader(), voter(2), lost(3)], ["bad: No quorum margin", "bad: m3 is not heard"]],
    ["one of five lost", [leader(), voter(2), voter(3), voter(4), lost(5)], ["bad: m5 is not heard"]],
    ["a follower lost", [...three, { ...learner(4), heardMs: undefined }], ["warn: m4 is not heard"]],
    [
      "the majority lost",
      [voter(1), lost(2), lost(3)],
      ["bad: The majority is lost", "bad: m2 is not heard", "bad: m3 is not heard"],
    ],
    ["an election", [voter(1), voter(2), voter(3)], ["bad: Nobody leads"]],
    [
      "a leader lost",
      [voter(1), { ...lost(2), role: "leader" }, voter(3)],
      ["bad: Nobody leads", "bad: No quorum margin", "bad: m2 is not heard"],
    ],
    ["four that vote", [leader(), voter(2), voter(3), voter(4)], ["note: An even number votes"]],
    ["one that has just joined", [...three, learner(4, { heardMs: undefined, joinedAt: at(-9) })], []],
    [
      "one that has joined",
      [...three, learner(4, { heardMs: undefined, joinedAt: at(-10) })],
      ["warn: m4 is not heard"],
    ],
    ["one behind", [leader(), voter(2), voter(3, { behind: String(BEHIND_MAX + 1) })], ["warn: m3 is behind"]],
    ["a clock", [leader(), voter(2), voter(3, { skewMs: `-${ahead}` })], ["warn: The clock of m3 is wrong"]],
    [
      "its own clock",
      [leader(), voter(2, { skewMs: ahead }), voter(3, { skewMs: ahead })],
      ["warn: The clock of m1 is wrong"],
    ],
    [
      "two clocks, each its way",
      [leader(), voter(2, { skewMs: ahead }), voter(3, { skewMs: `-${ahead}` })],
      ["warn: The clock of m2 is wrong", "warn: The clock of m3 is wrong"],
    ],
    ["the only other clock", [leader(), learner(2, { skewMs: ahead })], ["warn: The clock of m2 is wrong"]],
    ["one expected", [...three, admitted(4, at(60))], ["note: m4 is admitted and has not joined yet"]],
    ["one that never came", [...three, admitted(4, at(-60))], ["warn: m4 was admitted and never joined"]],
    ["one coming in", [...three, { ...MEMBER, id: "4", name: "m4", state: "joined" }], []],
    ["an upgrade", [leader(), voter(2), voter(3, { version: "0.2.0" })], ["note: Members run 0.1.0 and 0.2.0"]],
    [
      "one that was removed",
      [voter(2, { role: "leader" }), voter(3), voter(4)],
      ["bad: member 1 is no member any more"],
    ],
  ])("%s", (_, members, wanted) => expectAlerts(members, wanted));

  it("tell of a state that differs, and of a member that has stopped, first", () => {
    expectAlerts(
      [...three, admitted(4, at(-1))],
      [
        "bad: The state of m1 differs from the leader's",
        "bad: m1 has stopped",
        "warn: m4 was admitted and never joined",
      ],
      { role: "stopped", divergedSeq: "7" },
    );
  });

  it("name the figures", () => {
    const status = { memberId: "1", role: "leader", members: [leader(), voter(2), { ...lost(3), heardMs: "34000" }] };
    expect(alertsOf(status, NOW).at(-1)).toMatchObject({
      memberId: "3",
      text: expect.stringMatching(/^For 34 s\. /),
    });
    const off = [leader(), voter(2, { skewMs: "9000" }), voter(3, { skewMs: "7200" })];
    expect(alertsOf({ ...status, members: off }, NOW)[0]?.text).toMatch(/^It is 7\.2 s behind of those of all others/);
  });
});

describe("the picture", () => {
  const box: Box = { left: 60, right: 300, top: 60, bottom: 240 };
  it.each([0, 1, 2, 3, 5, 8, 20, 63])("has %s others in its box, apart from each other", (total) => {
    const { leader: centre, others } = membersPlace(total, box);
    expect(others).toHaveLength(Math.max(2, total));
    const spots = [centre, ...others];
    for (const [index, { x, y }] of spots.entries()) {
      expect(x).toBeGreaterThanOrEqual(box.left - 1e-6);
      expect(x).toBeLessThanOrEqual(box.right + 1e-6);
      expect(y).toBeGreaterThanOrEqual(box.top - 1e-6);
      expect(y).toBeLessThanOrEqual(box.bottom + 1e-6);
      for (const other of spots.slice(index + 1)) expect(Math.hypot(x - other.x, y - other.y)).toBeGreaterThan(6);
    }
  });

  it("keeps places while the first three come in", () => {
    expect(membersPlace(0, box)).toEqual(membersPlace(2, box));
    expect(membersPlace(1, box)).toEqual(membersPlace(2, box));
  });

  it("is nothing before it has a size", () => {
    const { leader: centre, others } = membersPlace(3, { left: 60, right: -60, top: 60, bottom: -60 });
    for (const { x, y } of [centre, ...others]) expect([x, y]).toEqual([0, 0]);
  });
});

describe("where to go", () => {
  it("from a member that does not answer", () => {
    const members = [leader({ apiUrls: ["https://a"] }), voter(2, { apiUrls: ["https://b", "https://all"] }), voter(3)];
    const gone = { ...lost(4), apiUrls: ["https://d"] };
    expect(otherDoors({ members: [...members, gone], memberId: "1" })).toEqual([{ name: "m2", url: "https://b" }]);
    expect(otherDoors({ members: [leader(), gone], memberId: "1" })).toEqual([{ name: "m4", url: "https://d" }]);
  });

  it.each([
    ["", "HOST:8445"],
    ["m2.example", "m2.example:8445"],
    [" m2.example:8445 ", "m2.example:8445"],
    ["https://m2.example:8443/", "m2.example:8445"],
    ["192.0.2.7", "192.0.2.7:8445"],
    ["2001:db8::7", "'[2001:db8::7]:8445'"],
    ["[2001:db8::7]:8445", "'[2001:db8::7]:8445'"],
    ["$(reboot)", "'$(reboot):8445'"],
  ])("with the address “%s”", (typed, address) => {
    const line = joinCommand("cvm_x-y", typed).replaceAll(/ \\\n +/g, " ");
    expect(line).toMatch(/^CVLAN_JOIN_TOKEN=cvm_x-y cvlan-api --data-dir /);
    expect(line.endsWith(` --advertise-cluster ${address}`)).toBe(true);
    expect(line).not.toMatch(/\n|undefined/);
  });
});
