import { describe, expect, it } from "vitest";
import { Problem, problemOf, problemRead } from "./problem";

const answer = (status: number, body: string, headers: Record<string, string>) =>
  problemRead(new Response(body, { status, headers }));

describe("problemRead", () => {
  it("takes title, detail and code from problem+json", async () => {
    const problem = await answer(
      409,
      JSON.stringify({ type: "about:blank", title: "Conflict", status: 409, detail: "taken", code: "cidr_overlap" }),
      { "Content-Type": "application/problem+json" },
    );
    expect(problem).toMatchObject({ status: 409, code: "cidr_overlap", title: "Conflict", detail: "taken" });
    expect(problem.message).toBe("taken");
  });

  it("keeps Retry-After", async () => {
    const problem = await answer(429, JSON.stringify({ code: "rate_limited", title: "Too many" }), {
      "Content-Type": "application/problem+json",
      "Retry-After": "7",
    });
    expect(problem.retryAfter).toBe(7);
  });

  it.each([
    ["a proxy's page", 502, "<html>Bad gateway</html>", "text/html"],
    ["broken JSON", 500, "{", "application/problem+json"],
    ["JSON that is no problem", 500, "[1]", "application/json"],
    ["JSON null", 500, "null", "application/json"],
  ])("does not pass %s off as the controller's words", async (_, status, body, type) => {
    const problem = await answer(status, body, { "Content-Type": type });
    expect(problem).toMatchObject({ status, code: "unknown" });
    expect(problem.detail).not.toContain("<html>");
  });
});

describe("problemOf", () => {
  it("passes problems through and names an unreachable controller", () => {
    const problem = new Problem(404, "node_unknown", "Not found", "");
    expect(problemOf(problem)).toBe(problem);
    expect(problemOf(new TypeError("Failed to fetch")).code).toBe("unreachable");
    expect(problemOf("odd")).toMatchObject({ code: "page_failed", detail: "odd" });
  });
});
