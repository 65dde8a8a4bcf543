//! A backup of the log: every entry from the first, verbatim, so that a member can be made of it, and whoever reads it
//! computes the tree's root and compares it with a signed note. Where history does not begin with the first event any more, it
//! begins with the state after what is gone.
//!
//! ```text
//! header {epoch, to, note, base?} ─► state … ─► entry │ members │ entry … each with the root of all before it ─► end {entries, events}
//! ```
//! File: `CVLANBAK` │ u8 format │ records ([`super::records`]).

use super::entry::entry_decode;
use super::export::{majority, origin};
use super::merkle::{CompactRange, Hash};
use super::note::{Note, TreeHead, Verifier};
use crate::id::{Epoch, Seq};
use bytes::Bytes;
use cvlan_proto::v1::backup_record::Kind;
use cvlan_proto::v1::{BackupBase, BackupEnd, BackupEntry, BackupHeader, BackupRecord, BackupState};

/// What a backup begins with.
pub const MAGIC: &[u8; 8] = b"CVLANBAK";

/// Version of the file, the byte after [`MAGIC`].
pub const FORMAT: u8 = 1;

/// A record of this kind.
pub fn record(kind: Kind) -> BackupRecord {
    BackupRecord { kind: Some(kind) }
}

/// What is wrong with a backup, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {record}, after event {after}: {what}")]
pub struct BackupFault {
    /// Number of the record, from 1.
    pub record: u64,
    /// The last event that is in order.
    pub after: Seq,
    /// What is wrong.
    pub what: String,
}

/// What a backup that is in order holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupReport {
    /// What it says of itself.
    pub header: BackupHeader,
    /// Its log.
    pub epoch: Epoch,
    /// The first event in it: 1, or the one after the state that it begins with.
    pub from: Seq,
    /// Entries.
    pub entries: u64,
    /// The last event.
    pub events: u64,
    /// Root of their tree.
    pub root: Hash,
    /// Voters whose keys are known and who signed that root; `None` where no keys were given.
    pub signers: Option<Vec<String>>,
}

/// What a member is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A piece of the state that it begins with, in order.
    State(Bytes),
    /// An entry of its log.
    Entry(BackupEntry),
}

/// Checks a backup, record by record.
#[derive(Default)]
pub struct Checker {
    known: Vec<Verifier>,
    header: Option<BackupHeader>,
    tree: CompactRange,
    /// Bytes of the state that are still to come.
    state: u64,
    records: u64,
    entries: u64,
    ended: bool,
}

impl Checker {
    /// `known`: the voters' keys; none = signatures are not looked at.
    pub fn new(known: Vec<Verifier>) -> Self {
        Self { known, ..Self::default() }
    }

    /// Events so far, and in all.
    pub fn progress(&self) -> (u64, u64) {
        (self.tree.size(), self.header.as_ref().map_or(0, |header| header.to_seq))
    }

    /// Entries so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Root of the tree of the events so far.
    pub fn root(&self) -> Hash {
        self.tree.root()
    }

    /// What it says of itself.
    pub fn header(&self) -> Option<&BackupHeader> {
        self.header.as_ref()
    }

    /// The state that it begins with is here, if it has one: entries can follow.
    pub fn has_state(&self) -> bool {
        self.header.is_some() && self.state == 0
    }

    /// Something is wrong where it is now.
    pub fn fault(&self, what: impl Into<String>) -> BackupFault {
        BackupFault { record: self.records, after: Seq(self.tree.size()), what: what.into() }
    }

    /// Takes the next record.
    pub fn record(&mut self, record: BackupRecord) -> Result<Option<Part>, BackupFault> {
        self.records += 1;
        if self.ended {
            return Err(self.fault("there is something behind the end"));
        }
        match (record.kind, &self.header) {
            (Some(Kind::Header(header)), None) => {
                let last = u64::MAX >> 1;
                if header.epoch.parse::<Epoch>().is_err() || !(1..=last).contains(&header.to_seq) {
                    return Err(self.fault("the header is none"));
                }
                if let Some(base) = &header.base {
                    self.tree = begins(base)
                        .filter(|tree| tree.size() <= header.to_seq)
                        .ok_or_else(|| self.fault("the header says of the state that it begins with what cannot be"))?;
                    self.state = base.packed_length;
                }
                self.header = Some(header);
                Ok(None)
            }
            (Some(Kind::Header(_)), Some(_)) => Err(self.fault("a second header")),
            (None, _) => Err(self.fault("a record of a kind that this version does not know")),
            (Some(_), None) => Err(self.fault("a backup begins with a header")),
            (Some(Kind::State(BackupState { piece })), Some(_)) => {
                let more = piece.len() as u64;
                if more == 0 || more > self.state {
                    return Err(self.fault("more of a state than is due"));
                }
                self.state -= more;
                Ok(Some(Part::State(piece)))
            }
            (Some(_), Some(_)) if self.state > 0 => Err(self.fault("the state that it begins with is not whole")),
            (Some(Kind::Entry(entry)), Some(header)) => {
                let to = header.to_seq;
                self.entry(entry, to).map(|entry| Some(Part::Entry(entry)))
            }
            (Some(Kind::End(end)), Some(header)) => {
                let (events, entries) = (self.tree.size(), self.entries);
                if events != header.to_seq || (end.events, end.entries) != (events, entries) {
                    let (wanted, announced) = (header.to_seq, (end.events, end.entries));
                    return Err(self.fault(format!(
                        "{wanted} events are due, {announced:?} events and entries are announced, {events} and {entries} are here"
                    )));
                }
                self.ended = true;
                Ok(None)
            }
        }
    }

    fn entry(&mut self, given: BackupEntry, to: u64) -> Result<BackupEntry, BackupFault> {
        match (&given.members, given.frame.is_empty()) {
            (Some(_), true) => return Ok(given),
            (Some(_), false) => return Err(self.fault("an entry with events and members at once")),
            (None, _) => {}
        }
        let entry = entry_decode(&given.frame).map_err(|e| self.fault(e.to_string()))?;
        let due = self.tree.size() + 1;
        if entry.first_seq != due {
            return Err(self.fault(format!("event {} follows: {due} is due", entry.first_seq)));
        }
        if entry.prev_root != self.tree.root() {
            return Err(self.fault("what follows continues another history: an event before it was altered"));
        }
        if entry.events.is_empty() || entry.events.len() as u64 > to + 1 - due {
            return Err(self.fault(format!("an entry of {} events, and the last one is {to}", entry.events.len())));
        }
        entry.events.iter().for_each(|event| self.tree.push(event));
        self.entries += 1;
        Ok(given)
    }

    /// After the last record.
    pub fn finish(self) -> Result<BackupReport, BackupFault> {
        let Some(header) = self.header.clone().filter(|_| self.ended) else {
            return Err(self.fault("the file ends here, without its end: it was cut off"));
        };
        let epoch: Epoch = header.epoch.parse().map_err(|_| self.fault("the header is none"))?;
        let note = Note::parse(header.note.as_bytes()).map_err(|e| self.fault(format!("its note: {e}")))?;
        let head = TreeHead::parse(note.text()).map_err(|e| self.fault(format!("its note: {e}")))?;
        let root = self.tree.root();
        if head != (TreeHead { origin: origin(epoch), size: header.to_seq, root }) {
            return Err(self.fault("the root of its events is not the one that was signed"));
        }
        let signers = match self.known.as_slice() {
            [] => None,
            known => Some(majority(&note, known).map_err(|what| self.fault(what))?),
        };
        let (entries, events) = (self.entries, self.tree.size());
        let from = Seq(header.base.as_ref().map_or(0, |base| base.seq) + 1);
        Ok(BackupReport { header, epoch, from, entries, events, root, signers })
    }
}

/// The tree of the events before the first one of a backup.
pub fn begins(base: &BackupBase) -> Option<CompactRange> {
    let roots = base.roots.iter().map(|root| root.as_ref().try_into().ok()).collect::<Option<Vec<Hash>>>()?;
    let good = base.seq > 0 && base.packed_length > 0 && base.digest.len() == size_of::<Hash>();
    CompactRange::new(base.seq, roots).filter(|_| good)
}

/// The end of a backup of so much.
pub fn end(entries: u64, events: u64) -> BackupRecord {
    record(Kind::End(BackupEnd { entries, events }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::entry::EntryWriter;
    use crate::log::export::signer;
    use crate::log::records::{Splitter, record_write};
    use cvlan_proto::v1::{BackupMembers, BackupVoters};
    use ed25519_dalek::SigningKey;

    const EPOCH: Epoch = Epoch([3; 16]);

    fn backup(sizes: &[u64]) -> (Vec<BackupRecord>, Vec<Bytes>) {
        let (mut tree, mut records, mut frames) = (CompactRange::default(), Vec::new(), Vec::new());
        for size in sizes {
            let first = tree.size() + 1;
            let mut entry = EntryWriter::new(EPOCH, Seq(first), tree.root(), *size as usize, 0);
            for n in 0..*size {
                let event = entry.push(|out| out.extend_from_slice(&(first + n).to_le_bytes())).to_vec();
                tree.push(&event);
            }
            let (frame, _) = entry.finish();
            let members = BackupMembers { voters: vec![BackupVoters { ids: vec![1] }], ..BackupMembers::default() };
            if first == 2 {
                let members = Some(members);
                records.push(record(Kind::Entry(BackupEntry { members, ..BackupEntry::default() })));
            }
            records.push(record(Kind::Entry(BackupEntry { frame: frame.clone(), members: None })));
            frames.push(frame);
        }
        let mut note = Note::new(TreeHead { origin: origin(EPOCH), size: tree.size(), root: tree.root() }.text());
        note.sign(&signer(EPOCH, 1), &SigningKey::from_bytes(&[1; 32]));
        let header = BackupHeader {
            epoch: EPOCH.to_string(),
            to_seq: tree.size(),
            note: note.to_string(),
            member_id: 1,
            ..BackupHeader::default()
        };
        records.insert(0, record(Kind::Header(header)));
        records.push(end(sizes.len() as u64, tree.size()));
        (records, frames)
    }

    fn check(records: &[BackupRecord]) -> Result<(BackupReport, Vec<Bytes>), BackupFault> {
        let key = SigningKey::from_bytes(&[1; 32]).verifying_key();
        let mut checker = Checker::new(vec![Verifier::new(&signer(EPOCH, 1), key.as_bytes()).unwrap()]);
        let mut frames = Vec::new();
        for record in records {
            if let Some(Part::Entry(entry)) = checker.record(record.clone())? {
                frames.extend(Some(entry.frame).filter(|frame| !frame.is_empty()));
            }
        }
        Ok((checker.finish()?, frames))
    }

    #[test]
    fn what_was_backed_up_comes_back() {
        let (records, frames) = backup(&[1, 5, 300, 2]);
        let mut bytes = [MAGIC.as_slice(), &[FORMAT]].concat();
        records.iter().for_each(|record| record_write(record, &mut bytes));
        let (mut splitter, mut read) = (Splitter::new(MAGIC, FORMAT), Vec::new());
        splitter.push(&bytes);
        while let Some((record, _)) = splitter.take::<BackupRecord>().unwrap() {
            read.push(record);
        }
        assert_eq!(read, records);
        let (report, found) = check(&read).unwrap();
        assert_eq!((report.entries, report.events, report.signers.map(|s| s.len())), (4, 308, Some(1)));
        assert_eq!(found, frames);
    }

    /// Files that were written are read for ever: what changes here needs another format.
    #[test]
    fn golden_bytes() {
        let mut bytes = [MAGIC.as_slice(), &[FORMAT]].concat();
        backup(&[1, 5, 300, 2]).0.iter().for_each(|record| record_write(record, &mut bytes));
        assert_eq!(
            hex::encode(crate::log::leaf_hash(&bytes)),
            "0c5636c98e2f960fd6442c71920363fe44533d45e2c55b3eba55144631f723e4"
        );
    }

    /// The same backup, whose first `gone` entries are a state of 700 bytes.
    fn late(sizes: &[u64], gone: usize) -> Vec<BackupRecord> {
        let (mut records, _) = backup(sizes);
        let is_frame = |record: &BackupRecord| matches!(&record.kind, Some(Kind::Entry(e)) if e.members.is_none());
        let mut tree = CompactRange::default();
        for _ in 0..gone {
            let at = records.iter().position(is_frame).unwrap();
            let Some(Kind::Entry(entry)) = records.remove(at).kind else { panic!() };
            entry_decode(&entry.frame).unwrap().events.iter().for_each(|event| tree.push(event));
        }
        let base = BackupBase {
            seq: tree.size(),
            roots: tree.roots().iter().map(|root| Bytes::copy_from_slice(root)).collect(),
            digest: vec![5; 32].into(),
            length: 9_000,
            packed_length: 700,
        };
        let Some(Kind::Header(header)) = &mut records[0].kind else { panic!() };
        header.base = Some(base);
        let piece = |n: usize| record(Kind::State(BackupState { piece: vec![n as u8; n].into() }));
        records.splice(1..1, [piece(600), piece(100)]);
        let last = records.len() - 1;
        records[last] = end((sizes.len() - gone) as u64, sizes.iter().sum());
        records
    }

    #[test]
    fn it_begins_with_a_state_where_history_does() {
        let records = late(&[1, 5, 300, 2], 2);
        let (report, frames) = check(&records).unwrap();
        assert_eq!((report.from, report.entries, report.events), (Seq(7), 2, 308));
        assert_eq!(frames.len(), 2);
        // Nothing but the state.
        assert_eq!(check(&late(&[1, 5], 2)).unwrap().0.from, Seq(7));
        type Change<'a> = &'a dyn Fn(&mut Vec<BackupRecord>);
        fn base(records: &mut [BackupRecord]) -> &mut BackupBase {
            let Some(Kind::Header(BackupHeader { base: Some(base), .. })) = &mut records[0].kind else { panic!() };
            base
        }
        let cases: &[(&str, Change)] = &[
            ("is not whole", &|r| drop(r.remove(2))),
            ("is not whole", &|r| drop(r.drain(1..3))),
            ("more of a state than is due", &|r| r.insert(3, r[2].clone())),
            ("more of a state than is due", &|r| r.insert(1, record(Kind::State(BackupState::default())))),
            ("what cannot be", &|r| base(r).seq = 309),
            ("event 7 follows: 6 is due", &|r| base(r).seq = 5),
            ("what cannot be", &|r| base(r).roots[0] = vec![1; 31].into()),
            ("what cannot be", &|r| base(r).digest = Bytes::new()),
            ("what cannot be", &|r| *base(r) = BackupBase::default()),
            ("continues another history", &|r| base(r).roots[1] = vec![1; 32].into()),
        ];
        for (what, change) in cases {
            let mut records = records.clone();
            change(&mut records);
            let fault = check(&records).expect_err(what);
            assert!(fault.what.contains(what), "{what}: {fault}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let (good, _) = backup(&[1, 5, 3, 2]);
        type Change<'a> = &'a dyn Fn(&mut Vec<BackupRecord>);
        let cases: &[(&str, u64, Change)] = &[
            ("cut off", 9, &|r| r.truncate(5)),
            ("event 7 follows: 2 is due", 1, &|r| drop(r.remove(3))),
            ("event 7 follows: 2 is due", 1, &|r| r.swap(3, 4)),
            ("event 2 follows: 7 is due", 6, &|r| r.insert(4, r[3].clone())),
            ("(11, 4) events and entries are announced, 9 and 3", 9, &|r| drop(r.remove(5))),
            ("behind the end", 11, &|r| r.push(r[0].clone())),
            ("begins with a header", 0, &|r| drop(r.remove(0))),
            ("a second header", 1, &|r| r.insert(2, r[0].clone())),
            ("at once", 1, &|r| {
                let Some(Kind::Entry(entry)) = &mut r[3].kind else { panic!() };
                entry.members = Some(BackupMembers::default());
            }),
            ("continues another history", 9, &|r| {
                // The same number of events, and what follows fits by number.
                let Some(Kind::Entry(old)) = &r[4].kind else { panic!() };
                let old = entry_decode(&old.frame).unwrap();
                let mut entry = EntryWriter::new(EPOCH, Seq(7), old.prev_root.try_into().unwrap(), 3, 0);
                (0..3).for_each(|_| drop(entry.push(|out| out.push(7)).to_vec()));
                r[4] = record(Kind::Entry(BackupEntry { frame: entry.finish().0, members: None }));
            }),
            ("not the one that was signed", 11, &|r| {
                let Some(Kind::Header(header)) = &mut r[0].kind else { panic!() };
                header.epoch = Epoch([9; 16]).to_string();
            }),
            ("checksum is wrong", 1, &|r| {
                let Some(Kind::Entry(entry)) = &mut r[3].kind else { panic!() };
                let mut bytes = entry.frame.to_vec();
                bytes[60] ^= 1;
                entry.frame = bytes.into();
            }),
        ];
        for (what, after, change) in cases {
            let mut records = good.clone();
            change(&mut records);
            let fault = check(&records).expect_err(what);
            assert!(fault.what.contains(what) && fault.after == Seq(*after), "{what}: {fault}");
        }
        assert!(check(&good).is_ok());
    }
}
