/** The cluster itself: how its events read. */
import { hexOf, short } from "../../lib/format";
import { type Describe, thing, who } from "../sentence";

export const systemDescribe: Describe = (event, nameOf) => {
  const { bootstrapped, checkpointOpened, checkpointed, advertisementChanged, epochBegun } = event.system ?? {};
  const { historyTrimmed, featureLevelRaised } = event.system ?? {};
  if (bootstrapped) return { tone: "add", parts: ["This log begins: the cluster was bootstrapped"] };
  if (checkpointOpened) return { tone: "quiet", parts: [who(event, nameOf), " opened a checkpoint"] };
  if (checkpointed) {
    const digest = short(hexOf(checkpointed.digest));
    return { tone: "quiet", parts: [`Every replica agrees at ${checkpointed.seq ?? 0}: state ${digest}`] };
  }
  if (advertisementChanged) {
    const { nodeUrls = [], memberId } = advertisementChanged;
    const whose = memberId ? ["Member ", thing(memberId, nameOf(memberId))] : [who(event, nameOf)];
    const says = nodeUrls.length ? ` sends machines to ${nodeUrls.join(", ")}` : " advertises no door";
    return { tone: "change", parts: [...whose, says] };
  }
  if (epochBegun) {
    const { memberId, removed = [] } = epochBegun;
    const only = memberId ? thing(memberId, nameOf(memberId)) : "one member";
    const gone = removed.length === 1 ? "1 member was" : `${removed.length} members were`;
    return { tone: "remove", parts: ["A new cluster was forced: ", only, ` goes on alone, ${gone} given up`] };
  }
  if (historyTrimmed) {
    return { tone: "remove", parts: [`History before event ${historyTrimmed.firstSeq ?? 0} is not kept any longer`] };
  }
  if (featureLevelRaised) {
    const level = featureLevelRaised.level ?? 0;
    return { tone: "change", parts: [`Every member was upgraded: the log is at feature level ${level}`] };
  }
  return undefined;
};
