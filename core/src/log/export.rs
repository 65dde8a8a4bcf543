//! The record as a file that proves itself: events in order, and for what is left out the roots of subtrees that stand for
//! it, so that whoever reads it computes the tree's root, and compares it with a signed note.
//!
//! ```text
//! header {epoch, tenant, from, to, note} ─► event │ hidden subtree │ event … ─► end {events, hidden}
//!                                              └──── leaf by leaf ────┘──► root at `to` = the note's, signed by a majority
//! ```
//! Binary: `CVLANEXP` │ u8 format │ records ([`super::records`]). As NDJSON the records are lines. A tenant's own
//! running numbers show an event that is hidden though it is the tenant's. What is not shown: that the last events of a tenant are
//! hidden (and, where what is shown begins later, the first), unless one holds an export from then; what a redacted event said.

use super::merkle::{CompactRange, Hash, leaf_hash, node_hash};
use super::note::{Note, NoteError, TreeHead, Verifier};
use crate::id::{Epoch, Seq, TenantId};
use crate::redact::redact;
use bytes::Bytes;
use cvlan_proto::Message;
use cvlan_proto::v1::export_record::Kind;
use cvlan_proto::v1::{
    Event, ExportEnd, ExportEvent, ExportHeader, ExportHidden, ExportRecord, SystemEvent, system_event,
};
use std::collections::{BTreeSet, HashMap};

/// What a binary export begins with.
pub const MAGIC: &[u8; 8] = b"CVLANEXP";

/// Version of the binary form, the byte after [`MAGIC`].
pub const FORMAT: u8 = 1;

/// The first line of a log's notes.
pub fn origin(epoch: Epoch) -> String {
    format!("cvlan/{epoch}")
}

/// Under which name a member signs.
pub fn signer(epoch: Epoch, member: u64) -> String {
    format!("{}/{member}", origin(epoch))
}

/// A record of this kind.
pub fn record(kind: Kind) -> ExportRecord {
    ExportRecord { kind: Some(kind) }
}

/// Makes the records between the header and the end, of each event in turn.
#[derive(Debug)]
pub struct Exporter {
    since: Vec<u64>,
    gap: Gap,
    end: ExportEnd,
}

impl Exporter {
    /// `since`: sizes at which the tree is to be seen as it was.
    pub fn new(since: Vec<u64>) -> Self {
        Self { since, gap: Gap::default(), end: ExportEnd::default() }
    }

    /// Hides 2^level events at once; none of those before are still to be written.
    pub fn hide_subtree(&mut self, level: u32, root: Hash) -> ExportRecord {
        self.end.hidden += 1 << level;
        record(Kind::Hidden(hidden(level, root)))
    }

    /// Hides event `seq`.
    pub fn hide(&mut self, seq: Seq, leaf: Hash, out: &mut Vec<ExportRecord>) {
        self.end.hidden += 1;
        self.gap.push(seq.0 - 1, leaf);
        if self.since.contains(&seq.0) {
            self.flush(out);
        }
    }

    /// Shows the next event.
    pub fn show(&mut self, event: ExportEvent, out: &mut Vec<ExportRecord>) {
        self.flush(out);
        self.end.events += 1;
        out.push(record(Kind::Event(event)));
    }

    fn flush(&mut self, out: &mut Vec<ExportRecord>) {
        let gap = self.gap.roots.drain(..);
        out.extend(gap.map(|(level, root)| record(Kind::Hidden(hidden(level, root)))));
    }

    /// The end.
    pub fn end(mut self, out: &mut Vec<ExportRecord>) {
        self.flush(out);
        out.push(record(Kind::End(self.end)));
    }
}

/// Leaves in a row that are to be hidden, as the fewest subtrees: level and root, from left to right.
#[derive(Debug, Default)]
struct Gap {
    roots: Vec<(u32, Hash)>,
}

impl Gap {
    /// Adds the leaf at `index`, which follows the one before, if there is one.
    fn push(&mut self, index: u64, leaf: Hash) {
        let (mut level, mut hash) = (0, leaf);
        while let Some((left, root)) = self.roots.pop_if(|(left, _)| *left == level && (index >> level) & 1 == 1) {
            (level, hash) = (left + 1, node_hash(&root, &hash));
        }
        self.roots.push((level, hash));
    }
}

fn hidden(level: u32, root: Hash) -> ExportHidden {
    ExportHidden { level, root: Bytes::copy_from_slice(&root) }
}

/// What of an event the proof is about.
#[derive(Clone, PartialEq, prost::Message)]
struct EventHead {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(uint64, tag = "3")]
    tenant_seq: u64,
    #[prost(bytes = "bytes", tag = "4")]
    tenant_id: Bytes,
    #[prost(message, optional, tag = "16")]
    system: Option<SystemEvent>,
}

/// What an export that is in order shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportReport {
    /// The log.
    pub epoch: String,
    /// Whose events are shown; empty = all.
    pub tenant_id: String,
    /// The last event, shown or hidden.
    pub to: Seq,
    /// The first event that may be shown: those before are hidden.
    pub from: Seq,
    /// Events shown.
    pub events: u64,
    /// Of which secrets were taken out: that something is in the log there is proven, what is shown of it is not.
    pub redacted: Vec<Seq>,
    /// Events hidden.
    pub hidden: u64,
    /// Root of the tree.
    pub root: Hash,
    /// Voters whose keys are known and who signed that root; `None` where no keys were given.
    pub signers: Option<Vec<String>>,
    /// Checkpoints in the log that were compared.
    pub checkpoints: u64,
    /// Tree heads held from before that it continues.
    pub held: u64,
}

/// What is wrong with an export, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}", place(self.record, self.seq))]
pub struct ExportFault {
    /// Number of the record, or line, from 1; 0 = it is about the whole.
    pub record: u64,
    /// The event that it is about.
    pub seq: Option<Seq>,
    /// What is wrong.
    pub what: String,
}

fn place(record: u64, seq: Option<Seq>) -> String {
    match (record, seq) {
        (0, None) => String::new(),
        (0, Some(seq)) => format!("event {seq}: "),
        (record, None) => format!("record {record}: "),
        (record, Some(seq)) => format!("record {record}, event {seq}: "),
    }
}

/// Checks an export, record by record.
pub struct Checker {
    known: Vec<Verifier>,
    /// By size.
    held: Vec<TreeHead>,
    header: Option<ExportHeader>,
    ended: bool,
    records: u64,
    tree: CompactRange,
    /// What the header is to say that is shown first.
    from: u64,
    events: u64,
    redacted: Vec<Seq>,
    hidden: u64,
    /// Running numbers.
    numbers: HashMap<Bytes, u64>,
    /// Roots at the checkpoints that were opened and not yet attested.
    opened: Vec<(u64, Hash)>,
    checkpoints: u64,
    continued: u64,
    /// Up to here the tree is what it was: by what was held, or attested.
    sure: u64,
}

impl Checker {
    /// `known`: the voters' keys; none = signatures are not looked at. `held`: tree heads from before. `from`: the first event
    /// that is to be shown.
    pub fn new(known: Vec<Verifier>, mut held: Vec<TreeHead>, from: Seq) -> Self {
        held.sort_by_key(|head| head.size);
        Self {
            known,
            held,
            header: None,
            ended: false,
            records: 0,
            tree: CompactRange::default(),
            from: from.0,
            events: 0,
            redacted: Vec::new(),
            hidden: 0,
            numbers: HashMap::new(),
            opened: Vec::new(),
            checkpoints: 0,
            continued: 0,
            sure: 0,
        }
    }

    /// Events so far, shown or hidden, and in all.
    pub fn progress(&self) -> (u64, u64) {
        (self.tree.size(), self.header.as_ref().map_or(0, |header| header.to_seq))
    }

    /// A record that could not be read.
    pub fn unreadable(&self, what: &str) -> ExportFault {
        ExportFault { record: self.records + 1, seq: self.header.as_ref().map(|_| self.due()), what: what.to_owned() }
    }

    fn due(&self) -> Seq {
        Seq(self.tree.size() + 1)
    }

    fn fault(&self, what: impl Into<String>) -> ExportFault {
        ExportFault { record: self.records, seq: None, what: what.into() }
    }

    fn fault_at(&self, seq: u64, what: impl Into<String>) -> ExportFault {
        ExportFault { record: self.records, seq: Some(Seq(seq)), what: what.into() }
    }

    /// Takes the next record.
    pub fn record(&mut self, record: ExportRecord) -> Result<(), ExportFault> {
        self.records += 1;
        if self.ended {
            return Err(self.fault("there is something behind the end"));
        }
        match (record.kind, &self.header) {
            (Some(Kind::Header(header)), None) => self.begin(header),
            (Some(Kind::Header(_)), Some(_)) => Err(self.fault("a second header")),
            (None, _) => Err(self.fault("a record of a kind that this version does not know")),
            (Some(_), None) => Err(self.fault("an export begins with a header")),
            (Some(Kind::Event(event)), Some(_)) => self.event(&event),
            (Some(Kind::Hidden(hidden)), Some(_)) => self.hide(&hidden),
            (Some(Kind::End(end)), Some(_)) => self.end(&end),
        }
    }

    fn begin(&mut self, header: ExportHeader) -> Result<(), ExportFault> {
        let last = u64::MAX >> 1;
        if !(1..=header.to_seq).contains(&header.from_seq)
            || header.to_seq > last
            || header.epoch.parse::<Epoch>().is_err()
        {
            return Err(self.fault("the header is none"));
        }
        if !header.tenant_id.is_empty() && TenantId::of(&header.tenant_id).is_nil() {
            return Err(self.fault("the header's tenant is none"));
        }
        if header.from_seq != self.from {
            let (from, wanted) = (header.from_seq, self.from);
            let what =
                format!("what is before event {from} is hidden, and not event {wanted}: say so with --from {from}");
            return Err(self.fault_at(from, what));
        }
        if let Some(head) = self.held.iter().find(|head| head.size > header.to_seq) {
            let (held, to) = (head.size, header.to_seq);
            let what = format!(
                "the checkpoint that you hold has {held} events, and here are {to}: the end was cut off, or the export asked for no more"
            );
            return Err(self.fault_at(to + 1, what));
        }
        self.header = Some(header);
        self.grown()
    }

    fn header(&self) -> Result<&ExportHeader, ExportFault> {
        self.header.as_ref().ok_or_else(|| self.fault("an export begins with a header"))
    }

    fn event(&mut self, event: &ExportEvent) -> Result<(), ExportFault> {
        let due = self.due().0;
        let header = self.header()?;
        let (first, whole) = (header.from_seq, header.tenant_id.is_empty());
        let head = EventHead::decode(event.event.clone());
        let head = head.map_err(|e| self.fault_at(due, format!("the event does not parse: {e}")))?;
        match head.seq {
            seq if due < first => {
                return Err(self.fault_at(seq, format!("it comes where event {due} should be hidden")));
            }
            seq if seq > due => {
                let what = if seq - due == 1 {
                    format!("event {due} is missing")
                } else {
                    format!("events {due} to {} are missing", seq - 1)
                };
                return Err(self.fault_at(due, format!("{what}: event {seq} follows")));
            }
            seq if seq < due => return Err(self.fault_at(seq, format!("it comes where event {due} should be"))),
            _ => {}
        }
        if let Some(shown) = &event.decoded
            && Event::decode(event.event.clone()).as_ref() != Ok(shown)
        {
            return Err(self.fault_at(due, "it was altered: what is written to be read is not what its bytes say"));
        }
        let leaf: Hash = match (event.redacted, <[u8; 32]>::try_from(event.leaf.as_ref())) {
            (true, Ok(leaf)) => {
                self.redactable(due, event)?;
                leaf
            }
            (true, Err(_)) => return Err(self.fault_at(due, "it is redacted and has no hash")),
            (false, given) => {
                let found = leaf_hash(&event.event);
                if given.ok() != Some(found) {
                    return Err(
                        self.fault_at(due, "it was altered: its bytes have another hash than is written beside them")
                    );
                }
                found
            }
        };
        if !whole && head.tenant_id != header.tenant_id.as_bytes() {
            return Err(self.fault_at(due, "it is another tenant's"));
        }
        self.number(due, &head, first)?;
        self.events += 1;
        if event.redacted {
            self.redacted.push(Seq(due));
        }
        self.tree.push_hash(leaf);
        if let Some(system) = head.system {
            self.attested(due, system)?;
        }
        self.grown()
    }

    /// Only an event that has a secret is shown without it: any other shows all that its leaf stands for.
    fn redactable(&self, seq: u64, event: &ExportEvent) -> Result<(), ExportFault> {
        let read = Event::decode(event.event.clone());
        let mut shown = read.map_err(|e| self.fault_at(seq, format!("the event does not parse: {e}")))?;
        let before = shown.clone();
        if redact(&mut shown) && shown == before {
            return Ok(());
        }
        Err(self.fault_at(seq, "it was altered: it is marked as redacted, and has no secret, or has it still"))
    }

    /// A tenant's own running number goes up by one.
    fn number(&mut self, seq: u64, head: &EventHead, first: u64) -> Result<(), ExportFault> {
        if head.tenant_id.is_empty() {
            return Ok(());
        }
        let last = self.numbers.get_mut(&head.tenant_id);
        let wanted = match &last {
            Some(last) => Some(last.saturating_add(1)),
            // From the first event on nothing of it may lack.
            None => (first == 1).then_some(1),
        };
        if wanted.is_none_or(|wanted| wanted == head.tenant_seq) {
            match last {
                Some(last) => *last = head.tenant_seq,
                // A copy: a slice would keep the whole piece that was read.
                None => drop(self.numbers.insert(Bytes::copy_from_slice(&head.tenant_id), head.tenant_seq)),
            }
        } else if let Some(wanted) = wanted {
            let (tenant, found) = (String::from_utf8_lossy(&head.tenant_id).into_owned(), head.tenant_seq);
            let what = format!(
                "tenant {tenant} has its number {found} here, and {wanted} is due: one of its events is missing or hidden"
            );
            return Err(self.fault_at(seq, what));
        }
        Ok(())
    }

    /// The log's own checkpoints name the root as it was.
    fn attested(&mut self, seq: u64, system: SystemEvent) -> Result<(), ExportFault> {
        match system.kind {
            Some(system_event::Kind::CheckpointOpened(_)) => self.opened.push((seq, self.tree.root())),
            Some(system_event::Kind::Checkpointed(c)) => {
                if let Some(at) = self.opened.iter().position(|(opened, _)| *opened == c.seq) {
                    let (_, root) = self.opened.swap_remove(at);
                    if c.root != root {
                        let what = format!(
                            "it attests another root at event {}: one of the events {} to {} was altered",
                            c.seq,
                            self.sure + 1,
                            c.seq
                        );
                        return Err(self.fault_at(seq, what));
                    }
                    (self.sure, self.checkpoints) = (c.seq, self.checkpoints + 1);
                }
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    fn hide(&mut self, hidden: &ExportHidden) -> Result<(), ExportFault> {
        let (due, header) = (self.due().0, self.header()?);
        let leaves = 1u64.checked_shl(hidden.level).unwrap_or_default();
        let end = (due - 1).checked_add(leaves).filter(|end| *end <= header.to_seq);
        if header.tenant_id.is_empty() && end.is_none_or(|end| end >= header.from_seq) {
            return Err(self.fault_at(due, "it is hidden, in an export of every tenant's"));
        }
        let root = <[u8; 32]>::try_from(hidden.root.as_ref());
        let (Some(end), Ok(root)) = (end, root) else {
            return Err(self.fault_at(due, "what stands for hidden events from here on is none"));
        };
        if let Some(held) = self.held.iter().map(|head| head.size).find(|size| (due..end).contains(size)) {
            let what =
                format!("events are hidden across {held}, of which you hold a checkpoint: export with --since {held}");
            return Err(self.fault_at(due, what));
        }
        if !self.tree.push_subtree(hidden.level, root) {
            return Err(self.fault_at(
                due,
                "no such number of hidden events can begin here: one before it is missing, or one too many",
            ));
        }
        self.hidden += leaves;
        self.grown()
    }

    /// The tree has this size now: is it the one that was held?
    fn grown(&mut self) -> Result<(), ExportFault> {
        let size = self.tree.size();
        let next = self.held.get(self.continued as usize..).unwrap_or_default();
        let here: Vec<Hash> = next.iter().take_while(|head| head.size == size).map(|head| head.root).collect();
        for held in here {
            let known = self.held.get((self.continued as usize).wrapping_sub(1)).map_or(0, |head| head.size);
            if self.tree.root() != held {
                let what = format!(
                    "history was rewritten: with event {size} the root is not that of the checkpoint that you hold; events {} to {size}",
                    known + 1
                );
                return Err(self.fault_at(size, what));
            }
            (self.continued, self.sure) = (self.continued + 1, size);
        }
        Ok(())
    }

    fn end(&mut self, end: &ExportEnd) -> Result<(), ExportFault> {
        let (due, to) = (self.due().0, self.header()?.to_seq);
        if due <= to {
            return Err(self.fault_at(due, format!("events {due} to {to} are missing")));
        }
        if due > to + 1 {
            return Err(self.fault_at(due - 1, format!("it is here, though the header says that {to} is the last")));
        }
        if (end.events, end.hidden) != (self.events, self.hidden) {
            let (events, hidden) = (self.events, self.hidden);
            return Err(self.fault(format!(
                "{} events and {} hidden are announced, {events} and {hidden} are here",
                end.events, end.hidden
            )));
        }
        self.ended = true;
        Ok(())
    }

    /// After the last record.
    pub fn finish(mut self) -> Result<ExportReport, ExportFault> {
        if !self.ended {
            let seq = self.header.as_ref().map(|_| self.due());
            let what = "the file ends here, without its end: it was cut off".to_owned();
            return Err(ExportFault { record: self.records + 1, seq, what });
        }
        self.records = 0;
        let header = self.header()?;
        let whole = |e: NoteError| self.fault(format!("its note: {e}"));
        let note = Note::parse(header.note.as_bytes()).map_err(whole)?;
        let head = TreeHead::parse(note.text()).map_err(whole)?;
        let ours = header.epoch.parse().map(origin).is_ok_and(|origin| origin == head.origin);
        if !ours || head.size != header.to_seq {
            return Err(self.fault(format!("its note is of {} with {} events", head.origin, head.size)));
        }
        let root = self.tree.root();
        if head.root != root {
            let what = format!(
                "one of the events {} to {} was altered, or the note: the root that they have is not the one that was signed",
                self.sure + 1,
                head.size
            );
            return Err(self.fault(what));
        }
        let signers = match self.known.as_slice() {
            [] => None,
            known => Some(majority(&note, known).map_err(|what| self.fault(what))?),
        };
        Ok(ExportReport {
            epoch: header.epoch.clone(),
            tenant_id: header.tenant_id.clone(),
            from: Seq(header.from_seq),
            to: Seq(header.to_seq),
            events: self.events,
            redacted: self.redacted.clone(),
            hidden: self.hidden,
            root,
            signers,
            checkpoints: self.checkpoints,
            held: self.continued,
        })
    }
}

/// Who of the voters whose keys are `known` signed this note; the error says why they are not more than half of them.
pub fn majority(note: &Note, known: &[Verifier]) -> Result<Vec<String>, String> {
    let signers = note.signers(known).map_err(|e| format!("its note: {e}"))?;
    let names: Vec<String> = signers.iter().map(|v| v.name().to_owned()).collect();
    // One key under two names is one voter.
    let keys = |of: &mut dyn Iterator<Item = &[u8; 32]>| of.copied().collect::<BTreeSet<_>>().len();
    let all = keys(&mut known.iter().map(Verifier::key));
    if keys(&mut signers.iter().map(|v| v.key())) * 2 > all {
        return Ok(names);
    }
    let who = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(format!("of {all} voters whose keys you gave, {who} signed its note: that is no majority"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::Rng;
    use crate::log::records::{Splitter, record_write};
    use cvlan_proto::v1::{CheckpointOpened, Checkpointed, event::Body};
    use ed25519_dalek::SigningKey;

    const EPOCH: Epoch = Epoch([7; 16]);
    const TENANTS: [&str; 2] = ["11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"];

    /// A log of `count` events: of two tenants in no order, some of nobody, and checkpoints that are attested.
    struct Log {
        events: Vec<Bytes>,
        roots: Vec<Hash>,
    }

    impl Log {
        fn new(count: u64) -> Self {
            let (mut rng, mut numbers, mut tree) = (Rng(5), [0, 0], CompactRange::default());
            let (mut log, mut opened) = (Self { events: Vec::new(), roots: vec![tree.root()] }, None);
            for seq in 1..=count {
                let mut event = Event { seq, command_id: format!("{:032x}", rng.next()), ..Event::default() };
                match (seq % 50, opened) {
                    (20, _) => {
                        let kind = Some(system_event::Kind::CheckpointOpened(CheckpointOpened {}));
                        event.body = Some(Body::System(SystemEvent { kind }));
                        opened = Some(seq);
                    }
                    (25, Some(at)) => {
                        let root = log.roots[at as usize].to_vec();
                        let kind =
                            Some(system_event::Kind::Checkpointed(Checkpointed { seq: at, root, digest: vec![1; 32] }));
                        event.body = Some(Body::System(SystemEvent { kind }));
                    }
                    _ => {
                        let tenant = rng.below(5) as usize / 2;
                        if let Some(number) = numbers.get_mut(tenant) {
                            *number += 1;
                            (event.tenant_seq, event.tenant_id) = (*number, TENANTS[tenant].to_owned());
                        }
                    }
                }
                let bytes = Bytes::from(event.encode_to_vec());
                tree.push(&bytes);
                log.events.push(bytes);
                log.roots.push(tree.root());
            }
            log
        }

        fn head(&self, size: u64) -> TreeHead {
            TreeHead { origin: origin(EPOCH), size, root: self.roots[size as usize] }
        }

        fn note(&self, size: u64, voters: &[u64]) -> String {
            let mut note = Note::new(self.head(size).text());
            voters.iter().for_each(|n| note.sign(&signer(EPOCH, *n), &key(*n)));
            note.to_string()
        }

        fn export(&self, tenant: &str, from: u64, since: &[u64]) -> Vec<ExportRecord> {
            let to = self.events.len() as u64;
            let (tenant_id, note) = (tenant.to_owned(), self.note(to, &[1, 2]));
            let header = ExportHeader { epoch: EPOCH.to_string(), tenant_id, from_seq: from, to_seq: to, note };
            let (mut exporter, mut out) = (Exporter::new(since.to_vec()), vec![record(Kind::Header(header))]);
            for (event, seq) in self.events.iter().zip(1..) {
                let leaf = leaf_hash(event);
                let of = Event::decode(event.clone()).unwrap();
                if seq < from || !tenant.is_empty() && of.tenant_id != tenant {
                    exporter.hide(Seq(seq), leaf, &mut out);
                    continue;
                }
                let decoded = seq.is_multiple_of(2).then_some(of);
                let leaf = Bytes::copy_from_slice(&leaf);
                exporter.show(ExportEvent { event: event.clone(), leaf, redacted: false, decoded }, &mut out);
            }
            exporter.end(&mut out);
            out
        }
    }

    fn key(n: u64) -> SigningKey {
        SigningKey::from_bytes(&[n as u8; 32])
    }

    fn voters() -> Vec<Verifier> {
        (1..=3).map(|n| Verifier::new(&signer(EPOCH, n), key(n).verifying_key().as_bytes()).unwrap()).collect()
    }

    fn check(records: &[ExportRecord], held: &[TreeHead]) -> Result<ExportReport, ExportFault> {
        let from = match &records[0].kind {
            Some(Kind::Header(header)) => header.from_seq,
            _ => 1,
        };
        let mut checker = Checker::new(voters(), held.to_vec(), Seq(from));
        records.iter().try_for_each(|record| checker.record(record.clone()))?;
        checker.finish()
    }

    #[test]
    fn what_was_exported_is_what_the_log_had() {
        let log = Log::new(300);
        for tenant in ["", TENANTS[0], TENANTS[1]] {
            for from in [1, 2, 77, 256, 300] {
                let held = [log.head(1), log.head(100), log.head(100), log.head(129), log.head(300)];
                let export = log.export(tenant, from, &[1, 100, 129]);
                let report = check(&export, &held).unwrap_or_else(|e| panic!("{tenant} from {from}: {e}"));
                assert_eq!((report.to, report.root, report.held), (Seq(300), log.roots[300], 5));
                assert_eq!(report.events + report.hidden, 300);
                assert_eq!(report.signers.unwrap().len(), 2);
                assert_eq!(report.checkpoints > 0, tenant.is_empty() && from < 271, "{from}");
            }
        }
        // Few hashes for many events: 300 = 256 + 32 + 8 + 4, of which the last is shown.
        assert_eq!(log.export("", 300, &[]).len(), 1 + 5 + 1 + 1);
        let mut checker = Checker::new(Vec::new(), Vec::new(), Seq(1));
        log.export("", 1, &[]).into_iter().try_for_each(|record| checker.record(record)).unwrap();
        assert_eq!(checker.finish().unwrap().signers, None);
    }

    #[test]
    fn bytes_are_read_as_written_and_every_flipped_bit_is_noticed() {
        let export = Log::new(20).export(TENANTS[0], 1, &[]);
        let mut bytes = [MAGIC.as_slice(), &[FORMAT]].concat();
        export.iter().for_each(|record| record_write(record, &mut bytes));
        let read = |bytes: &[u8]| -> Result<Vec<ExportRecord>, String> {
            let (mut splitter, mut records) = (Splitter::new(MAGIC, FORMAT), Vec::new());
            splitter.push(bytes);
            while let Some((record, _)) = splitter.take()? {
                records.push(record);
            }
            if splitter.is_empty() { Ok(records) } else { Err("cut off".into()) }
        };
        assert_eq!(read(&bytes), Ok(export));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(read(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_number() {
        let log = Log::new(300);
        let (all, one) = (log.export("", 1, &[]), log.export(TENANTS[0], 1, &[]));
        let event = |record: &mut ExportRecord, change: &dyn Fn(&mut ExportEvent)| match &mut record.kind {
            Some(Kind::Event(event)) => change(event),
            other => panic!("{other:?}"),
        };
        let header = |record: &mut ExportRecord, change: &dyn Fn(&mut ExportHeader)| match &mut record.kind {
            Some(Kind::Header(header)) => change(header),
            other => panic!("{other:?}"),
        };
        let flip = |event: &mut ExportEvent| {
            let mut bytes = event.event.to_vec();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            event.event = bytes.into();
        };
        type Change<'a> = &'a dyn Fn(&mut Vec<ExportRecord>);
        let whole: &[(&str, Option<u64>, Change)] = &[
            ("altered", Some(17), &|r| event(&mut r[17], &flip)),
            ("event 17 is missing", Some(17), &|r| drop(r.remove(17))),
            ("events 17 to 18 are missing", Some(17), &|r| drop(r.drain(17..19))),
            ("comes where event 18", Some(17), &|r| r.insert(18, r[17].clone())),
            ("event 17 is missing", Some(17), &|r| r.swap(17, 18)),
            ("cut off", Some(100), &|r| r.truncate(100)),
            ("events 300 to 300 are missing", Some(300), &|r| drop(r.remove(300))),
            ("behind the end", None, &|r| r.push(r[1].clone())),
            ("second header", None, &|r| r.insert(5, r[0].clone())),
            ("begins with a header", None, &|r| drop(r.remove(0))),
            ("its note", None, &|r| header(&mut r[0], &|h| h.note = h.note.replace("300", "301"))),
            ("no majority", None, &|r| header(&mut r[0], &|h| h.note = log.note(300, &[2]))),
            // As one voter would who rewrites history: the leaf fits, the root does not.
            ("attests another root at event 20", Some(25), &|r| {
                event(&mut r[16], &|e| {
                    flip(e);
                    (e.leaf, e.decoded) = (Bytes::copy_from_slice(&leaf_hash(&e.event)), None);
                });
            }),
            ("one of the events 271 to 300", None, &|r| {
                event(&mut r[299], &|e| {
                    flip(e);
                    (e.leaf, e.decoded) = (Bytes::copy_from_slice(&leaf_hash(&e.event)), None);
                });
            }),
        ];
        for (what, seq, change) in whole {
            let mut records = all.clone();
            change(&mut records);
            let fault = check(&records, &[]).expect_err(what);
            assert!(fault.what.contains(what) && fault.seq.map(|s| s.0) == *seq, "{what}: {fault:?}");
        }
        // What is shown begins later than was asked for.
        let mut checker = Checker::new(voters(), Vec::new(), Seq(1));
        let late = log.export("", 2, &[]).remove(0);
        assert!(checker.record(late).unwrap_err().what.contains("--from 2"));
        // Marked as redacted, so that nobody looks at its bytes: only what has a secret may be.
        let mut records = all.clone();
        event(&mut records[17], &|e| {
            flip(e);
            (e.redacted, e.decoded) = (true, None);
        });
        assert!(check(&records, &[]).unwrap_err().what.contains("has no secret"));
        // A tenant's event among the hidden ones, with everything made to fit: the tenant's own number tells.
        let shown = one.iter().filter(|r| matches!(r.kind, Some(Kind::Event(_))));
        let third = shown.clone().nth(2).unwrap().clone();
        let Some(Kind::Event(third)) = third.kind else { panic!() };
        let seq = EventHead::decode(third.event.clone()).unwrap().seq;
        let (mut exporter, mut records) = (Exporter::new(Vec::new()), vec![one[0].clone()]);
        for (event, at) in log.events.iter().zip(1..) {
            let of = Event::decode(event.clone()).unwrap();
            let leaf = leaf_hash(event);
            match of.tenant_id == TENANTS[0] && at != seq {
                true => {
                    let leaf = Bytes::copy_from_slice(&leaf);
                    exporter.show(ExportEvent { event: event.clone(), leaf, ..ExportEvent::default() }, &mut records);
                }
                false => exporter.hide(Seq(at), leaf, &mut records),
            }
        }
        exporter.end(&mut records);
        let fault = check(&records, &[]).unwrap_err();
        assert!(fault.what.contains("has its number 4 here, and 3 is due"), "{fault}");
        // Another tenant's event in it.
        let mut records = one.clone();
        header(&mut records[0], &|h| h.tenant_id = TENANTS[1].to_owned());
        assert!(check(&records, &[]).unwrap_err().what.contains("another tenant's"));
    }

    #[test]
    fn what_was_held_before_shows_a_cut_tail_and_a_rewritten_history() {
        let (log, mut other) = (Log::new(300), Log::new(300));
        let cut = Log { events: log.events[..200].to_vec(), roots: log.roots[..201].to_vec() };
        let fault = check(&cut.export("", 1, &[]), &[log.head(250)]).unwrap_err();
        assert!(fault.what.contains("has 250 events, and here are 200") && fault.seq == Some(Seq(201)), "{fault}");
        // All voters together, with another event 30, and all that follows from it.
        let mut event = Event::decode(other.events[29].clone()).unwrap();
        event.reason = "another".into();
        other.events[29] = event.encode_to_vec().into();
        let mut tree = CompactRange::default();
        for (event, at) in other.events.iter_mut().zip(1u64..) {
            let mut read = Event::decode(event.clone()).unwrap();
            if let Some(Body::System(SystemEvent { kind: Some(system_event::Kind::Checkpointed(c)) })) = &mut read.body
            {
                c.root = other.roots[c.seq as usize].to_vec();
                *event = read.encode_to_vec().into();
            }
            tree.push(event);
            other.roots[at as usize] = tree.root();
        }
        let export = other.export("", 1, &[]);
        assert!(check(&export, &[]).is_ok());
        let fault = check(&export, &[log.head(100), log.head(20)]).unwrap_err();
        assert!(fault.what.contains("history was rewritten") && fault.what.contains("events 21 to 100"), "{fault}");
        let fault = check(&log.export("", 270, &[]), &[log.head(100)]).unwrap_err();
        assert!(fault.what.contains("--since 100"), "{fault}");
    }

    /// Files that were written are read for ever: what changes here needs another format.
    #[test]
    fn golden_bytes() {
        let mut bytes = [MAGIC.as_slice(), &[FORMAT]].concat();
        Log::new(60).export(TENANTS[0], 5, &[9]).iter().for_each(|record| record_write(record, &mut bytes));
        assert_eq!(hex::encode(leaf_hash(&bytes)), "e379cf3d8149aea4ca47bcd9922da311060c7f1f70955e530e00278f0acd75ed");
    }

    /// 1,000 changes at random, each of which an attacker makes fit as far as it can: with one voter's key of three.
    #[test]
    fn no_tamper_of_a_thousand_is_missed() {
        let log = Log::new(2_000);
        let export = log.export("", 1, &[]);
        let mut rng = Rng(11);
        for n in 0..1_000 {
            let mut records = export.clone();
            let last = records.len() - 2;
            let at = 1 + rng.below(last as u64) as usize;
            let to = 1 + rng.below(last as u64) as usize;
            let kind = rng.below(6);
            match kind {
                0 => {
                    let Some(Kind::Event(event)) = &mut records[at].kind else { panic!() };
                    let mut bytes = event.event.to_vec();
                    let byte = rng.below(bytes.len() as u64) as usize;
                    bytes[byte] ^= 1 << rng.below(8);
                    event.event = bytes.into();
                    if rng.below(2) == 0 {
                        (event.leaf, event.decoded) = (Bytes::copy_from_slice(&leaf_hash(&event.event)), None);
                    }
                }
                1 => drop(records.remove(at)),
                2 if at != to => records.swap(at, to),
                3 => {
                    let moved = records.remove(at);
                    records.insert(if to == at { to % last + 1 } else { to }, moved);
                }
                4 | 2 => {
                    // A cut tail, with an end and a note that fit it, by one voter.
                    let size = rng.below(1_500);
                    let cut = Log { events: log.events[..size as usize].to_vec(), roots: log.roots.clone() };
                    records = cut.export("", 1, &[]);
                    if let Some(Kind::Header(header)) = &mut records[0].kind
                        && rng.below(2) == 0
                    {
                        header.note = log.note(size, &[3]);
                    }
                }
                _ => {
                    let Some(Kind::Header(header)) = &mut records[0].kind else { panic!() };
                    let mut note = Note::new(TreeHead { root: [rng.below(256) as u8; 32], ..log.head(2_000) }.text());
                    note.sign(&signer(EPOCH, 3), &key(3));
                    header.note = note.to_string();
                }
            }
            let found = check(&records, &[log.head(1_500)]);
            assert!(found.is_err(), "tamper {n} of kind {kind} at {at}, {to} was missed");
        }
        assert!(check(&export, &[log.head(1_500)]).is_ok());
    }
}
