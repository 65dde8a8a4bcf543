//! The control daemon: enrols once, follows the sync stream, feeds the data daemon.
//!
//! ```text
//!  follow ──Effect──► Shared (state.db, then the queue) ──► feed ──Configure, Patch──► cvland
//!    ▲                                                       │
//!    └────────────── Ack ◄──────── running ◄─────────────────┘
//! ```
//! All of it is one thread: the parts are futures that are polled together, and [`Shared`] is never borrowed across a
//! wait.

mod feed;
mod queue;
mod run;
pub mod status;

use cvlan_core::id::Checkpoint;
use cvlan_link::store::{Store, StoreError};
use cvlan_link::sync::{Effect, Live, Sink};
use queue::Queue;
use std::cell::RefCell;
use tokio::sync::{Notify, watch};

pub use run::{Exit, Settings, run};

/// What the parts share.
pub(crate) struct Shared {
    store: RefCell<Store>,
    queue: RefCell<Queue>,
    /// The store has something that the data daemon may not have yet.
    changed: Notify,
    live: watch::Receiver<Live>,
}

impl Sink for Shared {
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StoreError> {
        Ok(self.store.borrow().position()?.checkpoint)
    }

    fn take(&self, effect: Effect) -> Result<(), StoreError> {
        let before = self.checkpoint()?;
        self.store.borrow_mut().take(&effect)?;
        self.queue.borrow_mut().push(before, effect);
        self.changed.notify_one();
        Ok(())
    }

    fn controllers(&self, urls: &[String]) -> Result<(), StoreError> {
        let mut store = self.store.borrow_mut();
        let mut all = urls.to_vec();
        for known in store.urls()? {
            if !all.contains(&known) {
                all.push(known);
            }
        }
        store.urls_set(&all)
    }

    fn wipe(&self) -> Result<(), StoreError> {
        self.store.borrow_mut().wipe()?;
        self.queue.borrow_mut().clear();
        self.changed.notify_one();
        Ok(())
    }
}
