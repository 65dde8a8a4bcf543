//! Ids, sequence numbers and checkpoints: newtypes, so that one cannot be taken for another.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! uuid_id {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Reads the text form that events carry. Anything that is no UUID gives the nil id, which names nothing:
            /// `decide` never writes one, so `apply` needs no error path.
            pub fn of(text: &str) -> Self {
                Self(Uuid::parse_str(text).unwrap_or_default())
            }

            /// The text form that events carry: as `Display`, without its detours.
            pub fn text(&self) -> String {
                self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()).to_owned()
            }

            /// True for the nil id.
            pub fn is_nil(&self) -> bool {
                self.0.is_nil()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    )*};
}

uuid_id! {
    /// A tenant.
    TenantId,
    /// A virtual network of a tenant.
    CvlanId,
    /// A machine in one CVLAN.
    NodeId,
    /// A registration token.
    TokenId,
    /// A person.
    UserId,
    /// A signing key of a tenant.
    KeyId,
    /// A command, chosen at random at the door: a retry is the same command.
    CommandId,
}

/// A controller of the cluster: its number in Raft, and the seq of the event that admitted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct MemberId(pub u64);

impl MemberId {
    /// The member that the log began on.
    pub const FOUNDER: Self = Self(1);

    /// In 16 bytes, where ids of all nouns stand together: the audit.
    pub fn uuid(self) -> Uuid {
        Uuid::from_u128(u128::from(self.0))
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MemberId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Counts events, from 1; 0 is the state before the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// 128-bit id of one incarnation of a log: made at bootstrap, changed by a restore. All zero = none yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub [u8; 16]);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Epoch {
    type Err = CheckpointError;
    fn from_str(text: &str) -> Result<Self, CheckpointError> {
        let mut bytes = [0u8; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| CheckpointError)?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({self})")
    }
}

/// Up to where someone has seen everything; written `32 hex . decimal`.
///
/// ```
/// use cvlan_core::id::Checkpoint;
/// let text = "000102030405060708090a0b0c0d0e0f.42";
/// let checkpoint: Checkpoint = text.parse().unwrap();
/// assert_eq!(checkpoint.seq.0, 42);
/// assert_eq!(checkpoint.to_string(), text);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Which incarnation of the log.
    pub epoch: Epoch,
    /// The last event seen.
    pub seq: Seq,
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.seq)
    }
}

/// The text is not `32 hex . decimal`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a checkpoint is 32 hex digits, a dot and a decimal number")]
pub struct CheckpointError;

impl FromStr for Checkpoint {
    type Err = CheckpointError;
    fn from_str(text: &str) -> Result<Self, CheckpointError> {
        let (epoch, seq) = text.split_once('.').ok_or(CheckpointError)?;
        let epoch = epoch.parse()?;
        if seq.is_empty() || !seq.bytes().all(|b| b.is_ascii_digit()) {
            return Err(CheckpointError);
        }
        Ok(Self { epoch, seq: Seq(seq.parse().map_err(|_| CheckpointError)?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_checkpoint_is_an_error() {
        for text in [
            "",
            ".",
            "00.1",
            "000102030405060708090a0b0c0d0e0f.",
            "000102030405060708090a0b0c0d0e0f.+1",
            "000102030405060708090a0b0c0d0e0f.99999999999999999999",
            "zz0102030405060708090a0b0c0d0e0f.1",
        ] {
            assert_eq!(text.parse::<Checkpoint>(), Err(CheckpointError), "{text}");
        }
    }
}
