import { useQuery } from "@tanstack/react-query";
import { listRead, segment } from "../../api/list";
import { request, requestJson } from "../../api/session";
import { filled, type Tenant, type TenantCreateRequest } from "../../api/types";
import { usePolling } from "../../live/live";
import { TENANT } from "./model";

const TENANTS_MAX = 5_000;

export const useTenants = () =>
  useQuery({
    queryKey: ["tenants"],
    queryFn: ({ signal }) => listRead("/tenants", {}, TENANT, TENANTS_MAX, signal),
    refetchInterval: usePolling(),
  });

export async function tenantCreate(body: TenantCreateRequest): Promise<Tenant> {
  return filled(TENANT, (await requestJson<Tenant>("POST", "/tenants", { body })).body);
}

export async function tenantDelete(id: string, reason: string): Promise<void> {
  await request("DELETE", `/tenants/${segment(id)}`, { reason });
}
