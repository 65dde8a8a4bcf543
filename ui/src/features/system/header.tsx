import type { ReactNode } from "react";
import { checkpointParse } from "../../api/checkpoint";
import { logout } from "../../api/session";
import type { User } from "../../api/types";
import { Button, IconButton } from "../../kit/button";
import { Icon, Mark } from "../../kit/icon";
import { Dot } from "../../kit/panel";
import { count, short } from "../../lib/format";
import { ROUTE_CLUSTER, routeHref } from "../../lib/route";
import { useStore } from "../../lib/store";
import { nameOf } from "../../live/directory";
import type { Link } from "../../live/events";
import { eventSeq } from "../../live/fold";
import { live, useLink } from "../../live/live";
import { mayReadCluster } from "../user/model";
import { useCluster } from "./api";

interface FigureProps {
  term: string;
  title?: string;
  /** Not where there is little room. */
  wide?: boolean;
  children: ReactNode;
}

function Figure({ term, title, wide = false, children }: FigureProps) {
  return (
    <div className={`items-baseline gap-1.5 whitespace-nowrap ${wide ? "hidden xl:flex" : "flex"}`} title={title}>
      <dt className="text-muted">{term}</dt>
      <dd className="num font-medium">{children}</dd>
    </div>
  );
}

const LINKS: Record<Link, { text: string; title: string; look: string; dot: string }> = {
  live: { text: "Live", title: "Following the log", look: "text-ok border-ok/30", dot: "bg-glow" },
  connecting: { text: "Connecting", title: "Opening the stream", look: "text-muted", dot: "bg-edge breathe" },
  lost: {
    text: "Reconnecting",
    title: "The controller does not answer. What you see is as of the last event.",
    look: "text-warn border-warn/40 bg-warn-wash",
    dot: "bg-warn breathe",
  },
  denied: {
    text: "Polling",
    title: "Your role may not read events: lists are read again now and then",
    look: "text-muted",
    dot: "bg-edge",
  },
};

function LinkState() {
  const { text, title, look, dot } = LINKS[useLink()];
  return (
    <span
      role="status"
      title={title}
      className={`inline-flex h-6.5 items-center gap-1.75 rounded-full border px-2.5 text-xs font-medium ${look}`}
    >
      <span aria-hidden="true" className={`size-1.75 rounded-full ${dot}`} />
      {text}
    </span>
  );
}

/** The cluster at a glance, whether this page is live, and who is here. */
export function Header({ user, onGoTo, onHelp }: { user: User; onGoTo: () => void; onHelp: () => void }) {
  const { data: cluster } = useCluster(mayReadCluster(user));
  const lastSeq = useStore(live, ({ events }) => {
    const last = events.at(-1);
    return last ? eventSeq(last) : 0;
  });
  const seq = Math.max(lastSeq, checkpointParse(cluster?.checkpoint)?.seq ?? 0);
  return (
    <header className="flex h-12 shrink-0 items-center gap-5 border-b bg-panel pr-2.5 pl-4">
      <a
        href={routeHref()}
        className="flex items-center gap-2 font-semibold tracking-wide"
        aria-label="CVLAN, overview"
      >
        <Mark className="size-5.5" />
        CVLAN
      </a>
      {cluster && (
        <dl className="flex min-w-0 items-center gap-5 overflow-hidden text-xs" aria-label="Cluster">
          <Figure term="Nodes">
            <span className="inline-flex items-center gap-1.75">
              <Dot state={Number(cluster.nodesOnline) > 0 ? "on" : "off"} className="size-1.75" />
              {count(Number(cluster.nodesOnline))}
              <span className="font-normal text-muted">of {count(Number(cluster.nodes))} online</span>
            </span>
          </Figure>
          <Figure term="Checkpoint" title={`Applied up to ${cluster.checkpoint}`}>
            #{count(seq)}
          </Figure>
          <Figure term="Root" title={`Merkle root over all events: ${cluster.root}`}>
            <span className="mono font-normal">{short(cluster.root)}</span>
          </Figure>
          <Figure wide term="Member" title={`Member ${cluster.memberId} answers; term ${cluster.term}`}>
            <a href={routeHref(ROUTE_CLUSTER)} className="hover:underline">
              {nameOf(cluster.memberId)}
            </a>{" "}
            <span className="font-normal text-muted">{cluster.role}</span>
          </Figure>
        </dl>
      )}
      <div className="ml-auto flex shrink-0 items-center gap-2">
        <Button
          look="plain"
          className="h-7 border-line text-xs text-muted"
          onClick={onGoTo}
          aria-keyshortcuts="Control+K"
        >
          <Icon name="search" className="-ml-0.5 size-3.5" />
          Go to
          <kbd className="rounded border bg-raised px-1 font-sans text-2xs">Ctrl K</kbd>
        </Button>
        <LinkState />
        <IconButton icon="keyboard" label="Keyboard shortcuts" onClick={onHelp} />
        <span className="flex items-baseline gap-1.5 border-l pl-3 text-xs whitespace-nowrap">
          <span className="font-medium">{user.name}</span>
          <span className="text-muted">{user.role}</span>
        </span>
        <IconButton icon="out" label="Log out" onClick={() => void logout()} />
      </div>
    </header>
  );
}
