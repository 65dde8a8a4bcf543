//! The record as a file: how fast it is checked, and that nothing that was done to it is missed.

use super::replay::LongLog;
use super::write::open;
use super::{Bench, Sample, on_tokio};
use anyhow::{anyhow, ensure};
use bytes::Bytes;
use cvlan_core::Rules;
use cvlan_core::grammar::Rng;
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::log::export::{Checker, Exporter, FORMAT, MAGIC, origin, record, signer};
use cvlan_core::log::note::{Note, TreeHead, Verifier};
use cvlan_core::log::records::{Splitter, record_write};
use cvlan_core::log::{CompactRange, leaf_hash};
use cvlan_proto::v1::export_record::Kind;
use cvlan_proto::v1::{ExportEvent, ExportHeader, ExportRecord};
use ed25519_dalek::SigningKey;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Bytes that are checked at once, as read from a file.
const PIECE: usize = 1 << 20;
/// Events of the export that is tampered with.
const EVENTS: u64 = 100_000;
/// Tampers in a round: with three rounds a thousand.
const TAMPERS: u64 = 334;

fn key(n: u64) -> SigningKey {
    SigningKey::from_bytes(&[n as u8; 32])
}

fn voters(epoch: Epoch) -> Vec<Verifier> {
    (1..=3).filter_map(|n| Verifier::new(&signer(epoch, n), key(n).verifying_key().as_bytes())).collect()
}

/// An export of a log's first events, signed by two of three; and the tree's head.
struct Made {
    records: Vec<ExportRecord>,
    head: TreeHead,
    half: TreeHead,
    epoch: Epoch,
}

fn note(head: &TreeHead, epoch: Epoch, who: &[u64]) -> String {
    let mut note = Note::new(head.text());
    who.iter().for_each(|n| note.sign(&signer(epoch, *n), &key(*n)));
    note.to_string()
}

fn make(log: &LongLog, to: u64) -> anyhow::Result<Made> {
    on_tokio(async {
        let member = open::<Rules>(log.folder.path(), false).await?;
        let epoch = member.head().epoch;
        let (mut tree, mut exporter, mut records) = (CompactRange::default(), Exporter::new(Vec::new()), Vec::new());
        let head = |tree: &CompactRange| TreeHead { origin: origin(epoch), size: tree.size(), root: tree.root() };
        let mut half = head(&tree);
        while tree.size() < to {
            let page = member.history(Seq(tree.size() + 1), 4096).await?;
            ensure!(!page.is_empty(), "event {} is not here", tree.size() + 1);
            for (_, event) in page.into_iter().take((to - tree.size()) as usize) {
                let leaf = leaf_hash(&event);
                tree.push_hash(leaf);
                let leaf = Bytes::copy_from_slice(&leaf);
                exporter.show(ExportEvent { event, leaf, ..ExportEvent::default() }, &mut records);
                if tree.size() == to / 2 {
                    half = head(&tree);
                }
            }
        }
        member.shutdown().await;
        exporter.end(&mut records);
        let head = head(&tree);
        let header = ExportHeader {
            epoch: epoch.to_string(),
            from_seq: 1,
            to_seq: to,
            note: note(&head, epoch, &[1, 2]),
            ..ExportHeader::default()
        };
        records.insert(0, record(Kind::Header(header)));
        Ok(Made { records, head, half, epoch })
    })
}

/// `export_verify`: events a second, on one core: every byte, leaf, number and checkpoint, the root, the signatures.
pub(super) fn verify(bench: &Bench) -> anyhow::Result<Sample> {
    let log = bench.long_log()?;
    let made = make(log, log.events)?;
    let mut bytes = [MAGIC.as_slice(), &[FORMAT]].concat();
    made.records.iter().for_each(|record| record_write(record, &mut bytes));
    let started = Instant::now();
    let (mut records, mut checker) =
        (Splitter::new(MAGIC, FORMAT), Checker::new(voters(made.epoch), vec![made.half], Seq(1)));
    for piece in bytes.chunks(PIECE) {
        records.push(piece);
        while let Some((record, _)) = records.take().map_err(|why| anyhow!(why))? {
            checker.record(record)?;
        }
    }
    let report = checker.finish()?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(report.events == log.events && report.root == made.head.root, "{report:?}");
    let mut keys = log.keys();
    keys.push(("mb_per_s", format!("{:.1}", bytes.len() as f64 / 1e6 / seconds)));
    Ok(Sample::new(log.events as f64 / seconds, keys))
}

/// `export_tampers_noticed`: changes at random, each made to fit as far as one voter's key of three goes, that were noticed: all of them.
pub(super) fn tampers(bench: &Bench) -> anyhow::Result<Sample> {
    static ROUNDS: AtomicU64 = AtomicU64::new(0);
    let made = make(bench.long_log()?, EVENTS.min(bench.events()))?;
    let mut rng = Rng(ROUNDS.fetch_add(1, Relaxed));
    let check = |records: &[ExportRecord]| -> anyhow::Result<()> {
        let mut checker = Checker::new(voters(made.epoch), vec![made.half.clone()], Seq(1));
        records.iter().try_for_each(|record| checker.record(record.clone()))?;
        checker.finish()?;
        Ok(())
    };
    check(&made.records)?;
    let mut noticed = 0;
    for _ in 0..TAMPERS {
        noticed += u64::from(check(&tampered(&made, &mut rng)?).is_err());
    }
    ensure!(noticed == TAMPERS, "{} tampers were missed", TAMPERS - noticed);
    Ok(Sample::new(noticed as f64, vec![("tampers", TAMPERS.to_string()), ("events", made.head.size.to_string())]))
}

fn tampered(made: &Made, rng: &mut Rng) -> anyhow::Result<Vec<ExportRecord>> {
    let mut records = made.records.clone();
    // Between the header and the end.
    let inner = records.len() as u64 - 2;
    let at = (1 + rng.below(inner)) as usize;
    let to = (1 + (at as u64 + rng.below(inner - 1)) % inner) as usize;
    match rng.below(6) {
        0 => {
            let event = records.get_mut(at).and_then(|record| match &mut record.kind {
                Some(Kind::Event(event)) => Some(event),
                _ => None,
            });
            let event = event.ok_or_else(|| anyhow!("record {at} is no event"))?;
            let mut bytes = event.event.to_vec();
            let byte = rng.below(bytes.len() as u64) as usize;
            bytes.get_mut(byte).into_iter().for_each(|byte| *byte ^= 1 << rng.below(8));
            event.event = bytes.into();
            if rng.one_in(2) {
                event.leaf = Bytes::copy_from_slice(&leaf_hash(&event.event));
            }
        }
        1 => drop(records.remove(at)),
        2 => records.swap(at, to),
        3 => {
            let moved = records.remove(at);
            records.insert(to, moved);
        }
        4 => {
            // The tail is cut off before what is held, with a header and an end that fit, signed by one.
            let size = rng.below(made.half.size).max(1);
            let mut tree = CompactRange::default();
            records.truncate(size as usize + 1);
            for record in &records {
                if let Some(Kind::Event(event)) = &record.kind {
                    tree.push(&event.event);
                }
            }
            let head = TreeHead { origin: origin(made.epoch), size, root: tree.root() };
            if let Some(ExportRecord { kind: Some(Kind::Header(header)) }) = records.first_mut() {
                (header.to_seq, header.note) = (size, note(&head, made.epoch, &[3]));
            }
            records.push(record(Kind::End(cvlan_proto::v1::ExportEnd { events: size, hidden: 0 })));
        }
        _ => {
            // The right root, and a wrong one, signed by one of three.
            let root = if rng.one_in(2) { made.head.root } else { rng.bytes() };
            let head = TreeHead { root, ..made.head.clone() };
            if let Some(ExportRecord { kind: Some(Kind::Header(header)) }) = records.first_mut() {
                header.note = note(&head, made.epoch, &[3]);
            }
        }
    }
    Ok(records)
}
