//! The level of features rises once every member knows it: only then is a new kind of event written.
//!
//! ```text
//! hello says what a member knows ─► the leader: all of them know more than the log is at ─► LevelRaised ─► new kinds of events
//! ```
//! A member that is away is waited for: it may come back as it was. One that was away for [`AWAY`] is not: when it comes back
//! with an older version it stops at that event, and says so. Before the level is raised, every member may be put back to the
//! older version; afterwards none.

use crate::attest;
use crate::member::Inner;
use crate::peer::LOST_MS;
use crate::types::Cfg;
use cvlan_core::machine::{Machine, SystemFact};
use openraft::AsyncRuntime;
use openraft::async_runtime::{Select2, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// A member that has not answered for longer does not hold the others up.
const AWAY: Duration = Duration::from_secs(600);

/// Looks, for as long as the member is there, and raises the level whenever it leads.
pub(crate) async fn keep<M: Machine, RT: AsyncRuntime>(member: Weak<Inner<M, RT>>) {
    let Some(mut halt) = member.upgrade().map(|member| member.shared.halt()) else { return };
    // Since when it leads, on its own clock.
    let mut leads_us = None;
    while !*halt.borrow_watched() {
        if let Select2::First(_) = Cfg::<RT>::select2(halt.changed(), Cfg::<RT>::sleep(EVERY)).await {
            return;
        }
        let Some(member) = member.upgrade() else { return };
        let shared = &member.shared;
        if !shared.desk.writable() {
            leads_us = None;
            continue;
        }
        let now = shared.clock.monotonic_us();
        let led_ms = now.saturating_sub(*leads_us.get_or_insert(now)) / 1000;
        let level = known_by_all(&member, led_ms);
        if level > shared.head().feature_level {
            match attest::decide(&member, SystemFact::LevelRaised { level }, "level").await {
                Ok(_) => {
                    tracing::info!(level, "every member knows this level of features: the log is at it from now on")
                }
                Err(error) => tracing::warn!(code = error.code(), "the feature level was not raised; trying again"),
            }
        }
    }
}

/// The highest level that every member knows.
fn known_by_all<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, led_ms: u64) -> u32 {
    let shared = &member.shared;
    if shared.plant.level_early {
        return shared.limits.known_level::<M>();
    }
    let members = shared.head().members.clone();
    let others = members.addresses.keys().filter(|id| **id != shared.member);
    let levels = others.filter_map(|id| {
        let heard = member.peers.known(*id).map(|link| link.heard.clone());
        let silent_ms = heard.as_ref().and_then(|heard| heard.answered_ms(&*shared.clock));
        match (silent_ms, heard) {
            (Some(ms), Some(heard)) if ms <= LOST_MS => Some(heard.level()),
            (silent, _) if silent.unwrap_or(led_ms) > AWAY.as_millis() as u64 => None,
            _ => Some(0),
        }
    });
    let level = levels.min().unwrap_or(u32::MAX).min(shared.limits.known_level::<M>());
    // Those that are not waited for must not be those that decide.
    let knows = |id: &u64| {
        let link = member.peers.known(*id);
        *id == shared.member || (member.peers.alive(*id) && link.is_some_and(|link| link.heard.level() >= level))
    };
    let majority = |set: &BTreeSet<u64>| set.iter().filter(|id| knows(id)).count() * 2 > set.len();
    if members.voters.iter().all(majority) { level } else { 0 }
}
