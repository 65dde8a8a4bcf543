/** Events for tests, as the API writes them: defaults left out. */
import type { LogEvent } from "../api/types";

type Body = Partial<Pick<LogEvent, "system" | "tenant" | "cvlan" | "node" | "token" | "user" | "member">>;

export const TENANT_ID = "tenant-1";
export const CVLAN_ID = "cvlan-1";
export const TIME = "2026-01-02T03:04:05Z";

export const ADMIN = { kind: "user", id: "user-1", name: "ada" };

export function event(seq: number, body: Record<string, unknown>, more: Partial<LogEvent> = {}): LogEvent {
  return { seq: String(seq), time: TIME, tenantId: TENANT_ID, actor: ADMIN, ...(body as Body), ...more } as LogEvent;
}

export const cvlanCreated = (seq: number, cvlanId: string, name = cvlanId) =>
  event(seq, { cvlan: { created: { cvlanId, name, ipv4Cidr: "10.0.0.0/24" } } });

export const nodeCreated = (seq: number, nodeId: string, more: Record<string, unknown> = {}) =>
  event(seq, { node: { created: { nodeId, cvlanId: CVLAN_ID, name: nodeId, ipv4: "10.0.0.2", ...more } } });

export const nodeDeleted = (seq: number, nodeId: string, cvlanId = CVLAN_ID) =>
  event(seq, { node: { deleted: { nodeId, cvlanId } } });
