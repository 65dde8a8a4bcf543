import type { Node } from "../../api/types";
import { FormDialog } from "../../kit/dialog";
import { routeGo, routeHref, useRoute } from "../../lib/route";
import { nodeDelete } from "./api";

export function NodeDeleteDialog({ node, onClose }: { node: Node; onClose: () => void }) {
  const route = useRoute();
  return (
    <FormDialog
      title={`Delete ${node.name}?`}
      action="Delete node"
      danger
      onClose={onClose}
      askReason
      onSubmit={async (reason) => {
        await nodeDelete(node.tenantId, node.id, reason);
        onClose();
        if (route.node === node.name) routeGo(routeHref(route.tenant, route.cvlan), true);
      }}
    >
      <p>
        Its certificate stops working at once, the other machines of the network drop it, and{" "}
        <span className="mono">{node.ipv4 || node.ipv6}</span> becomes free again later.
      </p>
      <p className="text-muted">To come back, the machine needs a new token.</p>
    </FormDialog>
  );
}
