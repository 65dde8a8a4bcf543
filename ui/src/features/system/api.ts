import { useQuery } from "@tanstack/react-query";
import { requestJson } from "../../api/session";
import { type ClusterStatus, filled, type LogVerification } from "../../api/types";
import { directoryLearnList } from "../../live/directory";
import { MEMBER } from "../member/model";

/** Between events, for what no event tells: uptime, the leader. */
const CLUSTER_EVERY_MS = 15_000;
/** Where the members themselves are looked at. */
export const CLUSTER_WATCH_MS = 2_000;

const CLUSTER: ClusterStatus = {
  version: "",
  epoch: "",
  checkpoint: "",
  root: "",
  role: "",
  term: "0",
  memberId: "0",
  nodeUrls: [],
  apiUrls: [],
  members: [],
  tenants: "0",
  cvlans: "0",
  nodes: "0",
  nodesOnline: "0",
  tokens: "0",
  users: "0",
  caFingerprint: "",
  uptimeSeconds: "0",
  viewCheckpoint: "",
  digestSeq: "0",
  digest: "",
};

const VERIFICATION: LogVerification = {
  ok: false,
  events: "0",
  entries: "0",
  root: "",
  digest: "",
  checkpointSeq: "0",
  checkpointDigest: "",
  replayedDigest: "",
  problem: "",
  millis: "0",
  fromSeq: "1",
};

async function clusterRead(signal: AbortSignal): Promise<ClusterStatus> {
  const status = filled(CLUSTER, (await requestJson<ClusterStatus>("GET", "/cluster", { signal })).body);
  const members = status.members.map((member) => filled(MEMBER, member));
  // No event names the founder.
  directoryLearnList("members", members);
  return { ...status, members };
}

export const useCluster = (enabled: boolean, everyMs = CLUSTER_EVERY_MS) =>
  useQuery({
    enabled,
    queryKey: ["cluster"],
    queryFn: ({ signal }) => clusterRead(signal),
    refetchInterval: everyMs,
  });

export async function logVerify(): Promise<LogVerification> {
  return filled(VERIFICATION, (await requestJson<LogVerification>("POST", "/log/verify")).body);
}
