/**
 * Who is logged in, and the request that everything else goes through.
 *
 * The access token lives in this module's memory; the refresh token in sessionStorage, so that a reload of the tab
 * keeps the session and closing it ends it. A refused access token is renewed once, by one request at a time.
 */
import { storeCreate, useStore } from "../lib/store";
import { checkpointForget, checkpointNewest, checkpointParse, checkpointSeen } from "./checkpoint";
import { Problem, problemOf, problemRead } from "./problem";
import { filled, type LoginRequest, type LoginResponse, type RefreshRequest, type User, type Wire } from "./types";

/** `restoring`: a reload found a refresh token and is trying it. */
export type Session = { state: "out"; why?: string } | { state: "restoring" } | { state: "in"; user: User };

const BASE = "/api/v1";
const REFRESH_KEY = "cvlan.refresh";
/** A login that is about to run out is renewed this long before. */
const RENEW_BEFORE_S = 30;
/** What a member says to a checkpoint that is not of its log. */
const OTHER_LOG = new Set(["epoch_other", "checkpoint_beyond"]);

const NOBODY: User = {
  id: "",
  tenantId: "",
  name: "",
  role: "",
  revision: "0",
};

export const session = storeCreate<Session>(
  sessionStorage.getItem(REFRESH_KEY) ? { state: "restoring" } : { state: "out" },
);
export const useSession = () => useStore(session, (value) => value);

let access: { token: string; renewAt: number } | undefined;
let renewing: Promise<void> | undefined;

export interface RequestOptions {
  body?: unknown;
  /** Why, for the log. */
  reason?: string;
  accept?: string;
  signal?: AbortSignal;
}

type Method = "GET" | "POST" | "DELETE";

const aborted = (error: unknown) => error instanceof DOMException && error.name === "AbortError";

/** One request, no session logic: the answer, whatever its status. */
async function send(method: Method, path: string, options: RequestOptions): Promise<Response> {
  const headers = new Headers({ Accept: options.accept ?? "application/json" });
  if (access) headers.set("Authorization", `Bearer ${access.token}`);
  if (options.body !== undefined) headers.set("Content-Type", "application/json");
  if (options.reason) headers.set("Cvlan-Reason", encodeURIComponent(options.reason));
  const seen = checkpointNewest();
  if (seen && method === "GET") headers.set("Cvlan-Checkpoint", `${seen.epoch}.${seen.seq}`);
  const init: RequestInit = { method, headers, cache: "no-store", credentials: "omit" };
  if (options.body !== undefined) init.body = JSON.stringify(options.body);
  if (options.signal) init.signal = options.signal;
  const response = await fetch(BASE + path, init).catch((error) =>
    Promise.reject(aborted(error) ? error : problemOf(error)),
  );
  checkpointSeen(checkpointParse(response.headers.get("Cvlan-Checkpoint")));
  return response;
}

/** One request as the user who is logged in; throws a Problem for every answer but success. */
export async function request(method: Method, path: string, options: RequestOptions = {}): Promise<Response> {
  if (access && Date.now() >= access.renewAt) await renew().catch(() => undefined);
  let response = await send(method, path, options);
  if (response.status === 401 && session.get().state === "in") {
    await renew();
    response = await send(method, path, options);
  }
  if (response.ok) return response;
  const problem = await problemRead(response);
  if (method !== "GET" || !OTHER_LOG.has(problem.code) || !checkpointNewest()) throw problem;
  checkpointForget();
  return request(method, path, options);
}

/** The JSON of an answer, and the seq of the state that it was read from. */
export async function requestJson<T>(
  method: Method,
  path: string,
  options: RequestOptions = {},
): Promise<{ body: Wire<T>; seq: number }> {
  const response = await request(method, path, options);
  const seq = checkpointParse(response.headers.get("Cvlan-Checkpoint"))?.seq ?? 0;
  const text = await response.text();
  return { body: text ? (JSON.parse(text) as Wire<T>) : {}, seq };
}

function enter(answer: Wire<LoginResponse>): void {
  if (!answer.accessToken) throw new Problem(0, "page_failed", "The login brought no token", "");
  const seconds = Number(answer.expiresInSeconds ?? "0");
  const renewAt = seconds > 0 ? Date.now() + Math.max(seconds - RENEW_BEFORE_S, seconds / 2) * 1000 : Infinity;
  access = { token: answer.accessToken, renewAt };
  if (answer.refreshToken) sessionStorage.setItem(REFRESH_KEY, answer.refreshToken);
  const before = session.get();
  if (before.state !== "in" || answer.user?.id !== before.user.id) {
    session.set({ state: "in", user: filled(NOBODY, answer.user ?? {}) });
  }
}

function leave(why?: string): void {
  access = undefined;
  sessionStorage.removeItem(REFRESH_KEY);
  checkpointForget();
  session.set(why ? { state: "out", why } : { state: "out" });
}

async function authPost(path: string, body: LoginRequest | RefreshRequest): Promise<void> {
  const response = await send("POST", path, { body });
  if (!response.ok) throw await problemRead(response);
  enter((await response.json()) as Wire<LoginResponse>);
}

export async function login(name: string, password: string, tenant: string): Promise<void> {
  access = undefined;
  await authPost("/auth/login", { name, password, tenant });
}

/** A new access token for the refresh token. Refused: the session is over. No answer: it is not, try again later. */
export function renew(): Promise<void> {
  renewing ??= (async () => {
    const refreshToken = sessionStorage.getItem(REFRESH_KEY);
    try {
      if (!refreshToken) throw new Problem(401, "session_expired", "Logged out", "");
      await authPost("/auth/refresh", { refreshToken });
    } catch (error) {
      const problem = problemOf(error);
      if (problem.status === 400 || problem.status === 401 || problem.status === 403) {
        leave("Your session has ended. Log in again.");
      }
      throw problem;
    } finally {
      renewing = undefined;
    }
  })();
  return renewing;
}

export async function logout(): Promise<void> {
  const refreshToken = sessionStorage.getItem(REFRESH_KEY) ?? "";
  // The session here ends whether or not the controller hears of it.
  const told = send("POST", "/auth/logout", { body: { refreshToken } }).catch(() => undefined);
  leave();
  await told;
}
