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
        let names: Vec<String> = {
            let mut state = lock(&self.state);
            let (past, own) = state.before(bound);
            past.iter().for_each(|first| drop(state.past.remove(first)));
            own.iter().for_each(|number| drop(state.segments.remove(number)));
            let oldest = state.segments.keys().next().copied().unwrap_or_default();
            state.cuts.retain(|cut| cut.segment >= oldest);
            past.into_iter().map(past_name).chain(own.into_iter().map(segment_name)).collect()
        };
        for name in &names {
            files.remove(name)?;
        }
        for folder in ["past", "log"] {
            if names.iter().any(|name| name.starts_with(folder)) {
                files.sync_folder(folder)?;
            }
        }
        Ok(names.len())
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
