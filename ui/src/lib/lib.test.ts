import { describe, expect, it } from "vitest";
import { jsonPieces } from "../features/log/json";
import { dotRadius, places, RING_MAX } from "../features/node/layout";
import { NODE } from "../features/node/model";
import { nodeMatches, nodesSort } from "../features/node/sort";
import { age, hexOf, ipv4Capacity, ipv4Number, millis, plural, remaining, seconds, shellWord } from "./format";
import { ROUTE_CLUSTER, routeHref, routeParse } from "./route";

describe("format", () => {
  it.each([
    [0, "0s"],
    [-5, "0s"],
    [59.9, "59s"],
    [60, "1m"],
    [3_599, "59m"],
    [86_400 * 6, "6d"],
    [86_400 * 8, "1w"],
    [86_400 * 800, "2y"],
  ])("seconds %s", (value, text) => expect(seconds(value)).toBe(text));

  it.each([
    [0, "0 ms"],
    [999, "999 ms"],
    [7_240, "7.2 s"],
    [34_400, "34 s"],
    [125_000, "2m"],
  ])("millis %s", (value, text) => expect(millis(value)).toBe(text));

  it.each([
    ["10.0.0.0/24", 252],
    ["10.0.0.0/8", 16_777_212],
    ["10.0.0.0/31", 0],
    ["fd00::/64", undefined],
    ["", undefined],
  ])("ipv4Capacity %s", (cidr, capacity) => expect(ipv4Capacity(cidr)).toBe(capacity));

  it("small ones", () => {
    const now = Date.parse("2026-01-01T00:01:30Z");
    expect(age("2026-01-01T00:00:00Z", now)).toBe("1m");
    expect(remaining("2026-01-01T00:02:00Z", now)).toBe("30s");
    expect(age(undefined, now)).toBe("–");
    expect(ipv4Number("10.0.0.10")).toBeGreaterThan(ipv4Number("10.0.0.9"));
    expect(plural(1, "node")).toBe("1 node");
    expect(plural(2_000, "node")).toBe("2,000 nodes");
    expect(hexOf("AQL/")).toBe("0102ff");
    expect(hexOf("%")).toBe("");
    expect(hexOf(undefined)).toBe("");
    expect(shellWord("cvj_a-b=")).toBe("cvj_a-b=");
    expect(shellWord("it's; rm")).toBe("'it'\\''s; rm'");
  });
});

describe("route", () => {
  it.each([
    ["#/", "", "", ""],
    ["#/acme", "acme", "", ""],
    ["#/~cluster", ROUTE_CLUSTER, "", ""],
    ["#/acme/prod", "acme", "prod", ""],
    ["#/acme/prod/web-1", "acme", "prod", "web-1"],
  ])("%s both ways", (href, tenant, cvlan, node) => {
    expect(routeParse(href)).toEqual({ tenant, cvlan, node });
    expect(routeHref(tenant, cvlan, node)).toBe(href);
  });

  it("survives what anyone may type", () => {
    expect(routeParse("")).toEqual({ tenant: "", cvlan: "", node: "" });
    expect(routeParse("#/%zz/b")).toEqual({ tenant: "", cvlan: "b", node: "" });
    expect(routeParse(routeHref("a/b", "c?", "d#"))).toEqual({ tenant: "a/b", cvlan: "c?", node: "d#" });
  });
});

describe("layout", () => {
  it.each([0, 1, 3, RING_MAX, RING_MAX + 1, 600])("%s nodes are inside the unit circle and do not touch", (total) => {
    const spots = places(total);
    expect(spots).toHaveLength(total);
    let nearest = Number.POSITIVE_INFINITY;
    for (const [at, { x, y }] of spots.entries()) {
      expect(Math.hypot(x, y)).toBeLessThanOrEqual(1 + 1e-9);
      for (const other of spots.slice(at + 1)) nearest = Math.min(nearest, Math.hypot(x - other.x, y - other.y));
    }
    expect(nearest).toBeGreaterThan(2 * dotRadius(total));
  });
});

describe("nodes", () => {
  const named = (name: string, ipv4: string, more = {}) => ({ ...NODE, name, ipv4, ...more });
  const nodes = [
    named("web-10", "10.0.0.9", { createdAt: "2026-01-01T00:00:00Z", tokenId: "t" }),
    named("web-2", "10.0.0.10", { createdAt: "2026-01-02T00:00:00Z", online: true, tokenId: "t" }),
    named("db", "10.0.0.2", { createdAt: "2026-01-03T00:00:00Z", tags: ["sql"] }),
  ];

  it.each([
    ["name", false, ["db", "web-2", "web-10"]],
    ["name", true, ["web-10", "web-2", "db"]],
    ["ipv4", false, ["db", "web-10", "web-2"]],
    ["presence", false, ["web-2", "web-10", "db"]],
    ["age", false, ["db", "web-2", "web-10"]],
  ] as const)("by %s, descending %s", (key, descending, names) => {
    expect(nodesSort(nodes, { key, descending }).map(({ name }) => name)).toEqual(names);
  });

  it.each([
    ["", ["web-10", "web-2", "db"]],
    ["WEB online", ["web-2"]],
    ["sql", ["db"]],
    ["10.0.0.1", ["web-2"]],
    ["web sql", []],
  ])("found by “%s”", (text, names) => {
    expect(nodes.filter((node) => nodeMatches(node, text)).map(({ name }) => name)).toEqual(names);
  });
});

describe("jsonPieces", () => {
  it("joined are the text, keys told from texts", () => {
    const json = JSON.stringify({ a: 'b: \\"c', n: -1.5e3, t: true, l: [null, "x"], o: {} }, null, 2);
    const pieces = jsonPieces(json);
    expect(pieces.map(({ text }) => text).join("")).toBe(json);
    expect(pieces.filter(({ kind }) => kind === "key").map(({ text }) => text)).toEqual([
      '"a"',
      '"n"',
      '"t"',
      '"l"',
      '"o"',
    ]);
    expect(pieces.filter(({ kind }) => kind === "other").map(({ text }) => text)).toEqual(["-1500", "true", "null"]);
  });
});
