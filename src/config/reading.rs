//! One reading of the configuration file: what it held, or why it could not be read.

use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::credential;
use super::tree::{self, FILE_LIMIT};

/// Tells one content of the file from another, and each reason why there is none.
pub(super) type Fingerprint = [u8; 32];

/// What one reading brought. No `Debug`: it may hold credentials.
#[derive(Clone)]
pub struct Reading {
    /// At most one byte more than is used; else why there are none.
    pub(super) bytes: Result<Zeroizing<Vec<u8>>, String>,
    pub(super) readable_by_others: bool,
    pub(super) fingerprint: Fingerprint,
}

impl Reading {
    /// Reads a file. A pipe would block and a device would not end: only a plain file is read, and never more than is
    /// used.
    pub(super) fn of(path: &Path) -> Self {
        match read(path) {
            Ok((bytes, readable_by_others)) => {
                let fingerprint = Sha256::digest(&bytes).into();
                Self { bytes: Ok(Zeroizing::new(bytes)), readable_by_others, fingerprint }
            }
            Err(why) => {
                // A file that holds just this is refused as well.
                let fingerprint = Sha256::new().chain_update(b"\0").chain_update(&why).finalize().into();
                Self { bytes: Err(why), readable_by_others: false, fingerprint }
            }
        }
    }

    /// Where there is no file to be read.
    pub(super) fn nothing() -> Self {
        Self { bytes: Ok(Zeroizing::default()), readable_by_others: false, fingerprint: Fingerprint::default() }
    }

    /// Whether the file could not be read.
    pub(super) fn is_missing(&self) -> bool {
        self.bytes.is_err()
    }

    /// Whether the file is empty, but for comments.
    pub(super) fn says_nothing(&self) -> bool {
        self.bytes.as_ref().is_ok_and(|bytes| std::str::from_utf8(bytes).is_ok_and(tree::says_nothing))
    }
}

fn read(path: &Path) -> Result<(Vec<u8>, bool), String> {
    let plain = |metadata: &std::fs::Metadata| match metadata.is_file() {
        true => Ok(()),
        false if metadata.is_dir() => Err("it is a directory".to_owned()),
        false => Err("it is not a plain file".to_owned()),
    };
    let metadata = std::fs::metadata(path).map_err(|error| credential::kind(&error))?;
    plain(&metadata)?;
    let file = std::fs::File::open(path).map_err(|error| credential::kind(&error))?;
    let metadata = file.metadata().map_err(|error| credential::kind(&error))?;
    plain(&metadata)?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(FILE_LIMIT).unwrap_or(u64::MAX) + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(|error| credential::kind(&error))?;
    Ok((bytes, others_may_read(&metadata)))
}

#[cfg(unix)]
fn others_may_read(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    metadata.permissions().mode() & 0o077 != 0
}

#[cfg(not(unix))]
fn others_may_read(_: &std::fs::Metadata) -> bool {
    false
}
