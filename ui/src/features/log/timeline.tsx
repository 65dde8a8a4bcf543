import { memo, useCallback, useDeferredValue, useEffect, useMemo, useRef, useState } from "react";
import type { LogEvent, Tenant } from "../../api/types";
import { Button } from "../../kit/button";
import { CopyIcon } from "../../kit/copy";
import { Icon } from "../../kit/icon";
import { ProblemBox } from "../../kit/problem";
import { clock, count, day, plural, timeFull } from "../../lib/format";
import { useShortcut } from "../../lib/hooks";
import { useStore } from "../../lib/store";
import { directoryVersion, nameOf } from "../../live/directory";
import { EVENTS_MAX } from "../../live/events";
import { eventSeq } from "../../live/fold";
import { live, olderLoad } from "../../live/live";
import { eventNoun, eventSentence } from "../registry";
import { type Sentence, sentenceText, type Tone } from "../sentence";
import { jsonPieces } from "./json";

/** Lines drawn at first, and per "older". */
const SHOWN_STEP = 200;
/** Scrolled further than this, the reader is reading: nothing moves under their eyes. */
const AT_TOP_PX = 24;
/** An event younger than this is news, and is read out. */
const NEWS_MS = 10_000;

interface Line {
  event: LogEvent;
  seq: number;
  sentence: Sentence;
}

const asLine = (event: LogEvent): Line => ({ event, seq: eventSeq(event), sentence: eventSentence(event, nameOf) });

function lineMatches({ event, seq, sentence }: Line, words: readonly string[]): boolean {
  const { reason, source, tenantId, time } = event;
  const tenant = tenantId ? nameOf(tenantId) : "";
  const hay = [sentenceText(sentence), eventNoun(event), reason, source, tenant, `#${seq}`, time]
    .join(" ")
    .toLowerCase();
  return words.every((word) => hay.includes(word));
}

/** Everything that happened, newest first, as it happens. */
export function Timeline({ tenant }: { tenant: Tenant | undefined }) {
  const { events, from, link } = useStore(live, (value) => value);
  const names = useStore(directoryVersion, (version) => version);
  const [text, setText] = useState("");
  const [everyone, setEveryone] = useState(false);
  const [shown, setShown] = useState(SHOWN_STEP);
  const [open, setOpen] = useState<number>();
  const field = useRef<HTMLInputElement>(null);
  useShortcut("e", () => field.current?.focus());

  const scope = everyone ? undefined : tenant?.id;
  const asked = useDeferredValue(text.trim().toLowerCase());
  // biome-ignore lint/correctness/useExhaustiveDependencies: names change what the sentences say
  const lines = useMemo(() => {
    const words = asked.split(/\s+/).filter(Boolean);
    const found: Line[] = [];
    for (let at = events.length - 1; at >= 0 && found.length < shown; at -= 1) {
      const event = events[at];
      if (!event || (scope && event.tenantId !== scope)) continue;
      const line = asLine(event);
      if (words.length === 0 || lineMatches(line, words)) found.push(line);
    }
    return found;
  }, [events, names, scope, asked, shown]);

  const { scroller, following, news, toTop } = useFollow(events);
  const toggle = useCallback((seq: number) => setOpen((before) => (before === seq ? undefined : seq)), []);
  return (
    <section aria-label="Timeline" className="flex min-h-0 min-w-0 flex-col border-l bg-panel">
      <div className="flex h-10 shrink-0 items-center gap-2 border-b px-3">
        <h2 className="label">Timeline</h2>
        {tenant && <Scope tenant={tenant} everyone={everyone} onChange={setEveryone} />}
        <label className="relative ml-auto w-40 min-w-0">
          <span className="sr-only">Filter the timeline</span>
          <Icon name="search" className="pointer-events-none absolute top-1.5 left-2 text-muted" />
          <input
            ref={field}
            type="search"
            className="input h-7 pr-2 pl-7.5"
            placeholder="Filter…   e"
            value={text}
            onChange={(event) => setText(event.target.value)}
            onKeyDown={(event) => {
              if (event.key === "Escape") setText("");
            }}
          />
        </label>
      </div>
      <News events={events} />
      <div className="relative min-h-0 flex-1">
        {!following && news > 0 && (
          <Button
            look="solid"
            icon="up"
            className="absolute top-2 left-1/2 z-10 h-7 -translate-x-1/2 rounded-full text-xs shadow-lg"
            onClick={toTop}
          >
            {plural(news, "new event")}
          </Button>
        )}
        <section ref={scroller} className="@container h-full overflow-auto" aria-label="Events, newest first">
          {link === "denied" ? (
            <p className="p-4 text-muted">
              Your role may not read the log. An administrator or an auditor of the tenant can, here and with{" "}
              <code className="mono">cvlanctl events</code>.
            </p>
          ) : (
            <Lines lines={lines} open={open} onToggle={toggle} showTenant={!scope} />
          )}
          {link !== "denied" && (
            <Tail
              empty={lines.length === 0}
              asked={asked !== ""}
              begun={from <= 1}
              hidden={lines.length >= shown}
              full={events.length >= EVENTS_MAX}
              onMore={() => setShown((before) => before + SHOWN_STEP)}
            />
          )}
        </section>
      </div>
    </section>
  );
}

/** Stays at the newest event until the reader scrolls away; then counts what comes. */
function useFollow(events: readonly LogEvent[]) {
  const scroller = useRef<HTMLElement>(null);
  const [leftAt, setLeftAt] = useState<number>();
  const last = events.at(-1);
  const newest = last ? eventSeq(last) : 0;
  useEffect(() => {
    const element = scroller.current;
    if (!element) return;
    const moved = () => {
      const top = element.scrollTop <= AT_TOP_PX;
      setLeftAt((before) => (top ? undefined : (before ?? newest)));
    };
    element.addEventListener("scroll", moved, { passive: true });
    return () => element.removeEventListener("scroll", moved);
  }, [newest]);
  // biome-ignore lint/correctness/useExhaustiveDependencies: to the top again with each new event
  useEffect(() => {
    if (leftAt === undefined) scroller.current?.scrollTo({ top: 0 });
  }, [newest, leftAt]);
  const news = leftAt === undefined ? 0 : events.filter((event) => eventSeq(event) > leftAt).length;
  return { scroller, following: leftAt === undefined, news, toTop: () => scroller.current?.scrollTo({ top: 0 }) };
}

/** Reads the news out to those who do not see it, the last of a burst. */
function News({ events }: { events: readonly LogEvent[] }) {
  const last = events.at(-1);
  const fresh = last?.time !== undefined && Date.now() - Date.parse(last.time) < NEWS_MS;
  const sentence = last && fresh ? eventSentence(last, nameOf) : undefined;
  return (
    <p role="status" className="sr-only">
      {sentence && sentence.tone !== "quiet" ? sentenceText(sentence) : ""}
    </p>
  );
}

interface ScopeProps {
  tenant: Tenant;
  everyone: boolean;
  onChange: (everyone: boolean) => void;
}

function Scope({ tenant, everyone, onChange }: ScopeProps) {
  const look = (on: boolean) =>
    `rounded px-1.75 text-xs ${on ? "bg-wash font-medium text-accent" : "text-muted hover:text-text"}`;
  return (
    <fieldset className="flex min-w-0 items-center gap-0.5">
      <legend className="sr-only">Whose events</legend>
      <button
        type="button"
        aria-pressed={!everyone}
        className={`truncate ${look(!everyone)}`}
        onClick={() => onChange(false)}
      >
        {tenant.slug}
      </button>
      <button type="button" aria-pressed={everyone} className={look(everyone)} onClick={() => onChange(true)}>
        All
      </button>
    </fieldset>
  );
}

interface LinesProps {
  lines: readonly Line[];
  open: number | undefined;
  onToggle: (seq: number) => void;
  showTenant: boolean;
}

function Lines({ lines, open, onToggle, showTenant }: LinesProps) {
  let before = "";
  return (
    <ol>
      {lines.map(({ event, seq, sentence }) => {
        const today = day(event.time);
        const heading = today === before ? undefined : today;
        before = today;
        return (
          <li key={seq}>
            {heading && (
              <h3 className="sticky top-0 z-1 border-b bg-panel/95 px-3 py-1 text-2xs font-semibold text-muted">
                {heading}
              </h3>
            )}
            <EventLine {...{ event, seq, sentence, onToggle }} open={open === seq} showTenant={showTenant} />
          </li>
        );
      })}
    </ol>
  );
}

const MARKS: Record<Tone, string> = {
  add: "bg-glow",
  change: "bg-accent",
  remove: "bg-bad",
  quiet: "bg-edge",
};

interface EventLineProps extends Line {
  open: boolean;
  onToggle: (seq: number) => void;
  showTenant: boolean;
}

const EventLine = memo(function EventLine({ event, seq, sentence, open, onToggle, showTenant }: EventLineProps) {
  const fresh = event.time !== undefined && Date.now() - Date.parse(event.time) < NEWS_MS;
  const tenant = showTenant && event.tenantId ? nameOf(event.tenantId) : "";
  return (
    <article className={`border-b border-line/60 ${fresh ? "arrive" : ""}`}>
      <button
        type="button"
        aria-expanded={open}
        onClick={() => onToggle(seq)}
        className="grid w-full grid-cols-[0.5rem_minmax(0,1fr)_auto] items-baseline gap-x-2.5 px-3 py-1.5 text-left hover:bg-raised/60 @min-[540px]:grid-cols-[0.5rem_minmax(0,1fr)_auto_auto]"
      >
        <span aria-hidden="true" className={`size-2 rounded-full ${MARKS[sentence.tone]}`} />
        <span className={`min-w-0 wrap-anywhere ${sentence.tone === "quiet" ? "text-muted" : ""}`}>
          {sentence.parts.map((part, at) =>
            typeof part === "string" ? (
              part
            ) : (
              // biome-ignore lint/suspicious/noArrayIndexKey: a sentence does not change its order
              <strong key={at} className="font-semibold">
                {part.name}
              </strong>
            ),
          )}
          {event.reason && <span className="block text-muted">“{event.reason}”</span>}
        </span>
        <time dateTime={event.time} title={timeFull(event.time)} className="num text-xs text-muted">
          {clock(event.time)}
        </time>
        <span className="num col-start-2 text-2xs text-muted @min-[540px]:col-start-3 @min-[540px]:row-start-1">
          #{count(seq)}
          {tenant && ` · ${tenant}`}
          {event.source && ` · from ${event.source}`}
        </span>
      </button>
      {open && <EventJson event={event} />}
    </article>
  );
});

const PIECES = { key: "text-accent", text: "text-ok", other: "text-warn", plain: "text-muted" } as const;

/** The event as the API gives it. */
function EventJson({ event }: { event: LogEvent }) {
  const json = JSON.stringify(event, null, 2);
  return (
    <div className="relative mx-3 mb-2.5 rounded-lg border bg-ground">
      <pre className="mono max-h-80 overflow-auto p-2.5 text-xs leading-relaxed break-all whitespace-pre-wrap">
        {jsonPieces(json).map(({ kind, text }, at) => (
          // biome-ignore lint/suspicious/noArrayIndexKey: pieces of a text that does not change
          <span key={at} className={PIECES[kind]}>
            {text}
          </span>
        ))}
      </pre>
      <span className="absolute top-1.5 right-1.5 rounded bg-ground">
        <CopyIcon text={json} label="Copy the event" />
      </span>
    </div>
  );
}

interface TailProps {
  empty: boolean;
  asked: boolean;
  begun: boolean;
  hidden: boolean;
  full: boolean;
  onMore: () => void;
}

/** The end of the list: older events, or the beginning of the log. */
function Tail({ empty, asked, begun, hidden, full, onMore }: TailProps) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const more = async () => {
    setBusy(true);
    setError(undefined);
    try {
      if (!hidden) await olderLoad();
      onMore();
    } catch (problem) {
      setError(problem);
    } finally {
      setBusy(false);
    }
  };
  const end = begun || full;
  return (
    <div className="grid justify-items-center gap-2 px-3 py-3 text-xs text-muted">
      {empty && <p>{asked ? "No event here matches." : "Nothing has happened here yet."}</p>}
      <ProblemBox error={error} />
      {hidden || !end ? (
        <Button look="quiet" className="text-xs" disabled={busy} onClick={() => void more()}>
          {busy ? "Reading…" : "Older events"}
        </Button>
      ) : (
        <p>{full && !begun ? "cvlanctl events reads further back." : !empty && "The beginning of the log"}</p>
      )}
    </div>
  );
}
