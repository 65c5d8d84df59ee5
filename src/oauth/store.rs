//! The vault as the accounts use it: the one place where the parts of it that have arrived are connected. What is not
//! there yet does nothing here, and says so.

use super::token::{Generation, RecordFault, Token};
use super::vault::{Vault, VaultError};
use crate::provider::Email;

/// See above.
#[derive(Debug)]
pub(super) struct Store {
    vault: std::sync::Arc<Vault>,
    #[cfg(test)]
    pub(super) trouble: std::sync::atomic::AtomicBool,
    #[cfg(test)]
    pub(super) journalled: std::sync::Mutex<Vec<Pending>>,
}

/// Held from before the store is read until after it is written: no other process refreshes this account meanwhile.
#[derive(Debug)]
pub(super) struct AccountLock {
    // CONNECT `vault::AccountLock` here; its drop gives the lock back.
    _held: (),
}

/// A raw reply that is safe on disk until it is erased.
#[derive(Debug)]
pub(super) struct JournalEntry {
    // CONNECT `vault::JournalEntry` here.
    _entry: (),
}

/// A reply that was journalled by a process that ended before it was saved.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) email: Email,
    /// Of the token whose refresh brought it.
    pub(super) generation: Generation,
    pub(super) raw: zeroize::Zeroizing<Vec<u8>>,
}

/// How often and when an account was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) email: Email,
    pub(super) count: u64,
    /// Seconds since 1970; 0 = never.
    pub(super) last: u64,
}

impl Store {
    pub(super) fn new(vault: std::sync::Arc<Vault>) -> Self {
        Self {
            vault,
            #[cfg(test)]
            trouble: Default::default(),
            #[cfg(test)]
            journalled: Default::default(),
        }
    }

    pub(super) async fn load_all(&self) -> Result<Vec<(Email, Result<Token, RecordFault>)>, VaultError> {
        self.in_trouble()?;
        self.vault.load_all().await
    }

    pub(super) async fn load(&self, email: &Email) -> Result<Option<Token>, VaultError> {
        self.in_trouble()?;
        self.vault.load(email).await
    }

    pub(super) async fn save(&self, token: &Token, replaces: Option<Generation>) -> Result<(), VaultError> {
        self.in_trouble()?;
        self.vault.save(token, replaces).await
    }

    pub(super) async fn remove(&self, email: &Email) -> Result<bool, VaultError> {
        self.in_trouble()?;
        self.vault.remove(email).await
    }

    /// Waits for the account's lock across processes.
    pub(super) async fn lock(&self, _email: &Email) -> Result<AccountLock, VaultError> {
        // CONNECT `self.vault.lock(email).await` here.
        Ok(AccountLock { _held: () })
    }

    /// Makes a raw reply safe before anybody looks into it; `None` = there is no journal.
    pub(super) async fn journal(&self, _email: &Email, _generation: Generation, _raw: &[u8]) -> Option<JournalEntry> {
        // CONNECT `self.vault.journal(email, generation, raw).await` here; what fails is a warning, and `None`.
        None
    }

    /// The token is saved: its reply is no longer needed.
    pub(super) async fn erase(&self, _entry: JournalEntry) {
        // CONNECT `entry.erase().await` here.
    }

    /// What was journalled and not erased, with the entries to erase it by.
    pub(super) async fn pending_journal(&self) -> Vec<(Pending, Option<JournalEntry>)> {
        #[cfg(test)]
        {
            let mut journalled = self.journalled.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            journalled.drain(..).map(|pending| (pending, None)).collect()
        }
        // CONNECT `self.vault.pending_journal().await` here.
        #[cfg(not(test))]
        Vec::new()
    }

    pub(super) async fn load_usage(&self) -> Vec<Used> {
        // CONNECT `self.vault.load_usage().await` here.
        Vec::new()
    }

    pub(super) async fn save_usage(&self, _usage: &[Used]) {
        // CONNECT `self.vault.save_usage(usage).await` here; what fails is tried again with the next change.
    }

    #[cfg(test)]
    fn in_trouble(&self) -> Result<(), VaultError> {
        match self.trouble.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(VaultError::Unavailable("in a test".into())),
            false => Ok(()),
        }
    }

    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "only tests bring trouble")]
    fn in_trouble(&self) -> Result<(), VaultError> {
        Ok(())
    }
}
