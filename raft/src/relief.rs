//! A leader whose disk is full hands over: its own log takes nothing more, and others may have room.
//!
//! The log says that it is full while half a segment is left, so that what an election takes still fits. Where nobody has
//! room the leadership goes round, once in [`REST`] each.

use crate::member::Inner;
use crate::membership::{TRANSFER_LIMIT, can_hand_over, hand_over};
use crate::types::Cfg;
use cvlan_core::machine::Machine;
use openraft::AsyncRuntime;
use openraft::async_runtime::{Select2, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use std::sync::Weak;
use std::time::Duration;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(500);

/// After a try.
const REST: Duration = Duration::from_secs(30);

/// Looks, for as long as the member is there.
pub(crate) async fn keep<M: Machine, RT: AsyncRuntime>(member: Weak<Inner<M, RT>>) {
    let Some(mut halt) = member.upgrade().map(|member| member.shared.halt()) else { return };
    let mut pause = EVERY;
    while !*halt.borrow_watched() {
        if let Select2::First(_) = Cfg::<RT>::select2(halt.changed(), Cfg::<RT>::sleep(pause)).await {
            return;
        }
        pause = EVERY;
        let Some(member) = member.upgrade() else { return };
        if !member.shared.wal.full() || !can_hand_over(&member) {
            continue;
        }
        pause = REST;
        match hand_over(&member, None, TRANSFER_LIMIT).await {
            Ok(leader) => tracing::warn!(leader, "the disk is full here: another member leads"),
            Err(error) => tracing::warn!(%error, "the disk is full here, and nobody took over"),
        }
    }
}
