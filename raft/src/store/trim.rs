//! Old files go: whole ones, oldest first, the past's before the log's own.

use crate::disk::Files;
use crate::store::past::past_name;
use crate::store::segment::segment_name;
use crate::store::wal::{State, Wal};
use crate::sync::lock;
use std::io;

impl Wal {
    /// Files that hold nothing but entries before `bound`, which is not above the purge marker.
    pub(crate) fn trimmable(&self, bound: u64) -> usize {
        let state = lock(&self.state);
        let (past, own) = state.before(bound);
        past.len() + own.len()
    }

    /// The oldest entry that is left without those files; `None` where none would go.
    pub(crate) fn oldest_after(&self, bound: u64) -> Option<u64> {
        let state = lock(&self.state);
        let (past, own) = state.before(bound);
        let kept = state.past.keys().find(|first| !past.contains(first)).copied();
        let left = state.segments.range(own.last().map_or(0, |last| last + 1)..);
        let point = || left.filter_map(|(_, segment)| segment.points.first()).map(|point| point.index).next();
        (past.len() + own.len() > 0).then(|| kept.unwrap_or_else(|| point().unwrap_or(state.base()).max(state.base())))
    }

    /// Removes them, oldest first, durably; returns how many. On the disk's lane.
    pub(crate) fn trim(&self, files: &dyn Files, bound: u64) -> io::Result<usize> {
        let (past, own) = lock(&self.state).before(bound);
        // Each is gone for good before the next one goes: what is left follows each other, whatever happens.
        for first in &past {
            files.remove(&past_name(*first))?;
            files.sync_folder("past")?;
            lock(&self.state).past.remove(first);
        }
        for number in &own {
            files.remove(&segment_name(*number))?;
            files.sync_folder("log")?;
            let mut state = lock(&self.state);
            state.segments.remove(number);
            state.cuts.retain(|cut| cut.segment > *number);
        }
        Ok(past.len() + own.len())
    }
}

impl State {
    /// Files, by their names' numbers, that hold nothing but entries before `bound`: of the past; then, once it is gone, of the log.
    fn before(&self, bound: u64) -> (Vec<u64>, Vec<u64>) {
        let base = self.base();
        let ends = self.past.keys().skip(1).copied().chain([base]);
        let past: Vec<u64> =
            self.past.keys().copied().zip(ends).take_while(|(_, end)| *end <= bound).map(|(f, _)| f).collect();
        let active = self.active().map_or(0, |(number, _)| number);
        let own = self
            .segments
            .iter()
            .take_while(|(number, segment)| **number < active && segment.highest.is_none_or(|highest| highest < bound));
        let own = if past.len() == self.past.len() { own.map(|(number, _)| *number).collect() } else { Vec::new() };
        (past, own)
    }
}
