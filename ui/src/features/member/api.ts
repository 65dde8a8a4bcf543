import { useQueryClient } from "@tanstack/react-query";
import { segment } from "../../api/list";
import { request, requestJson } from "../../api/session";
import type { MemberAddRequest, MemberAddResponse, Wire } from "../../api/types";

/** Votes and leadership are no events: whoever changed them asks for the members again. */
export function useClusterRefresh(): () => void {
  const client = useQueryClient();
  return () => void client.invalidateQueries({ queryKey: ["cluster"] });
}

export async function memberAdd(body: MemberAddRequest): Promise<Wire<MemberAddResponse>> {
  return (await requestJson<MemberAddResponse>("POST", "/cluster/members", { body })).body;
}

export async function memberRemove(id: string, reason: string): Promise<void> {
  await request("DELETE", `/cluster/members/${segment(id)}`, { reason });
}

export async function memberPromote(id: string): Promise<void> {
  await request("POST", `/cluster/members/${segment(id)}/promote`);
}

/** `to`: a voter's id; "" is the one that has most of the log. */
export async function leaderTransfer(to: string): Promise<void> {
  await request("POST", "/cluster/transfer-leader", { body: { to } });
}
