import type { ReactNode } from "react";
import type { ClusterStatus, Member } from "../../api/types";
import { IconButton } from "../../kit/button";
import { Pill } from "../../kit/panel";
import { age, count, millis, remaining, timeFull } from "../../lib/format";
import {
  BEHIND_MAX,
  memberAway,
  memberBehind,
  memberPart,
  memberSkew,
  PART_WORDS,
  type Part,
  SKEW_MAX_MS,
  skewWords,
} from "./model";

export interface MemberActions {
  onPromote: (member: Member) => void;
  onTransfer: (member: Member) => void;
  onRemove: (member: Member) => void;
}

interface TableProps {
  cluster: ClusterStatus;
  now: number;
  /** Undefined: may not. */
  actions: MemberActions | undefined;
}

const TONES: Readonly<Record<Part, "ok" | "warn" | "quiet">> = {
  leader: "ok",
  voter: "ok",
  learner: "quiet",
  joining: "quiet",
  admitted: "quiet",
  expired: "warn",
};

const CELL = "border-b border-line/60 px-2";
const HEAD = "sticky top-0 z-10 h-7.5 border-b bg-panel px-2 text-left label";
/** Where there is room. */
const WIDE = "hidden @min-[560px]:table-cell";

/** The members as figures: the same as the picture, and what it has no room for. */
export function MemberTable({ cluster, now, actions }: TableProps) {
  const { members, memberId } = cluster;
  return (
    <div className="@container h-full min-h-0 overflow-auto">
      <table className="w-full table-fixed border-separate border-spacing-0">
        <caption className="sr-only">Members of the cluster</caption>
        <thead>
          <tr>
            <th scope="col" className={`${HEAD} pl-3`}>
              Member
            </th>
            <th scope="col" className={`${HEAD} w-18`} title="How long ago the member that answers heard of it">
              Heard
            </th>
            <th scope="col" className={`${HEAD} w-18`} title="Entries of the log that it lacks; the leader knows">
              Behind
            </th>
            <th scope="col" className={`${HEAD} w-18`} title="Its clock minus that of the member that answers">
              Skew
            </th>
            <th scope="col" className={`${HEAD} ${WIDE} w-18`}>
              Version
            </th>
            <th scope="col" className={`${HEAD} ${WIDE} w-14`}>
              Age
            </th>
            {actions && (
              <th scope="col" className={`${HEAD} w-16`}>
                <span className="sr-only">Actions</span>
              </th>
            )}
          </tr>
        </thead>
        <tbody>
          {members.map((member) => (
            <Row key={member.id} member={member} own={memberId} now={now} actions={actions} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

interface RowProps {
  member: Member;
  /** The member that answers. */
  own: string;
  now: number;
  actions: MemberActions | undefined;
}

function Row({ member, own, now, actions }: RowProps) {
  const part = memberPart(member, now);
  const away = memberAway(member, own, now);
  const behind = memberBehind(member);
  const since = member.joinedAt ?? member.admittedAt;
  return (
    <tr className="h-11 hover:bg-raised/60">
      <th scope="row" className={`${CELL} pl-3 text-left font-normal`}>
        <span className="flex min-w-0 items-center gap-2">
          <span className="truncate font-medium" title={`${member.name}, member ${member.id}`}>
            {member.name}
          </span>
          <Pill tone={away ? "bad" : TONES[part]}>{away && part === "leader" ? "led" : PART_WORDS[part]}</Pill>
          {member.id === own && (
            <span className="shrink-0 text-2xs text-muted" title="This member answers this page">
              here
            </span>
          )}
        </span>
        <Where member={member} part={part} now={now} />
      </th>
      <td className={`${CELL} num whitespace-nowrap`}>
        <HeardCell member={member} own={own} away={away} />
      </td>
      <td className={`${CELL} num whitespace-nowrap`}>
        {behind === undefined ? <None /> : <Loud loud={behind > BEHIND_MAX}>{count(behind)}</Loud>}
      </td>
      <td className={`${CELL} num whitespace-nowrap`}>
        <SkewCell skew={memberSkew(member, own)} />
      </td>
      <td className={`${CELL} ${WIDE} num truncate text-muted`}>{member.version || "–"}</td>
      <td className={`${CELL} ${WIDE} num text-muted`} title={timeFull(since)}>
        {age(since, now)}
      </td>
      {actions && (
        <td className={`${CELL} pr-2`}>
          <Actions member={member} part={part} actions={actions} />
        </td>
      )}
    </tr>
  );
}

/** Where it is; of one that is not in yet, for how long it may come. */
function Where({ member, part, now }: { member: Member; part: Part; now: number }) {
  const look = "block truncate text-2xs text-muted";
  if (part === "expired") return <span className={look}>its token has run out</span>;
  if (part === "admitted")
    return <span className={look}>its token is good for {remaining(member.expiresAt, now)}</span>;
  return (
    <span className={`mono ${look}`} title={member.address}>
      {member.address || "–"}
    </span>
  );
}

const None = () => <span className="text-muted">–</span>;

function Loud({ loud, children }: { loud: boolean; children: ReactNode }) {
  return <span className={loud ? "font-semibold text-warn" : ""}>{children}</span>;
}

function HeardCell({ member, own, away }: { member: Member; own: string; away: boolean }) {
  if (member.role === "" || member.id === own) return <None />;
  const text = member.heardMs === undefined ? "never" : millis(Number(member.heardMs));
  return <span className={away ? "font-semibold text-bad" : ""}>{text}</span>;
}

function SkewCell({ skew }: { skew: number | undefined }) {
  if (skew === undefined) return <None />;
  const sign = skew > 0 ? "+" : skew < 0 ? "−" : "";
  return (
    <Loud loud={Math.abs(skew) > SKEW_MAX_MS}>
      <span title={skew === 0 ? undefined : skewWords(skew)}>
        {sign}
        {millis(Math.abs(skew))}
      </span>
    </Loud>
  );
}

function Actions({ member, part, actions }: { member: Member; part: Part; actions: MemberActions }) {
  const { name } = member;
  return (
    <span className="flex justify-end">
      {part === "learner" && (
        <IconButton icon="check" label={`Let ${name} vote`} onClick={() => actions.onPromote(member)} />
      )}
      {part === "voter" && (
        <IconButton icon="star" label={`Let ${name} lead`} onClick={() => actions.onTransfer(member)} />
      )}
      <IconButton icon="trash" label={`Remove ${name}`} onClick={() => actions.onRemove(member)} />
    </span>
  );
}
