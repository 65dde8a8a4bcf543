//! Those who write and read: each through any member, again under the same number until the outcome is known.

use super::machine::{Called, Up};
use super::{CALL_LIMIT, Cluster, PROGRESS_MS, WRITE_LIMIT};
use crate::lock;
use crate::runtime::{now_us, sleep_us};
use crate::trace::Sign;
use cvlan_core::access::Role;
use cvlan_core::grammar::Grammar;
use cvlan_core::member::MemberCommand;
use cvlan_core::node::NodeCommand;
use cvlan_core::{Actor, Command, Rejection, Rules, State, Wish};
use cvlan_raft::{Answer, HistoryError, WriteError};
use futures_util::future::join;
use std::sync::Arc;

/// What a write came to.
type Sent = Called<Result<Answer<Rules>, WriteError<Rejection>>>;

/// What an attempt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// It was carried out.
    Done,
    /// It was refused, or changes nothing.
    Nothing,
    /// It was not carried out, for certain.
    Not,
    /// Nothing: it may have been, or may yet be.
    Open,
}

/// Who wishes it, where that is a person: members take no such wish of the cluster's own from each other. What only one of
/// them may say is sent until it comes to the one that leads.
fn person(state: &State, command: &Command) -> Option<Actor> {
    let wishes = match &command.wish {
        Wish::Tenant(_) | Wish::Cvlan(_) | Wish::Token(_) | Wish::User(_) => true,
        Wish::Node(c) => !matches!(c, NodeCommand::Register(_) | NodeCommand::Endpoints { .. }),
        Wish::Member(c) => matches!(c, MemberCommand::Admit { .. } | MemberCommand::Remove { .. }),
        Wish::System(_) | Wish::Presence(_) => false,
    };
    let root = || state.users.values().find(|user| user.role == Role::Superadmin);
    root().filter(|_| wishes).map(|user| Actor::User(user.id, user.name.to_string()))
}

impl Cluster {
    /// One client: as many commands as there are tickets for it.
    pub(super) async fn client(self: Arc<Self>, session: u64) {
        let mut n = 0;
        while self.ticket().await && !self.over() {
            n += 1;
            let highest = self.ledger.highest();
            if let Some(command) = self.next_command(session, n) {
                self.outcome(&command, highest).await;
            }
            // In bursts, or one after the other.
            if self.one_in(2) {
                sleep_us(self.draw(40_000)).await;
            }
        }
    }

    /// Drawn against the state of some member, which may be behind.
    fn next_command(&self, session: u64, n: u64) -> Option<Command> {
        let head =
            self.any().map(|up| up.member.head()).filter(|head| head.seq.0 > 0).or_else(|| self.ledger.head())?;
        let (kind, mut command) = lock(&self.grammar).next(&head.machine);
        if let Some(person) = person(&head.machine, &command) {
            command.meta.actor = person;
        }
        self.trace.line(format_args!("client {session} sends {n}: {kind} {}", command.meta.id));
        Some(Grammar::numbered(command, session, n))
    }

    /// Sends a command until its outcome is known; false where the seed ended before.
    pub(super) async fn outcome(&self, command: &Command, highest: u64) -> bool {
        let (since, mut first) = (now_us(), true);
        // An attempt without an answer may still be carried out: then a refusal of another one is not the last word.
        let mut open = false;
        while !self.over() {
            if let Some(up) = self.any() {
                if !std::mem::take(&mut first) {
                    self.count(|c| c.one("retries"));
                }
                // Now and then twice at once, through two members.
                let mut told = Vec::new();
                match self.any().filter(|_| self.one_in(12)) {
                    Some(other) => {
                        let (one, two) = join(self.send(&up, command), self.send(&other, command)).await;
                        told.push(self.answered(&up, command, one, highest, since));
                        told.push(self.answered(&other, command, two, highest, since));
                    }
                    None => {
                        let sent = self.send(&up, command).await;
                        told.push(self.answered(&up, command, sent, highest, since));
                    }
                }
                open |= told.contains(&Told::Open);
                let (nothing, done) = (told.contains(&Told::Nothing), told.contains(&Told::Done));
                if nothing && !open && !done {
                    self.ledger.leaves_nothing(command);
                }
                if nothing || done {
                    return true;
                }
            }
            sleep_us(1_000 + self.draw(80_000)).await;
        }
        false
    }

    async fn send(&self, up: &Up, command: &Command) -> Sent {
        let command = command.clone();
        up.call(WRITE_LIMIT, |member| async move { member.write(command).await }).await
    }

    fn answered(&self, up: &Up, command: &Command, sent: Sent, highest: u64, since: u64) -> Told {
        let id = command.meta.id;
        let result = match sent {
            Called::Done(result) => result,
            Called::Gone => return Told::Open,
            Called::Late => {
                self.ledger.broken(format!("command {id} had no answer from s{} for {WRITE_LIMIT:?}", up.at));
                return Told::Open;
            }
        };
        match result {
            Ok(answer) => {
                self.count(|c| {
                    c.one("done");
                    c.add("repeated", u64::from(answer.repeated));
                    c.add("without_effect", u64::from(answer.events.is_empty()));
                });
                self.trace.mark(Some(up.at), Sign::Answer(since), format_args!("write {}", answer.checkpoint.seq));
                self.ledger.done(command, &answer, highest);
                if answer.events.is_empty() { Told::Nothing } else { Told::Done }
            }
            Err(WriteError::Rejected(rejection)) => {
                self.count(|c| c.one("refused"));
                self.ledger.refused(command, rejection.code, highest);
                Told::Nothing
            }
            Err(error) => {
                self.trace.line(format_args!("s{} answers {id} with {}", up.at, error.code()));
                let (expected, told) = match &error {
                    WriteError::NoLeader => ("no_leader", Told::Not),
                    WriteError::Busy => ("busy", Told::Not),
                    WriteError::DiskFull => ("full_answers", Told::Not),
                    WriteError::Removed => ("removed_answers", Told::Not),
                    WriteError::NotAllowed { .. } => ("not_allowed", Told::Not),
                    WriteError::OutcomeUnknown => ("unknown", Told::Open),
                    WriteError::Stopped => ("stopped", Told::Open),
                    _ => ("", Told::Not),
                };
                if expected.is_empty() {
                    self.ledger.broken(format!("command {id} was answered with {}", error.code()));
                } else {
                    self.count(|c| c.one(expected));
                }
                told
            }
        }
    }

    /// With nothing wrong, a write must have an outcome within a bound.
    pub(super) async fn probe(&self, session: u64) -> Result<(), String> {
        let (since, highest) = (now_us(), self.ledger.highest());
        let Some(command) = self.next_command(session, 1) else { return Err("no member is up".into()) };
        let known = self.outcome(&command, highest).await;
        let took_ms = (now_us() - since) / 1000;
        self.count(|c| c.most("slowest_probe_ms", took_ms));
        if known && took_ms > PROGRESS_MS {
            return Err(format!("a write took {took_ms} ms, with nothing wrong any more"));
        }
        self.level_was_raised()
    }

    /// One that reads: what it is shown is no older than what anybody was told before it asked.
    pub(super) async fn reader(self: Arc<Self>) {
        while !self.is_calm() && !self.over() {
            sleep_us(self.draw(2_000_000)).await;
            let (since, highest) = (now_us(), self.ledger.highest());
            let Some(up) = self.any() else { continue };
            let read = |member: cvlan_raft::Member<Rules, crate::runtime::NodeRt>| async move {
                member.linearize().await.map(|()| member.head().seq.0).map_err(|error| error.code())
            };
            match up.call(CALL_LIMIT, read).await {
                Called::Done(Ok(seq)) => {
                    self.count(|c| c.one("reads"));
                    self.trace.mark(Some(up.at), Sign::Answer(since), format_args!("read {seq}"));
                    if seq < highest {
                        self.ledger.broken(format!(
                            "a linearized read on s{} showed event {seq}, yet {highest} was known before it began",
                            up.at
                        ));
                    }
                    self.ledger.seen(seq);
                }
                Called::Done(Err(code)) => self.trace.line(format_args!("s{} does not linearize: {code}", up.at)),
                Called::Gone => {}
                Called::Late => {
                    self.ledger.broken(format!("a read on s{} had no answer for {CALL_LIMIT:?}", up.at));
                }
            }
        }
    }

    /// Checkpoints, snapshots and questions about the past, on any member.
    pub(super) async fn chores(self: Arc<Self>) {
        while !self.is_calm() && !self.over() {
            sleep_us(1_000_000 + self.draw(6_000_000)).await;
            let Some(up) = self.any() else { continue };
            match self.draw(4) {
                0 | 1 => self.attest(&up).await,
                2 => {
                    let made = up.call(CALL_LIMIT, |member| async move { member.snapshot().await.is_ok() }).await;
                    self.count(|c| c.add("snapshots", u64::from(matches!(made, Called::Done(true)))));
                }
                _ => {
                    let (from, head) = (up.member.status().history_from.max(1), up.member.head().seq.0);
                    let from = from + self.draw((head + 1).saturating_sub(from));
                    let read = move |member: cvlan_raft::Member<Rules, crate::runtime::NodeRt>| async move {
                        member.history(cvlan_core::id::Seq(from), 50).await
                    };
                    match up.call(CALL_LIMIT, read).await {
                        Called::Done(Ok(events)) => self.ledger.read_back(&events),
                        Called::Done(Err(HistoryError::Gone { first })) => self.gone(&up, from, first),
                        Called::Done(Err(_)) | Called::Gone | Called::Late => {}
                    }
                }
            }
        }
    }

    async fn attest(&self, up: &Up) {
        let attested = up.call(2 * CALL_LIMIT, |member| async move { member.checkpoint().await }).await;
        if let Called::Done(Ok(attested)) = attested {
            self.count(|c| c.one("checkpoints"));
            let seq = attested.checkpoint.seq.0;
            if self.ledger.root_at(seq).is_some_and(|root| root != attested.root) {
                self.ledger.broken(format!("the checkpoint at event {seq} has another root"));
            }
        }
    }
}
