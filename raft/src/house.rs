//! What has to be looked after beside Raft: who leads, from the moment it is known; and the rest from time to time.

use crate::member::Shares;
use crate::membership::finish;
use crate::types::Cfg;
use cvlan_core::machine::Machine;
use openraft::async_runtime::{Select2, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, ServerState};
use std::time::Duration;

/// Between two rounds of housekeeping.
const TICK: Duration = Duration::from_millis(200);

/// A joint configuration that lasts so many ticks has lost the leader that made it.
const JOINT_TICKS: u32 = 10;

/// Tells the desk who leads, and the links where members are.
pub(crate) async fn watch<M: Machine, RT: AsyncRuntime>(shares: Shares<M, RT>) {
    let Shares { shared, raft, peers } = shares;
    let mut halt = shared.halt();
    let mut metrics = raft.server_metrics();
    while !*halt.borrow_watched() {
        {
            let now = metrics.borrow_and_update();
            let own = now.state == ServerState::Leader;
            shared.desk.led(own, now.current_leader, now.vote.leader_id.term);
            peers.members(now.membership_config.membership().nodes().map(|(id, node)| (*id, node.addr.as_str())));
        }
        match Cfg::<RT>::select2(halt.changed(), metrics.changed()).await {
            Select2::First(_) | Select2::Second(Err(_)) => return,
            Select2::Second(Ok(())) => {}
        }
    }
}

/// What has to be looked after from time to time.
pub(crate) async fn keep<M: Machine, RT: AsyncRuntime>(shares: Shares<M, RT>) {
    let Shares { shared, raft, .. } = shares;
    let mut halt = shared.halt();
    let metrics = raft.metrics();
    let mut joint = 0;
    while !*halt.borrow_watched() {
        if let Select2::First(_) = Cfg::<RT>::select2(halt.changed(), Cfg::<RT>::sleep(TICK)).await {
            return;
        }
        let (alone, fatal) = {
            let metrics = metrics.borrow_watched();
            let leads = metrics.state == ServerState::Leader;
            let half = metrics.membership_config.membership().get_joint_config().len() > 1;
            joint = if leads && half { joint + 1 } else { 0 };
            let fatal = metrics.running_state.as_ref().err().map(ToString::to_string);
            (metrics.membership_config.voter_ids().eq([shared.member]), fatal)
        };
        if let Some(why) = fatal {
            shared.fail(shared.wal.closed().unwrap_or(format!("raft has stopped: {why}")));
            continue;
        }
        if joint >= JOINT_TICKS {
            joint = 0;
            let raft = raft.clone();
            let _finished = Cfg::<RT>::spawn(async move { finish(&raft).await.is_ok() });
        }
        shared.wal.tick();
        shared.desk.tick(&shared.head(), alone);
        if shared.snapshot_due() && raft.trigger().snapshot().await.is_err() {
            tracing::warn!("raft has stopped: no snapshot");
        }
    }
}
