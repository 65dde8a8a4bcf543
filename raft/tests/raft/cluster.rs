//! Several members in one process: in-memory connections that can be cut, real files.

use crate::common::{Cluster, EPOCH, eventually};
use cvlan_core::id::Seq;
use cvlan_raft::counter::{Command, Counter, Refused};
use cvlan_raft::{Limits, MemberError, Role, Timing, WriteError};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn three_members_elect_and_write_from_anywhere_a_learner_too() {
    let cluster = Cluster::of(3).await;
    cluster.join(4).await;
    let mut sum = cluster.sum();
    for id in [1, 2, 3, 4] {
        for by in 1..=20 {
            let answer = cluster.member(id).write(Command::add(by)).await.unwrap();
            assert_eq!((answer.events.len(), answer.repeated), (1, false));
            assert_eq!(answer.checkpoint.seq, answer.first_seq);
            assert_eq!(answer.checkpoint.epoch, EPOCH);
            sum += by;
        }
        // Read your own writes: everywhere, once it was asked for.
        for reader in [1, 2, 3, 4] {
            cluster.member(reader).linearize().await.unwrap();
            assert_eq!(cluster.member(reader).head().machine.sum, sum, "written by {id}, read by {reader}");
        }
    }
    let roles: Vec<_> = [1, 2, 3, 4].map(|id| cluster.member(id).status().role).into();
    assert_eq!(roles.iter().filter(|role| **role == Role::Leader).count(), 1);
    assert_eq!(roles[3], Role::Learner);
    let leader = cluster.leader().await;
    let other = if leader == 1 { 2 } else { 1 };
    assert_eq!(cluster.member(other).write(Command::Refuse).await.err(), Some(WriteError::Rejected(Refused)));
    let nothing = Command::Add { by: 1, times: 0, note: Default::default(), once: None };
    let answer = cluster.member(other).write(nothing).await.unwrap();
    assert_eq!((answer.events.len(), answer.first_seq), (0, Seq(0)));
    // Not every command comes from one that follows.
    let not_allowed = |command: &str| Some(WriteError::NotAllowed { member: 4, command: command.into() });
    assert_eq!(cluster.member(4).write(Command::Refuse).await.err(), not_allowed("refuse"));
    let fact = Command::System(cvlan_core::machine::SystemFact::CheckpointOpened);
    assert_eq!(cluster.member(4).write(fact.clone()).await.err(), not_allowed("system"));
    let seq = cluster.member(leader).head().seq;
    assert!(matches!(cluster.member(other).write(fact).await, Err(WriteError::NotAllowed { .. })), "nor from a voter");
    assert!(matches!(cluster.member(4).checkpoint().await, Err(WriteError::NotAllowed { member: 4, .. })));
    assert_eq!(cluster.member(leader).head().seq, seq);
    let attested = cluster.member(other).checkpoint().await.unwrap();
    assert_eq!(attested.checkpoint.seq.0, seq.0 + 1);
    assert!(cluster.member(leader).status().not_allowed >= 4);
    cluster.same().await;
    // Clocks are compared, and everybody is heard.
    eventually("every member hears every other", || {
        let all = cluster.ids().into_iter().flat_map(|id| cluster.member(id).status().peers);
        all.into_iter().all(|peer| peer.heard_ms.is_some() && peer.skew_ms.is_some_and(|ms| ms.abs() < 5_000))
    })
    .await;
    let status = cluster.member(leader).status();
    assert!(status.peers.iter().all(|peer| peer.matched.is_some() && peer.behind.is_some()), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_is_lost_and_nothing_acknowledged_with_it() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    // Numbered, so that whoever is in doubt asks again.
    let writers: Vec<_> = others
        .iter()
        .flat_map(|id| [(*id, 0), (*id, 1)])
        .map(|(id, nth)| {
            let member = cluster.member(id);
            tokio::spawn(async move {
                let mut written = 0;
                for n in 1..=200 {
                    let command = Command::add_once(1, 100 * id + nth, n);
                    loop {
                        match member.write(command.clone()).await {
                            Ok(_) => break written += 1,
                            Err(WriteError::NoLeader | WriteError::OutcomeUnknown | WriteError::Busy) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
                written
            })
        })
        .collect();
    let before = cluster.sum();
    eventually("some are written", || cluster.member(others[0]).head().machine.sum > before + 100).await;
    cluster.kill(leader).await;
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    for id in &others {
        cluster.member(*id).linearize().await.unwrap();
        // Once each, however often they were sent.
        assert_eq!(cluster.member(*id).head().machine.sum, 1 + written);
    }
    cluster.start(leader).await;
    cluster.same().await;
    assert_eq!(cluster.member(leader).head().machine.sum, 1 + written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_sends_an_unnumbered_command_once_although_its_leader_is_lost() {
    let cluster = Cluster::of(3).await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
        let before = cluster.sum();
        let writer = cluster.member(follower);
        let writing: Vec<_> = (0..40)
            .map(|_| {
                let writer = writer.clone();
                tokio::spawn(async move { writer.write(Command::add(1)).await.map(|answer| answer.first_seq) })
            })
            .collect();
        cluster.cut(leader);
        let (mut seqs, mut doubtful) = (Vec::new(), 0);
        for task in writing {
            match task.await.unwrap() {
                Ok(seq) => seqs.push(seq),
                Err(WriteError::OutcomeUnknown) => doubtful += 1,
                Err(WriteError::NoLeader) => {}
                Err(error) => panic!("{error}"),
            }
        }
        cluster.heal();
        let acknowledged = seqs.len() as u64;
        seqs.sort();
        seqs.dedup();
        assert_eq!(seqs.len() as u64, acknowledged, "no two have one number");
        cluster.same().await;
        let sum = cluster.sum() - before;
        assert!(
            sum >= acknowledged && sum <= acknowledged + doubtful,
            "round {round}: {sum}, {acknowledged}, {doubtful}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leader_answers_nothing_from_its_old_head() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let other = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let old = cluster.member(leader);
    cluster.cut(leader);
    // It does not know yet that it leads nobody.
    let nothing = || Command::Add { by: 1, times: 0, note: Default::default(), once: None };
    let quiet = tokio::spawn({
        let old = old.clone();
        async move { (old.write(nothing()).await.map(|answer| answer.checkpoint.seq), old.write(Command::Refuse).await) }
    });
    let (answer, refused) = quiet.await.unwrap();
    assert_eq!(answer, Err(WriteError::NoLeader));
    assert_eq!(refused.err(), Some(WriteError::NoLeader));
    assert_eq!(old.linearize().await, Err(MemberError::NoLeader));
    // Nor does it call a change of members done: to it, one that came since was never there.
    let changes = tokio::join!(
        old.member_remove(99),
        old.transfer(Some(leader)),
        old.learner_add(other, Cluster::address(other))
    );
    assert_eq!(changes, (Err(MemberError::NoLeader), Err(MemberError::NoLeader), Err(MemberError::NoLeader)));
    // The others go on.
    cluster.write(other, 5).await;
    // A write of the one that is cut off is lost, or in doubt, and comes back with the truth once it is healed.
    cluster.heal();
    cluster.same().await;
    old.linearize().await.unwrap();
    assert_eq!(old.write(nothing()).await.unwrap().checkpoint, old.head().checkpoint());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_catches_up_by_the_log_and_is_promoted() {
    let cluster = Cluster::of(1).await;
    for _ in 0..300 {
        cluster.write(1, 1).await;
    }
    cluster.open(2, |_| {}).await;
    let first = cluster.member(1);
    assert_eq!(first.promote(2).await, Err(MemberError::Unknown(2)));
    assert_eq!(first.promotable(2).await, Err(MemberError::Unknown(2)));
    first.learner_add(2, Cluster::address(2)).await.unwrap();
    first.learner_add(2, Cluster::address(2)).await.unwrap();
    eventually("it has caught up", || cluster.member(2).head().machine.sum == first.head().machine.sum).await;
    assert_eq!(cluster.member(2).history(Seq(1), 10).await.unwrap(), first.history(Seq(1), 10).await.unwrap());
    assert_eq!(cluster.member(2).status().history_from, 1);
    // Who does not vote has no say in who does, itself included; a voter may be asked twice.
    for refused in [cluster.member(2).promote(2).await, cluster.member(2).member_remove(1).await] {
        assert_eq!(refused, Err(MemberError::NotAllowed(2)));
    }
    assert_eq!(cluster.member(2).transfer(Some(2)).await, Err(MemberError::NotAllowed(2)));
    assert_eq!(cluster.voters(1), [1]);
    first.promotable(2).await.unwrap();
    assert_eq!(cluster.voters(1), [1], "it was only asked");
    first.promote(2).await.unwrap();
    first.promote(2).await.unwrap();
    eventually("both vote", || cluster.voters(1) == [1, 2] && cluster.voters(2) == [1, 2]).await;
    cluster.write(2, 7).await;

    // Whoever is asked, it is the leader that knows.
    cluster.join(3).await;
    let at_both = async || [first.promotable(3).await, cluster.member(2).promotable(3).await];
    assert_eq!(at_both().await, [Ok(()), Ok(())]);
    cluster.cut(3);
    eventually("it is lost", || {
        let leads = [1, 2].into_iter().find(|id| cluster.member(*id).status().writable);
        let peers = leads.map(|id| cluster.member(id).status().peers).unwrap_or_default();
        peers.iter().any(|peer| peer.id == 3 && peer.answered_ms.is_none_or(|ms| ms > 2_500))
    })
    .await;
    for refused in at_both().await {
        assert!(matches!(refused, Err(MemberError::Behind { id: 3, .. })), "{refused:?}");
    }
    assert_eq!(cluster.voters(1), [1, 2]);
    cluster.heal();
    cluster.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_catches_up_by_a_snapshot_and_says_from_when_it_can_read() {
    let cluster = Cluster::with(1, |options| {
        options.limits.purge_behind = 10;
        options.limits.backfill_ms = 0;
    })
    .await;
    let first = cluster.member(1);
    let note = vec![9; 2000];
    for n in 0..400u64 {
        let command = Command::Add { by: n, times: 1, note: note.clone().into(), once: None };
        first.write(command).await.unwrap();
    }
    for _ in 0..3 {
        first.snapshot().await.unwrap();
        cluster.write(1, 1).await;
    }
    eventually("the log is purged", || first.status().purged_index > 200).await;
    cluster.open(2, |_| {}).await;
    first.learner_add(2, Cluster::address(2)).await.unwrap();
    let second = cluster.member(2);
    eventually("it has caught up", || second.head().machine.sum == first.head().machine.sum).await;
    let from = second.status().history_from;
    assert!(from > 200, "{from}");
    assert_eq!(second.history(Seq(1), 10).await.unwrap_err().to_string(), format!("history starts at event {from}"));
    // A replay begins with the state that it was brought forward with.
    let replayed = second.log_verify(None).await.unwrap();
    assert_eq!((replayed.from.0, replayed.root), (from, second.head().root));
    assert_eq!(second.log_verify(Some(Seq(from - 2))).await.unwrap_err().code(), "history_gone");
    for _ in 0..20 {
        cluster.write(2, 1).await;
    }
    second.linearize().await.unwrap();
    assert_eq!(second.history(Seq(from), 100).await.unwrap(), first.history(Seq(from), 100).await.unwrap());
    // What lies before it cannot tell apart; from where it begins it proves as the first does.
    let old = second.head().seq;
    assert_eq!(second.prove(old, None, None).await.unwrap().root, second.head().root);
    for _ in 0..20 {
        cluster.write(2, 1).await;
    }
    second.linearize().await.unwrap();
    let (size, event) = (Seq(old.0 + 17), Some(Seq(old.0 + 5)));
    let proof = second.prove(size, event, Some(old)).await.unwrap();
    assert_eq!(proof, first.prove(size, event, Some(old)).await.unwrap());
    assert_eq!(second.prove(size, Some(Seq(3)), None).await.unwrap_err().code(), "history_gone");
    assert_eq!(second.hide(old, vec![]).await.unwrap(), first.hide(old, vec![]).await.unwrap());
    let digest = first.head().digest::<Counter>();
    drop(second);
    cluster.stop(2).await;
    cluster.start(2).await;
    let second = cluster.member(2);
    assert_eq!(second.head().digest::<Counter>(), digest);
    assert_eq!(second.status().history_from, from, "also after a restart");
    cluster.write(2, 3).await;
    cluster.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_removed_the_leader_too_and_notice() {
    let cluster = Cluster::of(3).await;
    cluster.join(4).await;
    let leader = cluster.leader().await;
    let asked = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.member(asked).member_remove(4).await.unwrap();
    cluster.member(asked).member_remove(4).await.unwrap();
    eventually("the learner notices", || cluster.member(4).status().removed).await;
    assert_eq!(cluster.member(4).write(Command::add(1)).await.err(), Some(WriteError::Removed));
    // The leader itself.
    cluster.member(asked).member_remove(leader).await.unwrap();
    eventually("the old leader notices", || cluster.member(leader).status().removed).await;
    assert_eq!(cluster.member(leader).write(Command::add(1)).await.err(), Some(WriteError::Removed));
    cluster.write(asked, 1).await;
    let third = cluster.ids().into_iter().find(|id| *id != leader && *id != asked && *id != 4).unwrap();
    assert_eq!(cluster.voters(asked), cluster.voters(third));
    // One of two is away: without the other nothing could be decided; the last one stays.
    cluster.kill(third).await;
    eventually("it is missed", || {
        cluster.member(asked).status().peers.iter().all(|peer| peer.heard_ms.is_none_or(|ms| ms > 2_500))
    })
    .await;
    let lost = cluster.member(asked).member_remove(asked).await;
    assert!(matches!(lost, Err(MemberError::Quorum(_) | MemberError::NoLeader)), "{lost:?}");
    cluster.start(third).await;
    cluster.write(asked, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_removed_while_it_was_away_is_told() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let away = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.stop(away).await;
    cluster.member(leader).member_remove(away).await.unwrap();
    cluster.write(leader, 1).await;
    let term = cluster.member(leader).status().term;
    cluster.start(away).await;
    eventually("it is told", || cluster.member(away).status().removed).await;
    assert_eq!(cluster.member(leader).status().term, term, "it disturbs nobody");
    // Its address is known again: it is taken back.
    cluster.member(leader).learner_add(away, Cluster::address(away)).await.unwrap();
    eventually("it is a member again", || !cluster.member(away).status().removed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leadership_is_handed_over_on_request_and_at_a_stop() {
    let cluster = Cluster::of(3).await;
    cluster.join(4).await;
    let leader = cluster.leader().await;
    let to = cluster.ids().into_iter().find(|id| *id != leader && *id != 4).unwrap();
    assert_eq!(cluster.member(leader).transfer(Some(4)).await, Err(MemberError::NotVoter(4)));
    assert_eq!(cluster.member(to).transfer(Some(to)).await, Ok(to));
    assert_eq!(cluster.member(to).transfer(Some(to)).await, Ok(to));
    for id in cluster.ids() {
        cluster.write(id, 1).await;
    }
    let next = cluster.member(leader).transfer(None).await.unwrap();
    assert_ne!(next, to);
    cluster.write(4, 1).await;
    // Writes go on over a stop in order.
    let member = cluster.member(4);
    let writer = tokio::spawn(async move {
        for _ in 0..100 {
            member.write(Command::add(1)).await.unwrap();
        }
    });
    let terms = cluster.member(4).status().term;
    cluster.stop(next).await;
    writer.await.unwrap();
    assert!(cluster.member(4).status().term > terms);
    cluster.start(next).await;
    cluster.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_asks_but_cannot_be_asked_is_not_believed_in() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    let (deaf, other) = (others[0], others[1]);
    cluster.block(leader, deaf);
    let lead = cluster.member(leader);
    eventually("it asks and does not answer", || {
        let peers = lead.status().peers;
        let peer = peers.iter().find(|peer| peer.id == deaf).unwrap();
        peer.answered_ms.is_none_or(|ms| ms > 2_500) && peer.heard_ms.is_some_and(|ms| ms <= 2_500)
    })
    .await;
    assert_eq!(cluster.leader().await, leader);
    assert!(matches!(lead.transfer(Some(deaf)).await, Err(MemberError::Behind { id, .. }) if id == deaf));
    assert_eq!(lead.member_remove(other).await, Err(MemberError::Quorum(other)));
    // The leader leads on.
    cluster.write(leader, 1).await;
    assert_eq!(lead.transfer(None).await, Ok(other));
    cluster.heal();
    cluster.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_one_that_is_to_lead_dies_of_it_another_one_leads() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let to = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.write(leader, 1).await;
    // One that is gone already is not asked, and nothing changes.
    cluster.cut(to);
    let term = cluster.member(leader).status().term;
    assert!(matches!(cluster.member(leader).transfer(Some(to)).await, Err(MemberError::Behind { .. })));
    assert_eq!(cluster.member(leader).status().term, term);
    cluster.write(leader, 1).await;
    cluster.heal();
    eventually("it answers again", || {
        let peers = cluster.member(leader).status().peers;
        peers.iter().any(|peer| peer.id == to && peer.answered_ms.is_some_and(|ms| ms < 1_000))
    })
    .await;
    assert_eq!(cluster.leader().await, leader);
    let third = cluster.ids().into_iter().find(|id| *id != leader && *id != to).unwrap();
    cluster.dies_of_transfer(to);
    assert_eq!(cluster.member(leader).transfer(Some(to)).await, Ok(third), "within the time of a transfer");
    cluster.write(leader, 1).await;
    assert!(cluster.cut_off(to), "it was asked");
    cluster.heal();
    cluster.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_mended_and_a_member_that_moved_is_found_again() {
    let cluster = Cluster::with(1, |options| options.address = String::new()).await;
    let first = cluster.member(1);
    assert_eq!(first.learner_add(1, String::new()).await, Err(MemberError::Address));
    first.learner_add(1, Cluster::address(1)).await.unwrap();
    eventually("it has its address", || first.head().members.addresses[&1] == Cluster::address(1)).await;
    cluster.open(2, |_| {}).await;
    first.learner_add(2, "elsewhere".into()).await.unwrap();
    first.learner_add(2, Cluster::address(2)).await.unwrap();
    eventually("it is found", || cluster.member(2).head().seq == first.head().seq).await;
    // The way back, by the first one's mended address.
    cluster.write(2, 4).await;
    cluster.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_leads_at_once_after_a_restart_and_one_of_three_does_not() {
    let cluster = Cluster::of(1).await;
    cluster.join(2).await;
    cluster.kill(1).await;
    let timing = |options: &mut cvlan_raft::Options<Counter>| {
        options.timing = cvlan_raft::Timing { heartbeat_ms: 5_000, election_min_ms: 30_000, election_max_ms: 60_000 };
    };
    cluster.open(1, timing).await;
    assert!(cluster.member(1).writable(Duration::from_secs(10)).await, "without an election timeout of 30 s");
    let three = Cluster::of(3).await;
    let leader = three.leader().await;
    let other = three.ids().into_iter().find(|id| *id != leader).unwrap();
    let term = three.member(leader).status().term;
    three.kill(other).await;
    three.start(other).await;
    three.write(other, 1).await;
    assert_eq!(three.member(leader).status().term, term, "it waits for the leader");
}

/// An entry of several MiB takes a slow link seconds: it gets there, and nobody takes the leader for lost meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_entry_passes_a_slow_link_and_heartbeats_pass_it() {
    let cluster = Cluster::with(3, |options| {
        options.timing = Timing::default();
        options.limits.part_bytes = Limits::default().part_bytes;
    })
    .await;
    let leader = cluster.leader().await;
    let term = cluster.member(leader).status().term;
    let long = |bytes: usize| Command::Add { by: 1, times: 1, note: vec![7; bytes].into(), once: None };
    cluster.slow(1_500_000);
    let started = Instant::now();
    cluster.member(leader).write(long((4 << 20) - 1024)).await.unwrap();
    assert!(started.elapsed() > Duration::from_secs(2), "the link is slow: {:?}", started.elapsed());
    // Twice as far.
    let follower = cluster.voters(leader).into_iter().find(|id| *id != leader).unwrap();
    cluster.member(follower).write(long(3 << 20)).await.unwrap();
    assert_eq!(cluster.member(leader).status().term, term, "nobody wanted to lead");

    // Likewise for a member that was away, while others write.
    let away = follower;
    cluster.cut(away);
    for _ in 0..3 {
        cluster.member(leader).write(long(1 << 20)).await.unwrap();
    }
    cluster.heal();
    eventually("the one that was away has caught up", || {
        cluster.member(away).head().seq == cluster.member(leader).head().seq
    })
    .await;
    cluster.same().await;
    assert_eq!(cluster.member(leader).status().term, term, "nobody wanted to lead");
}
