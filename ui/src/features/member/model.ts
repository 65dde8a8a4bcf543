/** Members of the cluster: how their events read. */
import { type Describe, thing, who } from "../sentence";

export const memberDescribe: Describe = (event, nameOf) => {
  const { admitted, joined, removed } = event.member ?? {};
  const actor = who(event, nameOf);
  if (admitted) return { tone: "add", parts: [actor, " admitted member ", thing(admitted.memberId, admitted.name)] };
  if (joined) {
    return {
      tone: "add",
      parts: ["Member ", thing(joined.memberId, nameOf(joined.memberId)), ` is in at ${joined.address}`],
    };
  }
  if (removed) {
    return { tone: "remove", parts: [actor, " removed member ", thing(removed.memberId, nameOf(removed.memberId))] };
  }
  return undefined;
};
