import { useState } from "react";
import type { Member, MemberAddResponse, Wire } from "../../api/types";
import { Button } from "../../kit/button";
import { Commands } from "../../kit/copy";
import { Dialog, FormDialog } from "../../kit/dialog";
import { Choice, Field, Select } from "../../kit/field";
import { Dot } from "../../kit/panel";
import { plural, timeFull } from "../../lib/format";
import { useNow } from "../../lib/hooks";
import { CLUSTER_WATCH_MS, useCluster } from "../system/api";
import { leaderTransfer, memberAdd, memberPromote, memberRemove, useClusterRefresh } from "./api";
import {
  joinCommand,
  leaderOf,
  memberIsIn,
  memberPart,
  PART_WORDS,
  quorumOf,
  quorumSentence,
  quorumWithout,
  successors,
} from "./model";

const LIFETIMES = [
  ["3600", "1 hour"],
  ["86400", "1 day"],
  ["604800", "1 week"],
] as const;

/** Asks for a name, then shows the join token: the only time that anyone sees it. */
export function MemberAddDialog({ onClose }: { onClose: () => void }) {
  const [name, setName] = useState("");
  const [lifetime, setLifetime] = useState<(typeof LIFETIMES)[number][0]>("3600");
  const [made, setMade] = useState<Wire<MemberAddResponse>>();
  const refresh = useClusterRefresh();
  if (made) return <JoinToken made={made} name={name} onClose={onClose} />;
  return (
    <FormDialog
      title="Add a member"
      action="Make join token"
      ready={name !== ""}
      onClose={onClose}
      onSubmit={async () => {
        setMade(await memberAdd({ name, expiresInSeconds: lifetime }));
        refresh();
      }}
    >
      <p className="text-muted">
        One more controller. It follows first, and votes by itself where the number of voters stays 1, 3 or 5.
      </p>
      <Field
        label="Name"
        value={name}
        onChange={(value) => setName(value.toLowerCase())}
        placeholder="m2"
        hint="a–z, 0–9 and -; unique in the cluster."
        maxLength={63}
        required
      />
      <Choice label="May join within" value={lifetime} options={LIFETIMES} onChange={setLifetime} />
    </FormDialog>
  );
}

interface JoinTokenProps {
  made: Wire<MemberAddResponse>;
  name: string;
  onClose: () => void;
}

function JoinToken({ made: { member, joinToken = "" }, name, onClose }: JoinTokenProps) {
  const [address, setAddress] = useState("");
  return (
    <Dialog title={`Start ${name}`} wide onClose={onClose}>
      <div className="grid gap-4 px-5 py-4">
        <p role="alert" className="rounded-lg border border-warn/40 bg-warn-wash px-3 py-2 text-warn">
          The token is shown this once, and is a secret: whoever has it becomes a member and gets the cluster's keys. It
          is good once{member?.expiresAt && `, until ${timeFull(member.expiresAt)}`}.
        </p>
        <Field
          label={`Where the others reach ${name}`}
          value={address}
          onChange={setAddress}
          placeholder="m2.example"
          hint="A name or an address; it stands for HOST in the command below."
        />
        <div className="grid gap-1">
          <p>On its machine, with an empty data folder:</p>
          <Commands label="Copy the command" tall lines={[joinCommand(joinToken, address)]} />
        </div>
        <Arrival id={member?.id ?? ""} name={name} />
      </div>
      <footer className="flex justify-end border-t bg-ground/60 px-5 py-3">
        <Button look="solid" onClick={onClose}>
          Done
        </Button>
      </footer>
    </Dialog>
  );
}

/** Is it there yet? As it happens. */
function Arrival({ id, name }: { id: string; name: string }) {
  const now = useNow();
  const { data: cluster } = useCluster(true, CLUSTER_WATCH_MS);
  const member = cluster?.members.find((each) => each.id === id);
  const here = member !== undefined && memberIsIn(member);
  return (
    <p role="status" className="flex items-center gap-2.5 text-muted">
      <Dot state={here ? "on" : "none"} className={here ? "" : "breathe"} />
      {here
        ? `${name} is in, and ${PART_WORDS[memberPart(member, now)]}.`
        : `${name} is expected. This line changes as it joins.`}
    </p>
  );
}

export function MemberPromoteDialog({ member, onClose }: { member: Member; onClose: () => void }) {
  const { data: cluster } = useCluster(true, CLUSTER_WATCH_MS);
  const refresh = useClusterRefresh();
  const voters = quorumOf(cluster?.members ?? [], cluster?.memberId ?? "").voters + 1;
  return (
    <FormDialog
      title={`Let ${member.name} vote?`}
      action="Let it vote"
      onClose={onClose}
      onSubmit={async () => {
        await memberPromote(member.id);
        refresh();
        onClose();
      }}
    >
      <p>
        {plural(voters, "member")} would vote, and {Math.floor(voters / 2) + 1} would have to agree on every change.
      </p>
      {voters % 2 === 0 && (
        <p className="text-warn">
          An even number survives no more losses than one voter less. With one member more, both vote by themselves.
        </p>
      )}
    </FormDialog>
  );
}

interface TransferProps {
  /** Whom was asked for; undefined: none yet. */
  member: Member | undefined;
  onClose: () => void;
}

export function LeaderTransferDialog({ member, onClose }: TransferProps) {
  const { data: cluster } = useCluster(true, CLUSTER_WATCH_MS);
  const [to, setTo] = useState(member?.id ?? "");
  const refresh = useClusterRefresh();
  const members = cluster?.members ?? [];
  const options = [{ id: "", name: "The one that has most of the log" }, ...successors(members)];
  return (
    <FormDialog
      title="Hand over leadership"
      action="Hand over"
      onClose={onClose}
      onSubmit={async () => {
        await leaderTransfer(to);
        refresh();
        onClose();
      }}
    >
      <p className="text-muted">
        {leaderOf(members)?.name ?? "Nobody"} leads now. Writes wait a moment while another takes over; nothing is lost.
        A leader that is stopped with SIGTERM hands over by itself.
      </p>
      <Select label="To" value={to} options={options} onChange={setTo} />
    </FormDialog>
  );
}

export function MemberRemoveDialog({ member, onClose }: { member: Member; onClose: () => void }) {
  const { data: cluster } = useCluster(true, CLUSTER_WATCH_MS);
  const [typed, setTyped] = useState("");
  const refresh = useClusterRefresh();
  const { name } = member;
  const own = cluster?.memberId ?? "";
  const then = quorumWithout(cluster?.members ?? [], member.id, own);
  return (
    <FormDialog
      title={`Remove member ${name}?`}
      action="Remove member"
      danger
      ready={typed === name}
      onClose={onClose}
      askReason
      onSubmit={async (reason) => {
        await memberRemove(member.id, reason);
        refresh();
        onClose();
      }}
    >
      {memberIsIn(member) ? (
        <p>
          It stops by itself if it runs, and its data folder is of no use any more: to come back, it joins anew.
          {member.voter && then.voters > 0 && ` Then: ${quorumSentence(then)}.`}
        </p>
      ) : (
        <p>It has not joined: its token opens nothing any more.</p>
      )}
      {member.role === "leader" && <p>It leads: another takes over first.</p>}
      {member.id === own && <p className="text-warn">It answers this page: open it at another member afterwards.</p>}
      <Field label={`Type ${name} to confirm`} value={typed} onChange={setTyped} />
    </FormDialog>
  );
}
