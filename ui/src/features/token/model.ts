/** Registration tokens: what the list becomes by each event, and how the events read. */
import type { Token } from "../../api/types";
import { type Fold, itemAdd, itemChange, itemRemove, stamp } from "../../live/fold";
import { type Describe, thing, who } from "../sentence";

export const TOKEN: Token = {
  id: "",
  tenantId: "",
  cvlanId: "",
  tags: [],
  maxUses: 1,
  uses: 0,
  revision: "0",
  status: "active",
  note: "",
};

export type TokenState = "active" | "expired" | "used up";

/** Expiry is a matter of the clock, not of an event. */
export function tokenState(token: Token, now: number): TokenState {
  if (token.expiresAt && Date.parse(token.expiresAt) <= now) return "expired";
  return token.uses >= token.maxUses ? "used up" : "active";
}

/** Scope: [tenant id]. A token's uses are counted by the nodes that it made. */
export const tokenFold: Fold<Token> = (items, event, { args: [tenantId] }) => {
  if (event.tenantId !== tenantId) return items;
  const { created, deleted } = event.token ?? {};
  if (created) {
    const { tokenId: id, cvlanId, maxUses = 1, expiresAt, tags = [], note = "" } = created;
    return itemAdd(items, {
      ...TOKEN,
      ...{ id, tenantId, cvlanId, maxUses, expiresAt, tags, note, createdAt: event.time },
      revision: stamp(event).revision,
    });
  }
  if (deleted) return itemRemove(items, deleted.tokenId);
  const tokenId = event.node?.created?.enrolment?.tokenId;
  return tokenId ? itemChange(items, tokenId, (item) => ({ ...item, uses: item.uses + 1 })) : items;
};

export const tokenDescribe: Describe = (event, nameOf) => {
  const { created, deleted } = event.token ?? {};
  const actor = who(event, nameOf);
  if (created) {
    const cvlan = thing(created.cvlanId, nameOf(created.cvlanId));
    const uses = (created.maxUses ?? 1) === 1 ? "one machine" : `${created.maxUses} machines`;
    const note = created.note ? ` (${created.note})` : "";
    return { tone: "add", parts: [actor, ` made a token for ${uses} in `, cvlan, note] };
  }
  if (deleted) {
    return { tone: "remove", parts: [actor, " revoked token ", thing(deleted.tokenId, nameOf(deleted.tokenId))] };
  }
  return undefined;
};
