import { describe, expect, it } from "vitest";
import type { LogEvent } from "../api/types";
import { type Snapshot, snapshotFold } from "../live/fold";
import { CVLAN } from "./cvlan/model";
import { CVLAN_ID, cvlanCreated, event, nodeCreated, nodeDeleted, TENANT_ID, TIME } from "./fixtures";
import { NODE } from "./node/model";
import { FOLDS } from "./registry";
import { TENANT } from "./tenant/model";
import { TOKEN, tokenState } from "./token/model";

type Item = Record<string, unknown>;

function folded(noun: string, args: string[], items: Item[], events: LogEvent[], more: Partial<Snapshot<Item>> = {}) {
  const fold = FOLDS[noun];
  if (!fold) throw new Error(noun);
  return snapshotFold<Item>({ seq: 10, items, complete: true, ...more }, events, fold, args);
}

const tenant = { ...TENANT, id: TENANT_ID, slug: "acme", cvlanCount: 1, nodeCount: 1 };
const cvlan = { ...CVLAN, id: CVLAN_ID, tenantId: TENANT_ID, name: "prod", nodeCount: 1 };
const node = { ...NODE, id: "node-1", cvlanId: CVLAN_ID, name: "web" };
const token = { ...TOKEN, id: "token-1", tenantId: TENANT_ID, cvlanId: CVLAN_ID, maxUses: 2 };
const NODES = [TENANT_ID, CVLAN_ID, ""];

describe("tenants", () => {
  it.each<[string, LogEvent, Item[]]>([
    [
      "created",
      event(11, { tenant: { created: { tenantId: "t2", slug: "globex", name: "Globex" } } }, { tenantId: "t2" }),
      [
        tenant,
        { ...TENANT, id: "t2", slug: "globex", name: "Globex", createdAt: TIME, updatedAt: TIME, revision: "11" },
      ],
    ],
    [
      "renamed",
      event(11, { tenant: { updated: { tenantId: TENANT_ID, name: "Acme" } } }),
      [{ ...tenant, name: "Acme", updatedAt: TIME, revision: "11" }],
    ],
    ["deleted", event(11, { tenant: { deleted: { tenantId: TENANT_ID } } }), []],
    ["a CVLAN more", cvlanCreated(11, "c2"), [{ ...tenant, cvlanCount: 2 }]],
    ["a CVLAN less", event(11, { cvlan: { deleted: { cvlanId: CVLAN_ID } } }), [{ ...tenant, cvlanCount: 0 }]],
    ["a node more", nodeCreated(11, "n2"), [{ ...tenant, nodeCount: 2 }]],
    ["a node less", nodeDeleted(11, "n1"), [{ ...tenant, nodeCount: 0 }]],
  ])("%s", (_, change, items) => expect(folded("tenants", [], [tenant], [change])?.items).toEqual(items));
});

describe("cvlans", () => {
  it.each<[string, LogEvent, Item[]]>([
    [
      "created",
      cvlanCreated(11, "c2", "office"),
      [
        cvlan,
        {
          ...CVLAN,
          ...{ id: "c2", tenantId: TENANT_ID, name: "office", ipv4Cidr: "10.0.0.0/24" },
          ...{ createdAt: TIME, updatedAt: TIME, revision: "11" },
        },
      ],
    ],
    [
      "renamed",
      event(11, { cvlan: { updated: { cvlanId: CVLAN_ID, name: "live" } } }),
      [{ ...cvlan, name: "live", updatedAt: TIME, revision: "11" }],
    ],
    ["deleted", event(11, { cvlan: { deleted: { cvlanId: CVLAN_ID } } }), []],
    ["a node more", nodeCreated(11, "n2"), [{ ...cvlan, nodeCount: 2 }]],
    ["a node less", nodeDeleted(11, "n1"), [{ ...cvlan, nodeCount: 0 }]],
    ["another tenant's", { ...cvlanCreated(11, "c2"), tenantId: "t2" }, [cvlan]],
  ])("%s", (_, change, items) => expect(folded("cvlans", [TENANT_ID], [cvlan], [change])?.items).toEqual(items));
});

describe("nodes", () => {
  it.each<[string, LogEvent, Item[]]>([
    [
      "created",
      nodeCreated(11, "n2", { wgPublicKey: "a2V5", enrolment: { tokenId: "token-1" } }),
      [
        node,
        {
          ...NODE,
          ...{ id: "n2", tenantId: TENANT_ID, cvlanId: CVLAN_ID, name: "n2", ipv4: "10.0.0.2" },
          ...{ wgPublicKey: "a2V5", tokenId: "token-1", createdAt: TIME, updatedAt: TIME, revision: "11" },
        },
      ],
    ],
    ["created in another CVLAN", nodeCreated(11, "n2", { cvlanId: "c2" }), [node]],
    ["created, and read since", nodeCreated(11, "node-1"), [node]],
    [
      "renamed",
      event(11, { node: { updated: { nodeId: "node-1", name: "www" } } }),
      [{ ...node, name: "www", updatedAt: TIME, revision: "11" }],
    ],
    [
      "disabled",
      event(11, { node: { updated: { nodeId: "node-1", status: "disabled" } } }),
      [{ ...node, status: "disabled", updatedAt: TIME, revision: "11" }],
    ],
    [
      "moved",
      event(11, { node: { endpointsChanged: { nodeId: "node-1", endpoints: ["192.0.2.1:51820"] } } }),
      [{ ...node, endpoints: ["192.0.2.1:51820"], updatedAt: TIME, revision: "11" }],
    ],
    ["deleted", nodeDeleted(11, "node-1"), []],
    ["one that is not listed, deleted", nodeDeleted(11, "n9"), [node]],
  ])("%s", (_, change, items) => expect(folded("nodes", NODES, [node], [change])?.items).toEqual(items));

  it("are read again where only the controller knows whether a new one belongs", () => {
    expect(folded("nodes", [TENANT_ID, CVLAN_ID, "web"], [node], [nodeCreated(11, "n2")])).toBeUndefined();
    expect(folded("nodes", NODES, [node], [nodeCreated(11, "n2")], { complete: false })).toBeUndefined();
  });
});

describe("tokens", () => {
  it.each<[string, LogEvent, Item[]]>([
    [
      "created",
      event(11, { token: { created: { tokenId: "t2", cvlanId: CVLAN_ID, maxUses: 3, note: "n", expiresAt: TIME } } }),
      [
        token,
        {
          ...TOKEN,
          ...{ id: "t2", tenantId: TENANT_ID, cvlanId: CVLAN_ID, maxUses: 3, note: "n", expiresAt: TIME },
          ...{ createdAt: TIME, revision: "11" },
        },
      ],
    ],
    ["used", nodeCreated(11, "n2", { enrolment: { tokenId: "token-1" } }), [{ ...token, uses: 1 }]],
    ["revoked", event(11, { token: { deleted: { tokenId: "token-1" } } }), []],
  ])("%s", (_, change, items) => expect(folded("tokens", [TENANT_ID], [token], [change])?.items).toEqual(items));

  it("expire by the clock", () => {
    const at = Date.parse(TIME);
    expect(tokenState({ ...token, expiresAt: TIME }, at - 1)).toBe("active");
    expect(tokenState({ ...token, expiresAt: TIME }, at)).toBe("expired");
    expect(tokenState({ ...token, uses: 2 }, at)).toBe("used up");
  });
});

describe("a snapshot", () => {
  const history = [
    cvlanCreated(11, "c2"),
    nodeCreated(12, "n2"),
    nodeCreated(13, "n3"),
    nodeDeleted(14, "n2"),
    event(15, { node: { updated: { nodeId: "n3", name: "three" } } }),
    nodeCreated(16, "n4", { cvlanId: "c2" }),
    event(17, { cvlan: { deleted: { cvlanId: "c2" } } }),
  ];
  const lists: [string, string[], Item[]][] = [
    ["tenants", [], [tenant]],
    ["cvlans", [TENANT_ID], [cvlan]],
    ["nodes", NODES, [node]],
  ];

  it.each(lists)("of %s plus any cut of its tail is the same", (noun, args, items) => {
    const whole = folded(noun, args, items, history);
    expect(whole?.seq).toBeGreaterThan(10);
    for (let cut = 0; cut <= history.length; cut += 1) {
      const first = folded(noun, args, items, history.slice(0, cut));
      // The rest comes with some that were seen before.
      const overlap = history.slice(Math.max(0, cut - 2));
      const then = folded(noun, args, first?.items ?? [], overlap, { seq: 10 + cut });
      expect(then?.items).toEqual(whole?.items);
    }
  });

  it.each(lists)("of %s does not change by what it already knows", (noun, args, items) => {
    const before: Snapshot<Item> = { seq: 17, items, complete: true };
    const fold = FOLDS[noun];
    expect(fold && snapshotFold(before, history, fold, args)).toBe(before);
  });

  it("stays the same object where nothing that it shows has changed", () => {
    const before: Snapshot<Item> = { seq: 10, items: [node], complete: true };
    const fold = FOLDS.nodes;
    expect(fold && snapshotFold(before, [cvlanCreated(11, "c2")], fold, NODES)).toBe(before);
  });
});
