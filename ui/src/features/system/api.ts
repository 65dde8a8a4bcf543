import { useQuery } from "@tanstack/react-query";
import { requestJson } from "../../api/session";
import { type ClusterStatus, filled, type LogVerification } from "../../api/types";

/** Between events, for what no event tells: uptime, the leader. */
const CLUSTER_EVERY_MS = 15_000;

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
};

export const useCluster = (enabled: boolean) =>
  useQuery({
    enabled,
    queryKey: ["cluster"],
    queryFn: async ({ signal }) =>
      filled(CLUSTER, (await requestJson<ClusterStatus>("GET", "/cluster", { signal })).body),
    refetchInterval: CLUSTER_EVERY_MS,
  });

export async function logVerify(): Promise<LogVerification> {
  return filled(VERIFICATION, (await requestJson<LogVerification>("POST", "/log/verify")).body);
}
