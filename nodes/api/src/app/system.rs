//! The cluster and its log: status, checkpoints, verification.

use super::{App, Output};
use crate::problem::Problem;
use cvlan_core::State;
use cvlan_core::id::Seq;
use cvlan_core::log::export::origin;
use cvlan_proto::v1;
use cvlan_raft::{Head, VerifyError};
use std::time::Instant;

/// What this member knows of the cluster.
pub fn status(app: &App, head: &Head<State>) -> Output<v1::ClusterStatus> {
    let (state, raft) = (&head.machine, app.log.status());
    let tenants = state.tenants.values();
    let (cvlans, tokens) = tenants.fold((0, 0), |(c, t), home| (c + home.cvlans.len(), t + home.tokens.len()));
    let last = state.system.checkpoints.last();
    let body = v1::ClusterStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: head.epoch.to_string(),
        checkpoint: head.checkpoint().to_string(),
        root: hex::encode(head.root),
        role: raft.role.name().to_owned(),
        term: raft.term,
        member_id: raft.member,
        node_urls: state.node_urls(),
        api_urls: state.api_urls(),
        tenants: state.tenants.len() as u64,
        cvlans: cvlans as u64,
        nodes: state.node_count() as u64,
        nodes_online: state.online.len() as u64,
        tokens: tokens as u64,
        users: state.users.len() as u64,
        ca_fingerprint: app.ca.fingerprint(),
        uptime_seconds: app.started.elapsed().as_secs(),
        view_checkpoint: app.views.checkpoint().to_string(),
        digest_seq: last.map_or(0, |c| c.seq),
        digest: last.map(|c| c.digest.clone()).unwrap_or_default(),
        members: super::member::all(app, head),
        diverged_seq: raft.diverged,
        postgres: app.views.postgres().map(|(url, status)| v1::PostgresView {
            url,
            up: status.is_up(),
            writer: status.is_writer(),
            checkpoint: status.checkpoint().to_string(),
            rebuilds: status.rebuilds(),
            error: status.error(),
        }),
    };
    Output::read(head, body)
}

/// The last completed checkpoints, newest first, with the notes that are kept here.
pub async fn checkpoints(app: &App, head: &Head<State>) -> Output<v1::CheckpointList> {
    let mut items: Vec<_> = head.machine.system.checkpoints.iter().rev().cloned().collect();
    for item in &mut items {
        let kept = app.notary.kept(Seq(item.seq)).await;
        // One of another epoch is under another name.
        let text = format!("{}\n{}\n", origin(head.epoch), item.seq);
        item.note = kept.filter(|n| n.text().starts_with(&text)).map(|note| note.to_string()).unwrap_or_default();
    }
    Output::read(head, v1::CheckpointList { items })
}

/// Opens a checkpoint and waits until it is attested.
pub async fn checkpoint(app: &App) -> Result<Output<v1::CheckpointRecord>, Problem> {
    let attested = app.log.checkpoint().await?;
    let record = v1::CheckpointRecord {
        seq: attested.checkpoint.seq.0,
        root: hex::encode(attested.root),
        digest: hex::encode(attested.digest),
        note: String::new(),
    };
    Ok(Output::read(&app.log.head(), record))
}

/// Replays the log from where history begins and compares it with every checkpoint in it.
pub async fn verify(app: &App) -> Result<Output<v1::LogVerification>, Problem> {
    let (started, head) = (Instant::now(), app.log.head());
    let report = match app.log.log_verify(Some(head.seq)).await {
        Ok(report) => report,
        Err(e @ VerifyError::Entry { .. }) => {
            let millis = started.elapsed().as_millis() as u64;
            let found = v1::LogVerification { problem: e.to_string(), millis, ..v1::LogVerification::default() };
            return Ok(Output::read(&head, found));
        }
        Err(e) => return Err(e.into()),
    };
    Ok(Output::read(&head, verification(&report, &head, started.elapsed().as_millis() as u64)))
}

/// A report as people and scripts see it; the replay must also end where the running member is.
fn verification(report: &cvlan_raft::VerifyReport, head: &Head<State>, millis: u64) -> v1::LogVerification {
    let last = report.checkpoints.last();
    let digest = last.map(|c| hex::encode(c.digest)).unwrap_or_default();
    let same = report.seq == head.seq && report.root == head.root;
    let problem = match same {
        true => String::new(),
        false => format!(
            "the replay ends at event {} with root {}, the running member is at event {} with root {}",
            report.seq,
            hex::encode(report.root),
            head.seq,
            hex::encode(head.root)
        ),
    };
    v1::LogVerification {
        ok: same,
        events: report.events,
        entries: report.entries,
        root: hex::encode(report.root),
        digest: hex::encode(report.digest),
        checkpoint_seq: last.map_or(Seq(0), |c| c.seq).0,
        checkpoint_digest: digest.clone(),
        replayed_digest: digest,
        problem,
        millis,
        from_seq: report.from.0,
    }
}
