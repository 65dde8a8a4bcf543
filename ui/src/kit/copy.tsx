import { useEffect, useRef, useState } from "react";
import { Button, IconButton } from "./button";

const SHOWN_MS = 1_600;

/** Copies, and says so for a moment. Where the browser refuses, the text is selected instead. */
function useCopy() {
  const [copied, setCopied] = useState(false);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  useEffect(() => () => clearTimeout(timer.current), []);
  const copy = (text: string, source?: HTMLElement | null) => {
    const done = () => {
      setCopied(true);
      clearTimeout(timer.current);
      timer.current = setTimeout(() => setCopied(false), SHOWN_MS);
    };
    const select = () => {
      if (source) getSelection()?.selectAllChildren(source);
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, select);
    else select();
  };
  return { copied, copy };
}

export function CopyIcon({ text, label }: { text: string; label: string }) {
  const { copied, copy } = useCopy();
  return (
    <IconButton
      icon={copied ? "check" : "copy"}
      label={copied ? "Copied" : label}
      className={`-my-1 size-6 ${copied ? "text-ok" : ""}`}
      onClick={(event) => {
        event.stopPropagation();
        copy(text);
      }}
    />
  );
}

/** Lines for a shell, each of which can be copied whole. */
export function Commands({ lines, label, tall = false }: { lines: readonly string[]; label: string; tall?: boolean }) {
  const { copied, copy } = useCopy();
  const block = useRef<HTMLElement>(null);
  return (
    <div className="relative rounded-lg border bg-ground">
      <pre
        className={`overflow-auto py-2.5 pr-22 pl-3 wrap-anywhere whitespace-pre-wrap text-xs ${tall ? "max-h-56" : "max-h-40"}`}
      >
        <code ref={block} className="font-mono">
          {lines.map((line) => (
            <span key={line} className="block">
              <span className="text-muted select-none">$ </span>
              {line}
            </span>
          ))}
        </code>
      </pre>
      <Button
        icon={copied ? "check" : "copy"}
        className="absolute top-1.5 right-1.5 h-6.5 text-xs"
        aria-label={label}
        onClick={() => copy(lines.join("\n"), block.current)}
      >
        {copied ? "Copied" : "Copy"}
      </Button>
    </div>
  );
}
