//! The vault as the accounts use it: opened on first use, for that may take seconds, and with what the accounts need
//! of it in their own terms.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;

use super::token::{Generation, RecordFault, Token};
use super::vault::{AccountLock, JournalEntry, Options, Pen, Pending, Usage, UsageMap, Vault, VaultError};
use crate::provider::Email;

/// Longest wait for the lock of an account: another process may be renewing it, at an authorization server that is slow.
const LOCK_LIMIT: Duration = Duration::from_secs(45);

/// A vault that is there, or how it is opened.
pub enum Storage {
    /// It is open.
    Open(Arc<Vault>),
    /// It is opened when it is first needed.
    Later(Box<Options>),
}

/// See above.
#[derive(Debug)]
pub(super) struct Store {
    vault: OnceCell<Arc<Vault>>,
    options: Option<Box<Options>>,
    #[cfg(test)]
    pub(super) trouble: std::sync::atomic::AtomicBool,
}

impl Storage {
    /// Nowhere: tokens end with the process.
    pub fn memory() -> Self {
        Self::Open(Arc::new(Vault::Memory(super::vault::Memory::default())))
    }
}

impl Store {
    pub(super) fn new(storage: Storage) -> Self {
        let (vault, options) = match storage {
            Storage::Open(vault) => (OnceCell::from(vault), None),
            Storage::Later(options) => (OnceCell::new(), Some(options)),
        };
        Self {
            vault,
            options,
            #[cfg(test)]
            trouble: Default::default(),
        }
    }

    /// Where accounts are kept, for people; `None` = it is not decided yet.
    pub(super) fn place(&self) -> Option<String> {
        self.vault.get().map(|vault| vault.place())
    }

    /// Whether what is saved outlives the process.
    pub(super) fn keeps(&self) -> bool {
        !self.vault.get().is_some_and(|vault| matches!(**vault, Vault::Memory(_)))
    }

    pub(super) async fn load_all(&self) -> Result<Vec<(Email, Result<Token, RecordFault>)>, VaultError> {
        self.working().await?.load_all().await
    }

    pub(super) async fn load(&self, email: &Email) -> Result<Option<Token>, VaultError> {
        self.working().await?.load(email).await
    }

    pub(super) async fn save(&self, token: &Token, replaces: Option<Generation>) -> Result<(), VaultError> {
        self.working().await?.save(token, replaces).await
    }

    pub(super) async fn remove(&self, email: &Email) -> Result<bool, VaultError> {
        self.working().await?.remove(email).await
    }

    /// Waits for the account's lock across processes.
    pub(super) async fn lock(&self, email: &Email) -> Result<AccountLock, VaultError> {
        self.lock_within(email, LOCK_LIMIT).await
    }

    /// The same, with a limit of the caller's own.
    pub(super) async fn lock_within(&self, email: &Email, limit: Duration) -> Result<AccountLock, VaultError> {
        self.vault().await.lock(email, limit).await
    }

    /// Makes the journal ready for a reply; `None` = it cannot be journalled, which is in the log.
    pub(super) async fn pen(&self, email: &Email) -> Option<Pen> {
        let pen = self.vault().await.pen(email).await;
        pen.inspect_err(|error| not_journalled(email, error)).ok()
    }

    /// Makes a raw reply safe before anybody looks into it; `None` = it is not in the journal, which is in the log.
    pub(super) fn journal(pen: Option<Pen>, email: &Email, generation: Generation, raw: &[u8]) -> Option<JournalEntry> {
        pen?.write(generation, raw).inspect_err(|error| not_journalled(email, error)).ok()
    }

    /// The token is saved: its reply is no longer needed. What is left over is stale, and is found to be.
    pub(super) async fn erase(&self, entry: JournalEntry) {
        if let Err(error) = entry.erase().await {
            tracing::warn!(%error, "a reply stays in the journal although its token is stored");
        }
    }

    /// What was journalled and not erased, the oldest first.
    pub(super) async fn pending_journal(&self) -> Result<Vec<Pending>, VaultError> {
        self.working().await?.pending_journal().await
    }

    /// Forgets what was journalled of an account, whose lock the caller holds.
    pub(super) async fn erase_journal(&self, email: &Email) {
        if let Err(error) = self.vault().await.erase_journal(email).await {
            tracing::warn!(account = %email, %error, "the journal cannot be emptied");
        }
    }

    pub(super) async fn load_usage(&self) -> UsageMap {
        self.vault().await.load_usage().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the usage of accounts cannot be read; counting starts anew");
            UsageMap::new()
        })
    }

    /// Hands the counters over; they are written a moment later.
    pub(super) async fn save_usage(&self, usage: impl Iterator<Item = (Email, Usage)>) {
        self.vault().await.save_usage(usage.collect());
    }

    /// Writes at once what was handed over.
    pub(super) async fn flush_usage(&self) {
        if let Some(vault) = self.vault.get()
            && let Err(error) = vault.flush_usage().await
        {
            tracing::warn!(%error, "the usage of accounts is not stored");
        }
    }

    async fn vault(&self) -> &Vault {
        let open = async || match &self.options {
            Some(options) => Arc::new(Vault::open(Options::clone(options)).await),
            // There is one from the beginning then.
            None => Arc::new(Vault::Memory(super::vault::Memory::default())),
        };
        self.vault.get_or_init(open).await
    }

    async fn working(&self) -> Result<&Vault, VaultError> {
        #[cfg(test)]
        if self.trouble.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(VaultError::Unavailable("in a test".into()));
        }
        Ok(self.vault().await)
    }
}

fn not_journalled(email: &Email, error: &VaultError) {
    tracing::warn!(account = %email, %error, "the reply to a refresh is not in the journal");
}
