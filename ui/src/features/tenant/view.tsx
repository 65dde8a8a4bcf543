import type { Cvlan, Tenant, Token } from "../../api/types";
import { Button, IconButton } from "../../kit/button";
import { Commands } from "../../kit/copy";
import { Empty, Waiting } from "../../kit/panel";
import { ProblemBox } from "../../kit/problem";
import { age, count, plural, timeFull } from "../../lib/format";
import { useNow } from "../../lib/hooks";
import { routeHref } from "../../lib/route";
import { nameOf } from "../../live/directory";
import { useCvlans } from "../cvlan/api";
import { useTokens } from "../token/api";
import { TokenList } from "../token/list";

interface ViewProps {
  tenant: Tenant;
  mayWrite: boolean;
  mayDelete: boolean;
  onCvlanCreate: () => void;
  onTokenDelete: (token: Token) => void;
  onDelete: () => void;
}

/** One tenant: its networks and its tokens. */
export function TenantView({ tenant, mayWrite, mayDelete, onCvlanCreate, onTokenDelete, onDelete }: ViewProps) {
  const cvlans = useCvlans(tenant.id);
  const tokens = useTokens(tenant.id);
  return (
    <div className="flex min-h-0 flex-1 flex-col">
      <header className="flex h-12 shrink-0 items-center gap-3 border-b pr-3 pl-4">
        <h2 className="truncate text-[1.05rem] font-semibold">{tenant.slug}</h2>
        {tenant.name && tenant.name !== tenant.slug && <span className="truncate text-muted">{tenant.name}</span>}
        <span className="ml-auto flex shrink-0 items-center gap-1.5">
          {mayDelete && <IconButton icon="trash" label={`Delete tenant ${tenant.slug}`} onClick={onDelete} />}
          {mayWrite && (
            <Button look="solid" icon="plus" onClick={onCvlanCreate}>
              New CVLAN
            </Button>
          )}
        </span>
      </header>
      <div className="min-h-0 flex-1 overflow-auto">
        {cvlans.isPending && <Waiting />}
        {cvlans.error && !cvlans.data && (
          <div className="p-4">
            <ProblemBox error={cvlans.error} onRetry={() => void cvlans.refetch()} />
          </div>
        )}
        {cvlans.data?.items.length === 0 && (
          <Empty title={`${tenant.slug} has no network yet`}>
            <p>
              A CVLAN is a virtual network: an IPv4 range, an IPv6 range if you want one, and the machines in it.
              Without a range you get the next free /24.
            </p>
            <Commands
              label="Copy the command that creates a CVLAN"
              lines={[`cvlanctl -t ${tenant.slug} cvlan create prod --ipv6 auto`]}
            />
            {mayWrite && (
              <div>
                <Button look="solid" icon="plus" onClick={onCvlanCreate}>
                  New CVLAN
                </Button>
              </div>
            )}
          </Empty>
        )}
        {cvlans.data && cvlans.data.items.length > 0 && <CvlanTable tenant={tenant} cvlans={cvlans.data.items} />}
        {tokens.data && tokens.data.items.length > 0 && (
          <section aria-label="Tokens" className="max-w-2xl px-4 py-4">
            <h3 className="label border-b pb-1">Tokens</h3>
            <TokenList tokens={tokens.data.items} cvlanName={nameOf} onDelete={mayWrite ? onTokenDelete : undefined} />
          </section>
        )}
      </div>
    </div>
  );
}

function CvlanTable({ tenant, cvlans }: { tenant: Tenant; cvlans: readonly Cvlan[] }) {
  const now = useNow();
  const cell = "truncate border-b border-line/60 px-4";
  const head = "border-b px-4 text-left label h-7.5";
  return (
    <table className="w-full table-fixed border-separate border-spacing-0">
      <caption className="sr-only">{plural(cvlans.length, "CVLAN")}</caption>
      <thead>
        <tr>
          <th className={head}>CVLAN</th>
          <th className={`${head} w-36`}>IPv4</th>
          <th className={`${head} hidden md:table-cell`}>IPv6</th>
          <th className={`${head} w-20`}>Nodes</th>
          <th className={`${head} w-20`}>Age</th>
        </tr>
      </thead>
      <tbody>
        {cvlans
          .toSorted((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }))
          .map((cvlan) => (
            <tr key={cvlan.id} className="relative h-8.5 hover:bg-raised/60">
              <td className={`${cell} font-medium`}>
                <a href={routeHref(tenant.slug, cvlan.name)} className="after:absolute after:inset-0">
                  {cvlan.name}
                </a>
              </td>
              <td className={`${cell} mono`}>{cvlan.ipv4Cidr}</td>
              <td className={`${cell} mono hidden text-muted md:table-cell`}>{cvlan.ipv6Cidr || "–"}</td>
              <td className={`${cell} num`}>{count(cvlan.nodeCount)}</td>
              <td className={`${cell} num text-muted`} title={timeFull(cvlan.createdAt)}>
                {age(cvlan.createdAt, now)}
              </td>
            </tr>
          ))}
      </tbody>
    </table>
  );
}
