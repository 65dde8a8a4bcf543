//! A file that lines are appended to, by one writer, wherever others move it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a line that was cut off is looked for in, bytes.
const TORN: u64 = 4 << 20;

/// A file of lines, open and locked.
pub(super) struct Lines {
    path: PathBuf,
    rotate: u64,
    keep: usize,
    file: File,
}

impl Lines {
    /// Without a line that was cut off at the end: it comes again. An error where another process has it.
    pub(super) fn open(path: PathBuf, rotate: u64, keep: usize) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // What is no file is not waited for.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut file = OpenOptions::new().create(true).read(true).append(true).custom_flags(flags).open(&path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is something that is no file"));
        }
        // A file system without locks has one writer of ours all the same.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process writes it"));
        }
        let from = found.len().saturating_sub(TORN);
        let mut end = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut end)?;
        if end.last().is_some_and(|byte| *byte != b'\n') {
            file.set_len(from + end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at as u64 + 1))?;
        }
        let lines = Self { path, rotate, keep, file };
        lines.folder_sync()?;
        Ok(lines)
    }

    /// Durable once it returns, in the file that has the name now: one that was moved away is left as it is.
    pub(super) fn write(mut self, text: &[u8]) -> io::Result<Self> {
        if !self.named()? {
            self = Self::open(self.path, self.rotate, self.keep)?;
        }
        // Others may have cut it.
        let length = self.file.metadata()?.len();
        if length > 0 && length + text.len() as u64 > self.rotate {
            self = self.turn()?;
        }
        self.file.write_all(text)?;
        self.file.sync_data()?;
        match self.file.metadata()?.nlink() {
            0 => Err(io::Error::new(io::ErrorKind::NotFound, "it was removed while it was written")),
            _ => Ok(self),
        }
    }

    /// Is it still the one that has the name?
    fn named(&self) -> io::Result<bool> {
        let own = self.file.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Gives it another name, and those before it too; the oldest goes.
    fn turn(self) -> io::Result<Self> {
        let numbered = |n: usize| self.path.with_added_extension(n.to_string());
        for n in (1..self.keep).rev() {
            match std::fs::rename(numbered(n), numbered(n + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => {}
            }
        }
        match self.keep {
            0 => std::fs::remove_file(&self.path)?,
            _ => std::fs::rename(&self.path, numbered(1))?,
        }
        Self::open(self.path, self.rotate, self.keep)
    }

    fn folder_sync(&self) -> io::Result<()> {
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(mut lines: Lines, numbers: std::ops::Range<u32>) -> Lines {
        for n in numbers {
            lines = lines.write(format!("line {n}\n").as_bytes()).unwrap();
        }
        lines
    }

    fn text(range: std::ops::Range<u32>) -> Option<String> {
        Some(range.map(|n| format!("line {n}\n")).collect())
    }

    #[test]
    fn lines_are_rotated_and_a_torn_one_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/events.ndjson");
        drop(written(Lines::open(path.clone(), 20, 2).unwrap(), 0..9));
        let read = |name: &str| std::fs::read_to_string(dir.path().join("deep").join(name)).ok();
        assert_eq!((read("events.ndjson"), read("events.ndjson.1")), (text(8..9), text(6..8)));
        assert_eq!((read("events.ndjson.2"), read("events.ndjson.3")), (text(4..6), None));
        std::fs::write(&path, "line 1\nlin").unwrap();
        written(Lines::open(path.clone(), 100, 2).unwrap(), 2..3);
        assert_eq!(read("events.ndjson"), text(1..3));
        std::fs::write(&path, "no end").unwrap();
        written(Lines::open(path, 100, 2).unwrap(), 1..2);
        assert_eq!(read("events.ndjson"), text(1..2));
    }

    #[test]
    fn a_file_that_is_moved_removed_or_cut_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("events"), dir.path().join("moved"));
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        let lines = written(Lines::open(path.clone(), 1000, 2).unwrap(), 0..2);
        // As logrotate does, with `create` and without.
        std::fs::rename(&path, &moved).unwrap();
        let lines = written(lines, 2..3);
        assert_eq!((read(&moved), read(&path)), (text(0..2), text(2..3)));
        std::fs::rename(&path, &moved).unwrap();
        std::fs::write(&path, "").unwrap();
        let lines = written(lines, 3..4);
        assert_eq!((read(&moved), read(&path)), (text(2..3), text(3..4)));
        std::fs::remove_file(&path).unwrap();
        let lines = written(lines, 4..5);
        assert_eq!(read(&path), text(4..5));
        // As `copytruncate` does: no hole where its text was.
        std::fs::write(&path, "").unwrap();
        written(lines, 5..6);
        assert_eq!(read(&path), text(5..6));
    }

    #[test]
    fn one_writes_at_a_time_and_only_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let why = |path: &Path| Lines::open(path.to_owned(), 100, 2).err().map(|e| e.to_string()).unwrap_or_default();
        let lines = written(Lines::open(path.clone(), 100, 2).unwrap(), 0..1);
        std::fs::hard_link(&path, dir.path().join("other name")).unwrap();
        assert!(
            why(&path).contains("another process") && why(&dir.path().join("other name")).contains("another process")
        );
        drop(lines);
        assert_eq!(why(&path), "");
        let pipe = dir.path().join("pipe");
        // By no other process: one that begins holds every lock for a moment.
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        for no_file in [pipe.as_path(), dir.path(), Path::new("/dev/null")] {
            assert_ne!(why(no_file), "", "{}", no_file.display());
        }
    }
}
