import { useQuery } from "@tanstack/react-query";
import { listRead, segment } from "../../api/list";
import { request, requestJson } from "../../api/session";
import { type Cvlan, type CvlanCreateRequest, filled } from "../../api/types";
import { usePolling } from "../../live/live";
import { CVLAN } from "./model";

const CVLANS_MAX = 5_000;

/** The CVLANs of one tenant; "" asks for none. */
export const useCvlans = (tenantId: string) =>
  useQuery({
    queryKey: ["cvlans", tenantId],
    queryFn: ({ signal }) => listRead(`/tenants/${segment(tenantId)}/cvlans`, {}, CVLAN, CVLANS_MAX, signal),
    enabled: tenantId !== "",
    refetchInterval: usePolling(),
  });

export async function cvlanCreate(tenantId: string, body: CvlanCreateRequest): Promise<Cvlan> {
  return filled(CVLAN, (await requestJson<Cvlan>("POST", `/tenants/${segment(tenantId)}/cvlans`, { body })).body);
}

export async function cvlanDelete(tenantId: string, id: string, reason: string): Promise<void> {
  await request("DELETE", `/tenants/${segment(tenantId)}/cvlans/${segment(id)}`, { reason });
}
