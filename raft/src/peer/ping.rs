//! A ping to every other member each second: it keeps connections, compares clocks, and tells a member that was removed
//! while it was away.

use crate::member::Shares;
use crate::peer::codec::{Answer, Request};
use crate::peer::{PING_EVERY, Peers};
use crate::types::Cfg;
use cvlan_core::machine::Machine;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::AsyncRuntime;
use openraft::async_runtime::{Select2, WatchReceiver};
use openraft::type_config::TypeConfigExt;

/// Clocks that differ by more are an alarm.
const SKEW_ALARM_MS: u64 = 5_000;

/// Runs until the member stops.
pub(crate) async fn run<M: Machine, RT: AsyncRuntime>(shares: Shares<M, RT>) {
    let Shares { shared, raft, peers } = shares;
    let mut halt = shared.halt();
    let metrics = raft.server_metrics();
    while !*halt.borrow_watched() {
        let (term, members) = {
            let metrics = metrics.borrow_watched();
            let members: Vec<u64> = metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect();
            (metrics.vote.leader_id.term, members)
        };
        let others = members.into_iter().filter(|id| *id != shared.member);
        let mut pings: FuturesUnordered<_> = others.map(|id| ping(&peers, id)).collect();
        let round = async {
            while let Some(answer) = pings.next().await {
                // Only a leader's word counts, and not that of one whose time is over: its membership is the newest.
                if let Some((false, true, theirs)) = answer
                    && theirs >= term
                    && shared.wal.marks().last.is_some()
                {
                    shared.told(true);
                }
            }
            std::future::pending::<()>().await;
        };
        let pause = Cfg::<RT>::select2(Cfg::<RT>::sleep(PING_EVERY), round);
        if let Select2::First(_) = Cfg::<RT>::select2(halt.changed(), pause).await {
            return;
        }
    }
}

/// True where a member answers now.
pub(crate) async fn answers<RT: AsyncRuntime>(peers: &Peers<RT>, id: u64) -> bool {
    ping(peers, id).await.is_some()
}

/// Returns whether the other one knows this member, whether it leads, and its term.
async fn ping<RT: AsyncRuntime>(peers: &Peers<RT>, id: u64) -> Option<(bool, bool, u64)> {
    let link = peers.link(id);
    let before = peers.clock.wall_ms();
    let answer = link.call(Request::Ping { wall_ms: before }, &[], PING_EVERY).await;
    let Ok((Answer::Pong { wall_ms, known, leads, term }, _)) = answer else { return None };
    let after = peers.clock.wall_ms();
    // As if the answer had been given half way.
    let skew = wall_ms as i64 - (before / 2 + after / 2) as i64;
    if skew.unsigned_abs() > SKEW_ALARM_MS {
        tracing::warn!(member = id, skew_ms = skew, "its clock differs");
    }
    link.heard.skewed(skew);
    Some((known, leads, term))
}
