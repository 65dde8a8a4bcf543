//! What must hold once all is calm: every member has the same log and the same state, and that is what its events make;
//! views are rows of the state; agents have what a fresh map gives; who was removed has stopped; a node is online where it
//! has a stream.

use super::agent::Local;
use super::machine::{Called, Up};
use super::{CALL_LIMIT, Cluster};
use crate::ledger::short;
use crate::lock;
use crate::runtime::{now_us, sleep_us};
use cvlan_core::id::{Checkpoint, Seq, TenantId};
use cvlan_core::log::proof::{continued, included};
use cvlan_core::machine::Machine as _;
use cvlan_core::{Rules, State};
use cvlan_projections::{Query, Views};
use cvlan_raft::{Head, HistoryError, Proof, Role, VerifyError};
use std::sync::Arc;

/// All members are at the leader's head within this, ms.
const CONVERGE_MS: u64 = 20_000;

/// History that one member has is on all of them within this, ms.
const BACKFILL_MS: u64 = 60_000;

/// A log that moves on by itself, a checkpoint a minute, is read anew so often.
const STILL_TRIES: u32 = 5;

/// Events that a view takes at once.
const FOLD: usize = 64;

impl Cluster {
    /// The last checks.
    pub(super) async fn finish(&self, agents: Vec<Option<Local>>) -> Result<(), String> {
        self.presence_settles().await?;
        self.histories_whole().await?;
        let (members, head) = self.still().await?;
        self.count(|c| {
            c.add("events", head.seq.0);
            c.add("members", members.len() as u64);
            c.add("skipped", members.iter().map(|up| up.member.status().skipped).sum());
        });
        if self.ledger.highest() > head.seq.0 {
            return Err(format!("the log ends at event {}, yet {} was acknowledged", head.seq, self.ledger.highest()));
        }
        if self.ledger.len() != head.seq.0 {
            return Err(format!("{} events are known, the head is at {}", self.ledger.len(), head.seq));
        }
        let digest = head.digest::<Rules>();
        for up in &members {
            let other = up.member.head();
            if (other.seq, other.root, other.digest::<Rules>()) != (head.seq, head.root, digest) {
                return Err(format!(
                    "at event {} the head has root {} and digest {}, s{} root {} and digest {} at event {}",
                    head.seq,
                    short(&head.root),
                    short(&digest),
                    up.at,
                    short(&other.root),
                    short(&other.digest::<Rules>()),
                    other.seq
                ));
            }
        }
        self.ledger.check_head(&head);
        self.ledger.check_all(&head)?;
        self.removed_stopped()?;
        let events = self.ledger.events();
        self.kept_long_enough(&events)?;
        self.levels_in_order(&events, &head)?;
        views(&events, &head)?;
        for up in &members {
            self.replays(up, &head, digest).await?;
        }
        self.proves(&members, &head).await?;
        let agents: Vec<Local> = agents.into_iter().flatten().collect();
        let nodes = agents.iter().map(|agent| agent.node).collect();
        self.agents_converge(agents).await?;
        self.presence_follows(&nodes).await
    }

    /// Waits until every machine's member is open and has applied all there is.
    async fn converged(&self) -> Result<Vec<Up>, String> {
        let until = now_us() + CONVERGE_MS * 1000;
        loop {
            let due = self.machines.iter().filter(|machine| machine.now().member.is_some()).count();
            let up: Vec<Up> = self.machines.iter().filter_map(|machine| machine.up()).collect();
            let at = |up: &Up| (up.member.head().seq, up.member.status().last_index, up.member.status().applied_index);
            let first = up.first().map(at);
            let leads = up.iter().filter(|up| up.member.status().role == Role::Leader).count();
            let same = up.len() == due && leads == 1 && up.iter().all(|up| Some(at(up)) == first);
            if same && first.is_some_and(|(_, last, applied)| last == applied) {
                return Ok(up);
            }
            if now_us() > until {
                let all: Vec<String> = up.iter().map(|up| format!("s{} {:?}", up.at, at(up))).collect();
                return Err(format!("{leads} lead, {} of {due} members are open: {}", up.len(), all.join(", ")));
            }
            sleep_us(50_000).await;
        }
    }

    /// Where one member has all that is kept, every other one gets it from it.
    async fn histories_whole(&self) -> Result<(), String> {
        let until = now_us() + BACKFILL_MS * 1000;
        let mut late = 0;
        loop {
            let up = self.converged().await?;
            let from: Vec<(usize, u64)> = up.iter().map(|up| (up.at, up.member.status().history_from)).collect();
            let least = from.iter().map(|(_, from)| *from).min().unwrap_or_default();
            let lacks = |(up, (_, from)): &(&Up, &(usize, u64))| (least..*from).contains(&self.history_due(up));
            let missing = up.iter().zip(&from).filter(lacks).count() as u64;
            late = late.max(missing);
            if missing == 0 {
                self.count(|c| c.add("histories_mended", late - missing));
                return Ok(());
            }
            if now_us() > until {
                return Err(format!("history stays cut off on some members (machine, first event): {from:?}"));
            }
            sleep_us(200_000).await;
        }
    }

    /// All members at one head, and all of their history read. Checkpoints come by themselves: a log that moved on meanwhile
    /// is read again. Until the next wait nothing moves.
    async fn still(&self) -> Result<(Vec<Up>, Arc<Head<State>>), String> {
        for _ in 0..STILL_TRIES {
            let members = self.converged().await?;
            let Some(head) = members.first().map(|up| up.member.head()) else { return Err("no member is up".into()) };
            self.read_back(&members, head.seq.0).await?;
            if members.iter().all(|up| up.member.head().seq == head.seq) {
                return Ok((members, head));
            }
        }
        Err(format!("the log moved on by itself {STILL_TRIES} times while it was read"))
    }

    /// Every member's history, as far back as it has it.
    async fn read_back(&self, members: &[Up], upto: u64) -> Result<(), String> {
        let mut whole: Vec<&Up> = members.iter().collect();
        whole.sort_by_key(|up| up.member.status().history_from);
        for up in whole {
            let mut from = up.member.status().history_from.max(1);
            self.count(|c| c.add("history_gaps", u64::from(from > 1)));
            while from <= upto {
                let page = 50 + self.draw(200) as usize;
                let read = up.call(CALL_LIMIT, move |member| async move { member.history(Seq(from), page).await });
                match read.await {
                    Called::Done(Ok(events)) if !events.is_empty() => {
                        self.ledger.read_back(&events);
                        from += events.len() as u64;
                    }
                    Called::Done(Ok(_)) => return Err(format!("s{} has no event {from} of {upto}", up.at)),
                    Called::Done(Err(HistoryError::Gone { .. })) if up.member.status().history_from > from => {
                        from = up.member.status().history_from;
                    }
                    Called::Done(Err(error)) => return Err(format!("s{} at event {from}: {error}", up.at)),
                    Called::Gone | Called::Late => return Err(format!("s{} does not read event {from}", up.at)),
                }
            }
        }
        Ok(())
    }

    /// A fresh replay of a member's log leads to the same head, where it goes back far enough.
    async fn replays(&self, up: &Up, head: &Head<State>, digest: [u8; 32]) -> Result<(), String> {
        let seq = head.seq;
        let verified = up.call(CALL_LIMIT, move |member| async move { member.log_verify(Some(seq)).await });
        match verified.await {
            Called::Done(Ok(report)) if (report.seq, report.root, report.digest) == (seq, head.root, digest) => {
                self.count(|c| c.one("replays"));
                Ok(())
            }
            Called::Done(Ok(report)) => Err(format!(
                "a replay on s{} ends at event {} with digest {}",
                up.at,
                report.seq,
                short(&report.digest)
            )),
            Called::Done(Err(VerifyError::History(HistoryError::Gone { .. })))
                if up.member.status().history_from > 1 =>
            {
                Ok(())
            }
            Called::Done(Err(error)) => Err(format!("log verify on s{}: {error}", up.at)),
            Called::Gone | Called::Late => Err(format!("log verify on s{} does not end", up.at)),
        }
    }

    /// Each member proves the same: the root, that an event is in it, that it continues an older one; of what is gone, too. One
    /// that never had all of history proves what it has.
    async fn proves(&self, members: &[Up], head: &Head<State>) -> Result<(), String> {
        let seq = head.seq;
        let (event, old) = (Seq(1 + self.draw(seq.0)), Seq(1 + self.draw(seq.0)));
        let mut first = None;
        for up in members {
            let asked =
                up.call(CALL_LIMIT, move |member| async move { member.prove(seq, Some(event), Some(old)).await });
            let proof = match asked.await {
                Called::Done(Ok(proof)) => proof,
                Called::Done(Err(HistoryError::Gone { .. })) if self.tree_is_late(up) => {
                    self.proves_late(up, head).await?;
                    continue;
                }
                Called::Done(Err(error)) => return Err(format!("s{} proves nothing: {error}", up.at)),
                Called::Gone | Called::Late => return Err(format!("s{} does not answer with a proof", up.at)),
            };
            if !sound(&proof, head, (event, old)) || first.get_or_insert_with(|| proof.clone()) != &proof {
                return Err(format!("s{} proves event {event} and size {old} otherwise than they are", up.at));
            }
            let gone = event.0 < up.member.status().history_from;
            self.count(|c| c.one(if gone { "proofs_of_gone" } else { "proofs" }));
        }
        Ok(())
    }

    /// A tree that begins late proves from there on; where the one that history begins with could not be kept, its head alone.
    async fn proves_late(&self, up: &Up, head: &Head<State>) -> Result<(), String> {
        let (seq, from) = (head.seq, up.member.status().history_from.min(head.seq.0));
        let (event, old) = (Seq(from + self.draw(seq.0 - from + 1)), Seq(from + self.draw(seq.0 - from + 1)));
        let asked = up.call(CALL_LIMIT, move |member| async move { member.prove(seq, Some(event), Some(old)).await });
        let alone = match asked.await {
            Called::Done(Ok(proof)) if sound(&proof, head, (event, old)) => {
                self.count(|c| c.one("proofs_late"));
                return Ok(());
            }
            Called::Done(Err(HistoryError::Gone { .. })) => {
                up.call(CALL_LIMIT, move |member| async move { member.prove(seq, None, None).await }).await
            }
            _ => return Err(format!("s{} does not prove event {event}, which it has, or size {old}", up.at)),
        };
        match alone {
            Called::Done(Ok(proof)) if proof.root == head.root => {
                self.count(|c| c.one("proofs_alone"));
                Ok(())
            }
            _ => Err(format!("s{} does not prove its head", up.at)),
        }
    }

    /// Who was removed does not run on, and is nobody's member.
    fn removed_stopped(&self) -> Result<(), String> {
        for (id, _) in lock(&self.gone).iter().filter(|(_, out)| **out) {
            let runs = self.machines.iter().find(|machine| machine.now().member == Some(*id));
            if let Some(machine) = runs.filter(|machine| machine.up().is_some()) {
                return Err(format!("member {id} was removed, and still runs on s{}", machine.at));
            }
            let known = self.machines.iter().filter_map(|machine| machine.up());
            if let Some(up) = known.into_iter().find(|up| up.member.head().members.addresses.contains_key(id)) {
                return Err(format!("member {id} was removed, and s{} still counts it in", up.at));
            }
        }
        Ok(())
    }
}

/// The proof is of this head, and proves both.
fn sound(proof: &Proof, head: &Head<State>, (event, old): (Seq, Seq)) -> bool {
    let Proof { root, inclusion: Some(is), consistency: Some(was) } = proof else { return false };
    let is_in = included(is.leaf, event.0 - 1, head.seq.0, root, &is.path);
    is_in && continued(old.0, &was.root, head.seq.0, root, &was.path) && *root == head.root
}

/// A view that was kept, folded in steps as the log grew, is the view that is made anew from the last state.
fn views(events: &[cvlan_proto::v1::Event], head: &Head<State>) -> Result<(), String> {
    let said = |what: &'static str| move |error: cvlan_projections::Error| format!("{what}: {error}");
    let folder = tempfile::tempdir().map_err(|error| format!("a folder for views: {error}"))?;
    let open = |name: &str| Views::open(folder.path().join(name)).map_err(said("opening a view"));
    let (kept, anew) = (open("kept")?, open("anew")?);
    let mut state = State::default();
    kept.rebuild(&state, Checkpoint { epoch: head.epoch, seq: Seq(0) }).map_err(said("an empty view"))?;
    for step in events.chunks(FOLD) {
        step.iter().for_each(|event| Rules::apply(&mut state, event));
        kept.fold(&state, &step.iter().collect::<Vec<_>>()).map_err(said("folding"))?;
    }
    anew.rebuild(&head.machine, head.checkpoint()).map_err(said("a view anew"))?;
    let tenants: Vec<TenantId> = head.machine.tenants.keys().copied().collect();
    for tenant in tenants.into_iter().chain([TenantId::default()]) {
        let of = |views: &Views| rows(views, tenant, head.time_ms).map_err(said("listing"));
        if of(&kept)? != of(&anew)? {
            return Err(format!("the view of tenant {tenant} is not what the state gives"));
        }
    }
    Ok(())
}

/// Everything that lists show of a tenant.
fn rows(views: &Views, tenant: TenantId, now_ms: u64) -> Result<String, cvlan_projections::Error> {
    let mut query = Query { limit: cvlan_projections::LIMIT_MAX, now_ms, ..Query::default() };
    let mut all = format!("{:?}", views.tenants(Some(tenant), &query)?.items);
    all += &format!("{:?}", views.cvlans(tenant, &query)?.items);
    all += &format!("{:?}", views.tokens(tenant, &query)?.items);
    all += &format!("{:?}", views.users(tenant, &query)?.items);
    loop {
        let page = views.nodes(tenant, &query)?;
        all += &format!("{:?}", page.items);
        if page.next_cursor.is_empty() {
            return Ok(all);
        }
        query.cursor = page.next_cursor;
    }
}
