import { useState } from "react";
import type { Tenant } from "../../api/types";
import { FormDialog } from "../../kit/dialog";
import { Field } from "../../kit/field";
import { plural } from "../../lib/format";
import { routeGo, routeHref } from "../../lib/route";
import { tenantCreate, tenantDelete } from "./api";

export function TenantCreateDialog({ onClose }: { onClose: () => void }) {
  const [slug, setSlug] = useState("");
  const [name, setName] = useState("");
  return (
    <FormDialog
      title="New tenant"
      action="Create tenant"
      ready={slug !== ""}
      onClose={onClose}
      onSubmit={async () => {
        const tenant = await tenantCreate({ slug, name });
        onClose();
        routeGo(routeHref(tenant.slug || slug));
      }}
    >
      <p className="text-muted">A tenant owns networks, machines and users. Tenants never see each other.</p>
      <Field
        label="Slug"
        value={slug}
        onChange={(value) => setSlug(value.toLowerCase())}
        placeholder="acme"
        hint="a–z, 0–9 and -; becomes part of DNS names."
        maxLength={63}
        required
      />
      <Field label="Name" value={name} onChange={setName} placeholder="Acme Inc." hint="For people. May be empty." />
    </FormDialog>
  );
}

export function TenantDeleteDialog({ tenant, onClose }: { tenant: Tenant; onClose: () => void }) {
  const [typed, setTyped] = useState("");
  return (
    <FormDialog
      title={`Delete tenant ${tenant.slug}?`}
      action="Delete tenant"
      danger
      ready={typed === tenant.slug}
      onClose={onClose}
      askReason
      onSubmit={async (reason) => {
        await tenantDelete(tenant.id, reason);
        onClose();
        routeGo(routeHref());
      }}
    >
      <p>
        It has {plural(tenant.cvlanCount, "CVLAN")} and {plural(tenant.nodeCount, "node")}.
      </p>
      <Field label={`Type ${tenant.slug} to confirm`} value={typed} onChange={setTyped} />
    </FormDialog>
  );
}
