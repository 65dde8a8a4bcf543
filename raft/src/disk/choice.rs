//! What keeps the log of a data folder: chosen when it begins, found again in it ever after.

use super::{Disk, FileDisk, SLED, SledDisk};
use crate::error::OpenError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// What keeps the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStore {
    /// Files of the log's own: segments that were written before they are needed.
    #[default]
    Wal,
    /// A sled database.
    Sled,
}

impl LogStore {
    /// What keeps the log in a data folder; `None` where no log was begun.
    pub fn found(data: &Path) -> io::Result<Option<Self>> {
        if data.join(SLED).is_dir() {
            return Ok(Some(Self::Sled));
        }
        let names = match fs::read_dir(data.join("log")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            names => names?,
        };
        for name in names {
            if name?.path().extension().is_some_and(|extension| extension == "seg") {
                return Ok(Some(Self::Wal));
            }
        }
        Ok(None)
    }

    /// Opens a data folder with what keeps its log, or, where none was begun, with what is `asked` for.
    pub fn open(asked: Option<Self>, data: &Path) -> Result<Arc<dyn Disk>, OpenError> {
        let found = Self::found(data).map_err(OpenError::io("reading log/"))?;
        if let (Some(found), Some(asked)) = (found, asked)
            && found != asked
        {
            return Err(OpenError::OtherStore { found, asked });
        }
        Ok(match found.or(asked).unwrap_or_default() {
            Self::Wal => FileDisk::open(data)?,
            Self::Sled => SledDisk::open(data)?,
        })
    }
}

impl fmt::Display for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wal => "wal",
            Self::Sled => "sled",
        })
    }
}

impl FromStr for LogStore {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "wal" => Ok(Self::Wal),
            "sled" => Ok(Self::Sled),
            _ => Err("it is wal or sled"),
        }
    }
}
