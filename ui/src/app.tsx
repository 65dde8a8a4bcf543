/**
 * The page:
 *
 *   ┌──────────────────── header: the cluster, live or not, who ────────────────────┐
 *   │ cluster  │  overview, members, tenant or CVLAN: picture,      │   timeline     │
 *   │ tenants  │  facts, nodes                                      │  (below, where │
 *   │ └ CVLANs │                                                    │   it is narrow)│
 *   └──────────┴────────────────────────────────────────────────────┴────────────────┘
 *
 * What is shown is in the address (lib/route); what is true is in React Query's lists, kept so by live/live.
 */
import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { problemOf } from "./api/problem";
import { renew, useSession } from "./api/session";
import type { Cvlan, Member, Node, Tenant, Token, User } from "./api/types";
import { useCvlans } from "./features/cvlan/api";
import { CvlanCreateDialog, CvlanDeleteDialog } from "./features/cvlan/dialogs";
import { CvlanView } from "./features/cvlan/view";
import { GoTo } from "./features/goto";
import { Help } from "./features/help";
import { Timeline } from "./features/log/timeline";
import {
  LeaderTransferDialog,
  MemberAddDialog,
  MemberPromoteDialog,
  MemberRemoveDialog,
} from "./features/member/dialogs";
import { ClusterLink } from "./features/member/link";
import { ClusterView } from "./features/member/view";
import { NodeDeleteDialog } from "./features/node/delete";
import { Header } from "./features/system/header";
import { Overview } from "./features/system/overview";
import { useTenants } from "./features/tenant/api";
import { TenantCreateDialog, TenantDeleteDialog } from "./features/tenant/dialogs";
import { TenantTree } from "./features/tenant/tree";
import { TenantView } from "./features/tenant/view";
import { TokenCreateDialog, TokenDeleteDialog } from "./features/token/dialogs";
import { Login } from "./features/user/login";
import { mayManageCluster, mayManageNetworks, mayManageTenants, mayReadCluster } from "./features/user/model";
import { Empty, Waiting } from "./kit/panel";
import { ProblemBox } from "./kit/problem";
import { useShortcut } from "./lib/hooks";
import { ROUTE_CLUSTER, routeHref, useRoute } from "./lib/route";
import { liveStart } from "./live/live";

export function App() {
  const session = useSession();
  if (session.state === "restoring") return <Restoring />;
  if (session.state === "out") return <Login why={session.why} />;
  return <Page key={session.user.id} user={session.user} />;
}

/** A reload: the refresh token is tried before anyone is asked for a password. */
function Restoring() {
  const [error, setError] = useState<unknown>();
  const [tries, setTries] = useState(0);
  // biome-ignore lint/correctness/useExhaustiveDependencies: tries again by itself
  useEffect(() => {
    renew().catch((problem) => setError(problemOf(problem)));
  }, [tries]);
  if (!error) return null;
  return (
    <main className="grid h-full place-items-center p-6">
      <ProblemBox
        error={error}
        onRetry={() => {
          setError(undefined);
          setTries((before) => before + 1);
        }}
      />
    </main>
  );
}

/** The one dialog that is open. */
type Open =
  | { dialog: "goto" | "help" | "tenant-create" }
  | { dialog: "tenant-delete" | "cvlan-create"; tenant: Tenant }
  | { dialog: "cvlan-delete" | "token-create"; tenant: Tenant; cvlan: Cvlan }
  | { dialog: "token-delete"; token: Token }
  | { dialog: "node-delete"; node: Node }
  | { dialog: "member-add" }
  | { dialog: "member-promote" | "member-remove"; member: Member }
  | { dialog: "leader-transfer"; member: Member | undefined };

function Page({ user }: { user: User }) {
  const client = useQueryClient();
  const route = useRoute();
  const [open, setOpen] = useState<Open>();
  useEffect(() => {
    const stop = liveStart(client);
    return () => {
      stop();
      // Another user may see less: nothing of this one stays.
      client.clear();
    };
  }, [client]);
  useShortcut("k", () => setOpen({ dialog: "goto" }), true);
  useShortcut("?", () => setOpen({ dialog: "help" }));

  const tenants = useTenants();
  const tenant = tenants.data?.items.find(({ slug }) => slug === route.tenant);
  const cvlans = useCvlans(tenant?.id ?? "");
  return (
    <div className="flex h-full flex-col">
      <Header user={user} onGoTo={() => setOpen({ dialog: "goto" })} onHelp={() => setOpen({ dialog: "help" })} />
      <div className="grid min-h-0 flex-1 grid-cols-[13.5rem_minmax(0,1fr)] grid-rows-[minmax(0,1fr)_12rem] xl:grid-cols-[15.5rem_minmax(0,1fr)_23rem] xl:grid-rows-1 [&>nav]:row-span-2 xl:[&>nav]:row-span-1">
        <TenantTree
          route={route}
          top={mayReadCluster(user) && <ClusterLink current={route.tenant === ROUTE_CLUSTER} />}
          onTenantCreate={mayManageTenants(user) ? () => setOpen({ dialog: "tenant-create" }) : undefined}
          onCvlanCreate={
            mayManageNetworks(user) ? (owner) => setOpen({ dialog: "cvlan-create", tenant: owner }) : undefined
          }
        />
        <main className="flex min-h-0 min-w-0 flex-col bg-panel max-xl:border-b">
          <Main user={user} onOpen={setOpen} />
        </main>
        <Timeline tenant={tenant} />
      </div>
      {open && <Dialogs open={open} cvlans={cvlans.data?.items ?? []} onClose={() => setOpen(undefined)} />}
    </div>
  );
}

/** What the address names. */
function Main({ user, onOpen }: { user: User; onOpen: (open: Open) => void }) {
  const route = useRoute();
  const mayWrite = mayManageNetworks(user);
  const mayTenants = mayManageTenants(user);
  const tenants = useTenants();
  const tenant = tenants.data?.items.find(({ slug }) => slug === route.tenant);
  const cvlans = useCvlans(tenant?.id ?? "");
  const cvlan = cvlans.data?.items.find(({ name }) => name === route.cvlan);
  if (route.tenant === ROUTE_CLUSTER) {
    return (
      <ClusterView
        mayRead={mayReadCluster(user)}
        mayWrite={mayManageCluster(user)}
        onAdd={() => onOpen({ dialog: "member-add" })}
        onPromote={(member) => onOpen({ dialog: "member-promote", member })}
        onTransfer={(member) => onOpen({ dialog: "leader-transfer", member })}
        onRemove={(member) => onOpen({ dialog: "member-remove", member })}
      />
    );
  }
  if (!route.tenant) {
    const onTenantCreate = () => onOpen({ dialog: "tenant-create" });
    return <Overview mayRead={mayReadCluster(user)} mayCreate={mayTenants} onTenantCreate={onTenantCreate} />;
  }
  if (tenants.isPending || (tenant && route.cvlan && cvlans.isPending)) return <Waiting />;
  if (!tenant) return <Gone what={`tenant ${route.tenant}`} href={routeHref()} />;
  const onTokenDelete = (token: Token) => onOpen({ dialog: "token-delete", token });
  if (!route.cvlan) {
    return (
      <TenantView
        tenant={tenant}
        mayWrite={mayWrite}
        mayDelete={mayTenants}
        onCvlanCreate={() => onOpen({ dialog: "cvlan-create", tenant })}
        onTokenDelete={onTokenDelete}
        onDelete={() => onOpen({ dialog: "tenant-delete", tenant })}
      />
    );
  }
  if (!cvlan) return <Gone what={`CVLAN ${route.cvlan} in ${tenant.slug}`} href={routeHref(tenant.slug)} />;
  return (
    <CvlanView
      tenant={tenant}
      cvlan={cvlan}
      route={route}
      mayWrite={mayWrite}
      onTokenCreate={() => onOpen({ dialog: "token-create", tenant, cvlan })}
      onTokenDelete={onTokenDelete}
      onNodeDelete={(node) => onOpen({ dialog: "node-delete", node })}
      onDelete={() => onOpen({ dialog: "cvlan-delete", tenant, cvlan })}
    />
  );
}

/** The address names something that is not there: deleted meanwhile, renamed, or mistyped. */
function Gone({ what, href }: { what: string; href: string }) {
  return (
    <Empty title={`There is no ${what}`}>
      <p className="text-muted">It may have been deleted or renamed. The timeline says when, and by whom.</p>
      <a href={href} className="font-medium text-accent hover:underline">
        Back
      </a>
    </Empty>
  );
}

function Dialogs({ open, cvlans, onClose }: { open: Open; cvlans: readonly Cvlan[]; onClose: () => void }) {
  switch (open.dialog) {
    case "goto":
      return <GoTo onClose={onClose} />;
    case "help":
      return <Help onClose={onClose} />;
    case "tenant-create":
      return <TenantCreateDialog onClose={onClose} />;
    case "tenant-delete":
      return <TenantDeleteDialog tenant={open.tenant} onClose={onClose} />;
    case "cvlan-create":
      return <CvlanCreateDialog tenant={open.tenant} onClose={onClose} />;
    case "cvlan-delete":
      return <CvlanDeleteDialog tenant={open.tenant} cvlan={open.cvlan} onClose={onClose} />;
    case "token-create":
      return <TokenCreateDialog tenant={open.tenant} cvlans={cvlans} cvlanId={open.cvlan.id} onClose={onClose} />;
    case "token-delete":
      return <TokenDeleteDialog token={open.token} onClose={onClose} />;
    case "node-delete":
      return <NodeDeleteDialog node={open.node} onClose={onClose} />;
    case "member-add":
      return <MemberAddDialog onClose={onClose} />;
    case "member-promote":
      return <MemberPromoteDialog member={open.member} onClose={onClose} />;
    case "member-remove":
      return <MemberRemoveDialog member={open.member} onClose={onClose} />;
    case "leader-transfer":
      return <LeaderTransferDialog member={open.member} onClose={onClose} />;
  }
}
