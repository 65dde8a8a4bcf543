import { useMemo } from "react";
import type { Cvlan, Node, Tenant, Token } from "../../api/types";
import { Button, IconButton } from "../../kit/button";
import { Commands, CopyIcon } from "../../kit/copy";
import { Empty, Fact } from "../../kit/panel";
import { age, count, ipv4Capacity, timeFull } from "../../lib/format";
import { useNow, useShortcut } from "../../lib/hooks";
import { type Route, routeGo, routeHref } from "../../lib/route";
import { useNodes } from "../node/api";
import { NodeDetails } from "../node/details";
import { NodePicture } from "../node/picture";
import { nodesSort } from "../node/sort";
import { NodeTable } from "../node/table";
import { useTokens } from "../token/api";
import { TokenList } from "../token/list";

interface ViewProps {
  tenant: Tenant;
  cvlan: Cvlan;
  route: Route;
  mayWrite: boolean;
  onTokenCreate: () => void;
  onTokenDelete: (token: Token) => void;
  onNodeDelete: (node: Node) => void;
  onDelete: () => void;
}

/** One CVLAN: its picture, its facts or those of the chosen node, and its machines. */
export function CvlanView(props: ViewProps) {
  const { tenant, cvlan, route, mayWrite, onTokenCreate, onNodeDelete, onDelete } = props;
  const nodes = useNodes(tenant.id, cvlan.id, "");
  const read = nodes.data?.items;
  const items = useMemo(() => read && nodesSort(read, { key: "name", descending: false }), [read]);
  const chosen = route.node ? items?.find(({ name }) => name === route.node) : undefined;
  const back = () => routeGo(routeHref(tenant.slug, cvlan.name));
  useShortcut("Escape", back);
  return (
    <div className="flex min-h-0 flex-1 flex-col">
      <header className="flex h-12 shrink-0 items-center gap-3 border-b pr-3 pl-4">
        <h2 className="flex min-w-0 items-baseline gap-1.5 text-[1.05rem] font-semibold">
          <a href={routeHref(tenant.slug)} className="font-normal text-muted hover:text-text">
            {tenant.slug}
          </a>
          <span className="text-edge">/</span>
          <span className="truncate">{cvlan.name}</span>
        </h2>
        <span className="mono truncate text-muted">{cvlan.ipv4Cidr}</span>
        <span className="ml-auto flex shrink-0 items-center gap-1.5">
          {mayWrite && <IconButton icon="trash" label={`Delete CVLAN ${cvlan.name}`} onClick={onDelete} />}
          {mayWrite && (
            <Button look="solid" icon="plus" onClick={onTokenCreate}>
              Add machine
            </Button>
          )}
        </span>
      </header>
      <div className="flex h-62 shrink-0 border-b [@media(max-height:760px)]:h-44">
        <NodePicture key={cvlan.id} tenant={tenant.slug} cvlan={cvlan.name} nodes={items} selected={route.node} />
        <div className="flex min-h-0 w-[46%] max-w-105 min-w-72 shrink-0 flex-col border-l py-1.5 pr-3 pl-4">
          {chosen ? (
            <NodeDetails node={chosen} onClose={back} onDelete={mayWrite ? onNodeDelete : undefined} />
          ) : (
            <CvlanFacts {...props} />
          )}
        </div>
      </div>
      <NodeTable
        key={cvlan.id}
        tenant={tenant}
        cvlan={cvlan}
        selected={route.node}
        mayDelete={mayWrite}
        onDelete={onNodeDelete}
        empty={<NoNodes tenant={tenant} cvlan={cvlan} mayWrite={mayWrite} onTokenCreate={onTokenCreate} />}
      />
    </div>
  );
}

function CvlanFacts({ tenant, cvlan, mayWrite, onTokenDelete }: ViewProps) {
  const now = useNow();
  const tokens = useTokens(tenant.id);
  const mine = (tokens.data?.items ?? []).filter(({ cvlanId }) => cvlanId === cvlan.id);
  const capacity = ipv4Capacity(cvlan.ipv4Cidr);
  return (
    <section aria-label={`About ${cvlan.name}`} className="flex min-h-0 flex-1 flex-col overflow-auto">
      <dl className="pt-1">
        <Fact term="IPv4">
          <Range cidr={cvlan.ipv4Cidr} what="the IPv4 range" />
        </Fact>
        <Fact term="IPv6">
          <Range cidr={cvlan.ipv6Cidr} what="the IPv6 range" />
        </Fact>
        {capacity !== undefined && capacity > 0 && (
          <Fact term="Addresses">
            <span className="flex items-center gap-2.5">
              <meter
                aria-label="Addresses in use"
                min={0}
                max={capacity}
                value={cvlan.nodeCount}
                className="meter h-1.5 w-20"
              />
              <span className="num text-muted">
                {count(cvlan.nodeCount)} of {count(capacity)}
              </span>
            </span>
          </Fact>
        )}
        <Fact term="Created">
          <span title={timeFull(cvlan.createdAt)}>{age(cvlan.createdAt, now)} ago</span>
          <span className="text-muted"> · last change at #{count(Number(cvlan.revision))}</span>
        </Fact>
      </dl>
      <h3 className="label mt-2.5 border-b pb-1">Tokens</h3>
      {mine.length > 0 && <TokenList tokens={mine} onDelete={mayWrite ? onTokenDelete : undefined} />}
      {tokens.data && mine.length === 0 && <p className="py-2 text-muted">None. A machine joins with a token.</p>}
    </section>
  );
}

function Range({ cidr, what }: { cidr: string; what: string }) {
  if (!cidr) return <span className="text-muted">none</span>;
  return (
    <span className="flex min-w-0 items-center gap-1">
      <span className="mono truncate">{cidr}</span>
      <CopyIcon text={cidr} label={`Copy ${what}`} />
    </span>
  );
}

interface NoNodesProps {
  tenant: Tenant;
  cvlan: Cvlan;
  mayWrite: boolean;
  onTokenCreate: () => void;
}

function NoNodes({ tenant, cvlan, mayWrite, onTokenCreate }: NoNodesProps) {
  return (
    <Empty title={`No machine is in ${cvlan.name} yet`}>
      {mayWrite ? (
        <>
          <p>
            A machine joins with a token. Make one here, or where you work, and start the two daemons on the machine; it
            appears here the moment it joins.
          </p>
          <Commands
            label="Copy the command that makes a token"
            lines={[`cvlanctl -t ${tenant.slug} token create --cvlan ${cvlan.name} --expires 24h`]}
          />
          <div>
            <Button look="solid" icon="key" onClick={onTokenCreate}>
              Make a token
            </Button>
          </div>
        </>
      ) : (
        <p className="text-muted">A machine joins with a token, which a member or an administrator makes.</p>
      )}
    </Empty>
  );
}
