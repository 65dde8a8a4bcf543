import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { listRead, segment } from "../../api/list";
import { request } from "../../api/session";
import { usePolling } from "../../live/live";
import { NODE } from "./model";

/** What the page holds of one CVLAN; in a larger one, the search asks the controller. */
export const NODES_MAX = 5_000;

/** The nodes of one CVLAN. `search` is for a list that did not fit; "" elsewhere. */
export const useNodes = (tenantId: string, cvlanId: string, search: string) =>
  useQuery({
    queryKey: ["nodes", tenantId, cvlanId, search],
    queryFn: ({ signal }) => {
      const params: Record<string, string> = search ? { cvlan: cvlanId, q: search } : { cvlan: cvlanId };
      return listRead(`/tenants/${segment(tenantId)}/nodes`, params, NODE, NODES_MAX, signal);
    },
    enabled: tenantId !== "" && cvlanId !== "",
    placeholderData: (before, query) => (query?.queryKey[2] === cvlanId ? keepPreviousData(before) : undefined),
    refetchInterval: usePolling(),
  });

export async function nodeDelete(tenantId: string, id: string, reason: string): Promise<void> {
  await request("DELETE", `/tenants/${segment(tenantId)}/nodes/${segment(id)}`, { reason });
}
