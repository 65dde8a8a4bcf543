/** What went wrong, as the controller words it: RFC 9457 `application/problem+json`. */
import type { Problem as ProblemBody } from "../gen/cvlan/v1/user";

export class Problem extends Error {
  constructor(
    /** HTTP status; 0 where no answer came. */
    readonly status: number,
    /** Stable snake_case. */
    readonly code: string,
    readonly title: string,
    readonly detail: string,
    /** Seconds, where the answer asked to wait. */
    readonly retryAfter: number | undefined = undefined,
  ) {
    super(detail || title);
    this.name = "Problem";
  }
}

const isObject = (value: unknown): value is Partial<ProblemBody> => typeof value === "object" && value !== null;

/** Reads an unsuccessful answer. A body that is no problem document (a proxy's error page) is never shown as one. */
export async function problemRead(response: Response): Promise<Problem> {
  const seconds = Number(response.headers.get("Retry-After") ?? "");
  const retryAfter = Number.isFinite(seconds) && seconds > 0 ? seconds : undefined;
  if ((response.headers.get("Content-Type") ?? "").includes("json")) {
    const body: unknown = await response.json().catch(() => undefined);
    if (isObject(body) && (body.code || body.title || body.detail)) {
      const title = body.title || `HTTP ${response.status}`;
      return new Problem(response.status, body.code || "unknown", title, body.detail || "", retryAfter);
    }
  }
  return new Problem(
    response.status,
    "unknown",
    `HTTP ${response.status}${response.statusText ? ` ${response.statusText}` : ""}`,
    "The answer did not come from a controller: look at what stands between this page and it.",
    retryAfter,
  );
}

/** Anything that was thrown, as a Problem. */
export function problemOf(error: unknown): Problem {
  if (error instanceof Problem) return error;
  if (error instanceof TypeError) {
    return new Problem(
      0,
      "unreachable",
      "The controller does not answer",
      "Is cvlan-api running, and is its certificate trusted by this browser?",
    );
  }
  return new Problem(0, "page_failed", "The page failed", error instanceof Error ? error.message : String(error));
}
