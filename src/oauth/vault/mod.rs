//! Where tokens are kept: the system's keyring, a private file, or nowhere. All of it may be slow or absent: calls are
//! async, have a limit, and run on threads of their own, never on one that serves requests. A read that fails is never
//! "no token", a write names the generation that it replaces, and nothing of a token is in any error or log line.
//!
//! | in the state folder | |
//! | --- | --- |
//! | `storage.json` | where the accounts live, so that a keyring that is silent today is waited for |
//! | `accounts.json` | the accounts, if they live in a file; sealed where there is a passphrase |
//! | `journal/` | replies of rotations, from before they are parsed until after they are stored |
//! | `locks/` | for one process at a time: renewing an account, writing a store |
//! | `usage.json` | counters |
//!
//! Another `storage` may be chosen at any time; accounts do not move along and must sign in again, and what was stored
//! stays where it was. Another passphrase is not possible for a file that exists.

mod choice;
#[cfg(test)]
#[cfg(unix)]
mod crash;
mod disk;
mod entries;
mod error;
mod file;
mod journal;
mod keyring;
mod lock;
mod marker;
mod memory;
mod options;
mod predecessor;
mod private;
mod ring;
mod seal;
mod usage;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use error::VaultError;
pub use journal::{JournalEntry, Pen, Pending, REPLY_LIMIT};
pub use keyring::Keyring;
pub use lock::AccountLock;
pub use memory::Memory;
pub use options::{OpenKeyring, Options, PASSPHRASE, PASSPHRASE_FILE, PassphraseFault, passphrase, state_folder};
pub use usage::{Usage, UsageMap};

use super::token::{Generation, RecordFault, Token};
use crate::provider::Email;
use disk::Disk;
use file::Accounts;
use seal::Key;
use tokio::time::Instant;

/// Every account with its token, or why its record cannot be read.
type Listed = Vec<(Email, Result<Token, RecordFault>)>;

/// A store of tokens.
#[derive(Debug)]
pub enum Vault {
    /// The system's keyring.
    Keyring(Keyring),
    /// A private file.
    File(FileStore),
    /// Nowhere: tokens end with the process.
    Memory(Memory),
}

/// See [`Vault::File`].
#[derive(Debug)]
pub struct FileStore {
    accounts: Arc<Accounts>,
    disk: Arc<Disk>,
}

impl FileStore {
    /// The file.
    pub fn path(&self) -> PathBuf {
        self.disk.folder().path(file::NAME)
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Accounts) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let accounts = self.accounts.clone();
        self.disk.run(move |_| job(&accounts)).await
    }
}

impl Vault {
    /// Opens the store that the options choose. Never fails: a store that does not answer says so in each call, and
    /// is tried again. With `storage: auto` and nothing stored yet it asks the keyring whether it works, which may take
    /// some seconds.
    pub async fn open(options: Options) -> Self {
        choice::open(options).await
    }

    /// Every account with its token, or why its record cannot be read.
    ///
    /// # Errors
    /// The store as a whole cannot be read.
    pub async fn load_all(&self) -> Result<Vec<(Email, Result<Token, RecordFault>)>, VaultError> {
        match self {
            Self::Keyring(keyring) => keyring.load_all().await,
            Self::File(file) => file.run(Accounts::load_all).await,
            Self::Memory(memory) => {
                Ok(memory.load_all().into_iter().map(|token| (token.email.clone(), Ok(token))).collect())
            }
        }
    }

    /// The stored token of one account; `None` = the store says that there is none.
    ///
    /// # Errors
    /// The store or the record cannot be read.
    pub async fn load(&self, email: &Email) -> Result<Option<Token>, VaultError> {
        let owned = email.clone();
        match self {
            Self::Keyring(keyring) => keyring.run(move |entries| entries.load(&owned)).await,
            Self::File(file) => file.run(move |accounts| accounts.load(&owned)).await,
            Self::Memory(memory) => Ok(memory.load(email)),
        }
    }

    /// Stores a token, if what is stored has the generation `replaces` (`None` = nothing is stored). To store what is
    /// stored already succeeds. A save that ends with [`VaultError::Unavailable`] may still arrive later.
    ///
    /// # Errors
    /// [`VaultError::Stale`] where it has another; what was stored stays, whatever fails.
    pub async fn save(&self, token: &Token, replaces: Option<Generation>) -> Result<(), VaultError> {
        let owned = token.clone();
        match self {
            Self::Keyring(keyring) => keyring.run(move |entries| entries.save(&owned, replaces)).await,
            Self::File(file) => file.run(move |accounts| accounts.save(&owned, replaces)).await,
            Self::Memory(memory) => memory.save(token, replaces),
        }
    }

    /// Removes an account's token, also one that cannot be read; `false` = there was none. Its journal goes too.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn remove(&self, email: &Email) -> Result<bool, VaultError> {
        let owned = email.clone();
        let removed = match self {
            Self::Keyring(keyring) => keyring.run(move |entries| entries.remove(&owned)).await?,
            Self::File(file) => file.run(move |accounts| accounts.remove(&owned)).await?,
            Self::Memory(memory) => memory.remove(email),
        };
        self.erase_journal(email).await?;
        Ok(removed)
    }

    /// The sole right to renew an account's token, among all processes; waits for it at most `limit`. It is freed when
    /// it is dropped, and by the kernel when the process ends in any way.
    ///
    /// # Errors
    /// [`VaultError::Busy`]: somebody else has held it all the time. Others: the state folder cannot be used.
    pub async fn lock(&self, email: &Email, limit: Duration) -> Result<AccountLock, VaultError> {
        let Some(disk) = self.disk() else { return Ok(AccountLock::alone()) };
        if let Self::Keyring(keyring) = self {
            // A rotation follows: its journal needs the key. Without it the journal will say so.
            let _ = keyring.journal_key(true).await;
        }
        let (name, until) = (format!("account-{}", lock::account_name(email)), Instant::now() + limit);
        let stored = matches!(self, Self::Keyring(_));
        let opened = disk.run(move |folder| match folder.prepare() {
            // No folder, and none can be made: nothing is stored that another process could use.
            Err(error) if error.is_unwritable() && !stored => Ok(None),
            Err(error) => Err(error),
            Ok(()) => lock::account(folder, &name).map(Some),
        });
        let Some(mut file) = opened.await? else { return Ok(AccountLock::alone()) };
        loop {
            let (held, again) = disk.run(move |folder| Ok((lock::attempt(&file, folder)?, file))).await?;
            if held {
                return Ok(AccountLock::held(again));
            }
            if Instant::now() >= until {
                return Err(VaultError::Busy("the lock of the account"));
            }
            file = again;
            lock::pause().await;
        }
    }

    /// Makes the journal ready for the reply to a rotation, before that is asked for: everything that may take time is
    /// done then. Call it, and write with it, with the account's lock held.
    ///
    /// # Errors
    /// There will be no journal for this reply.
    pub async fn pen(&self, email: &Email) -> Result<Pen, VaultError> {
        let Some(disk) = self.disk() else { return Ok(Pen(None)) };
        let key = self.journal_key(true).await?;
        let owned = email.clone();
        let file = disk.run(move |folder| journal::open(folder, &owned)).await?;
        Ok(Pen(Some(journal::Ready { disk: disk.clone(), key, email: email.clone(), file })))
    }

    /// The same and the writing in one.
    ///
    /// # Errors
    /// The reply is not in the journal.
    pub async fn journal(
        &self,
        email: &Email,
        generation: Generation,
        raw_reply: &[u8],
    ) -> Result<JournalEntry, VaultError> {
        self.pen(email).await?.write(generation, raw_reply)
    }

    /// Replies that were journalled and not erased, oldest first within an account: a process ended between a rotation
    /// and its save. One that replaces the stored generation, or a later one, is to be parsed and saved; then, and for
    /// any older one, [`Vault::erase_journal`]. Of an account of which nothing is stored there is nothing to recover: it was
    /// removed.
    ///
    /// # Errors
    /// The journal, or the key that opens it, cannot be read.
    pub async fn pending_journal(&self) -> Result<Vec<Pending>, VaultError> {
        let Some(disk) = self.disk() else { return Ok(Vec::new()) };
        let key = if disk.run(journal::is_sealed).await? { self.journal_key(false).await? } else { None };
        disk.run(move |folder| journal::pending(folder, key.as_ref())).await
    }

    /// Forgets what was journalled of an account. Call it with the account's lock held.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn erase_journal(&self, email: &Email) -> Result<(), VaultError> {
        let Some(disk) = self.disk() else { return Ok(()) };
        let email = email.clone();
        disk.run(move |folder| journal::erase(folder, &email, None)).await
    }

    /// Hands over the counters of all accounts; they are written a moment later. Never waits.
    pub fn save_usage(&self, usage: UsageMap) {
        if let Some(disk) = self.disk() {
            disk.usages.save(usage);
        }
    }

    /// Writes at once what [`Vault::save_usage`] was given last: for the end of the process.
    ///
    /// # Errors
    /// The state folder cannot be written.
    pub async fn flush_usage(&self) -> Result<(), VaultError> {
        let Some(disk) = self.disk() else { return Ok(()) };
        match disk.usages.take() {
            Some(usage) => disk.run(move |folder| usage::write(folder, &usage)).await,
            None => Ok(()),
        }
    }

    /// The counters as they were written last.
    ///
    /// # Errors
    /// The state folder cannot be read.
    pub async fn load_usage(&self) -> Result<UsageMap, VaultError> {
        let Some(disk) = self.disk() else { return Ok(UsageMap::new()) };
        disk.run(usage::read).await
    }

    /// Where tokens are kept, for humans.
    pub fn place(&self) -> String {
        match self {
            Self::Keyring(keyring) => format!("keyring (service {:?})", keyring.service()),
            Self::File(file) => format!("file {}", file.path().display()),
            Self::Memory(_) => "memory (not stored)".into(),
        }
    }

    fn disk(&self) -> Option<&Arc<Disk>> {
        match self {
            Self::Keyring(keyring) => Some(&keyring.disk),
            Self::File(file) => Some(&file.disk),
            Self::Memory(_) => None,
        }
    }

    async fn journal_key(&self, create: bool) -> Result<Option<Key>, VaultError> {
        match self {
            Self::Keyring(keyring) => keyring.journal_key(create).await,
            Self::File(file) => file.run(Accounts::journal_key).await,
            Self::Memory(_) => Ok(None),
        }
    }
}
