/** Members of the cluster: how their events read, what each does, and what is left of the quorum. Pure. */
import type { ClusterStatus, Member } from "../../api/types";
import { millis, shellWord } from "../../lib/format";
import { type Describe, thing, who } from "../sentence";

export const MEMBER: Member = {
  id: "0",
  name: "",
  state: "",
  address: "",
  version: "",
  nodeUrls: [],
  apiUrls: [],
  revision: "0",
  role: "",
  voter: false,
  waits: "",
};

/** Not heard of for so long, a member counts as lost: the controller's own measure, LOST_MS in raft/src/peer. */
export const LOST_MS = 2_500;
/** One that has just joined is waited for so long before it counts as lost. */
const FRESH_MS = 10_000;
/** Entries; whoever is to vote or to lead may lack so many: CAUGHT_UP in raft/src/membership.rs. */
export const BEHIND_MAX = 1_000;
/** Clocks that differ by more are an alarm: SKEW_ALARM_MS in raft/src/peer/ping.rs. */
export const SKEW_MAX_MS = 5_000;

/** `joining`: in the log, and Raft is about to learn of it. */
export type Part = "leader" | "voter" | "learner" | "joining" | "admitted" | "expired";

export function memberPart({ role, state, expiresAt }: Member, now: number): Part {
  if (role === "leader") return "leader";
  if (role === "learner") return "learner";
  if (role) return "voter";
  if (state === "joined") return "joining";
  return expiresAt && Date.parse(expiresAt) <= now ? "expired" : "admitted";
}

export const PART_WORDS: Readonly<Record<Part, string>> = {
  leader: "leads",
  voter: "votes",
  learner: "follows",
  joining: "comes in",
  admitted: "expected",
  expired: "never came",
};

/** Does it have its machine: not one that is only admitted. */
export const memberIsIn = ({ role, state }: Member) => role !== "" || state === "joined";

/** `own` is the member that answers. */
export type Heard = "own" | "heard" | "lost" | "never";

export function memberHeard({ id, heardMs }: Member, own: string): Heard {
  if (id === own) return "own";
  if (heardMs === undefined) return "never";
  return Number(heardMs) > LOST_MS ? "lost" : "heard";
}

/** Should it be there, and is not? */
export function memberAway(member: Member, own: string, now: number): boolean {
  if (member.role === "") return false;
  const heard = memberHeard(member, own);
  const fresh = member.joinedAt !== undefined && now - Date.parse(member.joinedAt) < FRESH_MS;
  return heard === "lost" || (heard === "never" && !fresh);
}

const present = (member: Member, own: string) => ["own", "heard"].includes(memberHeard(member, own));

/** Milliseconds; nothing where it was not measured, or not lately. */
export function memberSkew(member: Member, own: string): number | undefined {
  return member.skewMs === undefined || !present(member, own) ? undefined : Number(member.skewMs);
}

export const memberBehind = ({ behind }: Member) => (behind === undefined ? undefined : Number(behind));

/** As the member that answers sees it. */
export interface Quorum {
  /** Members that are in. */
  total: number;
  voters: number;
  /** Voters that are there. */
  there: number;
  /** Voters that decide. */
  needed: number;
  /** Voters that may still be lost; below zero nothing can be decided. */
  spare: number;
}

export function quorumOf(members: readonly Member[], own: string): Quorum {
  const voting = members.filter(({ voter }) => voter);
  const voters = voting.length;
  const there = voting.filter((member) => present(member, own)).length;
  const needed = Math.floor(voters / 2) + 1;
  return { total: members.filter(memberIsIn).length, voters, there, needed, spare: there - needed };
}

/** 3 of 3 vote; 1 may be lost. */
export function quorumSentence({ total, voters, there, needed, spare }: Quorum): string {
  if (spare < 0)
    return `${there} of ${voters} voters ${there === 1 ? "is" : "are"} heard; ${needed} ${needed === 1 ? "is" : "are"} needed to decide`;
  if (total === 1 && voters === 1) return "One member decides alone; none may be lost";
  const missing = voters - there;
  const vote = `${voters} of ${total} ${voters === 1 ? "votes" : "vote"}${missing > 0 ? `, ${missing} of them not heard` : ""}`;
  return `${vote}; ${spare === 0 ? "none may be lost" : `${spare} may ${missing > 0 ? "still " : ""}be lost`}`;
}

/** What the quorum becomes without one of them. */
export const quorumWithout = (members: readonly Member[], id: string, own: string): Quorum =>
  quorumOf(
    members.filter((member) => member.id !== id),
    own,
  );

export const leaderOf = (members: readonly Member[]) => members.find(({ role }) => role === "leader");

/** A clock against that of the leader, who is at the other end of the line. */
export function skewToLeader(member: Member, leader: Member, own: string): number | undefined {
  const [skew, base] = [memberSkew(member, own), memberSkew(leader, own)];
  return skew === undefined || base === undefined ? undefined : skew - base;
}

/** 7.2 s ahead. */
export const skewWords = (ms: number) => `${millis(Math.abs(ms))} ${ms < 0 ? "behind" : "ahead"}`;

/** Members that may lead: they vote, and are not the leader. */
export const successors = (members: readonly Member[]) =>
  members.filter(({ role, voter }) => voter && role !== "leader");

/** Where people find the other members: those that are heard, or all where none is. */
export function otherDoors({ members, memberId }: Pick<ClusterStatus, "members" | "memberId">) {
  const others = members.filter(({ id, apiUrls }) => id !== memberId && apiUrls.length > 0);
  const heard = others.filter((member) => present(member, memberId));
  return (heard.length > 0 ? heard : others).map(({ name, apiUrls }) => ({ name, url: apiUrls[0] ?? "" }));
}

/** HOST:PORT out of what somebody typed for a host: a port of theirs is left out, an IPv6 address is put in brackets. */
function hostOf(typed: string): string {
  const text = typed
    .trim()
    .replace(/^[a-z]+:\/\//i, "")
    .replace(/\/.*$/, "");
  const bracketed = /^\[[^\]]*\]/.exec(text)?.[0];
  if (bracketed) return bracketed;
  return text.split(":").length > 2 ? `[${text}]` : text.replace(/:\d*$/, "");
}

/** What starts a new member, as docs/operations.md has it: one command for a shell, on several lines. */
export function joinCommand(token: string, address: string): string {
  const host = hostOf(address) || "HOST";
  return [
    `CVLAN_JOIN_TOKEN=${shellWord(token)}`,
    "cvlan-api --data-dir /var/lib/cvlan",
    "--listen 0.0.0.0:8443 --node-listen 0.0.0.0:8444",
    "--cluster-listen 0.0.0.0:8445",
    `--advertise-api ${shellWord(`https://${host}:8443`)}`,
    `--advertise-node ${shellWord(`https://${host}:8444`)}`,
    `--advertise-cluster ${shellWord(`${host}:8445`)}`,
  ].join(" \\\n  ");
}

export const memberDescribe: Describe = (event, nameOf) => {
  const { admitted, joined, removed } = event.member ?? {};
  const actor = who(event, nameOf);
  if (admitted) return { tone: "add", parts: [actor, " admitted member ", thing(admitted.memberId, admitted.name)] };
  if (joined) {
    return {
      tone: "add",
      parts: ["Member ", thing(joined.memberId, nameOf(joined.memberId)), ` is in at ${joined.address}`],
    };
  }
  if (removed) {
    return { tone: "remove", parts: [actor, " removed member ", thing(removed.memberId, nameOf(removed.memberId))] };
  }
  return undefined;
};
