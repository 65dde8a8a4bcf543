//! The log without Raft: for benchmarks, and for what cuts the power under it.

use crate::clock::SystemClock;
use crate::disk::{Disk, Files, Lane};
use crate::error::OpenError;
use crate::options::{Limits, Plant};
use crate::status::Stats;
use crate::store::open;
use crate::store::wal::{Done, Setup, Wal, index};
use crate::types::{Entry, Frame, LeaderId, LogId};
use bytes::Bytes;
use openraft::EntryPayload;
use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

/// The log of a folder. Its methods block; they are not for async code.
pub struct BareLog {
    disk: Arc<dyn Disk>,
    wal: Arc<Wal>,
    next: Mutex<u64>,
}

impl BareLog {
    /// Opens the log of a folder, or begins one: every record is read and checked.
    pub fn open(disk: Arc<dyn Disk>, limits: &Limits, plant: Plant) -> Result<Self, OpenError> {
        let (segment_bytes, tail_bytes) = (limits.segment_bytes, limits.tail_bytes);
        let setup = Setup { member: Some(1), segment_bytes, tail_bytes, plant, probe: Arc::new(|_| None) };
        let scan = setup.clone();
        let state = on_lane(&disk, move |files| open::open(files, &scan)).map_err(OpenError::io("opening"))??;
        let wal = Wal::new(disk.clone(), Arc::new(SystemClock::default()), Arc::new(Stats::default()), setup, state);
        wal.prepare();
        let next = index(&wal.marks().last).map_or(0, |last| last + 1);
        Ok(Self { disk, wal, next: Mutex::new(next) })
    }

    /// Entries in it.
    pub fn count(&self) -> u64 {
        *crate::sync::lock(&self.next)
    }

    /// Appends entries, as one block with whatever else waits; `done` is told once they are durable, or never will be.
    pub fn append(
        &self,
        entries: impl IntoIterator<Item = Bytes>,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) -> io::Result<()> {
        let mut next = crate::sync::lock(&self.next);
        let entry = |bytes| {
            let log_id = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index: *next };
            *next += 1;
            Entry { log_id, payload: EntryPayload::Normal(Frame(bytes)) }
        };
        let entries: Vec<Entry> = entries.into_iter().map(entry).collect();
        self.wal.append(entries, Box::new(done))
    }

    /// Reads all entries, in order.
    pub fn read(&self, mut each: impl FnMut(u64, Bytes) + Send + 'static) -> io::Result<()> {
        let wal = self.wal.clone();
        on_lane(&self.disk, move |_| {
            wal.visit(wal.oldest()..u64::MAX, &mut |entry| {
                if let EntryPayload::Normal(frame) = entry.payload {
                    each(entry.log_id.index, frame.0);
                }
                true
            })
        })?
    }

    /// Waits until everything is written, and for whatever the log still does on the disk.
    pub fn close(self) -> io::Result<()> {
        let (tx, rx) = sync_channel(1);
        let done: Done = Box::new(move |result| drop(tx.send(result)));
        self.wal.close(done);
        rx.recv().map_err(|_| gone())??;
        let (tx, rx) = sync_channel(1);
        self.disk.run(
            Lane::Work,
            Box::new(move |_| {
                let _ = tx.send(());
            }),
        );
        rx.recv().map_err(|_| gone())
    }
}

fn on_lane<T: Send + 'static>(
    disk: &Arc<dyn Disk>,
    job: impl FnOnce(&dyn Files) -> T + Send + 'static,
) -> io::Result<T> {
    let (tx, rx) = sync_channel(1);
    disk.run(Lane::Log, Box::new(move |files| drop(tx.send(job(files)))));
    rx.recv().map_err(|_| gone())
}

fn gone() -> io::Error {
    io::Error::other("the disk is gone")
}
