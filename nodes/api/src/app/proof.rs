//! Proofs about the log, against a tree head that the voters sign.

use super::list::Params;
use super::{App, Output};
use crate::problem::Problem;
use cvlan_core::State;
use cvlan_core::id::Seq;
use cvlan_core::log::merkle::Hash;
use cvlan_proto::v1;
use cvlan_raft::Head;

/// An event that is not there to be proven.
pub fn beyond(name: &str, asked: u64, head: Seq) -> Problem {
    Problem::invalid("seq_beyond", format!("{name} = {asked}: it is from 1 to {head}, the last event here"))
}

/// That an event is in the tree of `size` events, that this continues an older one, and who says so.
pub async fn proof(app: &App, head: &Head<State>, params: &Params) -> Result<Output<v1::LogProof>, Problem> {
    let size = params.number("size", head.seq.0)?;
    if size == 0 || size > head.seq.0 {
        return Err(beyond("size", size, head.seq));
    }
    let within = |name: &'static str| match params.get(name).map(|_| params.number(name, 0)).transpose()? {
        Some(seq) if seq == 0 || seq > size => Err(beyond(name, seq, Seq(size))),
        seq => Ok(seq.map(Seq)),
    };
    let (event, old) = (within("seq")?, within("since")?);
    let signed = app.notary.collect(&app.voters, Seq(size)).await?;
    let proof = app.log.prove(Seq(size), event, old).await?;
    let hexes = |path: Vec<Hash>| path.iter().map(hex::encode).collect();
    let mut body = v1::LogProof {
        size,
        root: hex::encode(proof.root),
        note: signed.note.to_string(),
        signers: signed.signers,
        voters: signed.voters as u32,
        ..v1::LogProof::default()
    };
    if let Some((event, inclusion)) = event.zip(proof.inclusion) {
        (body.seq, body.leaf, body.inclusion) = (event.0, hex::encode(inclusion.leaf), hexes(inclusion.path));
    }
    if let Some((old, consistency)) = old.zip(proof.consistency) {
        (body.old_size, body.old_root) = (old.0, hex::encode(consistency.root));
        body.consistency = hexes(consistency.path);
    }
    Ok(Output::read(head, body))
}
