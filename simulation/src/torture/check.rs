//! What is proven at the end, from every member's whole log as it lies on its disk.

use super::load::{Outcome, Write};
use crate::lock;
use anyhow::{Context, ensure};
use cvlan_core::Rules;
use cvlan_core::machine::Machine;
use cvlan_raft::{LogStore, VerifyReport, read_dir};
use openraft_rt_tokio::TokioRuntime;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// By caller and its number: the events that say so.
pub type Found = HashMap<(u32, u32), Vec<u64>>;

/// A member's log.
#[derive(Default)]
pub struct Log {
    /// SHA-256 of every event, by seq - 1.
    pub leaves: Vec<[u8; 32]>,
    /// Our writes.
    pub found: Found,
}

/// `tw12-34`, as [`super::load`] names its requests.
fn request(id: &str) -> Option<(u32, u32)> {
    let (caller, n) = id.strip_prefix("tw")?.split_once('-')?;
    Some((caller.parse().ok()?, n.parse().ok()?))
}

/// Reads a folder that no member has open; replays it as well, so that roots and digests are those that it says.
pub async fn read(data: &Path) -> anyhow::Result<(Log, VerifyReport)> {
    let log = Arc::new(Mutex::new(Log::default()));
    let (to, disk) = (log.clone(), LogStore::open(None, data)?);
    let each = move |seq: cvlan_core::id::Seq, bytes: &bytes::Bytes| {
        let mut log = lock(&to);
        log.leaves.push(Sha256::digest(bytes).into());
        if let Some(ours) = Rules::decode(bytes).ok().and_then(|event| request(&event.request_id)) {
            log.found.entry(ours).or_default().push(seq.0);
        }
    };
    let report =
        read_dir::<Rules, TokioRuntime>(disk, |_| {}, each).await.with_context(|| data.display().to_string())?;
    ensure!(report.from.0 == 1, "{}: history begins with event {}", data.display(), report.from);
    let log = std::mem::take(&mut *lock(&log));
    Ok((log, report))
}

/// Two logs are one history: the same bytes as far as both go, and the same attested checkpoints.
pub fn same(a: (&str, &Log, &VerifyReport), b: (&str, &Log, &VerifyReport)) -> Vec<String> {
    let mut wrong = Vec::new();
    if a.2.epoch != b.2.epoch {
        wrong.push(format!("{} is of epoch {}, {} of {}", a.0, a.2.epoch, b.0, b.2.epoch));
    }
    if let Some(at) = a.1.leaves.iter().zip(&b.1.leaves).position(|(a, b)| a != b) {
        wrong.push(format!("event {} of {} is another one than that of {}", at + 1, a.0, b.0));
    }
    if let Some((a_at, b_at)) = a.2.checkpoints.iter().zip(&b.2.checkpoints).find(|(a, b)| a != b) {
        wrong.push(format!("{} attests {a_at:?}, {} attests {b_at:?}", a.0, b.0));
    }
    if a.1.leaves.len() == b.1.leaves.len() && (a.2.root, a.2.digest) != (b.2.root, b.2.digest) {
        wrong.push(format!("{} and {} have the same events and another root or digest", a.0, b.0));
    }
    wrong
}

/// Compares what callers were told with what is in the log.
pub fn proved(writes: &[Write], found: &Found) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut asked: HashMap<(u32, u32), &Write> = HashMap::with_capacity(writes.len());
    for write in writes {
        asked.insert((write.caller, write.n), write);
        let seqs = found.get(&(write.caller, write.n)).map(Vec::as_slice).unwrap_or_default();
        let fits = match write.outcome {
            Outcome::Acked(Some(seq)) => seqs == [seq],
            Outcome::Acked(None) => seqs.len() == 1,
            Outcome::Unknown => seqs.len() <= 1,
            Outcome::Refused | Outcome::Taken => seqs.is_empty(),
        };
        if !fits {
            wrong.push(format!("{write:?} is in the log as {seqs:?}"));
        }
    }
    wrong.extend(
        found.iter().filter(|(id, _)| !asked.contains_key(id)).map(|(id, seqs)| {
            format!("nobody sent write {} of caller {}, which is in the log as {seqs:?}", id.1, id.0)
        }),
    );
    wrong.extend(in_order(&asked, found));
    wrong.extend(one_winner(writes, found));
    wrong
}

/// What was acknowledged before another was sent has the smaller number.
fn in_order(asked: &HashMap<(u32, u32), &Write>, found: &Found) -> Option<String> {
    let by_seq: BTreeMap<u64, &Write> =
        found.iter().flat_map(|(id, seqs)| seqs.iter().filter_map(|seq| Some((*seq, *asked.get(id)?)))).collect();
    let mut latest: Option<(u64, &Write)> = None;
    for (seq, write) in by_seq {
        if let Some((before, earlier)) = latest
            && matches!(write.outcome, Outcome::Acked(_))
            && write.done_us < earlier.sent_us
        {
            return Some(format!(
                "event {before} ({earlier:?}) was sent after event {seq} ({write:?}) was acknowledged"
            ));
        }
        if latest.is_none_or(|(_, latest)| latest.sent_us < write.sent_us) {
            latest = Some((seq, write));
        }
    }
    None
}

/// Of those who want a name one gets it, and nobody is told that it is taken before someone has asked for it.
fn one_winner(writes: &[Write], found: &Found) -> Vec<String> {
    let mut winners: BTreeMap<u64, Vec<&Write>> = BTreeMap::new();
    for write in writes.iter().filter(|write| found.contains_key(&(write.caller, write.n))) {
        if let Some(name) = write.rival {
            winners.entry(name).or_default().push(write);
        }
    }
    let many = winners.iter().filter(|(_, winners)| winners.len() > 1);
    let mut wrong: Vec<String> = many.map(|(name, winners)| format!("rival-{name} has {winners:?}")).collect();
    for write in writes.iter().filter(|write| write.outcome == Outcome::Taken) {
        let winner = write.rival.and_then(|name| winners.get(&name)).and_then(|winners| winners.first());
        if winner.is_none_or(|winner| winner.sent_us >= write.done_us) {
            wrong.push(format!("{write:?}: but nobody had it"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(n: u32, sent_us: u64, done_us: u64, outcome: Outcome) -> Write {
        Write { caller: 1, n, rival: None, sent_us, done_us, outcome }
    }

    fn found(seqs: &[(u32, &[u64])]) -> Found {
        seqs.iter().map(|(n, seqs)| ((1, *n), seqs.to_vec())).collect()
    }

    #[test]
    fn what_was_acknowledged_is_there_once_and_what_was_refused_is_not() {
        let writes = [
            write(1, 0, 10, Outcome::Acked(Some(5))),
            write(2, 11, 20, Outcome::Refused),
            write(3, 21, 30, Outcome::Unknown),
            write(4, 31, 40, Outcome::Acked(None)),
        ];
        for (seqs, wrong) in [
            (&[(1, &[5][..]), (4, &[7])][..], 0),
            (&[(1, &[5][..]), (3, &[6]), (4, &[7])][..], 0),
            // Lost, twice, at another place, refused and done, done twice, unknown to us.
            (&[(4, &[7][..])][..], 1),
            (&[(1, &[5, 6][..]), (4, &[7])][..], 1),
            (&[(1, &[6][..]), (4, &[7])][..], 1),
            (&[(1, &[5][..]), (2, &[6]), (4, &[7])][..], 1),
            (&[(1, &[5][..]), (3, &[6, 7]), (4, &[8])][..], 1),
            (&[(1, &[5][..]), (4, &[7]), (9, &[8])][..], 1),
        ] {
            let said = proved(&writes, &found(seqs));
            assert_eq!(said.len(), wrong, "{seqs:?}: {said:?}");
        }
    }

    #[test]
    fn the_log_agrees_with_the_order_in_which_callers_saw_it() {
        let acked = |seq| Outcome::Acked(Some(seq));
        let order = |second: Write, seqs: [u64; 2]| {
            let writes = [write(1, 0, 10, acked(seqs[0])), second];
            proved(&writes, &found(&[(1, &[seqs[0]]), (2, &[seqs[1]])])).len()
        };
        assert_eq!(order(write(2, 11, 20, acked(2)), [1, 2]), 0);
        assert_eq!(order(write(2, 11, 20, acked(1)), [2, 1]), 1);
        assert_eq!(order(write(2, 11, 20, Outcome::Unknown), [2, 1]), 1);
        // At the same time: either order.
        assert_eq!(order(write(2, 9, 20, acked(1)), [2, 1]), 0);
    }

    #[test]
    fn a_name_has_one_winner() {
        let rival = |n, sent_us, done_us, outcome| Write { rival: Some(7), ..write(n, sent_us, done_us, outcome) };
        let writes = [rival(1, 0, 10, Outcome::Acked(Some(5))), rival(2, 3, 12, Outcome::Taken)];
        assert_eq!(proved(&writes, &found(&[(1, &[5])])), Vec::<String>::new());
        assert_eq!(proved(&writes[1..], &found(&[])).len(), 1, "taken by nobody");
        let both = [writes[0], rival(2, 3, 12, Outcome::Acked(Some(6)))];
        assert_eq!(proved(&both, &found(&[(1, &[5]), (2, &[6])])).len(), 1, "two have it");
        let late = [rival(1, 20, 30, Outcome::Acked(Some(5))), writes[1]];
        assert_eq!(proved(&late, &found(&[(1, &[5])])).len(), 1, "taken before anybody asked");
    }
}
