import { useQuery } from "@tanstack/react-query";
import { listRead, segment } from "../../api/list";
import { request, requestJson } from "../../api/session";
import type { TokenCreateRequest, TokenCreateResponse, Wire } from "../../api/types";
import { usePolling } from "../../live/live";
import { TOKEN } from "./model";

const TOKENS_MAX = 1_000;

export const useTokens = (tenantId: string) =>
  useQuery({
    queryKey: ["tokens", tenantId],
    queryFn: ({ signal }) => listRead(`/tenants/${segment(tenantId)}/tokens`, {}, TOKEN, TOKENS_MAX, signal),
    enabled: tenantId !== "",
    refetchInterval: usePolling(),
  });

export async function tokenCreate(tenantId: string, body: TokenCreateRequest): Promise<Wire<TokenCreateResponse>> {
  return (await requestJson<TokenCreateResponse>("POST", `/tenants/${segment(tenantId)}/tokens`, { body })).body;
}

export async function tokenDelete(tenantId: string, id: string, reason: string): Promise<void> {
  await request("DELETE", `/tenants/${segment(tenantId)}/tokens/${segment(id)}`, { reason });
}
