import type { ReactNode } from "react";

/** Something to read where there is nothing to show yet: what this is for, and how to begin. */
export function Empty({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <div className="mx-auto grid max-w-xl gap-3 px-6 py-8">
      <h3 className="text-base font-semibold">{title}</h3>
      {children}
    </div>
  );
}

/** A term and its value, in a list of facts. */
export function Fact({ term, children }: { term: string; children: ReactNode }) {
  return (
    <div className="flex min-w-0 items-baseline gap-3 py-0.75">
      <dt className="w-24 shrink-0 text-muted">{term}</dt>
      <dd className="min-w-0 flex-1">{children}</dd>
    </div>
  );
}

export function Pill({ tone, children }: { tone: "ok" | "warn" | "bad" | "quiet"; children: ReactNode }) {
  const looks = {
    ok: "text-ok border-ok/35",
    warn: "text-warn border-warn/40",
    bad: "text-bad border-bad/40",
    quiet: "text-muted border-line",
  };
  return (
    <span className={`inline-flex items-center rounded-full border px-1.75 text-2xs font-medium ${looks[tone]}`}>
      {children}
    </span>
  );
}

/** Lit, unlit, or hollow where presence is not known. */
export function Dot({ state, className = "" }: { state: "on" | "off" | "none"; className?: string }) {
  const looks = {
    on: "bg-glow shadow-[0_0_0_3px] shadow-glow/20",
    off: "bg-edge",
    none: "border-[1.5px] border-edge",
  };
  return (
    <span aria-hidden="true" className={`inline-block size-2 shrink-0 rounded-full ${looks[state]} ${className}`} />
  );
}

/** Grey bars in the shape of what is coming. */
export function Waiting({ rows = 4 }: { rows?: number }) {
  return (
    <div className="grid gap-2 p-3" role="status" aria-label="Loading">
      {Array.from({ length: rows }, (_, at) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: the bars are all the same
        <div key={at} className="breathe h-5 rounded bg-raised" />
      ))}
    </div>
  );
}
