//! The file of the log: it is put aside when it is large, and opened anew when somebody else has put it aside. All of
//! that happens on the writer's thread.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// When a file is put aside, and how many are kept.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// Largest file, in bytes; a single longer line gets a file of its own.
    pub size: u64,
    /// Older files beside it: `NAME.1` is the newest of them.
    pub kept: u32,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { size: 50 * 1024 * 1024, kept: 5 }
    }
}

#[derive(Debug)]
pub(super) struct Rolling {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    size: u64,
    /// Where the next attempt to put it aside is due.
    due: u64,
    reopen: Arc<AtomicBool>,
}

impl Rolling {
    /// Opens the file; whoever sets `reopen` has it opened anew before the next write.
    pub(super) fn open(path: PathBuf, rotation: Rotation, reopen: Arc<AtomicBool>) -> io::Result<Self> {
        let file = open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, rotation, file, size, due: rotation.size, reopen })
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }

    fn put_aside(&mut self) -> io::Result<()> {
        for number in (1..self.rotation.kept).rev() {
            match std::fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.rotation.kept == 0 {
            std::fs::remove_file(&self.path)?;
        } else {
            std::fs::rename(&self.path, self.numbered(1))?;
        }
        self.start()
    }

    fn start(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        self.size = self.file.metadata()?.len();
        self.due = self.rotation.size;
        Ok(())
    }
}

impl Write for Rolling {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whatever goes wrong with another file, the one that is open takes the line.
        if self.reopen.swap(false, Ordering::Relaxed) {
            let _ = self.start();
        }
        if self.size > 0 && self.size + bytes.len() as u64 > self.due && self.put_aside().is_err() {
            self.due = self.size + self.rotation.size;
        }
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rolling(path: &Path, size: u64, kept: u32) -> (Rolling, Arc<AtomicBool>) {
        let reopen = Arc::new(AtomicBool::new(false));
        (Rolling::open(path.to_owned(), Rotation { size, kept }, reopen.clone()).expect("opened"), reopen)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_large_file_is_put_aside_and_old_ones_are_dropped() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("logs.jsonl");
        let (mut log, _) = rolling(&path, 20, 2);
        for number in 0..9 {
            log.write_all(format!("line {number:04}\n").as_bytes()).expect("written");
        }
        assert_eq!(names(folder.path()), ["logs.jsonl", "logs.jsonl.1", "logs.jsonl.2"]);
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("text");
        assert_eq!(read("logs.jsonl"), "line 0008\n");
        assert_eq!(read("logs.jsonl.1"), "line 0006\nline 0007\n");
        assert_eq!(read("logs.jsonl.2"), "line 0004\nline 0005\n");
        // What was there before the start counts.
        let (mut log, _) = rolling(&path, 15, 2);
        log.write_all(b"after a restart\n").expect("written");
        assert_eq!((read("logs.jsonl.1").as_str(), read("logs.jsonl").as_str()), ("line 0008\n", "after a restart\n"));
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_is_written_on() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("logs.jsonl");
        // A folder that is not empty stands in its way.
        std::fs::create_dir_all(folder.path().join("logs.jsonl.1/x")).expect("folder");
        let (mut log, _) = rolling(&path, 20, 1);
        for _ in 0..9 {
            log.write_all(b"ten bytes\n").expect("written");
        }
        assert_eq!(std::fs::read(&path).expect("text").len(), 90);
    }

    #[test]
    fn a_file_that_somebody_else_put_aside_is_opened_anew() {
        let folder = tempfile::tempdir().expect("folder");
        let (path, aside) = (folder.path().join("logs.jsonl"), folder.path().join("aside"));
        let (mut log, reopen) = rolling(&path, 1000, 1);
        log.write_all(b"one\n").expect("written");
        std::fs::rename(&path, &aside).expect("renamed");
        log.write_all(b"two\n").expect("written");
        reopen.store(true, Ordering::Relaxed);
        log.write_all(b"three\n").expect("written");
        assert_eq!(std::fs::read_to_string(&aside).expect("text"), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).expect("text"), "three\n");
    }
}
