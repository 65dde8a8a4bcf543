//! The trace: every event of a simulation with its virtual time, in one running hash. Same seed, same trace.

use crate::lock;
use crate::runtime::now_us;
use sha2::{Digest, Sha256};
use std::fmt::{Arguments, Write};
use std::sync::{Arc, Mutex};

/// Cheap to clone.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    hash: Sha256,
    count: u64,
    line: String,
    kept: Option<String>,
}

impl Trace {
    /// `keep` = the text too, not only its hash.
    pub fn new(keep: bool) -> Self {
        Self(Arc::new(Mutex::new(Lines { kept: keep.then(String::new), ..Lines::default() })))
    }

    /// One line: `µs what`.
    pub fn line(&self, what: Arguments<'_>) {
        let lines = &mut *lock(&self.0);
        lines.line.clear();
        // Writing into a String cannot fail.
        let _ = writeln!(lines.line, "{:>10} {what}", now_us());
        lines.hash.update(&lines.line);
        lines.count += 1;
        if let Some(kept) = &mut lines.kept {
            kept.push_str(&lines.line);
        }
    }

    /// Hash over the lines so far.
    pub fn hash(&self) -> [u8; 32] {
        lock(&self.0).hash.clone().finalize().into()
    }

    /// Lines so far.
    pub fn count(&self) -> u64 {
        lock(&self.0).count
    }

    /// The text, if it was kept.
    pub fn text(&self) -> Option<String> {
        lock(&self.0).kept.clone()
    }
}
