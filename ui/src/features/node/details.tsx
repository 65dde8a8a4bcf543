import type { ReactNode } from "react";
import type { Node } from "../../api/types";
import { Button, IconButton } from "../../kit/button";
import { CopyIcon } from "../../kit/copy";
import { Dot, Fact } from "../../kit/panel";
import { age, short, timeFull } from "../../lib/format";
import { useNow } from "../../lib/hooks";
import { nameOf } from "../../live/directory";
import { nodePresence } from "./presence";

/** Something to take along: an address, a key. */
function Copyable({ text, shown = text, what }: { text: string; shown?: string; what: string }) {
  if (!text) return <span className="text-muted">–</span>;
  return (
    <span className="flex min-w-0 items-center gap-1">
      <span className="mono truncate" title={text}>
        {shown}
      </span>
      <CopyIcon text={text} label={`Copy ${what}`} />
    </span>
  );
}

interface DetailsProps {
  node: Node;
  onClose: () => void;
  onDelete: ((node: Node) => void) | undefined;
}

/** Everything about one machine. */
export function NodeDetails({ node, onClose, onDelete }: DetailsProps) {
  const now = useNow();
  const presence = nodePresence(node, now);
  const facts: [string, ReactNode][] = [
    ["IPv4", <Copyable key="4" text={node.ipv4} what="the IPv4 address" />],
    ["IPv6", <Copyable key="6" text={node.ipv6} what="the IPv6 address" />],
    ["Endpoints", <Copyable key="e" text={node.endpoints.join(", ")} what="the endpoints" />],
    ["WireGuard key", <Copyable key="k" text={node.wgPublicKey} what="the WireGuard key" />],
    ["Node id", <Copyable key="i" text={node.id} what="the node's id" />],
    ["Machine", [node.hostname, node.os, node.agentVersion].filter(Boolean).join(" · ") || "–"],
    ["Joined", <Joined key="j" node={node} now={now} />],
  ];
  return (
    <section aria-label={`Node ${node.name}`} className="flex min-h-0 flex-1 flex-col">
      <header className="flex h-9 shrink-0 items-center gap-2.5">
        <Dot state={presence.dot} className="ml-1" />
        <h3 className="min-w-0 truncate text-base font-semibold">{node.name}</h3>
        <span className="text-muted">{node.status === "disabled" ? "disabled" : presence.text}</span>
        <span className="ml-auto flex items-center gap-1">
          {onDelete && (
            <Button look="quiet" icon="trash" onClick={() => onDelete(node)}>
              Delete
            </Button>
          )}
          <IconButton icon="close" label="Close the node's details" onClick={onClose} />
        </span>
      </header>
      <dl className="min-h-0 flex-1 overflow-auto">
        {facts.map(([term, value]) => (
          <Fact key={term} term={term}>
            {value}
          </Fact>
        ))}
      </dl>
    </section>
  );
}

function Joined({ node, now }: { node: Node; now: number }) {
  return (
    <span title={timeFull(node.createdAt)}>
      {age(node.createdAt, now)} ago
      {node.tokenId ? ` with token ${nameOf(node.tokenId)}` : ", added by hand"}
      {node.ownerId && `, owned by ${nameOf(node.ownerId) || short(node.ownerId)}`}
    </span>
  );
}
