import { describe, expect, it } from "vitest";
import type { LogEvent } from "../api/types";
import { CVLAN_ID, cvlanCreated, event, nodeCreated, nodeDeleted, TENANT_ID } from "./fixtures";
import { eventSentence } from "./registry";
import { sentenceText } from "./sentence";

const NAMES: Record<string, string> = {
  [TENANT_ID]: "acme",
  [CVLAN_ID]: "prod",
  "node-1": "web",
  "token-1": "laptops",
  "user-2": "bob",
  "7": "m2",
};
const nameOf = (id: string) => NAMES[id] ?? id.slice(0, 8);
const system = { actor: { kind: "system", id: "", name: "" } };
const user = (body: Record<string, unknown>) => event(1, { user: body });

describe("eventSentence", () => {
  it.each<[string, string, LogEvent]>([
    [
      "ada created tenant acme (Acme Inc.)",
      "add",
      event(1, { tenant: { created: { tenantId: TENANT_ID, slug: "acme", name: "Acme Inc." } } }),
    ],
    ["ada created tenant acme", "add", event(1, { tenant: { created: { tenantId: TENANT_ID, slug: "acme" } } })],
    [
      "ada renamed tenant acme to “Acme”",
      "change",
      event(1, { tenant: { updated: { tenantId: TENANT_ID, name: "Acme" } } }),
    ],
    ["ada deleted tenant acme", "remove", event(1, { tenant: { deleted: { tenantId: TENANT_ID } } })],
    ["ada created CVLAN office, 10.0.0.0/24", "add", cvlanCreated(1, "c2", "office")],
    [
      "ada created CVLAN x, 10.0.0.0/24 and fd00::/64",
      "add",
      event(1, { cvlan: { created: { cvlanId: "c", name: "x", ipv4Cidr: "10.0.0.0/24", ipv6Cidr: "fd00::/64" } } }),
    ],
    ["ada renamed a CVLAN to live", "change", event(1, { cvlan: { updated: { cvlanId: CVLAN_ID, name: "live" } } })],
    ["ada deleted CVLAN prod", "remove", event(1, { cvlan: { deleted: { cvlanId: CVLAN_ID } } })],
    ["ada added device printer to prod as 10.0.0.2", "add", nodeCreated(1, "printer")],
    [
      "web joined prod as 10.0.0.2",
      "add",
      {
        ...nodeCreated(1, "node-1", { name: "web", enrolment: { tokenId: "token-1" } }),
        actor: { kind: "token", id: "token-1", name: "" },
      },
    ],
    ["ada renamed a node to www", "change", event(1, { node: { updated: { nodeId: "node-1", name: "www" } } })],
    ["ada disabled web", "change", event(1, { node: { updated: { nodeId: "node-1", status: "disabled" } } })],
    ["ada enabled web", "change", event(1, { node: { updated: { nodeId: "node-1", status: "active" } } })],
    ["ada set web to pending", "change", event(1, { node: { updated: { nodeId: "node-1", status: "pending" } } })],
    ["ada deleted node web", "remove", nodeDeleted(1, "node-1")],
    [
      "web is reachable at 192.0.2.1:1 and 2 more",
      "quiet",
      event(1, { node: { endpointsChanged: { nodeId: "node-1", endpoints: ["192.0.2.1:1", "b", "c"] } } }),
    ],
    ["web has no endpoint any more", "quiet", event(1, { node: { endpointsChanged: { nodeId: "node-1" } } })],
    [
      "ada made a token for one machine in prod",
      "add",
      event(1, { token: { created: { tokenId: "t", cvlanId: CVLAN_ID } } }),
    ],
    [
      "ada made a token for 5 machines in prod (laptops)",
      "add",
      event(1, { token: { created: { tokenId: "t", cvlanId: CVLAN_ID, maxUses: 5, note: "laptops" } } }),
    ],
    ["ada revoked token laptops", "remove", event(1, { token: { deleted: { tokenId: "token-1" } } })],
    ["ada created member bob", "add", user({ created: { userId: "user-2", name: "bob", role: "member" } })],
    ["ada changed the password of bob", "change", user({ passwordChanged: { userId: "user-2" } })],
    ["ada changed their own password", "change", user({ passwordChanged: { userId: "user-1" } })],
    ["ada deleted user bob", "remove", user({ deleted: { userId: "user-2" } })],
    ["This log begins: the cluster was bootstrapped", "add", event(1, { system: { bootstrapped: {} } }, system)],
    ["The cluster opened a checkpoint", "quiet", event(1, { system: { checkpointOpened: {} } }, system)],
    [
      "Every replica agrees at 7: state 01020304",
      "quiet",
      event(1, { system: { checkpointed: { seq: "7", digest: "AQIDBAU=" } } }, system),
    ],
    [
      "A new cluster was forced: m2 goes on alone, 2 members were given up",
      "remove",
      event(1, { system: { epochBegun: { memberId: "7", removed: ["1", "9"] } } }, system),
    ],
    [
      "History before event 90 is not kept any longer",
      "remove",
      event(1, { system: { historyTrimmed: { firstSeq: "90" } } }, system),
    ],
    [
      "Every member was upgraded: the log is at feature level 2",
      "change",
      event(1, { system: { featureLevelRaised: { level: 2 } } }, system),
    ],
    [
      "The cluster sends machines to https://a, https://b",
      "change",
      event(1, { system: { advertisementChanged: { nodeUrls: ["https://a", "https://b"] } } }, system),
    ],
    [
      "Member m2 sends machines to https://c",
      "change",
      event(1, { system: { advertisementChanged: { nodeUrls: ["https://c"], memberId: "7" } } }, system),
    ],
    ["ada admitted member m2", "add", event(1, { member: { admitted: { memberId: "7", name: "m2" } } })],
    [
      "Member m2 is in at 192.0.2.7:8445",
      "add",
      event(1, { member: { joined: { memberId: "7", address: "192.0.2.7:8445" } } }, system),
    ],
    ["ada removed member m2", "remove", event(1, { member: { removed: { memberId: "7" } } })],
    ["ada: node moved", "change", event(1, { node: { moved: { nodeId: "node-1" } } })],
    ["ada: ?", "change", event(1, { policy: { created: {} } })],
    [
      "unknownx deleted node web",
      "remove",
      { ...nodeDeleted(1, "node-1"), actor: { kind: "user", id: "unknownxyz", name: "" } },
    ],
  ])("%s", (text, tone, change) => {
    const sentence = eventSentence(change, nameOf);
    expect(sentenceText(sentence)).toBe(text);
    expect(sentence.tone).toBe(tone);
  });
});
