import { useMutation } from "@tanstack/react-query";
import type { ReactNode } from "react";
import type { ClusterStatus, LogVerification } from "../../api/types";
import { Button } from "../../kit/button";
import { Commands, CopyIcon } from "../../kit/copy";
import { Icon } from "../../kit/icon";
import { Fact, Waiting } from "../../kit/panel";
import { ProblemBox } from "../../kit/problem";
import { count, plural, seconds, short } from "../../lib/format";
import { ROUTE_CLUSTER, routeHref } from "../../lib/route";
import { nameOf } from "../../live/directory";
import { quorumOf, quorumSentence } from "../member/model";
import { useTenants } from "../tenant/api";
import { logVerify, useCluster } from "./api";

interface OverviewProps {
  mayRead: boolean;
  mayCreate: boolean;
  onTenantCreate: () => void;
}

/** Where nothing is chosen: how the cluster is, and how to begin. */
export function Overview({ mayRead, mayCreate, onTenantCreate }: OverviewProps) {
  const cluster = useCluster(mayRead);
  const tenants = useTenants();
  return (
    <div className="min-h-0 flex-1 overflow-auto">
      <div className="mx-auto grid max-w-3xl gap-7 px-6 py-6">
        {tenants.data?.items.length === 0 && <FirstSteps mayCreate={mayCreate} onTenantCreate={onTenantCreate} />}
        {mayRead && cluster.isPending && <Waiting />}
        <ProblemBox error={cluster.data ? undefined : cluster.error} onRetry={() => void cluster.refetch()} />
        {cluster.data && <Cluster cluster={cluster.data} />}
        {!mayRead && tenants.data && tenants.data.items.length > 0 && (
          <p className="text-muted">Choose a tenant or a CVLAN on the left.</p>
        )}
      </div>
    </div>
  );
}

function FirstSteps({ mayCreate, onTenantCreate }: Omit<OverviewProps, "mayRead">) {
  return (
    <section aria-labelledby="first" className="grid gap-3">
      <h2 id="first" className="text-xl font-semibold">
        Three steps to the first ping
      </h2>
      <p className="max-w-prose text-muted">
        A tenant owns networks; a CVLAN is one of them; a token lets machines in. Here, or where you work:
      </p>
      <Commands
        label="Copy the commands"
        lines={[
          "cvlanctl tenant create acme",
          "cvlanctl -t acme cvlan create prod --ipv6 auto",
          "cvlanctl -t acme token create --cvlan prod --expires 24h",
        ]}
      />
      {mayCreate && (
        <div>
          <Button look="solid" icon="plus" onClick={onTenantCreate}>
            New tenant
          </Button>
        </div>
      )}
    </section>
  );
}

function Tile({ term, value, more }: { term: string; value: string; more?: ReactNode }) {
  return (
    <div className="rounded-lg border bg-ground/60 px-3.5 py-2.5">
      <dt className="label">{term}</dt>
      <dd className="num mt-0.5 text-xl font-semibold">
        {value} {more && <span className="text-sm font-normal text-muted">{more}</span>}
      </dd>
    </div>
  );
}

function Hash({ text, what }: { text: string; what: string }) {
  if (!text) return <span className="text-muted">–</span>;
  return (
    <span className="flex min-w-0 items-center gap-1">
      <span className="mono truncate" title={text}>
        {text}
      </span>
      <CopyIcon text={text} label={`Copy ${what}`} />
    </span>
  );
}

function Cluster({ cluster }: { cluster: ClusterStatus }) {
  const lag = Number(cluster.checkpoint.split(".")[1] ?? 0) - Number(cluster.viewCheckpoint.split(".")[1] ?? 0);
  return (
    <section aria-labelledby="cluster" className="grid gap-4">
      <h2 id="cluster" className="text-[1.05rem] font-semibold">
        Cluster
      </h2>
      <dl className="grid grid-cols-2 gap-3 lg:grid-cols-4">
        <Tile
          term="Nodes online"
          value={count(Number(cluster.nodesOnline))}
          more={`of ${count(Number(cluster.nodes))}`}
        />
        <Tile term="Tenants" value={count(Number(cluster.tenants))} />
        <Tile term="CVLANs" value={count(Number(cluster.cvlans))} />
        <Tile term="Tokens" value={count(Number(cluster.tokens))} />
      </dl>
      <dl>
        <Fact term="Members">
          {quorumSentence(quorumOf(cluster.members, cluster.memberId))}{" "}
          <a href={routeHref(ROUTE_CLUSTER)} className="font-medium text-accent hover:underline">
            Look at them
          </a>
        </Fact>
        <Fact term="This one">
          {nameOf(cluster.memberId)} is {cluster.role}{" "}
          <span className="text-muted">in term {count(Number(cluster.term))}</span>
        </Fact>
        <Fact term="Version">
          {cluster.version} <span className="text-muted">up {seconds(Number(cluster.uptimeSeconds))}</span>
        </Fact>
        <Fact term="Checkpoint">
          <Hash text={cluster.checkpoint} what="the checkpoint" />
        </Fact>
        <Fact term="Merkle root">
          <Hash text={cluster.root} what="the Merkle root" />
        </Fact>
        <Fact term="State digest">
          {Number(cluster.digestSeq) > 0 ? (
            <span>
              <span className="mono">{short(cluster.digest, 16)}</span>
              <span className="text-muted"> at #{count(Number(cluster.digestSeq))}</span>
            </span>
          ) : (
            <span className="text-muted">no checkpoint was asked for yet</span>
          )}
        </Fact>
        {cluster.viewCheckpoint && (
          <Fact term="SQL view">{lag > 0 ? `${plural(lag, "event")} behind` : "up to date"}</Fact>
        )}
        {cluster.postgres && (
          <Fact term="PostgreSQL view">
            {!cluster.postgres.up
              ? "away"
              : cluster.postgres.writer
                ? "written by this member"
                : "another member writes it, or none"}{" "}
            <span className="text-muted">{cluster.postgres.url}</span>
          </Fact>
        )}
        <Fact term="CA">
          <Hash text={cluster.caFingerprint} what="the CA's fingerprint" />
        </Fact>
        <Fact term="Node door">
          <span className="mono">{cluster.nodeUrls.join(", ") || "–"}</span>
        </Fact>
      </dl>
      <Verify />
    </section>
  );
}

function Verify() {
  const verify = useMutation({ mutationFn: logVerify });
  return (
    <div className="grid gap-3">
      <div className="flex items-center gap-3">
        <Button icon="shield" disabled={verify.isPending} onClick={() => verify.mutate()}>
          {verify.isPending ? "Replaying…" : "Verify the log"}
        </Button>
        <span className="text-muted">
          Replays every event that is kept, and compares the Merkle root and the state's digest.
        </span>
      </div>
      <ProblemBox error={verify.error} />
      {verify.data && <Verdict verdict={verify.data} />}
    </div>
  );
}

function Verdict({ verdict }: { verdict: LogVerification }) {
  const from = Number(verdict.fromSeq);
  const before = from > 1 ? `, from event ${count(from)} on: of what was before, the state is kept` : "";
  return (
    <div
      role="status"
      className={`rounded-lg border px-3.5 py-2.5 ${verdict.ok ? "border-ok/35" : "border-bad/40 bg-bad-wash"}`}
    >
      <p className={`flex items-center gap-1.5 font-semibold ${verdict.ok ? "text-ok" : "text-bad"}`}>
        <Icon name={verdict.ok ? "check" : "close"} />
        {verdict.ok ? (from > 1 ? "The log is in order" : "The log is whole") : "The log does not verify"}
      </p>
      <p className="mt-0.5 text-muted">
        {verdict.problem ||
          `${plural(Number(verdict.events) + 1 - from, "event")} replayed in ${count(Number(verdict.millis))} ms${before}.`}
      </p>
      {verdict.root && (
        <p className="mono mt-1 truncate text-muted">
          root {short(verdict.root, 16)} · digest {short(verdict.digest, 16)}
        </p>
      )}
    </div>
  );
}
