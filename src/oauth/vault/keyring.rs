//! Accounts in the system's keyring, as the rest of the program sees it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::Listed;
use super::disk::Disk;
use super::entries::Entries;
use super::error::VaultError;
use super::options::{OpenKeyring, Options};
use super::ring::Ring;
use super::seal::Key;
use super::worker::Worker;

/// Longest single call.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// See [`Vault::Keyring`](super::Vault::Keyring).
#[derive(Debug)]
pub struct Keyring {
    thread: Worker<Entries>,
    service: String,
    pub(super) disk: Arc<Disk>,
    /// The journal's key, once the keyring has given it.
    journal_key: OnceLock<Key>,
}

impl Keyring {
    pub(super) fn new(options: &Options, disk: Arc<Disk>) -> Self {
        let (open, service, retry): (OpenKeyring, _, _) =
            (options.keyring.clone(), options.service.clone(), options.retry);
        let folder = disk.folder().clone();
        let thread = {
            let service = service.clone();
            Worker::start("keyring", CALL_LIMIT, move |pulse| {
                Entries::new(Ring::new(open, service.clone(), retry, pulse), &service, folder)
            })
        };
        Self { thread, service, disk, journal_key: OnceLock::new() }
    }

    /// The keyring service.
    pub fn service(&self) -> &str {
        &self.service
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Entries) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        self.thread.run(job).await?
    }

    pub(super) async fn load_all(&self) -> Result<Listed, VaultError> {
        let listed = self.run(Entries::load_all).await?;
        if !listed.is_empty() {
            // A rotation will need it, perhaps when the keyring does not answer.
            let _ = self.journal_key(true).await;
        }
        Ok(listed)
    }

    pub(super) async fn journal_key(&self, create: bool) -> Result<Option<Key>, VaultError> {
        if let Some(key) = self.journal_key.get() {
            return Ok(Some(key.clone()));
        }
        let key = self.run(move |entries| entries.journal_key(create)).await?;
        Ok(key.map(|key| self.journal_key.get_or_init(|| key).clone()))
    }
}
