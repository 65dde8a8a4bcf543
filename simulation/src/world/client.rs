//! The clients of a seed: each draws commands, and sends one again, under the same number, until its outcome is known.

use super::{CLIENTS, PATIENCE_MS, Sent, Up, World};
use crate::lock;
use crate::runtime::{NodeRt, sleep_us};
use cvlan_core::grammar::Grammar;
use cvlan_core::{Command, Rules};
use cvlan_raft::{Member, WriteError};
use futures_util::future::{Either, join, select};
use openraft::AsyncRuntime;
use std::pin::pin;
use std::time::Duration;

impl World {
    /// One client: its share of the commands, one after the other.
    pub(super) async fn client(&self, session: u64) {
        let share = self.setup.commands / CLIENTS + u64::from(session <= self.setup.commands % CLIENTS);
        for n in 1..=share {
            sleep_us(self.draw(12_000)).await;
            let highest = self.ledger.highest();
            let Some(command) = self.next_command(session, n).await else { return };
            if !self.outcome(&command, highest).await {
                return;
            }
        }
    }

    /// Drawn against the state of now; waits for the bootstrap.
    async fn next_command(&self, session: u64, n: u64) -> Option<Command> {
        loop {
            let state = lock(&self.up).as_ref().map(|up| up.member.head()).or_else(|| self.ledger.head());
            if let Some(head) = state.filter(|head| head.seq.0 > 0) {
                let (kind, command) = lock(&self.grammar).next(&head.machine);
                self.trace.line(format_args!("client {session} sends {n}: {kind} {}", command.meta.id));
                return Some(Grammar::numbered(command, session, n));
            }
            if self.ledger.violation().is_some() {
                return None;
            }
            sleep_us(2000).await;
        }
    }

    /// Sends a command until its outcome is known; false where the seed has failed.
    async fn outcome(&self, command: &Command, highest: u64) -> bool {
        let mut first = true;
        loop {
            if self.ledger.violation().is_some() {
                return false;
            }
            let up = lock(&self.up).clone();
            if let Some(up) = up {
                if !std::mem::take(&mut first) {
                    self.count(|c| c.one("retries"));
                }
                if let Either::Left(((one, two), _)) =
                    select(pin!(self.send(&up.member, command)), pin!(up.process.gone())).await
                {
                    let known = self.answered(command, one, highest, &up);
                    if known | two.is_some_and(|two| self.answered(command, two, highest, &up)) {
                        return true;
                    }
                }
            }
            sleep_us(500 + self.draw(6000)).await;
        }
    }

    /// Now and then the same command twice at once: two doors that both think that they have to.
    async fn send(&self, member: &Member<Rules, NodeRt>, command: &Command) -> (Sent, Option<Sent>) {
        let patience = Duration::from_millis(PATIENCE_MS);
        let write = || async { NodeRt::timeout(patience, member.write(command.clone())).await.ok() };
        if self.one_in(12) {
            let (one, two) = join(write(), write()).await;
            return (one, Some(two));
        }
        (write().await, None)
    }

    fn answered(&self, command: &Command, sent: Sent, highest: u64, up: &Up) -> bool {
        let Some(result) = sent else {
            self.ledger.broken(format!("command {} had no answer for {PATIENCE_MS} ms", command.meta.id));
            return false;
        };
        match result {
            Ok(answer) => {
                self.count(|c| {
                    c.one("done");
                    c.add("repeated", u64::from(answer.repeated));
                });
                self.ledger.done(command, &answer, highest);
                if answer.events.is_empty() {
                    self.ledger.leaves_nothing(command);
                }
                true
            }
            Err(WriteError::Rejected(rejection)) => {
                self.count(|c| c.one("refused"));
                self.ledger.refused(command, rejection.code, highest);
                self.ledger.leaves_nothing(command);
                true
            }
            Err(WriteError::Busy | WriteError::NoLeader | WriteError::Stopped) => false,
            // The first answer could not be read again, from a disk that fails.
            Err(WriteError::OutcomeUnknown) if up.process.is_dead() || up.disk.has_failed() => false,
            Err(WriteError::DiskFull) => {
                self.count(|c| c.one("full_answers"));
                false
            }
            Err(
                error @ (WriteError::OutcomeUnknown
                | WriteError::TooLarge { .. }
                | WriteError::Diverged
                | WriteError::Removed
                | WriteError::NotAllowed { .. }
                | WriteError::NotBootstrapped
                | WriteError::AlreadyBootstrapped),
            ) => {
                self.ledger.broken(format!("command {} was answered with {}", command.meta.id, error.code()));
                false
            }
        }
    }
}
