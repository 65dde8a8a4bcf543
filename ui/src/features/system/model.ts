/** The cluster itself: how its events read. */
import { hexOf, short } from "../../lib/format";
import { type Describe, who } from "../sentence";

export const systemDescribe: Describe = (event, nameOf) => {
  const { bootstrapped, checkpointOpened, checkpointed, advertisementChanged } = event.system ?? {};
  if (bootstrapped) return { tone: "add", parts: ["This log begins: the cluster was bootstrapped"] };
  if (checkpointOpened) return { tone: "quiet", parts: [who(event, nameOf), " opened a checkpoint"] };
  if (checkpointed) {
    const digest = short(hexOf(checkpointed.digest));
    return { tone: "quiet", parts: [`Every replica agrees at ${checkpointed.seq ?? 0}: state ${digest}`] };
  }
  if (advertisementChanged) {
    const urls = (advertisementChanged.nodeUrls ?? []).join(", ");
    return { tone: "change", parts: [who(event, nameOf), urls ? ` sends machines to ${urls}` : " advertises no door"] };
  }
  return undefined;
};
