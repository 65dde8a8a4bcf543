//! Presence goes into the log: what this member's streams say, and the end of what members that are gone have said.
//!
//! ```text
//!  stream opens, ends ────────┐
//!  the log tells of a node ───┼─► unsettled ─► gathered ─► core's `due`, against the state ─► a command a tenant
//!  a look at all, every 30 s ─┘       ▲                                                         │
//!                                     └──────────── failed, or its outcome unknown ◄────────────┘
//!  who leads: sessions of a member that is silent for 60 s, or none any more ─► Expire
//! ```
//! Nothing waits for it: streams open and sync without a leader too. What is not in the log yet is no queue, but a set
//! of nodes; whatever happened to one meanwhile is one transition, or none.

use crate::app::App;
use crate::problem::Problem;
use cvlan_core::id::{MemberId, NodeId, TenantId};
use cvlan_core::presence::{PresenceCommand, TRANSITIONS_MAX, Transition, due};
use cvlan_core::{Meta, State, Wish};
use cvlan_raft::Status;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A member from which nothing comes for so long has lost its machines.
pub const EXPIRY: Duration = Duration::from_secs(60);
/// Changes are gathered for so long; in a storm as long as those before them took.
const GATHER: Duration = Duration::from_millis(250);
/// And so long at most; also the longest rest after a failure.
const GATHER_MAX: Duration = Duration::from_secs(10);
/// Nodes that are looked at in one go.
const ROUND: usize = 8 * TRANSITIONS_MAX;
/// Every stream and every session of this member is looked at so often.
const SWEEP: Duration = Duration::from_secs(30);
/// Between two looks at the other members.
const TICK: Duration = Duration::from_secs(1);

/// Until it is dropped: brings the log to what this member's streams are.
pub async fn report(app: Arc<App>) {
    let (mut swept, mut rest): (Option<Instant>, Duration) = (None, GATHER);
    loop {
        if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            // Sessions of an earlier run of this member have no stream.
            let head = app.log.head();
            app.streams.unsettled_put(app.streams.nodes().into_iter().chain(head.machine.online_at(app.member)));
            swept = Some(Instant::now());
        }
        // Its end is the next sweep.
        let _ = timeout(SWEEP, app.streams.unsettled.notified()).await;
        sleep(rest).await;
        let nodes = app.streams.unsettled_take(ROUND);
        let started = Instant::now();
        rest = match settle(&app, &nodes).await {
            Ok(()) => started.elapsed().clamp(GATHER, GATHER_MAX),
            Err(problem) => {
                tracing::debug!(code = problem.code, detail = %problem.detail, "presence is told later");
                app.streams.unsettled_put(nodes);
                (rest * 2).min(GATHER_MAX)
            }
        };
    }
}

/// Tells what is due of these nodes.
async fn settle(app: &App, nodes: &[NodeId]) -> Result<(), Problem> {
    let head = app.log.head();
    let mut all: BTreeMap<TenantId, Vec<Transition>> = BTreeMap::new();
    for node in nodes {
        let open = app.streams.session(*node);
        match due(&head.machine, app.member, *node, open) {
            Some((tenant, transition)) => all.entry(tenant).or_default().push(transition),
            None => told(app, &head.machine, *node),
        }
    }
    drop(head);
    for (tenant, transitions) in all {
        for some in transitions.chunks(TRANSITIONS_MAX) {
            let report = PresenceCommand::Report { tenant, member: app.member, transitions: some.to_vec() };
            app.command(Meta::default(), Wish::Presence(report)).await?;
            some.iter().filter(|t| t.online).for_each(|t| app.streams.told(t.node, t.session));
        }
    }
    Ok(())
}

/// A command whose outcome was not known may have been carried out.
fn told(app: &App, state: &State, node: NodeId) {
    if let Some(has) = state.presence(node).filter(|p| p.online && p.member == app.member) {
        app.streams.told(node, has.session);
    }
}

/// Until it is dropped: while this member leads, ends the sessions of members that are gone.
pub async fn expire(app: Arc<App>, expiry: Duration) {
    let mut leads: Option<Instant> = None;
    loop {
        sleep(TICK).await;
        let status = app.log.status();
        if !status.writable {
            leads = None;
            continue;
        }
        let since = leads.get_or_insert_with(Instant::now).elapsed();
        let members = app.log.head().machine.online_members();
        for member in members.into_iter().filter(|id| *id != app.member) {
            let silent = silence(&status, member, since);
            if silent < expiry && app.log.head().machine.members.contains_key(&member) {
                continue;
            }
            tracing::info!(%member, ?silent, "its machines count as offline");
            if let Err(problem) = ended(&app, member).await {
                tracing::warn!(%member, code = problem.code, "its machines still count as online");
            }
        }
    }
}

/// How long nothing came from it, as far as this member can know since it leads.
fn silence(status: &Status, member: MemberId, leads: Duration) -> Duration {
    let heard_ms = status.peers.iter().find(|p| p.id == member.0).and_then(|p| p.heard_ms);
    heard_ms.map_or(leads, |ms| leads.min(Duration::from_millis(ms)))
}

async fn ended(app: &App, member: MemberId) -> Result<(), Problem> {
    // Each command ends as many as it may; one that ends none is the last.
    loop {
        let answer = app.command(Meta::default(), Wish::Presence(PresenceCommand::Expire { member })).await?;
        if answer.events.is_empty() {
            return Ok(());
        }
    }
}
