//! What a tree head that someone kept says of a log that is looked at later.

use super::merkle::Hash;
use super::note::{Note, NoteError, TreeHead};

/// How a log fails to continue what was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeldError {
    /// It is shorter.
    #[error("the note that you hold has {held} events, the log {here}: its end was cut off")]
    Cut {
        /// Events of the note.
        held: u64,
        /// Events of the log.
        here: u64,
    },
    /// It has other events.
    #[error("history was rewritten: the log does not continue the {size} events of the note that you hold")]
    Rewritten {
        /// Events of the note.
        size: u64,
    },
}

impl HeldError {
    /// Stable.
    pub fn code(&self) -> &'static str {
        "log_differs"
    }
}

/// Reads the tree head of a note; who signed it is not looked at: whoever kept it knew.
pub fn held_read(bytes: &[u8]) -> Result<TreeHead, NoteError> {
    TreeHead::parse(Note::parse(bytes)?.text())
}

/// A log of `here` events can continue it.
pub fn reaches(held: &TreeHead, here: u64) -> Result<(), HeldError> {
    if held.size > here { Err(HeldError::Cut { held: held.size, here }) } else { Ok(()) }
}

/// A log with this root at the note's size continues it. A tree of nothing has one root alone.
pub fn same(held: &TreeHead, root: &Hash) -> Result<(), HeldError> {
    let size = held.size;
    if size > 0 && held.root != *root { Err(HeldError::Rewritten { size }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Epoch;
    use crate::log::export::{origin, signer};
    use ed25519_dalek::SigningKey;

    #[test]
    fn a_cut_end_and_another_history_are_told_apart() {
        let head = TreeHead { origin: origin(Epoch([3; 16])), size: 9, root: [7; 32] };
        let mut note = Note::new(head.text());
        note.sign(&signer(Epoch([3; 16]), 1), &SigningKey::from_bytes(&[1; 32]));
        assert_eq!(held_read(note.to_string().as_bytes()), Ok(head.clone()));
        assert!(held_read(b"no note").is_err());
        assert_eq!((reaches(&head, 9), reaches(&head, 10)), (Ok(()), Ok(())));
        assert_eq!(reaches(&head, 8), Err(HeldError::Cut { held: 9, here: 8 }));
        assert_eq!((same(&head, &[7; 32]), same(&head, &[8; 32])), (Ok(()), Err(HeldError::Rewritten { size: 9 })));
        assert_eq!(same(&TreeHead { size: 0, ..head }, &[8; 32]), Ok(()));
        assert_eq!(HeldError::Rewritten { size: 9 }.code(), "log_differs");
    }
}
