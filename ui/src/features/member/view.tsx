import { type Problem, problemOf } from "../../api/problem";
import type { ClusterStatus, Member } from "../../api/types";
import { Button } from "../../kit/button";
import { Icon } from "../../kit/icon";
import { Empty, Waiting } from "../../kit/panel";
import { ProblemBox } from "../../kit/problem";
import { clock, count } from "../../lib/format";
import { useNow } from "../../lib/hooks";
import { CLUSTER_WATCH_MS, useCluster } from "../system/api";
import { type Alert, type AlertTone, alertsCount, alertsOf, worstOf } from "./alerts";
import { Growth } from "./growth";
import { leaderOf, memberAway, otherDoors, quorumOf, quorumSentence, successors } from "./model";
import { MemberPicture } from "./picture";
import { type MemberActions, MemberTable } from "./table";

interface ViewProps {
  mayRead: boolean;
  mayWrite: boolean;
  onAdd: () => void;
  onPromote: (member: Member) => void;
  /** Undefined: to be asked. */
  onTransfer: (member?: Member) => void;
  onRemove: (member: Member) => void;
}

/** The members of the cluster: who leads, votes and follows, and whether one may be lost. */
export function ClusterView(props: ViewProps) {
  const { mayRead, mayWrite, onAdd, onTransfer } = props;
  const cluster = useCluster(mayRead, CLUSTER_WATCH_MS);
  const failed = cluster.failureReason ?? cluster.error;
  const stale = failed ? { at: cluster.dataUpdatedAt, why: problemOf(failed) } : undefined;
  return (
    <div className="flex min-h-0 flex-1 flex-col">
      <header className="flex h-12 shrink-0 items-center gap-3 border-b pr-3 pl-4">
        <h2 className="text-[1.05rem] font-semibold">Cluster</h2>
        {cluster.data && <span className="mono truncate text-muted">{cluster.data.version}</span>}
        {mayWrite && cluster.data && (
          <span className="ml-auto flex shrink-0 items-center gap-1.5">
            <Button icon="star" disabled={successors(cluster.data.members).length === 0} onClick={() => onTransfer()}>
              Hand over leadership
            </Button>
            <Button look="solid" icon="plus" onClick={onAdd}>
              Add member
            </Button>
          </span>
        )}
      </header>
      {!mayRead && (
        <Empty title="Your role may not see the cluster">
          <p className="text-muted">Its members are for superadmins, and for auditors of the whole cluster.</p>
        </Empty>
      )}
      {mayRead && cluster.isPending && <Waiting rows={8} />}
      {mayRead && cluster.error && !cluster.data && (
        <div className="p-4">
          <ProblemBox error={cluster.error} onRetry={() => void cluster.refetch()} />
        </div>
      )}
      {cluster.data && <Members {...props} cluster={cluster.data} stale={stale} />}
    </div>
  );
}

/** Where it is not answered any more: why, and when it was, ms. */
type Stale = { at: number; why: Problem } | undefined;

interface MembersProps extends ViewProps {
  cluster: ClusterStatus;
  stale: Stale;
}

/** What is wrong, with the page's own view of the member that answers. */
function useAlerts(cluster: ClusterStatus, stale: Stale, now: number): Alert[] {
  const alerts = alertsOf(cluster, now);
  if (!stale) return alerts;
  const { at, why } = stale;
  const title = why.status === 0 ? "This member does not answer" : `This member answers: ${why.detail || why.title}`;
  const text = `What you see is as of ${clock(new Date(at).toISOString())}. Go on at another member.`;
  return [{ key: "stale", tone: "bad", title, text }, ...alerts];
}

function Members({ cluster, stale, mayWrite, onAdd, onPromote, onTransfer, onRemove }: MembersProps) {
  const now = useNow();
  const alerts = useAlerts(cluster, stale, now);
  const actions: MemberActions | undefined = mayWrite ? { onPromote, onTransfer, onRemove } : undefined;
  return (
    <div className="@container min-h-0 flex-1 overflow-auto">
      <Verdict cluster={cluster} alerts={alerts} now={now} />
      {/* As high as it is, whatever the members do: nothing below it moves. */}
      <div className="grid border-b @min-[700px]:h-82 @min-[700px]:[@media(max-height:760px)]:h-70 @min-[700px]:grid-cols-[minmax(20rem,44%)_minmax(0,1fr)]">
        <div className="h-70 min-h-0 min-w-0 @min-[700px]:h-auto @max-[700px]:[@media(max-height:760px)]:h-58">
          <MemberPicture cluster={cluster} now={now} />
        </div>
        <div className="min-h-0 min-w-0 @max-[700px]:border-t @min-[700px]:border-l">
          <MemberTable cluster={cluster} now={now} actions={actions} />
        </div>
      </div>
      {/* What there is to look at comes and goes; what stands beside it stays where it is. */}
      <div className="grid gap-x-6 gap-y-5 px-4 py-4 @min-[700px]:grid-cols-[minmax(0,44fr)_minmax(0,56fr)]">
        <Alerts alerts={alerts} doors={otherDoors(cluster)} />
        <div className="grid content-start gap-6">
          <Growth cluster={cluster} mayWrite={mayWrite} onAdd={onAdd} />
          <DoorList cluster={cluster} now={now} />
        </div>
      </div>
    </div>
  );
}

const BANDS: Readonly<Record<AlertTone | "ok", string>> = {
  ok: "text-ok",
  note: "text-ok",
  warn: "bg-warn-wash text-warn",
  bad: "bg-bad-wash text-bad",
};

/** One sentence: may one be lost? Coloured by the worst that there is. */
function Verdict({ cluster, alerts, now }: { cluster: ClusterStatus; alerts: readonly Alert[]; now: number }) {
  const { members, memberId, term } = cluster;
  const quorum = quorumOf(members, memberId);
  const leader = leaderOf(members);
  const gone = leader && memberAway(leader, memberId, now);
  const leads = leader ? `${leader.name} ${gone ? "led" : "leads"}` : "Nobody leads";
  const tone = worstOf(alerts) ?? "ok";
  const good = tone === "ok" || tone === "note";
  // One voter alone is no alarm, and nothing to praise.
  const band = good && quorum.spare === 0 ? "" : BANDS[tone];
  return (
    <section aria-label="Quorum" className={`flex min-h-16 items-center gap-3 border-b px-4 py-2 ${band}`}>
      <Icon name={good ? "check" : "alert"} className="size-5" />
      <div className="min-w-0 flex-1">
        <p role="status" className="text-base font-semibold">
          {quorumSentence(quorum)}
        </p>
        <p className="truncate text-muted">
          {leads} in term {count(Number(term))}
          {quorum.voters > 1 && `; every change takes ${quorum.needed} of ${quorum.voters} voters`}
        </p>
      </div>
      <p className="num shrink-0 font-medium">{alertsCount(alerts)}</p>
    </section>
  );
}

const BOXES: Readonly<Record<AlertTone, string>> = {
  bad: "border-bad/35 bg-bad-wash",
  warn: "border-warn/40 bg-warn-wash",
  note: "",
};
const TITLES: Readonly<Record<AlertTone, string>> = { bad: "text-bad", warn: "text-warn", note: "" };
/** Alerts that are about the member that answers: the way out is another one. */
const ELSEWHERE = new Set(["stale", "diverged", "stopped", "removed"]);

interface AlertsProps {
  alerts: readonly Alert[];
  doors: readonly { name: string; url: string }[];
}

function Alerts({ alerts, doors }: AlertsProps) {
  return (
    <section aria-label="To look at">
      <p role="status" className="sr-only">
        {alerts.map(({ title }) => `${title}.`).join(" ")}
      </p>
      {alerts.length === 0 && (
        <p className="flex items-center gap-2 text-muted">
          <Icon name="check" />
          Nothing to look at.
        </p>
      )}
      <ul className="grid gap-2">
        {alerts.map(({ key, tone, title, text }) => (
          <li key={key} className={`rounded-lg border px-3 py-2 ${BOXES[tone]}`}>
            <p className={`font-semibold ${TITLES[tone]}`}>{title}</p>
            <p className="mt-0.5">
              {text} {ELSEWHERE.has(key) && <Doors doors={doors} />}
            </p>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Doors({ doors }: { doors: AlertsProps["doors"] }) {
  return doors.map(({ name, url }) => (
    <a key={name} href={url} rel="noreferrer" className="mr-2 font-medium text-accent hover:underline">
      {name}
    </a>
  ));
}

const bare = (url: string) => url.replace(/^https:\/\//, "");

/** Where people and machines find each; and who is asked: one that follows does not know how far the others are. */
function DoorList({ cluster, now }: { cluster: ClusterStatus; now: number }) {
  const { members, memberId } = cluster;
  const own = members.find(({ id }) => id === memberId);
  const leader = leaderOf(members);
  const shown = members.filter(({ apiUrls, nodeUrls }) => apiUrls.length + nodeUrls.length > 0);
  return (
    <section aria-label="Doors" className="grid max-w-3xl gap-2">
      {own && leader && leader !== own && !memberAway(leader, memberId, now) && (
        <p className="text-muted">
          {own.name} answers this page and follows; only {leader.name}, which leads, knows how far the others are.
        </p>
      )}
      {shown.length > 0 && (
        <table className="w-full table-fixed border-separate border-spacing-0">
          <caption className="sr-only">Where people and machines find the members</caption>
          <thead>
            <tr className="h-6 text-left align-top">
              {["Doors of", "People", "Machines"].map((head, at) => (
                <th key={head} scope="col" className={`label border-b ${at === 0 ? "w-[22%]" : ""}`}>
                  {head}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {shown.map(({ id, name, apiUrls, nodeUrls }) => (
              <tr key={id} className="h-7">
                <th scope="row" className="truncate pr-3 text-left font-normal">
                  {name}
                </th>
                <td className="mono truncate pr-3">
                  {apiUrls.map((url) => (
                    <a key={url} href={url} rel="noreferrer" className="mr-2 text-accent hover:underline">
                      {bare(url)}
                    </a>
                  ))}
                  {apiUrls.length === 0 && <span className="text-muted">–</span>}
                </td>
                <td className="mono truncate text-muted" title={nodeUrls.join("\n")}>
                  {nodeUrls.map(bare).join(", ") || "–"}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}
