import { useEffect, useRef, useState } from "react";
import type { Node } from "../../api/types";
import { count } from "../../lib/format";
import { useSize } from "../../lib/hooks";
import { routeHref } from "../../lib/route";
import { dotRadius, HUB, PICTURE_MAX, type Place, places, RING_MAX } from "./layout";
import { nodePresence } from "./presence";

/** Pixels around the ring for the names beside it, above and below. */
const MARGIN_X = 104;
const MARGIN_Y = 28;
/** Wider than this the ring would be a line. */
const ASPECT_MAX = 1.9;
const LABEL_MAX = 16;
const NAME_MAX = 15;

interface PictureProps {
  tenant: string;
  cvlan: string;
  /** Undefined until they are read. */
  nodes: readonly Node[] | undefined;
  selected: string;
}

/** Ids that came online since the last look; they ripple once. */
function useArrivals(nodes: readonly Node[] | undefined): ReadonlySet<string> {
  const before = useRef<ReadonlySet<string>>(undefined);
  const [arrived, setArrived] = useState<ReadonlySet<string>>(new Set());
  useEffect(() => {
    if (!nodes) return;
    const online = new Set(nodes.filter((node) => node.online).map((node) => node.id));
    const known = before.current;
    before.current = online;
    const fresh = known ? [...online].filter((id) => !known.has(id)) : [];
    if (fresh.length > 0) setArrived(new Set(fresh));
  }, [nodes]);
  return arrived;
}

/** The CVLAN as a ring: every machine talks to every other, and those that are online are lit. */
export function NodePicture({ tenant, cvlan, nodes: read, selected }: PictureProps) {
  const arrived = useArrivals(read);
  const nodes = read ?? [];
  const shown = nodes.slice(0, PICTURE_MAX);
  const online = nodes.filter((node) => node.online).length;
  const small = shown.length <= RING_MAX;
  const figure = useRef<HTMLElement>(null);
  const { width, height } = useSize(figure);
  const radiusY = Math.max(0, height / 2 - MARGIN_Y);
  const radiusX = Math.max(0, Math.min(width / 2 - MARGIN_X, radiusY * ASPECT_MAX));
  const center = { x: width / 2, y: height / 2 };
  const radius = dotRadius(shown.length) * Math.min(radiusX, radiusY);
  const spots = places(shown.length).map(({ x, y }) => ({ x: center.x + x * radiusX, y: center.y + y * radiusY }));
  const chosen = shown.findIndex((node) => node.name === selected);

  const lines: { key: string; from: number; to: number; strong: boolean }[] = [];
  for (let from = 0; small && from < shown.length; from += 1) {
    for (let to = from + 1; to < shown.length; to += 1) {
      if (!shown[from]?.online || !shown[to]?.online) continue;
      lines.push({ key: `${from}-${to}`, from, to, strong: from === chosen || to === chosen });
    }
  }

  return (
    <figure ref={figure} className="relative min-h-0 min-w-0 flex-1">
      <svg
        className="absolute inset-0 size-full"
        role="img"
        aria-label={`${cvlan}: ${count(nodes.length)} nodes, ${count(online)} online`}
      >
        <ellipse
          cx={center.x}
          cy={center.y}
          rx={radiusX}
          ry={radiusY}
          fill="none"
          className="stroke-line"
          strokeDasharray={nodes.length === 0 ? "3 5" : undefined}
        />
        {lines.map(({ key, from, to, strong }) => (
          <line
            key={key}
            x1={spots[from]?.x}
            y1={spots[from]?.y}
            x2={spots[to]?.x}
            y2={spots[to]?.y}
            className={strong ? "stroke-accent" : "stroke-glow"}
            strokeOpacity={strong ? 0.75 : shown.length > 10 ? 0.14 : 0.3}
            strokeWidth={strong ? 1.3 : 1}
          />
        ))}
        <ellipse cx={center.x} cy={center.y} rx={radiusX * HUB * 0.9} ry={radiusY * HUB * 0.9} className="fill-panel" />
        <text x={center.x} y={center.y + 2} textAnchor="middle" className="num fill-text text-[19px] font-semibold">
          {count(online)}
        </text>
        <text x={center.x} y={center.y + 16} textAnchor="middle" className="num fill-muted text-[10px]">
          of {count(nodes.length)} online
        </text>
        {shown.map((node, at) => {
          const spot = spots[at];
          if (!spot) return null;
          const current = at === chosen;
          const look = { node, spot, radius, current };
          return (
            // The table is the way for the keyboard; here it would only be walked twice.
            <a key={node.id} href={routeHref(tenant, cvlan, node.name)} tabIndex={-1} aria-label={node.name}>
              <Spot {...look} arrived={arrived.has(node.id)} />
              {shown.length <= LABEL_MAX && <Label {...look} center={center} />}
            </a>
          );
        })}
      </svg>
      {nodes.length > PICTURE_MAX && (
        <figcaption className="absolute right-3 bottom-2 text-2xs text-muted">
          the first {PICTURE_MAX} of {count(nodes.length)}
        </figcaption>
      )}
    </figure>
  );
}

interface SpotProps {
  node: Node;
  spot: Place;
  radius: number;
  current: boolean;
}

/** A node: lit, unlit, or dashed where nobody can tell. */
function Spot({ node, spot: { x, y }, radius, current, arrived }: SpotProps & { arrived: boolean }) {
  const { dot, text } = nodePresence(node);
  const lit = dot === "on";
  return (
    <>
      <title>{`${node.name} · ${node.ipv4} · ${text}`}</title>
      {arrived && lit && <circle cx={x} cy={y} r={radius} className="ripple fill-glow" />}
      {current && <circle cx={x} cy={y} r={radius + 3.5} fill="none" className="stroke-accent" strokeWidth="1.6" />}
      <circle
        cx={x}
        cy={y}
        r={radius}
        className={lit ? "fill-glow" : "fill-panel stroke-edge"}
        strokeWidth={lit ? 0 : 1.4}
        strokeDasharray={dot === "none" ? "2 2" : undefined}
      />
    </>
  );
}

/** A node's name, outside of the ring. */
function Label({ node, spot: { x, y }, center, current, radius }: SpotProps & { center: Place }) {
  const left = x < center.x - 8;
  const right = x > center.x + 8;
  const dx = left ? -radius - 6 : right ? radius + 6 : 0;
  const dy = left || right ? 3.5 : y < center.y ? -radius - 6 : radius + 13;
  const name = node.name.length > NAME_MAX ? `${node.name.slice(0, NAME_MAX - 1)}…` : node.name;
  return (
    <text
      x={x + dx}
      y={y + dy}
      textAnchor={left ? "end" : right ? "start" : "middle"}
      className={`text-[10.5px] ${current ? "fill-accent font-semibold" : node.online ? "fill-text" : "fill-muted"}`}
    >
      {name}
    </text>
  );
}
