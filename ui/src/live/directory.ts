/**
 * Names for ids: events name things by id alone, people by name. Learnt from every list and event that comes by; the
 * name of something deleted is kept, so that its story can still be told.
 */
import type { LogEvent, Node, Tenant, Token } from "../api/types";
import { short } from "../lib/format";
import { storeCreate } from "../lib/store";

/** The oldest names make room: a tenth of the largest network is more than a page of events can mention. */
export const DIRECTORY_MAX = 20_000;

const names = new Map<string, string>();

/** Changes with every new name. */
export const directoryVersion = storeCreate(0);

function learn(id: string | undefined, name: string | undefined): void {
  if (!id || !name || names.get(id) === name) return;
  names.set(id, name);
  if (names.size > DIRECTORY_MAX) {
    const oldest = names.keys().next().value;
    if (oldest !== undefined) names.delete(oldest);
  }
  directoryVersion.set(directoryVersion.get() + 1);
}

export const nameOf = (id: string): string => names.get(id) ?? (short(id) || "?");

export function directoryClear(): void {
  names.clear();
  directoryVersion.set(directoryVersion.get() + 1);
}

export function directoryLearnEvent({ tenant, cvlan, node, token, user, member, actor }: LogEvent): void {
  if (actor?.kind === "user") learn(actor.id, actor.name);
  learn(tenant?.created?.tenantId, tenant?.created?.slug);
  learn(cvlan?.created?.cvlanId, cvlan?.created?.name);
  learn(cvlan?.updated?.cvlanId, cvlan?.updated?.name);
  learn(node?.created?.nodeId, node?.created?.name);
  learn(node?.updated?.nodeId, node?.updated?.name);
  learn(token?.created?.tokenId, token?.created?.note);
  learn(user?.created?.userId, user?.created?.name);
  learn(member?.admitted?.memberId, member?.admitted?.name);
}

/** How a thing of each list is called. */
type Listed = { id: string } & Partial<Pick<Tenant, "slug"> & Pick<Node, "name"> & Pick<Token, "note">>;

/** `noun` is the first word of the list's query key. */
export function directoryLearnList(noun: string, items: readonly Listed[]): void {
  for (const { id, slug, name, note } of items) learn(id, noun === "tenants" ? slug : noun === "tokens" ? note : name);
}
