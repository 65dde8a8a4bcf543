//! The trace: every event of a simulation with its virtual time, in one running hash. Same seed, same trace.

use crate::lock;
use crate::runtime::now_us;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::fmt::{Arguments, Write};
use std::sync::{Arc, Mutex};

/// Marks that are kept for the picture: the newest ones.
pub const MARKS: usize = 60_000;

/// What a mark stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A member has opened.
    Up,
    /// A process has ended.
    Down,
    /// A member leads, in this term.
    Leads(u64),
    /// A member does not lead any more.
    Follows,
    /// A fault, until then, µs.
    Fault(u64),
    /// A frame has arrived at this machine; it was sent then, µs.
    Frame(usize, u64),
    /// A command or a read was answered; it was sent then, µs.
    Answer(u64),
    /// A promise was broken.
    Violation,
}

/// One thing in the picture.
#[derive(Clone, Debug)]
pub struct Mark {
    /// When, µs.
    pub at_us: u64,
    /// On which machine; `None` = on none of them.
    pub lane: Option<usize>,
    /// What.
    pub sign: Sign,
    /// In words.
    pub text: String,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    hash: Sha256,
    count: u64,
    line: String,
    kept: Option<String>,
    marks: VecDeque<Mark>,
}

impl Trace {
    /// `keep` = the text and the marks too, not only the hash.
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

    /// One line that is also in the picture.
    pub fn mark(&self, lane: Option<usize>, sign: Sign, what: Arguments<'_>) {
        match lane {
            Some(lane) => self.line(format_args!("s{lane} {what}")),
            None => self.line(what),
        }
        let lines = &mut *lock(&self.0);
        if lines.kept.is_some() {
            lines.marks.push_back(Mark { at_us: now_us(), lane, sign, text: what.to_string() });
            if lines.marks.len() > MARKS {
                lines.marks.pop_front();
            }
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

    /// Who else still has it: every part of a world does, so that without one nothing of the world is left.
    pub fn others(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }

    /// The text, if it was kept.
    pub fn text(&self) -> Option<String> {
        lock(&self.0).kept.clone()
    }

    /// The newest marks, if they were kept.
    pub fn marks(&self) -> Vec<Mark> {
        lock(&self.0).marks.iter().cloned().collect()
    }
}
