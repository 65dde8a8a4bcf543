//! Records of ours in the log: bincode, behind a format version. They live as long as one format version; what must be
//! readable for years (entries' events) rides behind the record, verbatim.
//!
//! ```text
//! record = u8 format │ bincode(Record) │ an entry's frame, if it has one
//! ```

use crate::types::{Entry, Frame, LeaderId, LogId, Payload, Vote};
use bytes::Bytes;
use openraft::{BasicNode, EntryPayload, Membership};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Version of the records; 1.
pub const RECORD_FORMAT: u8 = 1;

/// Place of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Id {
    pub(crate) term: u64,
    pub(crate) leader: u64,
    pub(crate) index: u64,
}

/// A vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voted {
    term: u64,
    candidate: u64,
    committed: bool,
}

/// What an entry carries; a frame follows the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    Blank,
    Frame,
    Members(Roster),
}

/// Members as they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Roster {
    voters: Vec<BTreeSet<u64>>,
    addresses: BTreeMap<u64, String>,
}

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record {
    /// An entry of the Raft log.
    Entry(Id, Body),
    /// A vote.
    Vote(Voted),
    /// Entries above are void.
    Truncate { after: Option<Id> },
    /// The purge marker: openraft sees no entry up to it; history keeps them.
    Purge { upto: Id },
    /// Known to be committed; written along, never on its own.
    Committed { upto: Id },
    /// First in each segment: what earlier segments amount to.
    Start { vote: Option<Voted>, purged: Option<Id>, committed: Option<Id>, last: Option<Id> },
    /// The member stopped in order: nothing before it may be taken for a torn tail.
    Closed,
}

/// What a snapshot's file says before its compressed head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) last: Option<Id>,
    pub(crate) members_at: Option<Id>,
    pub(crate) members: Roster,
    pub(crate) seq: u64,
    /// Entries up to `last` that were skipped.
    pub(crate) skipped: Vec<u64>,
    /// Bytes and SHA-256 of the saved head.
    pub(crate) length: u64,
    pub(crate) digest: [u8; 32],
}

impl SnapshotHead {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let written = bincode::serde::encode_into_std_write(self, out, CONFIG);
        debug_assert!(written.is_ok(), "{self:?}: {written:?}");
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let read = bincode::serde::decode_from_slice(bytes, CONFIG);
        read.map(|(head, _)| head).map_err(|error| CodecError::Malformed(error.to_string()))
    }
}

/// Why bytes are no record.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// A newer version wrote it.
    #[error("record format {0}")]
    Newer(u8),
    /// It does not parse although its checksum is right.
    #[error("the record does not parse: {0}")]
    Malformed(String),
}

impl CodecError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Newer(_) => "record_newer",
            Self::Malformed(_) => "record_malformed",
        }
    }
}

const CONFIG: bincode::config::Configuration = bincode::config::standard();

/// Appends a record.
pub(crate) fn encode(record: &Record, out: &mut Vec<u8>) {
    out.push(RECORD_FORMAT);
    // A Vec grows as needed and these types have no fallible serializer.
    let written = bincode::serde::encode_into_std_write(record, out, CONFIG);
    debug_assert!(written.is_ok(), "{record:?}: {written:?}");
}

/// Appends an entry's record.
pub(crate) fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    let id = Id::from(&entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => encode(&Record::Entry(id, Body::Blank), out),
        EntryPayload::Membership(membership) => encode(&Record::Entry(id, Body::Members(membership.into())), out),
        EntryPayload::Normal(frame) => {
            encode(&Record::Entry(id, Body::Frame), out);
            out.extend_from_slice(&frame.0);
        }
    }
}

/// Reads a record; the rest is an entry's frame.
pub(crate) fn decode(bytes: &Bytes) -> Result<(Record, Bytes), CodecError> {
    let (format, body) = bytes.split_first().ok_or_else(|| CodecError::Malformed("empty".into()))?;
    if *format != RECORD_FORMAT {
        return Err(CodecError::Newer(*format));
    }
    let (record, length) =
        bincode::serde::decode_from_slice(body, CONFIG).map_err(|e| CodecError::Malformed(e.to_string()))?;
    Ok((record, bytes.slice(1 + length..)))
}

/// Puts an entry together.
pub(crate) fn entry(id: Id, body: Body, frame: Bytes) -> Result<Entry, CodecError> {
    let payload: Payload = match body {
        Body::Blank => EntryPayload::Blank,
        Body::Frame => EntryPayload::Normal(Frame(frame)),
        Body::Members(roster) => EntryPayload::Membership(roster.try_into()?),
    };
    Ok(Entry { log_id: id.into(), payload })
}

impl From<&LogId> for Id {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, leader: id.leader_id.node_id, index: id.index }
    }
}

impl From<Id> for LogId {
    fn from(id: Id) -> Self {
        LogId { leader_id: LeaderId { term: id.term, node_id: id.leader }, index: id.index }
    }
}

impl From<&Vote> for Voted {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, candidate: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<Voted> for Vote {
    fn from(vote: Voted) -> Self {
        Vote { leader_id: LeaderId { term: vote.term, node_id: vote.candidate }, committed: vote.committed }
    }
}

impl From<&Membership<u64, BasicNode>> for Roster {
    fn from(membership: &Membership<u64, BasicNode>) -> Self {
        Self {
            voters: membership.get_joint_config().clone(),
            addresses: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
        }
    }
}

impl TryFrom<Roster> for Membership<u64, BasicNode> {
    type Error = CodecError;
    fn try_from(roster: Roster) -> Result<Self, CodecError> {
        if roster.voters.is_empty() && roster.addresses.is_empty() {
            return Ok(Self::default());
        }
        let nodes: BTreeMap<u64, BasicNode> =
            roster.addresses.into_iter().map(|(id, address)| (id, BasicNode::new(address))).collect();
        Self::new(roster.voters, nodes).map_err(|e| CodecError::Malformed(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64) -> Id {
        Id { term: 3, leader: 1, index }
    }

    fn samples() -> Vec<(Record, &'static [u8], &'static str)> {
        let vote = Voted { term: 300, candidate: 2, committed: true };
        let roster = Roster {
            voters: vec![[1, 2].into(), [2, 3].into()],
            addresses: [(1, "a:1".into()), (2, "b:2".into()), (3, "c:3".into())].into(),
        };
        vec![
            (Record::Entry(id(9), Body::Blank), b"", "010003010900"),
            (Record::Entry(id(10), Body::Frame), b"frame", "010003010a016672616d65"),
            (
                Record::Entry(id(11), Body::Members(roster)),
                b"",
                "010003010b0202020102020203030103613a310203623a320303633a33",
            ),
            (Record::Vote(vote), b"", "0101fb2c010201"),
            (Record::Truncate { after: None }, b"", "010200"),
            (Record::Truncate { after: Some(id(7)) }, b"", "010201030107"),
            (Record::Purge { upto: id(4) }, b"", "0103030104"),
            (Record::Committed { upto: id(5) }, b"", "0104030105"),
            (
                Record::Start { vote: Some(vote), purged: None, committed: Some(id(5)), last: Some(id(6)) },
                b"",
                "010501fb2c0102010001030105010301 06",
            ),
            (Record::Closed, b"", "0106"),
        ]
    }

    #[test]
    fn golden_bytes_of_every_record() {
        for (record, frame, golden) in samples() {
            let mut bytes = Vec::new();
            encode(&record, &mut bytes);
            bytes.extend_from_slice(frame);
            assert_eq!(hex::encode(&bytes), golden.replace(' ', ""), "{record:?}");
            let (read, rest) = decode(&bytes.into()).unwrap();
            assert_eq!((read, rest.as_ref()), (record, frame));
        }
    }

    #[test]
    fn golden_bytes_of_a_snapshot_head() {
        let head = SnapshotHead {
            last: Some(id(9)),
            members_at: Some(id(1)),
            members: Roster { voters: vec![[1].into()], addresses: [(1, "a:1".into())].into() },
            seq: 300,
            skipped: vec![4],
            length: 1000,
            digest: [7; 32],
        };
        let mut bytes = Vec::new();
        head.encode(&mut bytes);
        let digest = "07".repeat(32);
        assert_eq!(
            hex::encode(&bytes),
            format!("010301090103010101010101 0103613a31fb2c010104fbe803{digest}").replace(' ', "")
        );
        assert_eq!(SnapshotHead::decode(&bytes), Ok(head));
    }

    #[test]
    fn a_newer_format_and_cut_bytes_are_errors() {
        assert_eq!(decode(&Bytes::from_static(&[2, 6])), Err(CodecError::Newer(2)));
        let whole = hex::decode("010501fb2c010201000103010501030106").unwrap();
        for cut in 0..whole.len() {
            assert!(matches!(decode(&whole[..cut].to_vec().into()), Err(CodecError::Malformed(_))), "cut at {cut}");
        }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let membership = Membership::new_with_defaults(vec![[1u64, 2].into()], [3]);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Frame(Bytes::from_static(b"x"))),
            EntryPayload::Membership(membership),
        ] {
            let written = Entry { log_id: id(8).into(), payload };
            let mut bytes = Vec::new();
            encode_entry(&written, &mut bytes);
            let (record, rest) = decode(&bytes.into()).unwrap();
            let Record::Entry(at, body) = record else { panic!("{record:?}") };
            assert_eq!(entry(at, body, rest).unwrap(), written);
        }
    }
}
