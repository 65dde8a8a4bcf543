/** The few marks this page uses, drawn on 16 × 16. */
const PATHS = {
  plus: "M8 3.5v9M3.5 8h9",
  close: "m4.5 4.5 7 7m0-7-7 7",
  chevron: "m6 4 4 4-4 4",
  copy: "M6 6V3.5h6.5V10H10M3.5 6H10v6.5H3.5z",
  check: "m3.5 8.5 3 3 6-7",
  trash: "M3 4.5h10M6.5 4.5V3h3v1.5M4.5 4.5l.6 8.5h5.8l.6-8.5M6.8 7v3.6M9.2 7v3.6",
  search: "M7.2 11.4a4.2 4.2 0 1 0 0-8.4 4.2 4.2 0 0 0 0 8.4Zm3-1.2L13 13",
  up: "M8 12.5v-9M4.5 7 8 3.5 11.5 7",
  out: "M6.5 3H3.5v10h3M7 8h6m-2.4-2.6L13 8l-2.4 2.6",
  key: "M10.2 9.2a3.2 3.2 0 1 0-3.1-2.4L3 10.9V13h2.4v-1.6H7V9.8l.9-.9c.6.2 1.4.3 2.3.3ZM10.6 5.6h.01",
  shield: "M8 2.5 3.5 4.2v3.6c0 2.7 1.9 4.8 4.5 5.7 2.6-.9 4.5-3 4.5-5.7V4.2zM6 8l1.5 1.5L10.2 6.6",
  star: "m8 2.6 1.7 3.5 3.8.5-2.8 2.7.7 3.8L8 11.3l-3.4 1.8.7-3.8-2.8-2.7 3.8-.5z",
  alert: "M8 2.8 1.9 13h12.2zM8 6.6v3.2M8 11.4h.01",
  keyboard: "M2.5 4.5h11v7h-11zM5 7h.01M8 7h.01M11 7h.01M5.5 9.5h5",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name, className = "" }: { name: IconName; className?: string }) {
  return (
    <svg viewBox="0 0 16 16" className={`size-4 shrink-0 ${className}`} aria-hidden="true">
      <path
        d={PATHS[name]}
        fill="none"
        stroke="currentColor"
        strokeWidth="1.4"
        strokeLinecap="round"
        strokeLinejoin="round"
      />
    </svg>
  );
}

/** Three machines, joined. */
export function Mark({ className = "" }: { className?: string }) {
  return (
    <svg viewBox="0 0 32 32" className={className} aria-hidden="true">
      <rect width="32" height="32" rx="8" className="fill-solid" />
      <path d="M16 8 8.5 21.5h15Z" fill="none" stroke="#fff" strokeOpacity=".55" strokeWidth="1.6" />
      <g fill="#fff">
        <circle cx="16" cy="8" r="3.4" />
        <circle cx="8.5" cy="21.5" r="3.4" />
        <circle cx="23.5" cy="21.5" r="3.4" />
      </g>
    </svg>
  );
}
