//! A member to which nothing new comes: nobody leads, too few vote, or its disk is full. Its machines go on with the maps
//! that they have, so after a while they are sent to another member, once each: where the others cannot be reached from a
//! machine either, it comes back and is let be.

use crate::app::App;
use cvlan_raft::{Members, PeerStatus, Status};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A member that is silent for so long is away, milliseconds: some election timeouts.
const SILENT_MS: u64 = 3_000;

/// Why nothing new comes here. Raft names the last leader until there is another one, be it away or not.
pub fn why(raft: &Status, members: &Members) -> Option<&'static str> {
    let silent = |id: u64, ms: fn(&PeerStatus) -> Option<u64>| {
        raft.peers.iter().find(|peer| peer.id == id).and_then(ms).is_none_or(|ms| ms > SILENT_MS)
    };
    if raft.disk_full && members.addresses.len() > 1 {
        return Some("the disk is full: the log takes nothing");
    }
    match raft.leader {
        None => Some("no leader"),
        Some(leader) if leader != raft.member => {
            silent(leader, |peer| peer.heard_ms).then_some("no leader: the last one is silent")
        }
        Some(own) => {
            let there = |id: &&u64| **id == own || !silent(**id, |peer| peer.answered_ms);
            let majority = |voters: &BTreeSet<u64>| 2 * voters.iter().filter(there).count() > voters.len();
            (!members.voters.iter().all(majority)).then_some("no majority: too few of those that vote answer")
        }
    }
}

/// Until it is dropped: once nothing new has come for `after`, streams that are open end with a redirect.
pub async fn watch(app: Arc<App>, after: Duration) {
    let mut since: Option<Instant> = None;
    let mut told = false;
    loop {
        sleep(LOOK).await;
        let Some(why) = why(&app.log.status(), &app.log.head().members) else {
            (since, told) = (None, false);
            continue;
        };
        if since.get_or_insert_with(Instant::now).elapsed() >= after && !told {
            told = true;
            tracing::warn!(why, "nothing new comes here: machines are sent to other members");
            app.cut_offs.send_modify(|times| *times += 1);
        }
    }
}
