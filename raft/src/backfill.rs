//! History that a snapshot took the place of comes back from the other members, piece by piece, backwards.
//!
//! ```text
//! oldest here: entry i, event s, root before it ──► who has what comes before i? ──► from entry j; `size` events before it, their roots
//!      ▲                                                                                   │
//!      │                                              entries j … i-1, each continues the one before; they come to that root
//!      └──────────── the oldest here, now j ◄── kept, durably ◄────────────────────────────┘ or nothing of it is taken
//! ```
//! The root commits to every event before it (RFC 9162 §2.1), so who gives the piece need not be believed: neither its events
//! nor the roots of those still older. What no root covers, which member led when and who the members were, is taken from a
//! member as Raft takes it. A piece costs a member that gives it some reading, and rests follow.

use crate::base;
use crate::disk::{Files, Lane, on_disk};
use crate::error::HistoryError;
use crate::member::Shares;
use crate::peer::LOST_MS;
use crate::peer::codec::{self, Answer, Request};
use crate::peer::link::Link;
use crate::reading::page;
use crate::replica::Shared;
use crate::store::wal::{index, size};
use crate::sync::lock;
use crate::tree;
use crate::types::{Cfg, Entry};
use bytes::Bytes;
use cvlan_core::id::Seq;
use cvlan_core::log::entry_decode;
use cvlan_core::log::merkle::{CompactRange, Hash, leaf_hash};
use cvlan_core::machine::Machine;
use openraft::async_runtime::{Mutex as _, Select2, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, EntryPayload};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// An answer is waited for this long: a tree may have to be made first, of all of history.
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// How much longer nothing is asked than a piece took, and at most.
const REST: u32 = 4;
const REST_MAX: Duration = Duration::from_secs(2);

/// Rounds in which no state is asked for, after one that was no good.
const BASE_REST: u32 = 60;

/// A piece is at most so many times as long as was asked for.
const PIECE_MAX: u64 = 4;

/// Where the history here begins.
#[derive(Clone, Copy, Debug)]
struct Edge {
    /// Its first entry.
    index: u64,
    /// Its first event.
    seq: Seq,
    /// Root of the events before it.
    root: Hash,
}

/// Why a piece was not taken.
type Why = String;

/// Asks for what is missing, for as long as the member is there.
pub(crate) async fn run<M: Machine, RT: AsyncRuntime>(shares: Shares<M, RT>) {
    let every = Duration::from_millis(shares.shared.limits.backfill_ms);
    let mut halt = shares.shared.halt();
    let (mut said, mut rest) = (String::new(), 0);
    while !every.is_zero() && !*halt.borrow_watched() {
        let round = async {
            Cfg::<RT>::sleep(every).await;
            fill(&shares).await?;
            // A state is long: what was no good is not fetched again at once.
            if rest > 0 {
                rest -= 1;
                return Ok(());
            }
            base::fetch(&shares).await.inspect_err(|_| rest = BASE_REST)
        };
        match Cfg::<RT>::select2(halt.changed(), round).await {
            Select2::First(_) => return,
            Select2::Second(Ok(())) => said.clear(),
            Select2::Second(Err(why)) => {
                if said != why {
                    tracing::warn!(why, "history before this member's was not taken; trying again");
                }
                said = why;
            }
        }
    }
}

/// Takes whatever the others have; an error where one of them gives what it should not.
async fn fill<M: Machine, RT: AsyncRuntime>(shares: &Shares<M, RT>) -> Result<(), Why> {
    let Shares { shared, peers, .. } = shares;
    if enough(shared) || shared.head().seq.0 == 0 || shared.removed() || shared.wal.full() {
        return Ok(());
    }
    let Some(mut edge) = edge(shared).await.map_err(|error| error.to_string())? else { return Ok(()) };
    let (members, clock) = (shared.head().members.clone(), &shared.clock);
    let (mut wrong, mut older) = (None, false);
    for id in members.addresses.keys().filter(|id| **id != shared.member) {
        let answers = |link: &Arc<Link<RT>>| link.heard.answered_ms(&**clock).is_some_and(|ms| ms <= LOST_MS);
        let Some(link) = peers.known(*id).filter(answers) else {
            // Who knows what it has.
            older = true;
            continue;
        };
        loop {
            let began = clock.monotonic_us();
            match piece(shared, &link, edge).await {
                Ok(Given::Piece(next)) => edge = next,
                Ok(Given::Nothing) => break,
                Ok(Given::NotNow) => {
                    older = true;
                    break;
                }
                Err(why) => {
                    older = true;
                    wrong = Some(format!("member {id}: {why}"));
                    break;
                }
            }
            if enough(shared) {
                tracing::info!(from = edge.seq.0, "history is as whole as it has to be");
                return Ok(());
            }
            let took = Duration::from_micros(clock.monotonic_us().saturating_sub(began));
            Cfg::<RT>::sleep((took * REST).min(REST_MAX)).await;
        }
    }
    shared.sought.store(!older, Relaxed);
    wrong.map_or(Ok(()), Err)
}

/// All of it is here, or all that has to be kept: what is held, too.
fn enough<M: Machine, RT: AsyncRuntime>(shared: &Shared<M, RT>) -> bool {
    let kept = M::history_from(&shared.head().machine).min(Seq(shared.held.load(Relaxed)));
    shared.wal.oldest() == 0 || (kept > Seq(1) && shared.history_from() <= kept)
}

/// What a member has of what is asked for.
enum Given {
    /// A piece, which was taken: history begins there now.
    Piece(Edge),
    /// It has nothing older.
    Nothing,
    /// It cannot be asked now, or things have changed here.
    NotNow,
}

/// Where history begins here; `None` while it changes.
async fn edge<M: Machine, RT: AsyncRuntime>(shared: &Arc<Shared<M, RT>>) -> Result<Option<Edge>, HistoryError> {
    let (index, seq) = (shared.wal.oldest(), shared.history_from());
    let found = first_event(shared, index).await?;
    let head = shared.head();
    Ok(match found {
        Some((first, root)) => (first == seq).then_some(Edge { index, seq, root }),
        None => (head.seq.0 + 1 == seq.0).then_some(Edge { index, seq, root: head.root }),
    })
}

/// The first event at or after an entry, and the root before it.
pub(crate) async fn first_event<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    mut from: u64,
) -> Result<Option<(Seq, Hash)>, HistoryError> {
    loop {
        let (entries, _) = history(shared, from, u64::MAX).await?;
        let Some(last) = entries.last() else { return Ok(None) };
        from = last.log_id.index + 1;
        for entry in &entries {
            if let EntryPayload::Normal(frame) = &entry.payload {
                let entry = entry_decode(&frame.0).map_err(|error| HistoryError::Damaged(error.to_string()))?;
                let root = entry.prev_root.as_slice().try_into();
                let root = root.map_err(|_| HistoryError::Damaged("an entry without a root".into()))?;
                return Ok(Some((Seq(entry.first_seq), root)));
            }
        }
    }
}

/// A page of applied entries, those that are no part of history made blank; and up to where entries are applied.
pub(crate) async fn history<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    from: u64,
    end: u64,
) -> Result<(Vec<Entry>, u64), HistoryError> {
    let place = lock(&shared.place).clone();
    let applied = index(&place.last).map_or(0, |last| last + 1);
    let mut entries = page(shared, from, end.min(applied)).await?;
    for entry in &mut entries {
        if place.skipped.binary_search(&entry.log_id.index).is_ok() {
            entry.payload = EntryPayload::Blank;
        }
    }
    Ok((entries, applied))
}

/// One piece from one member.
async fn piece<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    link: &Arc<Link<RT>>,
    edge: Edge,
) -> Result<Given, Why> {
    let bytes = shared.limits.backfill_bytes;
    let asked = link.call(Request::Before { end: edge.index, bytes }, &[], ASK_LIMIT).await;
    let (from, before, roots) = match asked {
        Ok((Answer::Before { from, size, roots }, _)) => (from, size, roots),
        Ok((Answer::Nothing, _)) => return Ok(Given::Nothing),
        Ok(_) | Err(_) => return Ok(Given::NotNow),
    };
    let mut piece = Piece::begin(edge, (from, before, roots), bytes)?;
    while piece.due < edge.index {
        let asked = link.call(Request::Past { from: piece.due, end: edge.index }, &[], ASK_LIMIT).await;
        let Ok((Answer::Past, body)) = asked else { return Ok(Given::NotNow) };
        piece.take(body)?;
    }
    let (began, base, entries) = piece.fits()?;
    let _alone = shared.past.lock().await;
    if enough(shared) {
        return Ok(Given::NotNow);
    }
    let wal = shared.wal.clone();
    let job = move |files: &dyn Files| {
        let taken = wal.prepend(files, &entries)?;
        if taken {
            tree::base_write(files, &base)?;
        }
        Ok(taken)
    };
    let taken = on_disk::<RT, io::Result<bool>>(&shared.disk, Lane::Work, job).await;
    if !taken.and_then(|taken| taken).map_err(|error| error.to_string())? {
        return Ok(Given::NotNow);
    }
    shared.history_begins(edge.seq, began.seq);
    Ok(Given::Piece(began))
}

/// What one member gives, on its way.
struct Piece {
    edge: Edge,
    began: Edge,
    /// The tree that it begins with.
    base: CompactRange,
    range: CompactRange,
    entries: Vec<Entry>,
    due: u64,
    room: u64,
}

impl Piece {
    /// It is to begin with entry `from`, before which are `before` events.
    fn begin(edge: Edge, (from, before, roots): (u64, u64, Vec<Hash>), bytes: u64) -> Result<Self, Why> {
        let range = CompactRange::new(before, roots).filter(|_| from < edge.index && before < edge.seq.0);
        let range = range.ok_or("it says what cannot be")?;
        let began = Edge { index: from, seq: Seq(before + 1), root: range.root() };
        let room = bytes.saturating_mul(PIECE_MAX).max(codec::FRAME_MAX as u64);
        Ok(Self { edge, began, base: range.clone(), range, entries: Vec::new(), due: from, room })
    }

    /// The next entries.
    fn take(&mut self, body: Bytes) -> Result<(), Why> {
        self.room = self.room.checked_sub(body.len() as u64).ok_or("it gives more than was asked for")?;
        let page = codec::get_entries(body).map_err(|error| error.to_string())?;
        if page.is_empty() {
            return Err(format!("it gives no entry {}", self.due));
        }
        for entry in page {
            if entry.log_id.index != self.due || self.due >= self.edge.index {
                return Err(format!("it gives entry {} where entry {} is due", entry.log_id.index, self.due));
            }
            self.due += 1;
            self.grow(&entry)?;
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Adds an entry's events, which have to come next.
    fn grow(&mut self, entry: &Entry) -> Result<(), Why> {
        let EntryPayload::Normal(frame) = &entry.payload else { return Ok(()) };
        let read = entry_decode(&frame.0).map_err(|error| format!("entry {}: {error}", entry.log_id))?;
        if read.first_seq != self.range.size() + 1 || read.prev_root != self.range.root() {
            return Err(format!("entry {} does not continue the ones before", entry.log_id));
        }
        read.events.iter().for_each(|event| self.range.push_hash(leaf_hash(event)));
        Ok(())
    }

    /// Where it begins, the tree there, and the entries, where they are what came before the edge.
    fn fits(self) -> Result<(Edge, CompactRange, Vec<Entry>), Why> {
        match (self.range.size() + 1, self.range.root()) == (self.edge.seq.0, self.edge.root) {
            true => Ok((self.began, self.base, self.entries)),
            false => Err(format!("what it gives does not come to the root before event {}", self.edge.seq)),
        }
    }
}

/// What [`Request::Before`] comes to here.
pub(crate) async fn before<M: Machine, RT: AsyncRuntime>(shared: &Arc<Shared<M, RT>>, end: u64, bytes: u64) -> Answer {
    let answer = async {
        let applied = index(&lock(&shared.place).last).map_or(0, |last| last + 1);
        if end > applied {
            return Ok(Answer::Unable("it is not applied here yet".into()));
        }
        let Some(mut from) = shared.wal.before(end, bytes) else { return Ok(Answer::Nothing) };
        let first = first_event(shared, from).await?;
        let first = first.map_or_else(|| Seq(shared.head().seq.0 + 1), |(first, _)| first);
        if first < shared.history_from() {
            return Ok(Answer::Unable("history changes here".into()));
        }
        // What precedes the first event of all belongs to it.
        if first <= Seq(1) {
            from = shared.wal.oldest();
        }
        let size = first.0 - 1;
        let roots = match size {
            0 => Vec::new(),
            size => tree::hide(shared, Seq(size), Vec::new()).await?.into_iter().map(|(_, root)| root).collect(),
        };
        Ok::<_, HistoryError>(Answer::Before { from, size, roots })
    };
    answer.await.unwrap_or_else(|error| Answer::Unable(error.to_string()))
}

/// What [`Request::Past`] comes to here: at least one entry, [`crate::reading::PAGE_BYTES`] or one entry more at most.
pub(crate) async fn past<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    from: u64,
    end: u64,
) -> (Answer, Bytes) {
    if from < shared.wal.oldest() {
        return (Answer::Nothing, Bytes::new());
    }
    let told = history(shared, from, end).await.map(|(mut entries, _)| {
        let mut room = codec::FRAME_MAX / 2;
        let fit = entries.iter().take_while(|entry| {
            let fits = room > 0;
            room = room.saturating_sub(size(entry));
            fits
        });
        let fit = fit.count();
        entries.truncate(fit);
        codec::put_entries(&entries)
    });
    match told {
        Ok(body) => (Answer::Past, body),
        Err(error) => (Answer::Unable(error.to_string()), Bytes::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Frame, LeaderId, LogId};
    use cvlan_core::id::Epoch;
    use cvlan_core::log::EntryWriter;

    fn entry(index: u64, first: u64, root: Hash, events: &[&[u8]]) -> Entry {
        let mut writer = EntryWriter::new(Epoch([7; 16]), Seq(first), root, events.len(), 64);
        for event in events {
            writer.push(|out| out.extend_from_slice(event));
        }
        let leader_id = LeaderId { term: 1, node_id: 1 };
        let log_id = LogId { leader_id, index };
        Entry { log_id, payload: EntryPayload::Normal(Frame(writer.finish().0)) }
    }

    /// Ten entries of two events from index 1 on, a blank one before them, and the tree after each.
    fn log() -> (Vec<Entry>, Vec<CompactRange>) {
        let mut trees = vec![CompactRange::default()];
        let mut entries = vec![Entry { payload: EntryPayload::Blank, ..entry(0, 1, [0; 32], &[]) }];
        for index in 1..=10u64 {
            let mut tree = trees[index as usize - 1].clone();
            let events = [[index as u8, 1], [index as u8, 2]];
            entries.push(entry(index, 2 * index - 1, tree.root(), &[&events[0], &events[1]]));
            events.iter().for_each(|event| tree.push_hash(leaf_hash(event)));
            trees.push(tree);
        }
        (entries, trees)
    }

    fn taken(edge: Edge, begin: (u64, u64, Vec<Hash>), pages: &[&[Entry]]) -> Result<(Edge, Vec<Entry>), Why> {
        let mut piece = Piece::begin(edge, begin, 1)?;
        for page in pages {
            piece.take(codec::put_entries(page))?;
        }
        assert_eq!(piece.due, edge.index, "as the loop has it");
        piece.fits().map(|(began, _, entries)| (began, entries))
    }

    #[test]
    fn what_does_not_come_to_the_root_is_not_taken_whatever_was_said() {
        let (log, trees) = log();
        let edge = Edge { index: 9, seq: Seq(17), root: trees[8].root() };
        let begin = || (4, 6, trees[3].roots().to_vec());
        let (began, entries) = taken(edge, begin(), &[&log[4..6], &log[6..9]]).unwrap();
        assert_eq!((began.index, began.seq, began.root), (4, Seq(7), trees[3].root()));
        assert_eq!(entries, log[4..9]);
        let (began, entries) = taken(edge, (0, 0, vec![]), &[&log[..9]]).unwrap();
        assert_eq!((began.index, began.seq, entries.len()), (0, Seq(1), 9));

        let other =
            |index: usize, events: &[&[u8]]| entry(index as u64, 2 * index as u64 - 1, trees[index - 1].root(), events);
        let mut lies: Vec<(&str, Vec<Entry>)> = Vec::new();
        for (what, at, events) in [
            ("an altered event", 6, &[&[6u8, 1][..], &[6, 3]][..]),
            ("in another order", 5, &[&[5, 2], &[5, 1]]),
            ("one too few", 8, &[&[8, 1]]),
            ("one too many", 8, &[&[8, 1], &[8, 2], &[8, 3]]),
            ("the first altered", 4, &[&[9, 9], &[4, 2]]),
        ] {
            let mut page = log[4..9].to_vec();
            page[at - 4] = other(at, events);
            lies.push((what, page));
        }
        let blank = Entry { payload: EntryPayload::Blank, ..log[7].clone() };
        lies.push(("one made blank", [&log[4..7], &[blank], &log[8..9]].concat()));
        let gap = Entry { log_id: log[7].log_id, ..log[8].clone() };
        lies.push(("one left out", [&log[4..7], &[gap], &log[8..9]].concat()));
        for (what, page) in lies {
            assert!(taken(edge, begin(), &[&page]).is_err(), "{what}");
        }
        for (what, begin) in [
            ("roots of another tree", (4, 6, trees[7].roots()[..2].to_vec())),
            ("too many roots", (4, 6, trees[7].roots().to_vec())),
            ("fewer events", (4, 4, trees[2].roots().to_vec())),
            ("more events than there are", (4, 17, trees[8].roots().to_vec())),
            ("beyond the edge", (9, 6, trees[3].roots().to_vec())),
        ] {
            assert!(taken(edge, begin, &[&log[4..9]]).is_err(), "{what}");
        }
        let mut piece = Piece::begin(edge, begin(), 1).unwrap();
        for (what, page) in [("nothing", &log[..0]), ("an earlier one", &log[3..9]), ("too many", &log[4..11])] {
            assert!(piece.take(codec::put_entries(page)).is_err(), "{what}");
            piece = Piece::begin(edge, begin(), 1).unwrap();
        }
        let large = vec![0; codec::FRAME_MAX + 1];
        assert_eq!(piece.take(large.into()).unwrap_err(), "it gives more than was asked for");
    }
}
