import { problemOf } from "../api/problem";

/** What went wrong, in the controller's words, with its code for the documentation and for a bug report. */
export function ProblemBox({ error, onRetry }: { error: unknown; onRetry?: () => void }) {
  if (!error) return null;
  const { title, detail, code, retryAfter } = problemOf(error);
  return (
    <div role="alert" className="rounded-lg border border-bad/35 bg-bad-wash px-3 py-2">
      <p className="font-semibold text-bad first-letter:uppercase">{title}</p>
      {detail && <p className="mt-0.5 text-text first-letter:uppercase">{detail}</p>}
      <p className="mt-1 flex items-center gap-3 text-xs text-muted">
        <code className="mono">{code}</code>
        {retryAfter !== undefined && <span>Try again in {retryAfter} s.</span>}
        {onRetry && (
          <button type="button" onClick={onRetry} className="font-medium text-accent hover:underline">
            Try again
          </button>
        )}
      </p>
    </div>
  );
}
