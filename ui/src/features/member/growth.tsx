import type { ReactNode } from "react";
import type { ClusterStatus } from "../../api/types";
import { Button } from "../../kit/button";
import { Commands } from "../../kit/copy";
import { memberIsIn } from "./model";

/** The smallest cluster that survives the loss of a member. */
const WANTED = 3;

const TEXTS = {
  one: {
    title: "What three members bring",
    why: "With one member, the cluster is as available as that machine, and its disk is the only one that has the log. With three, every change is on two disks before it is acknowledged; one machine may be lost or upgraded and everything goes on. With five, two.",
  },
  follows: {
    title: "One more, and both vote",
    why: "Two that vote would need both, so the second only follows: it has the whole log, and does not count. With three, one may be lost.",
  },
  two: {
    title: "One more, and one may be lost",
    why: "Two that vote need both: the loss of either stops every change. With three, one may be lost.",
  },
} as const;

interface GrowthProps {
  cluster: ClusterStatus;
  mayWrite: boolean;
  onAdd: () => void;
}

/** Why three, and how; until there are three. */
export function Growth({ cluster: { members }, mayWrite, onAdd }: GrowthProps) {
  const there = members.filter(memberIsIn).length;
  if (there === 0 || there >= WANTED) return null;
  const voters = members.filter(({ voter }) => voter).length;
  const { title, why } = TEXTS[there === 1 ? "one" : voters === 1 ? "follows" : "two"];
  // Who is admitted has its token.
  const missing = Math.max(0, WANTED - members.length);
  const steps: ReactNode[] = [
    <>
      Start <code className="mono">cvlan-api</code> with it on a machine of its own; port 8445 open between the members.
    </>,
    "It follows while it catches up. As soon as three are there and level, all vote, by themselves.",
  ];
  if (missing > 0) steps.unshift(<TokenStep missing={missing} mayWrite={mayWrite} taken={members} />);
  return (
    <section aria-labelledby="growth" className="grid max-w-2xl gap-2.5">
      <h3 id="growth" className="text-base font-semibold">
        {title}
      </h3>
      <p className="text-muted">{why}</p>
      <ol className="grid list-decimal gap-1.5 pl-5 marker:text-muted">
        {steps.map((step, at) => (
          // biome-ignore lint/suspicious/noArrayIndexKey: they do not change places
          <li key={at}>{step}</li>
        ))}
      </ol>
      {mayWrite && missing > 0 && (
        <div>
          <Button look="solid" icon="plus" onClick={onAdd}>
            Add member
          </Button>
        </div>
      )}
    </section>
  );
}

interface TokenStepProps {
  missing: number;
  mayWrite: boolean;
  taken: readonly { name: string }[];
}

function TokenStep({ missing, mayWrite, taken }: TokenStepProps) {
  const names = Array.from({ length: taken.length + missing }, (_, at) => `m${at + 2}`);
  const free = names.filter((name) => !taken.some((member) => member.name === name)).slice(0, missing);
  return (
    <>
      Make {missing === 1 ? "one join token" : "two join tokens"}
      {mayWrite ? ", here or where you work:" : ":"}
      {/* As high as two lines: what stands below does not move when the first is admitted. */}
      <div className="mt-1.5 min-h-14.5">
        <Commands label="Copy the commands" lines={free.map((name) => `cvlanctl cluster add ${name}`)} />
      </div>
    </>
  );
}
