//! Why a store did not do what it was asked to. Nothing here holds anything of a token.

use std::io;
use std::path::{Path, PathBuf};

use crate::oauth::token::{Generation, RecordFault};

/// Why a store did not do what it was asked to. What was stored before is still stored, whatever this says.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// It does not answer, or not in time; it may later.
    #[error("the store of tokens is unavailable: {0}")]
    Unavailable(String),
    /// Somebody else has written a newer record; it is to be read and used.
    #[error("the stored token is newer")]
    Stale {
        /// The generation that is stored; none = the account was removed.
        stored: Option<Generation>,
    },
    /// A record is there, but cannot be read.
    #[error(transparent)]
    Record(#[from] RecordFault),
    /// Another process (or task) holds a lock for longer than was to be waited.
    #[error("{0} is held by somebody else")]
    Busy(&'static str),
    /// A folder or file that others may read or change; it was neither read nor written.
    #[error("{} {why}", path.display())]
    Insecure {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, and the cure.
        why: &'static str,
    },
    /// A file is there, but is not what it should be; it is left as it is.
    #[error("{} is damaged; it is left as it is (move it away to start anew)", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
    },
    /// A file that a newer version has written; it is left as it is.
    #[error("{} was written by a newer version of this program", path.display())]
    Newer {
        /// Which.
        path: PathBuf,
    },
    /// A sealed file, and no passphrase.
    #[error("{} is sealed: set CLAUDE_CODE_BALANCER_PASSPHRASE or CLAUDE_CODE_BALANCER_PASSPHRASE_FILE", path.display())]
    Sealed {
        /// Which.
        path: PathBuf,
    },
    /// A sealed file, and another passphrase than the one it was sealed with.
    #[error("{} was sealed with another passphrase; it is left as it is", path.display())]
    Passphrase {
        /// Which.
        path: PathBuf,
    },
    /// More than the store takes in one piece.
    #[error("{bytes} bytes are more than the store takes at once ({limit})")]
    TooLarge {
        /// What was to be stored.
        bytes: usize,
        /// What can be.
        limit: usize,
    },
    /// The operating system refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

impl VaultError {
    /// Turns the operating system's answer into an error that says what was being done, and to what.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// Whether nothing can be written there, although it may be read.
    pub(super) fn is_unwritable(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let Self::Io { source, .. } = self else { return false };
        matches!(source.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
    }

    /// Whether the same call may succeed later without anybody's help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Busy(_) | Self::Io { .. })
    }
}
