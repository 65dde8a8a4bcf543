/** What an operator must not overlook about the cluster, the worst first. Pure. */
import type { ClusterStatus, Member } from "../../api/types";
import { count, millis, plural, remaining } from "../../lib/format";
import {
  BEHIND_MAX,
  leaderOf,
  memberAway,
  memberBehind,
  memberHeard,
  memberPart,
  memberSkew,
  quorumOf,
  SKEW_MAX_MS,
  skewWords,
} from "./model";

/** `note`: something is under way. */
export type AlertTone = "bad" | "warn" | "note";

export interface Alert {
  /** Stable as long as it is about the same: for lists. */
  key: string;
  tone: AlertTone;
  /** Without figures: it is read out whenever it changes. */
  title: string;
  /** The figures, what it means, and what to do. */
  text: string;
  /** Whom it is about, where it is one of them. */
  memberId?: string;
}

type Status = Pick<ClusterStatus, "members" | "memberId" | "role" | "divergedSeq">;

const TONES: readonly AlertTone[] = ["bad", "warn", "note"];

export function alertsOf(status: Status, now: number): Alert[] {
  const { members, memberId: own } = status;
  const about = (member: Member, key: string, tone: AlertTone, title: string, text: string): Alert => {
    return { key: `${key}-${member.id}`, tone, title, text, memberId: member.id };
  };
  const alerts = [...whole(status), ...votes(status, now), ...clocks(members, own, about)];
  for (const member of members) alerts.push(...presence(member, own, now, about));
  return alerts.sort((a, b) => TONES.indexOf(a.tone) - TONES.indexOf(b.tone));
}

/** Is the member that answers one of them, in order, and like the others? */
function whole({ members, memberId, role, divergedSeq }: Status): Alert[] {
  const alerts: Alert[] = [];
  const say = (key: string, tone: AlertTone, title: string, text: string) => alerts.push({ key, tone, title, text });
  const own = members.find(({ id }) => id === memberId);
  const name = own?.name ?? `member ${memberId}`;
  if (divergedSeq) {
    say(
      "diverged",
      "bad",
      `The state of ${name} differs from the leader's`,
      "It takes no writes, and what it shows may be wrong. Go on at another member; stop this one and run cvlan-api rebuild on its machine.",
    );
  }
  if (role === "stopped")
    say("stopped", "bad", `${name} has stopped`, "Its log says why. What it shows stays as it is.");
  if (members.length > 0 && !own) {
    say("removed", "bad", `${name} is no member any more`, "It was removed from the cluster. Go on at another member.");
  }
  const versions = [...new Set(members.map(({ version }) => version).filter(Boolean))].sort();
  if (versions.length > 1) {
    say("versions", "note", `Members run ${versions.join(" and ")}`, "Finish the upgrade, one member at a time.");
  }
  return alerts;
}

/** Can the cluster decide, and will it with one less? */
function votes({ members, memberId }: Status, now: number): Alert[] {
  const { voters, there, spare } = quorumOf(members, memberId);
  const leader = leaderOf(members);
  const alerts: Alert[] = [];
  const say = (key: string, tone: AlertTone, title: string, text: string) => alerts.push({ key, tone, title, text });
  if (spare < 0) {
    say(
      "quorum",
      "bad",
      "The majority is lost",
      "Reads and machines go on, nothing can be changed. Bring back the members that are not heard: as soon as a majority is there, everything goes on and nothing is lost.",
    );
  } else if (!leader || memberAway(leader, memberId, now)) {
    say("leader", "bad", "Nobody leads", "Writes wait for the election of a leader, which takes about a second.");
  }
  if (voters > 1 && spare === 0) {
    const even = there === voters;
    say(
      "margin",
      even ? "warn" : "bad",
      "No quorum margin",
      even
        ? `All ${voters} that vote are needed. One more voter lets one be lost.`
        : "If one more voter is lost, nothing can be decided. Bring back who is not heard, or replace it.",
    );
  }
  if (voters > 2 && voters % 2 === 0) {
    const text = `${voters} survive no more losses than ${voters - 1}, and need one vote more. Add a member, or remove one.`;
    say("even", "note", "An even number votes", text);
  }
  return alerts;
}

type About = (member: Member, key: string, tone: AlertTone, title: string, text: string) => Alert;

/** Clocks are compared with that of the member that answers: where all differ alike, its own is the wrong one. */
function clocks(members: readonly Member[], own: string, about: About): Alert[] {
  const seen = members.flatMap((member) => {
    const skew = member.id === own ? undefined : memberSkew(member, own);
    return skew === undefined ? [] : [{ member, skew }];
  });
  const off = seen.filter(({ skew }) => Math.abs(skew) > SKEW_MAX_MS);
  const what = "Set it (NTP): the times in the log, tokens and certificates go by the members' clocks.";
  const answering = members.find(({ id }) => id === own);
  const alike = off.length === seen.length && new Set(off.map(({ skew }) => skew > 0)).size === 1;
  if (answering && off.length > 1 && alike) {
    const nearest = Math.min(...off.map(({ skew }) => Math.abs(skew)));
    const by = skewWords((off[0]?.skew ?? 0) > 0 ? -nearest : nearest);
    const text = `It is ${by} of those of all others, or more. ${what}`;
    return [about(answering, "skew", "warn", `The clock of ${answering.name} is wrong`, text)];
  }
  return off.map(({ member, skew }) =>
    about(member, "skew", "warn", `The clock of ${member.name} is wrong`, `It is ${skewWords(skew)}. ${what}`),
  );
}

/** Is one member there, and with the others? */
function presence(member: Member, own: string, now: number, about: About): Alert[] {
  const { name, heardMs, expiresAt, voter } = member;
  const part = memberPart(member, now);
  if (part === "admitted") {
    const text = `Its token is good for another ${remaining(expiresAt, now)}. Start cvlan-api with it on its machine.`;
    return [about(member, "admitted", "note", `${name} is admitted and has not joined yet`, text)];
  }
  if (part === "expired") {
    const text = "Its token has run out. Remove it, and add it anew if it is still wanted.";
    return [about(member, "admitted", "warn", `${name} was admitted and never joined`, text)];
  }
  if (memberAway(member, own, now)) {
    const lost = memberHeard(member, own) === "lost";
    const since = lost ? `For ${millis(Number(heardMs))}.` : "Not since the member that answers has started.";
    const look =
      "Is it running, and is its port 8445 open to the others? One that does not come back is to be replaced.";
    return [about(member, "lost", voter ? "bad" : "warn", `${name} is not heard`, `${since} ${look}`)];
  }
  const behind = memberBehind(member) ?? 0;
  if (behind <= BEHIND_MAX) return [];
  const then = voter
    ? "Until it has caught up, decisions rest on the others."
    : "It does not vote before it has caught up.";
  const text = `It lacks ${plural(behind, "entry", "entries")}. ${then}`;
  return [about(member, "behind", "warn", `${name} is behind`, text)];
}

/** The worst of them, for a mark. */
export const worstOf = (alerts: readonly Alert[]): AlertTone | undefined => alerts[0]?.tone;

export const alertsCount = (alerts: readonly Alert[]) =>
  alerts.length === 0 ? "" : `${count(alerts.length)} to look at`;
