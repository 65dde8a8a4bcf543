//! The bytes of a frame between members. One frame is one message of a [`crate::Pipe`].
//!
//! ```text
//! frame = u8 protocol │ bincode(Message) │ body
//! body of Append, Past = for each entry: u32 LE length │ the log's own record of it (store/codec), frame verbatim
//!         Chunk   = bytes of the packed snapshot        State = of the packed state
//!         Write   = bincode(command)
//!         Part    = the next bytes of a longer body: of AppendParts' entries, or of an answer
//!         Hello   = what of ADDED is known, a byte
//!         Written = for each event: u32 LE length │ its bytes        Refused = bincode(WriteError)
//! ```
//! Bincode because both sides have one protocol version: the first frame each way, [`Hello`], says which, and says it in
//! the first byte. A list's length is checked against what is there before anything is set aside for it.

use crate::error::MemberError;
use crate::store::codec::{self as records, Id, Record, Roster, SnapshotHead, Voted};
use crate::types::Entry;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of the frames; 1.
pub const PROTOCOL: u8 = 1;

/// What was added to it since: a hello's body is a byte that says how much of that its sender knows; a sender from before says
/// nothing. 1: parts, and [`Change::Promotable`].
pub(crate) const ADDED: u8 = 1;

/// Bytes of a frame, at most: an entry's are at most 8 MiB.
pub const FRAME_MAX: usize = 16 << 20;

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<FRAME_MAX>,
> = bincode::config::standard().with_limit::<FRAME_MAX>();

/// The first frame each way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The log's incarnation; zero before the bootstrap.
    pub(crate) epoch: [u8; 16],
    /// Who speaks.
    pub(crate) from: u64,
    /// Whom it believes to have reached.
    pub(crate) to: u64,
    /// What kind of log this is.
    pub(crate) cluster: String,
    /// The level of features that it knows.
    pub(crate) level: u32,
}

/// Why a connection is not wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it speaks protocol {known}, not {asked}")]
    Protocol { asked: u8, known: u8 },
    #[error("it is of another kind of cluster")]
    Cluster,
    #[error("its log is of another epoch: {}", hex::encode(.0))]
    Epoch([u8; 16]),
    #[error("it is member {0}")]
    To(u64),
    #[error("its certificate is not of the member that it says to be")]
    From,
}

/// A frame's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    Hello(Hello),
    Refused(Refusal),
    Request(u64, Request),
    Answer(u64, Answer),
    /// Part of the body of the answer with this id, which comes after all its parts.
    Part(u64),
}

/// What a snapshot in transit is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parcel {
    pub(crate) last: Option<Id>,
    pub(crate) members_at: Option<Id>,
    pub(crate) members: Roster,
    /// Bytes of the saved head.
    pub(crate) saved: u64,
    /// Bytes of the parcel: the saved head, compressed.
    pub(crate) length: u64,
    /// SHA-256 of the parcel.
    pub(crate) digest: [u8; 32],
}

/// What one member asks of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Raft's AppendEntries; the entries follow.
    Append { vote: Voted, prev: Option<Id>, commit: Option<Id> },
    /// Raft's RequestVote, or its rehearsal.
    Vote { pre: bool, vote: Voted, last: Option<Id>, transfer: bool },
    /// The leader hands over to `to`.
    Transfer { from: Voted, to: u64, last: Option<Id> },
    /// A snapshot comes: how much of it is there?
    Snapshot(Box<Parcel>),
    /// A piece of it, from `offset` on; the bytes follow.
    Chunk { digest: [u8; 32], offset: u64 },
    /// It is complete: install it.
    Install { vote: Voted, digest: [u8; 32] },
    /// A command, which follows; `first`: it brings the log's epoch.
    Write { epoch: [u8; 16], first: Option<[u8; 16]> },
    /// Which entry must be applied for a linearizable read?
    ReadIndex,
    /// A change of membership, or of leadership.
    Change(Change),
    /// Time there, ms since 1970.
    Ping { wall_ms: u64 },
    /// Open a checkpoint, and attest it.
    Checkpoint,
    /// From which entry on about `bytes` of history come before entry `end`?
    Before { end: u64, bytes: u64 },
    /// Entries from `from` on, before `end`.
    Past { from: u64, end: u64 },
    /// The state that history begins with, where entries from `oldest` on continue it, and it lacks what is before entry `end`.
    Base { oldest: u64, end: u64 },
    /// A piece of the state after event `seq`, from `offset` on.
    State { seq: u64, offset: u64 },
    /// A part of the entries of an [`Request::AppendParts`] with the same `of`, from `offset` on; the bytes follow.
    Part { of: u64, offset: u64 },
    /// An [`Request::Append`] whose entries, `length` bytes, came in parts.
    AppendParts { vote: Voted, prev: Option<Id>, commit: Option<Id>, of: u64, length: u64 },
}

impl Request {
    /// What an answer may hold: history and states are read for it.
    pub(crate) fn answer_bytes(&self) -> usize {
        match self {
            Self::Before { .. } | Self::Past { .. } | Self::Base { .. } | Self::State { .. } => FRAME_MAX / 2,
            _ => 0,
        }
    }
}

/// What may be asked of a leader besides commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    Learner {
        id: u64,
        address: String,
    },
    Promote {
        id: u64,
    },
    Remove {
        id: u64,
    },
    Transfer {
        to: Option<u64>,
    },
    /// Nothing is changed: could it be promoted now?
    Promotable {
        id: u64,
    },
}

/// What the other side says to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// All of it is in the log, durably.
    Appended,
    /// The log differs before it.
    Conflict,
    HigherVote(Voted),
    Vote {
        vote: Voted,
        granted: bool,
        last: Option<Id>,
    },
    Transfer {
        accepted: bool,
    },
    /// So many bytes of the snapshot are there.
    Have {
        offset: u64,
    },
    Installed {
        vote: Voted,
    },
    /// Carried out; its events follow. `seq`: its last, or the head where there are none.
    Written {
        epoch: [u8; 16],
        first_seq: u64,
        seq: u64,
        repeated: bool,
    },
    /// Not carried out; the `WriteError` follows.
    Refused,
    /// Another member leads, or nobody: nothing was done.
    NotLeader {
        leader: Option<u64>,
    },
    Read {
        index: u64,
    },
    /// Done; for a transfer, who leads now.
    Changed {
        leader: u64,
    },
    Failed(MemberError),
    /// Time here; whether the asking member is one; whether this one leads, in which term.
    Pong {
        wall_ms: u64,
        known: bool,
        leads: bool,
        term: u64,
    },
    /// It could not be done here, for now.
    Unable(String),
    /// A checkpoint, and what the leader found there.
    Attested {
        epoch: [u8; 16],
        seq: u64,
        root: [u8; 32],
        digest: [u8; 32],
    },
    /// From entry `from` on, before which there are `size` events; the roots of their tree, as RFC 9162 §2.1 splits it.
    Before {
        from: u64,
        size: u64,
        roots: Vec<[u8; 32]>,
    },
    /// Nothing older is here.
    Nothing,
    /// Entries follow, of which those that are no part of history have become blank.
    Past,
    /// What it is, and its bytes once it is packed.
    Base {
        about: Box<SnapshotHead>,
        packed: u64,
    },
    /// Bytes of the packed state follow.
    State,
}

/// Why a frame is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Its first byte says another protocol.
    #[error("a frame of protocol {0}")]
    Protocol(u8),
    /// It is longer than [`FRAME_MAX`].
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    /// It does not parse.
    #[error("a frame that does not parse: {0}")]
    Malformed(String),
    /// It parses, and is not what may come now.
    #[error("{0}")]
    Unexpected(&'static str),
}

impl FrameError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Protocol(_) => "frame_protocol",
            Self::TooLong(_) => "frame_too_long",
            Self::Malformed(_) => "frame_malformed",
            Self::Unexpected(_) => "frame_unexpected",
        }
    }
}

fn malformed(error: impl ToString) -> FrameError {
    FrameError::Malformed(error.to_string())
}

/// Appends a value.
pub(crate) fn put<T: Serialize>(value: &T, into: &mut Vec<u8>) {
    // A Vec grows as needed and these types have no fallible serializer.
    let written = bincode::serde::encode_into_std_write(value, into, CONFIG);
    debug_assert!(written.is_ok(), "{written:?}");
}

/// Reads a value that is all of `bytes`.
pub(crate) fn get<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let (value, length) = bincode::serde::decode_from_slice(bytes, CONFIG).map_err(malformed)?;
    if length == bytes.len() { Ok(value) } else { Err(malformed("bytes are left over")) }
}

/// A frame.
pub(crate) fn frame(message: &Message, body: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(64 + body.len());
    bytes.push(PROTOCOL);
    put(message, &mut bytes);
    bytes.extend_from_slice(body);
    bytes.into()
}

/// Reads a frame; the rest is its body.
pub(crate) fn read(bytes: &Bytes) -> Result<(Message, Bytes), FrameError> {
    if bytes.len() > FRAME_MAX {
        return Err(FrameError::TooLong(bytes.len()));
    }
    let (protocol, rest) = bytes.split_first().ok_or_else(|| malformed("it is empty"))?;
    if *protocol != PROTOCOL {
        return Err(FrameError::Protocol(*protocol));
    }
    let (message, length) = bincode::serde::decode_from_slice(rest, CONFIG).map_err(malformed)?;
    Ok((message, bytes.slice(1 + length..)))
}

/// Entries as they travel.
pub(crate) fn put_entries(entries: &[Entry]) -> Bytes {
    let mut bytes = Vec::new();
    for entry in entries {
        let at = bytes.len();
        bytes.put_u32_le(0);
        records::encode_entry(entry, &mut bytes);
        let length = (bytes.len() - at - 4) as u32;
        if let Some(place) = bytes.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }
    bytes.into()
}

/// Reads them back, without a copy of their frames.
pub(crate) fn get_entries(body: Bytes) -> Result<Vec<Entry>, FrameError> {
    let entry = |record: Bytes| {
        let (format, rest) = record.split_first().ok_or_else(|| malformed("an empty record"))?;
        if *format != records::RECORD_FORMAT {
            return Err(malformed(format!("record format {format}")));
        }
        let (read, length) = bincode::serde::decode_from_slice(rest, CONFIG).map_err(malformed)?;
        let Record::Entry(id, body) = read else { return Err(malformed("a record that is no entry")) };
        records::entry(id, body, record.slice(1 + length..)).map_err(malformed)
    };
    pieces(body)?.into_iter().map(entry).collect()
}

/// Byte strings as they travel.
pub(crate) fn put_pieces<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Bytes {
    let mut bytes = BytesMut::new();
    for piece in pieces {
        bytes.put_u32_le(piece.len() as u32);
        bytes.extend_from_slice(piece);
    }
    bytes.freeze()
}

/// Reads them back.
pub(crate) fn pieces(mut body: Bytes) -> Result<Vec<Bytes>, FrameError> {
    let mut pieces = Vec::new();
    while body.has_remaining() {
        let length = body.try_get_u32_le().map_err(malformed)? as usize;
        if length > body.len() {
            return Err(malformed(format!("{length} bytes where {} are left", body.len())));
        }
        pieces.push(body.split_to(length));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaderId, LogId, Payload};

    fn id(index: u64) -> Id {
        Id { term: 3, leader: 1, index }
    }

    fn voted() -> Voted {
        (&crate::types::Vote { leader_id: LeaderId { term: 3, node_id: 2 }, committed: true }).into()
    }

    fn about() -> SnapshotHead {
        let Parcel { last, members_at, members, .. } = parcel();
        SnapshotHead { last, members_at, members, seq: 4, skipped: vec![3, 4], length: 9, digest: [5; 32] }
    }

    fn parcel() -> Parcel {
        let members = (&openraft::Membership::new_with_defaults(vec![[1u64].into()], [])).into();
        Parcel { last: Some(id(9)), members_at: None, members, saved: 300, length: 4, digest: [5; 32] }
    }

    fn samples() -> Vec<(Message, String)> {
        let request = |request| Message::Request(300, request);
        let answer = |answer| Message::Answer(1, answer);
        let (d32, e16) = ("05".repeat(32), "07".repeat(16));
        let hello = Hello { epoch: [7; 16], from: 2, to: 1, cluster: "cvlan".into(), level: 1 };
        vec![
            (Message::Hello(hello), format!("0100{e16}02010563766c616e01")),
            (Message::Refused(Refusal::Protocol { asked: 2, known: 1 }), "0101000201".into()),
            (Message::Refused(Refusal::Cluster), "010101".into()),
            (Message::Refused(Refusal::Epoch([7; 16])), format!("010102{e16}")),
            (Message::Refused(Refusal::To(1)), "01010301".into()),
            (Message::Refused(Refusal::From), "010104".into()),
            (
                request(Request::Append { vote: voted(), prev: Some(id(9)), commit: None }),
                "0102fb2c0100030201010301090 0".into(),
            ),
            (
                request(Request::Vote { pre: true, vote: voted(), last: None, transfer: false }),
                "0102fb2c010101030201 0000".into(),
            ),
            (
                request(Request::Transfer { from: voted(), to: 2, last: Some(id(4)) }),
                "0102fb2c01020302010201030104".into(),
            ),
            (
                request(Request::Snapshot(Box::new(parcel()))),
                format!("0102fb2c010301030109000101010101096c6f63616c686f7374fb2c0104{d32}"),
            ),
            (request(Request::Chunk { digest: [5; 32], offset: 300 }), format!("0102fb2c0104{d32}fb2c01")),
            (request(Request::Install { vote: voted(), digest: [5; 32] }), format!("0102fb2c0105030201{d32}")),
            (request(Request::Write { epoch: [7; 16], first: Some([7; 16]) }), format!("0102fb2c0106{e16}01{e16}")),
            (request(Request::ReadIndex), "0102fb2c0107".into()),
            (
                request(Request::Change(Change::Learner { id: 4, address: "a:1".into() })),
                "0102fb2c01080004 03613a31".into(),
            ),
            (request(Request::Change(Change::Promote { id: 4 })), "0102fb2c01080104".into()),
            (request(Request::Change(Change::Remove { id: 4 })), "0102fb2c01080204".into()),
            (request(Request::Change(Change::Transfer { to: None })), "0102fb2c01080300".into()),
            (request(Request::Change(Change::Promotable { id: 4 })), "0102fb2c01080404".into()),
            (request(Request::Ping { wall_ms: 300 }), "0102fb2c0109fb2c01".into()),
            (request(Request::Checkpoint), "0102fb2c010a".into()),
            (request(Request::Before { end: 9, bytes: 300 }), "0102fb2c010b09fb2c01".into()),
            (request(Request::Past { from: 4, end: 9 }), "0102fb2c010c0409".into()),
            (request(Request::Base { oldest: 4, end: 9 }), "0102fb2c010d0409".into()),
            (request(Request::State { seq: 4, offset: 300 }), "0102fb2c010e04fb2c01".into()),
            (request(Request::Part { of: 4, offset: 300 }), "0102fb2c010f04fb2c01".into()),
            (
                request(Request::AppendParts { vote: voted(), prev: Some(id(9)), commit: None, of: 4, length: 300 }),
                "0102fb2c011003020101030109 00 04fb2c01".into(),
            ),
            (Message::Part(300), "0104fb2c01".into()),
            (answer(Answer::Appended), "01030100".into()),
            (answer(Answer::Conflict), "01030101".into()),
            (answer(Answer::HigherVote(voted())), "01030102030201".into()),
            (answer(Answer::Vote { vote: voted(), granted: true, last: None }), "010301030302010100".into()),
            (answer(Answer::Transfer { accepted: true }), "0103010401".into()),
            (answer(Answer::Have { offset: 300 }), "01030105fb2c01".into()),
            (answer(Answer::Installed { vote: voted() }), "01030106030201".into()),
            (
                answer(Answer::Written { epoch: [7; 16], first_seq: 5, seq: 6, repeated: true }),
                format!("01030107{e16}050601"),
            ),
            (answer(Answer::Refused), "01030108".into()),
            (answer(Answer::NotLeader { leader: Some(2) }), "010301090102".into()),
            (answer(Answer::Read { index: 9 }), "0103010a09".into()),
            (answer(Answer::Changed { leader: 2 }), "0103010b02".into()),
            (answer(Answer::Failed(MemberError::Behind { id: 4, behind: 300 })), "0103010c0204fb2c01".into()),
            (answer(Answer::Pong { wall_ms: 300, known: true, leads: false, term: 3 }), "0103010dfb2c01010003".into()),
            (answer(Answer::Unable("x".into())), "0103010e0178".into()),
            (
                answer(Answer::Attested { epoch: [7; 16], seq: 9, root: [5; 32], digest: [5; 32] }),
                format!("0103010f{e16}09{d32}{d32}"),
            ),
            (answer(Answer::Before { from: 4, size: 8, roots: vec![[5; 32]] }), format!("01030110040801{d32}")),
            (answer(Answer::Nothing), "01030111".into()),
            (answer(Answer::Past), "01030112".into()),
            (
                answer(Answer::Base { about: Box::new(about()), packed: 300 }),
                format!("01030113 01030109000101010101096c6f63616c686f737404 020304 09{d32}fb2c01"),
            ),
            (answer(Answer::State), "01030114".into()),
        ]
    }

    #[test]
    fn golden_bytes_of_every_message() {
        for (message, golden) in samples() {
            let bytes = frame(&message, b"body");
            assert_eq!(hex::encode(&bytes), format!("{golden}626f6479").replace(' ', ""), "{message:?}");
            assert_eq!(read(&bytes).unwrap(), (message, Bytes::from_static(b"body")));
        }
    }

    #[test]
    fn golden_bytes_of_bodies() {
        let log_id = LogId { leader_id: LeaderId { term: 3, node_id: 1 }, index: 9 };
        let entries = [
            Entry { log_id, payload: Payload::Blank },
            Entry { log_id, payload: Payload::Normal(crate::types::Frame(Bytes::from_static(b"frame"))) },
        ];
        let bytes = put_entries(&entries);
        assert_eq!(hex::encode(&bytes), "060000000100030109000b000000010003010901 6672616d65".replace(' ', ""));
        assert_eq!(get_entries(bytes.clone()).unwrap(), entries);
        for cut in 1..bytes.len() {
            // Where a record ends, fewer records are left; the frame's own checksum is not looked at here.
            assert!(cut == 10 || get_entries(bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
        let pieces = [&b"one"[..], b""];
        let body = put_pieces(pieces.into_iter());
        assert_eq!(hex::encode(&body), "030000006f6e6500000000");
        assert_eq!(super::pieces(body).unwrap(), pieces);
    }

    #[test]
    fn what_is_cut_too_long_or_of_another_protocol_is_an_error() {
        for (message, _) in samples() {
            let bytes = frame(&message, &[]);
            for cut in 0..bytes.len() {
                assert!(matches!(read(&bytes.slice(..cut)), Err(FrameError::Malformed(_))), "{message:?} cut at {cut}");
            }
        }
        assert_eq!(read(&Bytes::from_static(&[2, 0])), Err(FrameError::Protocol(2)));
        assert_eq!(read(&vec![1; FRAME_MAX + 1].into()), Err(FrameError::TooLong(FRAME_MAX + 1)));
        assert!(matches!(get::<u64>(&[1, 2]), Err(FrameError::Malformed(_))), "bytes are left over");
    }
}
