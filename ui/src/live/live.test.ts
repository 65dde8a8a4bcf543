/** The live half against a controller made of fetch(): streams that are cut, answers that come late, sessions that end. */
import { QueryClient, QueryObserver } from "@tanstack/react-query";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { LogEvent, Node } from "../api/types";
import { CVLAN_ID, event, nodeCreated, nodeDeleted, TENANT_ID } from "../features/fixtures";
import type { Snapshot } from "./fold";

const EPOCH = "e".repeat(32);
const OTHER = "f".repeat(32);
const KEY = ["nodes", TENANT_ID, CVLAN_ID, ""];

interface Stream {
  from: number;
  push(...events: LogEvent[]): void;
  presence(nodeId: string, online: boolean): void;
  cut(): void;
}

/** A controller: what its log holds, and the streams that are open. */
class Controller {
  epoch = EPOCH;
  seq = 0;
  nodes: Node[] = [];
  streams: Stream[] = [];
  requests: { method: string; path: string; headers: Headers; body: string }[] = [];
  /** Access tokens that are taken. */
  valid = new Set(["access-1"]);
  refreshes = 0;
  forbidden = false;
  /** Held back until it is called. */
  hold: Promise<void> | undefined;

  fetch = async (url: string, init: RequestInit): Promise<Response> => {
    const path = url.replace("/api/v1", "");
    const headers = new Headers(init.headers);
    this.requests.push({ method: init.method ?? "GET", path, headers, body: String(init.body ?? "") });
    const answer = (body: unknown, status = 200) =>
      new Response(JSON.stringify(body), {
        status,
        headers: { "Content-Type": "application/json", "Cvlan-Checkpoint": `${this.epoch}.${this.seq}` },
      });
    if (path === "/auth/login" || path === "/auth/refresh") {
      if (path === "/auth/refresh") this.refreshes += 1;
      const accessToken = `access-${this.refreshes + 1}`;
      this.valid = new Set([accessToken]);
      return answer({ accessToken, refreshToken: "refresh", expiresInSeconds: "900", user: { id: "u", name: "ada" } });
    }
    const token = headers.get("Authorization")?.replace("Bearer ", "") ?? "";
    if (!this.valid.has(token)) return answer({ code: "token_expired", title: "Log in again" }, 401);
    if (path === "/me") return answer({ id: "u" });
    if (path.startsWith("/log/events")) {
      if (this.forbidden) return answer({ code: "forbidden", title: "Forbidden" }, 403);
      return this.#stream(path, init.signal ?? undefined);
    }
    const snapshot = answer({ items: this.nodes });
    await this.hold;
    return snapshot;
  };

  #stream(path: string, signal: AbortSignal | undefined): Response {
    const encoder = new TextEncoder();
    const streams = this.streams;
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        const send = (text: string) => controller.enqueue(encoder.encode(text));
        streams.push({
          from: Number(new URLSearchParams(path.split("?")[1]).get("from")),
          push: (...events) => {
            for (const e of events) send(`id: ${e.seq}\nevent: event\ndata: ${JSON.stringify(e)}\n\n`);
          },
          presence: (nodeId, online) => send(`event: presence\ndata: ${JSON.stringify({ nodeId, online })}\n\n`),
          cut: () => controller.close(),
        });
        signal?.addEventListener("abort", () => controller.error(new DOMException("aborted", "AbortError")));
      },
    });
    return new Response(body, { headers: { "Cvlan-Checkpoint": `${this.epoch}.${this.seq}` } });
  }
}

const node = (id: string): Node => ({ id, cvlanId: CVLAN_ID, name: id, online: false, tokenId: "t" }) as Node;

async function setUp(controller: Controller) {
  vi.resetModules();
  const kept = new Map<string, string>();
  vi.stubGlobal("sessionStorage", {
    getItem: (key: string) => kept.get(key) ?? null,
    setItem: (key: string, value: string) => kept.set(key, value),
    removeItem: (key: string) => kept.delete(key),
  });
  vi.stubGlobal("window", new EventTarget());
  vi.stubGlobal("fetch", controller.fetch);
  const session = await import("../api/session");
  const { live, liveStart, EVENTS_BEFORE } = await import("./live");
  const { listRead } = await import("../api/list");
  const { NODE } = await import("../features/node/model");
  await session.login("ada", "secret", "");
  const client = new QueryClient({
    defaultOptions: { queries: { retry: false, staleTime: Number.POSITIVE_INFINITY, networkMode: "always" } },
  });
  const observer = new QueryObserver<Snapshot<Node>>(client, {
    queryKey: KEY,
    queryFn: ({ signal }) => listRead("/nodes", {}, NODE, 1000, signal),
  });
  const unsubscribe = observer.subscribe(() => {});
  const stop = liveStart(client);
  after.push(stop, unsubscribe, () => client.clear());
  const names = () =>
    client.getQueryData<Snapshot<Node>>(KEY)?.items.map(({ id, online }) => `${id}${online ? "+" : ""}`);
  const stream = (at: number) => vi.waitUntil(() => controller.streams[at], { timeout: 5_000 });
  const seqs = () => live.get().events.map(({ seq }) => Number(seq));
  return { session, live, client, names, stream, seqs, EVENTS_BEFORE };
}

const after: (() => void)[] = [];
let controller: Controller;

beforeEach(() => {
  controller = new Controller();
});
afterEach(() => {
  for (const undo of after.splice(0)) undo();
  vi.unstubAllGlobals();
});

describe("the stream", () => {
  it("begins shortly before the newest event and folds what comes into the lists", async () => {
    controller.seq = 1_000;
    controller.nodes = [node("a")];
    const { stream, names, seqs, live, EVENTS_BEFORE } = await setUp(controller);
    const first = await stream(0);
    expect(first.from).toBe(1_000 - EVENTS_BEFORE + 1);
    await vi.waitFor(() => expect(names()).toEqual(["a"]));
    first.push(nodeDeleted(999, "a"), nodeCreated(1_001, "b"));
    // 999 is in the timeline; the list was read after it, and knows better.
    await vi.waitFor(() => expect(names()).toEqual(["a", "b"]));
    expect(seqs()).toEqual([999, 1_001]);
    expect(live.get().link).toBe("live");
  });

  it("goes on after a cut from the event after the last one, and reads presence again", async () => {
    controller.seq = 5;
    controller.nodes = [node("a")];
    const { stream, names, live, seqs } = await setUp(controller);
    const first = await stream(0);
    await vi.waitFor(() => expect(names()).toEqual(["a"]));
    first.presence("a", true);
    await vi.waitFor(() => expect(names()).toEqual(["a+"]));
    first.push(nodeCreated(6, "b"));
    await vi.waitFor(() => expect(seqs()).toEqual([6]));
    controller.seq = 7;
    controller.nodes = [node("a"), node("b"), node("c")];
    first.cut();
    await vi.waitFor(() => expect(live.get().link).toBe("lost"));
    const second = await stream(1);
    expect(second.from).toBe(7);
    second.push(nodeCreated(7, "c"));
    // Online was true before the cut; now nobody says so.
    await vi.waitFor(() => expect(names()).toEqual(["a", "b", "c"]));
    await vi.waitFor(() => expect(seqs()).toEqual([6, 7]));
  });

  it("brings an answer that lands late up to date", async () => {
    controller.seq = 5;
    controller.nodes = [node("a")];
    let release = () => {};
    controller.hold = new Promise((resolve) => {
      release = resolve;
    });
    const { stream, names, seqs } = await setUp(controller);
    const first = await stream(0);
    first.push(nodeCreated(6, "b"), nodeDeleted(7, "a"));
    first.presence("b", true);
    await vi.waitFor(() => expect(seqs()).toEqual([6, 7]));
    expect(names()).toBeUndefined();
    release();
    await vi.waitFor(() => expect(names()).toEqual(["b+"]));
  });

  it("starts over where another log answers", async () => {
    controller.seq = 5;
    controller.nodes = [node("a")];
    const { stream, names, seqs } = await setUp(controller);
    (await stream(0)).push(nodeCreated(6, "b"));
    await vi.waitFor(() => expect(names()).toEqual(["a", "b"]));
    controller.epoch = OTHER;
    controller.seq = 3;
    controller.nodes = [node("z")];
    controller.streams[0]?.cut();
    await vi.waitFor(() => expect(names()).toEqual(["z"]), { timeout: 5_000 });
    await vi.waitFor(() => expect(controller.streams.at(-1)?.from).toBe(1), { timeout: 5_000 });
    controller.streams.at(-1)?.push(nodeCreated(2, "z"), nodeCreated(4, "y"));
    await vi.waitFor(() => expect(names()).toEqual(["z", "y"]));
    await vi.waitFor(() => expect(seqs()).toEqual([2, 4]));
  });

  it("leaves out what it does not understand", async () => {
    controller.seq = 5;
    const { stream, seqs } = await setUp(controller);
    const first = await stream(0);
    first.push({ toJSON: () => undefined } as never, event(6, {}));
    await vi.waitFor(() => expect(seqs()).toEqual([6]));
  });

  it("gives way to polling where the role may not read the log", async () => {
    controller.forbidden = true;
    const { live } = await setUp(controller);
    await vi.waitFor(() => expect(live.get().link).toBe("denied"));
  });
});

describe("the session", () => {
  it("renews a refused token once for everyone who was refused, and repeats what they asked", async () => {
    const { session } = await setUp(controller);
    controller.valid.clear();
    const answers = await Promise.all([1, 2, 3, 4].map(() => session.requestJson<{ id: string }>("GET", "/me")));
    expect(answers.map(({ body }) => body.id)).toEqual(["u", "u", "u", "u"]);
    expect(controller.refreshes).toBe(1);
    expect(session.session.get().state).toBe("in");
  });

  it("ends where the refresh is refused", async () => {
    const { session } = await setUp(controller);
    const fetch = controller.fetch;
    vi.stubGlobal("fetch", (url: string, init: RequestInit) =>
      url.endsWith("/auth/refresh")
        ? Promise.resolve(new Response("{}", { status: 401, headers: { "Content-Type": "application/json" } }))
        : fetch(url, init),
    );
    controller.valid.clear();
    await expect(session.request("GET", "/me")).rejects.toMatchObject({ status: 401 });
    expect(session.session.get()).toMatchObject({ state: "out" });
  });

  it("forgets what it has seen where the log was set back, and reads again", async () => {
    controller.seq = 41;
    const { session } = await setUp(controller);
    const fetch = controller.fetch;
    const asked: (string | null)[] = [];
    vi.stubGlobal("fetch", (url: string, init: RequestInit) => {
      const seen = new Headers(init.headers).get("Cvlan-Checkpoint");
      asked.push(seen);
      const problem = JSON.stringify({ code: "checkpoint_beyond", title: "Bad request" });
      const headers = { "Content-Type": "application/problem+json" };
      return seen ? Promise.resolve(new Response(problem, { status: 400, headers })) : fetch(url, init);
    });
    controller.seq = 7;
    await expect(session.requestJson("GET", "/me")).resolves.toMatchObject({ seq: 7 });
    expect(asked).toEqual([`${EPOCH}.41`, null]);
  });

  it("asks reads for at least what was seen, and never writes", async () => {
    controller.seq = 41;
    const { session } = await setUp(controller);
    controller.seq = 42;
    await session.request("POST", "/tenants", { body: {} });
    await session.request("GET", "/me");
    const last = (method: string) => controller.requests.findLast((request) => request.method === method)?.headers;
    expect(last("GET")?.get("Cvlan-Checkpoint")).toBe(`${EPOCH}.42`);
    expect(last("POST")?.get("Cvlan-Checkpoint")).toBeNull();
  });
});
