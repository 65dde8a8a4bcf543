import type { Token } from "../../api/types";
import { IconButton } from "../../kit/button";
import { Pill } from "../../kit/panel";
import { count, remaining, short, timeFull } from "../../lib/format";
import { useNow } from "../../lib/hooks";
import { tokenState } from "./model";

interface ListProps {
  tokens: readonly Token[];
  /** Where several CVLANs are in the list: their names. */
  cvlanName?: (id: string) => string;
  onDelete: ((token: Token) => void) | undefined;
}

/** Tokens, those that still let machines in first. */
export function TokenList({ tokens, cvlanName, onDelete }: ListProps) {
  const now = useNow();
  const rank = (token: Token) => (tokenState(token, now) === "active" ? 0 : 1);
  const sorted = tokens.toSorted((a, b) => rank(a) - rank(b) || (b.createdAt ?? "").localeCompare(a.createdAt ?? ""));
  return (
    <ul className="divide-y divide-line/60">
      {sorted.map((token) => {
        const state = tokenState(token, now);
        return (
          <li key={token.id} className="group flex h-8 items-center gap-2.5">
            <span className={`min-w-0 flex-1 truncate ${state === "active" ? "" : "text-muted"}`}>
              {token.note || <span className="mono">{short(token.id)}</span>}
              {cvlanName && <span className="text-muted"> for {cvlanName(token.cvlanId)}</span>}
            </span>
            <span className="num text-muted" title="Used, of">
              {count(token.uses)} / {count(token.maxUses)}
            </span>
            {state === "active" ? (
              <span className="num w-16 text-right text-muted" title={`Until ${timeFull(token.expiresAt)}`}>
                {remaining(token.expiresAt, now)} left
              </span>
            ) : (
              <span className="flex w-16 justify-end">
                <Pill tone="quiet">{state}</Pill>
              </span>
            )}
            {onDelete && (
              <IconButton
                icon="trash"
                label={`Revoke token ${token.note || short(token.id)}`}
                onClick={() => onDelete(token)}
              />
            )}
          </li>
        );
      })}
    </ul>
  );
}
