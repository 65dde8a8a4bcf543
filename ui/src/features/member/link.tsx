import { useNow } from "../../lib/hooks";
import { ROUTE_CLUSTER, routeHref } from "../../lib/route";
import { useCluster } from "../system/api";
import { alertsOf, worstOf } from "./alerts";
import { quorumOf, quorumSentence } from "./model";

const MARKS = { ok: "bg-glow", note: "bg-glow", warn: "bg-warn", bad: "bg-bad-solid" } as const;
const SAYS = { ok: "well", note: "well", warn: "to be looked at", bad: "in trouble" } as const;

/** The way to the cluster's page, with its state as a mark. */
export function ClusterLink({ current }: { current: boolean }) {
  const now = useNow();
  const { data: cluster } = useCluster(true);
  const tone = cluster && (worstOf(alertsOf(cluster, now)) ?? "ok");
  const title = cluster && quorumSentence(quorumOf(cluster.members, cluster.memberId));
  return (
    <div
      className={`relative mx-1.5 my-1.5 flex h-8 items-center rounded-md ${current ? "bg-wash" : "hover:bg-raised"}`}
    >
      <a
        href={routeHref(ROUTE_CLUSTER)}
        aria-current={current ? "page" : undefined}
        title={title}
        className={`min-w-0 flex-1 truncate pl-2.5 font-semibold after:absolute after:inset-0 ${current ? "text-accent" : ""}`}
      >
        Cluster
      </a>
      {tone && (
        <span className="flex items-center gap-2 px-2 text-xs text-muted">
          <span className="num" title="Members">
            {cluster.members.length}
          </span>
          <span
            role="img"
            aria-label={`The cluster is ${SAYS[tone]}`}
            className={`size-2 rounded-full ${MARKS[tone]}`}
          />
        </span>
      )}
    </div>
  );
}
