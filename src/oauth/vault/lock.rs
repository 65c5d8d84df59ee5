//! Locks between processes: `flock` on a file that stays, so that the kernel frees it when its holder dies, however
//! that happens. Nothing here is a lock because a file exists, and nothing expires while it is held.

use std::fs::{File, OpenOptions, TryLockError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::error::VaultError;
use super::private::Folder;
use crate::provider::Email;

/// Longest wait for the lock of a whole store: it is held for one read and one write.
const STORE_LIMIT: Duration = Duration::from_secs(5);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(20);

/// The sole right to renew one account's token, in all processes of this user, until it is dropped. Hold it over
/// reading the store again, the request to the authorization server, and the save.
#[derive(Debug)]
#[must_use = "dropping it is letting go"]
pub struct AccountLock(
    #[expect(dead_code, reason = "dropped, not read: closing the file frees the lock")] Option<File>,
);

impl AccountLock {
    /// Where nothing is shared with another process.
    pub(super) fn alone() -> Self {
        Self(None)
    }

    pub(super) fn held(file: File) -> Self {
        Self(Some(file))
    }
}

/// The name of an account in the names of files and of keyring entries: safe everywhere, the same whatever the case of
/// the address.
pub(super) fn account_name(email: &Email) -> String {
    let digest = Sha256::digest(email.as_str().to_ascii_lowercase().as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The file of a lock; created where it is missing, never removed (a lock on a removed file excludes nobody).
fn file(folder: &Folder, name: &str) -> Result<File, VaultError> {
    let folder = folder.inner("locks");
    folder.prepare()?;
    let name = named(name);
    let file = folder.open(&name, OpenOptions::new().read(true).write(true).create(true).truncate(false))?;
    file.ok_or_else(|| VaultError::Damaged { path: folder.path(&name) })
}

/// What is locked for an account: its file. Where nothing can be written, the file as it is, else the whole folder: that
/// a token cannot be stored does not mean that two processes may use the one before it.
pub(super) fn account(folder: &Folder, name: &str) -> Result<File, VaultError> {
    let error = match file(folder, name) {
        Err(error) if error.is_unwritable() => error,
        other => return other,
    };
    match folder.inner("locks").open(&named(name), OpenOptions::new().read(true)) {
        Ok(Some(file)) => Ok(file),
        _ => File::open(folder).map_err(|_| error),
    }
}

fn named(name: &str) -> String {
    format!("{name}.lock")
}

/// Tries once; `false` = somebody else holds it.
pub(super) fn attempt(file: &File, folder: &Folder) -> Result<bool, VaultError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(VaultError::io("lock a file in", folder.as_ref())(error)),
    }
}

/// The lock of a whole store. Waits on this thread, which is never one of the runtime's.
pub(super) fn store(folder: &Folder, name: &str) -> Result<File, VaultError> {
    folder.prepare()?;
    let (file, until) = (file(folder, name)?, Instant::now() + STORE_LIMIT);
    while !attempt(&file, folder)? {
        if Instant::now() >= until {
            return Err(VaultError::Busy("the lock of the store of tokens"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(file)
}

/// Waits between two tries of an account's lock.
pub(super) async fn pause() {
    tokio::time::sleep(AGAIN).await;
}
