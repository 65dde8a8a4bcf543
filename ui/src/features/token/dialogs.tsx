import { useState } from "react";
import type { Cvlan, Tenant, Token, TokenCreateResponse, Wire } from "../../api/types";
import { Button } from "../../kit/button";
import { Commands } from "../../kit/copy";
import { Dialog, FormDialog } from "../../kit/dialog";
import { Choice, Field, Select } from "../../kit/field";
import { plural, shellWord, timeFull } from "../../lib/format";
import { tokenCreate, tokenDelete } from "./api";

const LIFETIMES = [
  ["3600", "1 hour"],
  ["86400", "1 day"],
  ["604800", "1 week"],
  ["2592000", "30 days"],
] as const;

const USES_MAX = 100_000;

interface CreateProps {
  tenant: Tenant;
  cvlans: readonly Cvlan[];
  /** The CVLAN that is chosen at first. */
  cvlanId: string;
  onClose: () => void;
}

/** Asks for a token, then shows its text: the only time that anyone sees it. */
export function TokenCreateDialog({ tenant, cvlans, cvlanId, onClose }: CreateProps) {
  const [cvlan, setCvlan] = useState(cvlanId || (cvlans[0]?.id ?? ""));
  const [uses, setUses] = useState("1");
  const [lifetime, setLifetime] = useState<(typeof LIFETIMES)[number][0]>("86400");
  const [tags, setTags] = useState("");
  const [note, setNote] = useState("");
  const [made, setMade] = useState<Wire<TokenCreateResponse>>();
  const maxUses = Number(uses);
  const name = cvlans.find(({ id }) => id === cvlan)?.name ?? "";

  if (made) return <TokenSecret made={made} cvlan={name} onClose={onClose} />;
  return (
    <FormDialog
      title="Let machines in"
      action="Make token"
      ready={cvlan !== "" && Number.isInteger(maxUses) && maxUses >= 1 && maxUses <= USES_MAX}
      onClose={onClose}
      onSubmit={async () => {
        const tagList = tags.split(/[\s,]+/).filter(Boolean);
        setMade(await tokenCreate(tenant.id, { cvlan, maxUses, expiresInSeconds: lifetime, tags: tagList, note }));
      }}
    >
      <p className="text-muted">
        A token is signed by {tenant.slug}: it says which network a machine joins, and pins this controller's
        certificate authority. The machine has no say in where it lands.
      </p>
      <Select label="CVLAN" value={cvlan} options={cvlans} onChange={setCvlan} />
      <Choice label="Valid for" value={lifetime} options={LIFETIMES} onChange={setLifetime} />
      <div className="grid grid-cols-[7rem_1fr] gap-4">
        <Field
          label="Machines"
          type="number"
          min={1}
          max={USES_MAX}
          value={uses}
          onChange={setUses}
          hint="How many may use it."
        />
        <Field label="Tags" value={tags} onChange={setTags} placeholder="server berlin" hint="Given to each machine." />
      </div>
      <Field label="Note" value={note} onChange={setNote} placeholder="Who or what it is for" />
    </FormDialog>
  );
}

function TokenSecret({
  made,
  cvlan,
  onClose,
}: {
  made: Wire<TokenCreateResponse>;
  cvlan: string;
  onClose: () => void;
}) {
  const { token, secret = "", warnings = [] } = made;
  return (
    <Dialog title={`A machine for ${cvlan}`} wide onClose={onClose}>
      <div className="grid gap-4 px-5 py-4">
        {warnings.map((warning) => (
          <p
            key={warning}
            role="alert"
            className="rounded-lg border border-warn/40 bg-warn-wash px-3 py-2 text-warn first-letter:uppercase"
          >
            {warning}
          </p>
        ))}
        <p>
          On the machine, as root. The token is shown this once: it lets in {plural(token?.maxUses ?? 1, "machine")}
          {token?.expiresAt && ` until ${timeFull(token.expiresAt)}`}.
        </p>
        <Commands label="Copy the commands" tall lines={["cvland &", `cvlan-ctrl --token ${shellWord(secret)}`]} />
        <p className="text-muted">
          It appears in the list and in the timeline as soon as it has joined. Its keys are made on the machine and stay
          there.
        </p>
      </div>
      <footer className="flex justify-end border-t bg-ground/60 px-5 py-3">
        <Button look="solid" onClick={onClose}>
          Done
        </Button>
      </footer>
    </Dialog>
  );
}

export function TokenDeleteDialog({ token, onClose }: { token: Token; onClose: () => void }) {
  return (
    <FormDialog
      title="Revoke this token?"
      action="Revoke token"
      danger
      onClose={onClose}
      askReason
      onSubmit={async (reason) => {
        await tokenDelete(token.tenantId, token.id, reason);
        onClose();
      }}
    >
      <p>
        {token.note && <strong>{token.note}: </strong>}
        used by {plural(token.uses, "machine")} of {token.maxUses}. Those stay in; no other can join with it.
      </p>
    </FormDialog>
  );
}
