import { useState } from "react";
import type { Cvlan, Tenant } from "../../api/types";
import { FormDialog } from "../../kit/dialog";
import { Choice, Field } from "../../kit/field";
import { plural } from "../../lib/format";
import { routeGo, routeHref } from "../../lib/route";
import { cvlanCreate, cvlanDelete } from "./api";

type Ipv6 = "none" | "auto" | "own";

export function CvlanCreateDialog({ tenant, onClose }: { tenant: Tenant; onClose: () => void }) {
  const [name, setName] = useState("");
  const [ipv4Cidr, setIpv4Cidr] = useState("");
  const [ipv6, setIpv6] = useState<Ipv6>("auto");
  const [ipv6Cidr, setIpv6Cidr] = useState("");
  return (
    <FormDialog
      title={`New CVLAN in ${tenant.slug}`}
      action="Create CVLAN"
      ready={name !== "" && (ipv6 !== "own" || ipv6Cidr !== "")}
      onClose={onClose}
      onSubmit={async () => {
        const range = { none: "", auto: "auto", own: ipv6Cidr.trim() }[ipv6];
        const cvlan = await cvlanCreate(tenant.id, { name, ipv4Cidr: ipv4Cidr.trim(), ipv6Cidr: range });
        onClose();
        routeGo(routeHref(tenant.slug, cvlan.name || name));
      }}
    >
      <Field
        label="Name"
        value={name}
        onChange={(value) => setName(value.toLowerCase())}
        placeholder="prod"
        hint="a–z, 0–9 and -; unique in the tenant."
        maxLength={63}
        required
      />
      <Field
        label="IPv4 range"
        className="mono"
        value={ipv4Cidr}
        onChange={setIpv4Cidr}
        placeholder="next free /24"
        hint="Empty: the next free /24. No two CVLANs of a tenant may overlap."
      />
      <Choice
        label="IPv6"
        value={ipv6}
        onChange={setIpv6}
        options={[
          ["auto", "Unique local /64"],
          ["own", "A range of mine"],
          ["none", "None"],
        ]}
      />
      {ipv6 === "own" && (
        <Field
          label="IPv6 range"
          className="mono"
          value={ipv6Cidr}
          onChange={setIpv6Cidr}
          placeholder="fd12:3456:789a::/64"
        />
      )}
    </FormDialog>
  );
}

export function CvlanDeleteDialog({ cvlan, tenant, onClose }: { cvlan: Cvlan; tenant: Tenant; onClose: () => void }) {
  const [typed, setTyped] = useState("");
  return (
    <FormDialog
      title={`Delete CVLAN ${cvlan.name}?`}
      action="Delete CVLAN"
      danger
      ready={typed === cvlan.name}
      onClose={onClose}
      askReason
      onSubmit={async (reason) => {
        await cvlanDelete(tenant.id, cvlan.id, reason);
        onClose();
        routeGo(routeHref(tenant.slug));
      }}
    >
      <p>
        <span className="mono">{[cvlan.ipv4Cidr, cvlan.ipv6Cidr].filter(Boolean).join(" and ")}</span> with{" "}
        {plural(cvlan.nodeCount, "node")}.
      </p>
      <Field label={`Type ${cvlan.name} to confirm`} value={typed} onChange={setTyped} />
    </FormDialog>
  );
}
