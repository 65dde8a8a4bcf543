import { type ReactNode, useRef } from "react";
import type { ClusterStatus, Member } from "../../api/types";
import { millis } from "../../lib/format";
import { useSize } from "../../lib/hooks";
import type { Place } from "../node/layout";
import { type AlertTone, alertsOf } from "./alerts";
import { FIGURES_MAX, membersPlace, NAMED_MAX } from "./layout";
import {
  leaderOf,
  memberAway,
  memberBehind,
  memberPart,
  PART_WORDS,
  type Part,
  quorumOf,
  quorumSentence,
  skewToLeader,
} from "./model";

/** Pixels around the middles of the members, for what is written at them. */
const MARGIN_X = 64;
const MARGIN_TOP = 66;
const MARGIN_BOTTOM = 56;
const LEADER_RADIUS = 24;
const RADIUS = 17;
const DOT_RADIUS = 7;
const NAME_MAX = 16;
/** A line that rises more than this is steep: words beside it do not touch it. */
const STEEP = 0.4;

interface PictureProps {
  cluster: ClusterStatus;
  now: number;
}

/** The leader in the middle, the others around it; on the lines how far they are and how their clocks differ. */
export function MemberPicture({ cluster, now }: PictureProps) {
  const { members, memberId: own } = cluster;
  const figure = useRef<HTMLElement>(null);
  const { width, height } = useSize(figure);
  const leader = leaderOf(members);
  const others = members.filter((member) => member !== leader);
  const named = others.length <= NAMED_MAX;
  const box = { left: MARGIN_X, right: width - MARGIN_X, top: MARGIN_TOP, bottom: height - MARGIN_BOTTOM };
  const { leader: center, others: spots } = membersPlace(others.length, box);
  const tones = new Map(alertsOf(cluster, now).map(({ memberId, tone }) => [memberId, tone]));
  const at = (member: Member) => ({ member, own, now, named, tone: tones.get(member.id) });
  return (
    <figure ref={figure} className="relative h-full min-h-0 min-w-0">
      <svg className="absolute inset-0 size-full" role="img" aria-label={pictureWords(cluster, now)}>
        {leader && <Room center={center} spots={spots.slice(others.length)} />}
        {leader &&
          others.map((member, index) => (
            <Line
              key={member.id}
              {...at(member)}
              leader={leader}
              from={center}
              to={spots[index] ?? center}
              figures={named && (others.length <= FIGURES_MAX || tones.has(member.id))}
            />
          ))}
        {leader ? (
          <Spot {...at(leader)} spot={center} radius={LEADER_RADIUS} above />
        ) : (
          <text x={center.x} y={center.y + 4} textAnchor="middle" className="fill-bad text-[12px] font-semibold">
            nobody leads
          </text>
        )}
        {others.map((member, index) => {
          const spot = spots[index] ?? center;
          const radius = named ? RADIUS : DOT_RADIUS;
          return <Spot key={member.id} {...at(member)} spot={spot} radius={radius} above={spot.y < center.y - 1} />;
        })}
      </svg>
    </figure>
  );
}

/** The same for those who do not see it. */
function pictureWords({ members, memberId }: ClusterStatus, now: number): string {
  const each = members.map((member) => {
    const part = memberPart(member, now);
    const away = memberAway(member, memberId, now) ? ", not heard" : "";
    return `${member.name} ${PART_WORDS[part]}${away}`;
  });
  return `${quorumSentence(quorumOf(members, memberId))}. ${each.join("; ")}.`;
}

interface MemberProps {
  member: Member;
  own: string;
  now: number;
  named: boolean;
  tone: AlertTone | undefined;
}

interface LineProps extends MemberProps {
  leader: Member;
  from: Place;
  to: Place;
  figures: boolean;
}

const away = ({ member, own, now }: MemberProps) => memberAway(member, own, now);

/** What of Raft goes between the leader and one member; a hint of it where there is nothing yet. */
function Line(props: LineProps) {
  const { member, from, to } = props;
  if (member.role === "") return <Hint from={from} to={to} />;
  const gone = away(props) || memberAway(props.leader, props.own, props.now);
  return (
    <>
      <line
        x1={from.x}
        y1={from.y}
        x2={to.x}
        y2={to.y}
        className={gone ? "stroke-bad" : props.tone === "warn" ? "stroke-warn" : "stroke-glow"}
        strokeWidth={member.voter ? 1.8 : 1.3}
        strokeOpacity={gone ? 0.75 : 0.6}
        strokeDasharray={gone ? "2 5" : member.voter ? undefined : "6 4"}
      />
      {props.figures && <Figures {...props} gone={away(props)} />}
    </>
  );
}

/** How far it is, and how its clock differs: half way between the rims, outside of a steep line, along a flat one. */
function Figures({ member, leader, own, from, to, tone, gone }: LineProps & { gone: boolean }) {
  const behind = memberBehind(member);
  const skew = skewToLeader(member, leader, own);
  const lag = gone
    ? "not heard"
    : behind === undefined
      ? ""
      : behind === 0
        ? "in step"
        : `${COMPACT.format(behind)} behind`;
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = Math.hypot(dx, dy) || 1;
  const share = (LEADER_RADIUS + (length - RADIUS - LEADER_RADIUS) / 2) / length;
  const steep = Math.abs(dy) > Math.abs(dx) * STEEP;
  const side = dx < -1 ? -1 : 1;
  const spot = {
    x: from.x + dx * share + (steep ? side * Math.min(22, 6 + 9 * Math.abs(dx / dy)) : 0),
    y: from.y + dy * share,
  };
  const anchor = steep ? (side < 0 ? "end" : "start") : "middle";
  const look = `text-[10px] ${gone ? "fill-bad" : tone === "warn" ? "fill-warn" : "fill-text"}`;
  return (
    <>
      <Words spot={spot} dy={steep ? -1 : -5} look={look} anchor={anchor}>
        {lag}
      </Words>
      {skew !== undefined && !gone && (
        <Words spot={spot} dy={steep ? 11 : 13} look="fill-muted text-[10px]" anchor={anchor}>
          {skew > 0 ? "+" : ""}
          {skewShort(skew)}
        </Words>
      )}
    </>
  );
}

const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const skewShort = (ms: number) => `${ms < 0 ? "−" : ""}${millis(Math.abs(ms))}`;

const FILLS: Readonly<Record<Part, string>> = {
  leader: "fill-solid",
  voter: "fill-glow",
  learner: "fill-panel stroke-glow",
  joining: "fill-panel stroke-glow",
  admitted: "fill-panel stroke-edge",
  expired: "fill-panel stroke-warn",
};
const SOLID: ReadonlySet<Part> = new Set(["leader", "voter"]);
const DASHED: ReadonlySet<Part> = new Set(["joining", "admitted", "expired"]);

/** A member: full where it votes, hollow where it follows, dashed where it is not in yet. */
function Spot(props: MemberProps & { spot: Place; radius: number; above: boolean }) {
  const { member, own, now, named, tone, spot, radius, above } = props;
  const part = memberPart(member, now);
  const gone = away(props);
  const fill = gone ? "fill-bad-wash stroke-bad" : FILLS[part];
  const name = member.name.length > NAME_MAX ? `${member.name.slice(0, NAME_MAX - 1)}…` : member.name;
  const words = gone ? "not heard" : PART_WORDS[part];
  const mark = gone ? "fill-bad" : tone === "warn" || tone === "bad" ? "fill-warn" : "fill-muted";
  return (
    <g>
      <title>{`${member.name} · ${words} · ${member.address || "has not said where it is"}`}</title>
      {part === "leader" && !gone && (
        <circle cx={spot.x} cy={spot.y} r={radius + 5} fill="none" className="stroke-solid" strokeOpacity="0.35" />
      )}
      <circle
        cx={spot.x}
        cy={spot.y}
        r={radius}
        className={fill}
        strokeWidth={SOLID.has(part) && !gone ? 0 : 1.6}
        strokeDasharray={DASHED.has(part) ? "3 3" : undefined}
      />
      <Glyph part={part} gone={gone} spot={spot} small={!named} />
      {named && (
        <Words spot={spot} dy={above ? -radius - 22 : radius + 16} look="fill-text text-[11px] font-medium">
          {name}
          {member.id === own && <tspan className="fill-muted font-normal"> · here</tspan>}
        </Words>
      )}
      {named && (
        <Words spot={spot} dy={above ? -radius - 10 : radius + 28} look={`text-[10px] ${mark}`}>
          {words}
        </Words>
      )}
    </g>
  );
}

interface WordsProps {
  spot: Place;
  dy: number;
  look: string;
  anchor?: "start" | "middle" | "end";
  children: ReactNode;
}

/** Words on the picture: their rim keeps lines away. */
function Words({ spot, dy, look, anchor = "middle", children }: WordsProps) {
  return (
    <text
      x={spot.x}
      y={spot.y + dy}
      textAnchor={anchor}
      strokeWidth="4"
      strokeLinejoin="round"
      className={`num stroke-panel [paint-order:stroke] ${look}`}
    >
      {children}
    </text>
  );
}

const STAR = "M0-9 2.5-3 8.8-2.7 3.9 1.4 5.5 7.5 0 4.2-5.5 7.5-3.9 1.4-8.8-2.7-2.5-3Z";
const CHECK = "M-5.5 0.5-1.7 4.3 5.5-4.2";
const CROSS = "M-4.5-4.5 4.5 4.5M4.5-4.5-4.5 4.5";

/** A star for the leader, a check for a vote, a cross for who is away. */
function Glyph({ part, gone, spot, small }: { part: Part; gone: boolean; spot: Place; small: boolean }) {
  const place = { transform: `translate(${spot.x} ${spot.y})` };
  if (gone)
    return small ? null : <path d={CROSS} {...place} className="stroke-bad" strokeWidth="2" strokeLinecap="round" />;
  if (part === "leader") return <path d={STAR} {...place} className="fill-on-solid" />;
  if (part !== "voter" || small) return null;
  return (
    <path
      d={CHECK}
      {...place}
      fill="none"
      className="stroke-panel"
      strokeWidth="2.2"
      strokeLinecap="round"
      strokeLinejoin="round"
    />
  );
}

/** A line that is not there yet. */
const Hint = ({ from, to }: { from: Place; to: Place }) => (
  <line
    x1={from.x}
    y1={from.y}
    x2={to.x}
    y2={to.y}
    className="stroke-edge"
    strokeOpacity="0.6"
    strokeWidth="1.2"
    strokeDasharray="3 4"
  />
);

/** Where more would be. */
function Room({ center, spots }: { center: Place; spots: readonly Place[] }) {
  return spots.map(({ x, y }, at) => (
    // biome-ignore lint/suspicious/noArrayIndexKey: they are places, one by one
    <g key={at} className="stroke-edge" fill="none" strokeDasharray="3 4" strokeWidth="1.2">
      <Hint from={center} to={{ x, y }} />
      <circle cx={x} cy={y} r={RADIUS} className="fill-panel" />
      <path d="M-5 0H5M0-5V5" strokeDasharray="none" strokeWidth="1.4" transform={`translate(${x} ${y})`} />
    </g>
  ));
}
