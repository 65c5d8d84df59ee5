//! The keyring as its own thread sees it: named entries that are set, read and deleted, each call under the eyes of who
//! waits (see `worker`). After a failure it is left alone for a while: each try may open a window before the user.

use std::sync::Arc;
use std::time::Duration;

use keyring_core::{CredentialStore, Entry, Error};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::error::VaultError;
use super::options::OpenKeyring;
use super::worker::Pulse;
use crate::oauth::token::{RECORD_LIMIT, RecordFault};

/// Most that goes into one entry, in bytes. Windows takes no more; elsewhere a token that is large must not be lost.
const ENTRY_LIMIT: usize = if cfg!(windows) { 2560 } else { RECORD_LIMIT };
/// The predecessor's one entry may hold many accounts.
const FOREIGN_LIMIT: usize = 1024 * 1024;

/// The store and what is known of it.
pub(super) struct Ring {
    pulse: Pulse,
    open: OpenKeyring,
    /// Ours, not the process's: opened when needed, let go after a failure.
    store: Option<Arc<CredentialStore>>,
    service: String,
    retry: Duration,
    /// When it last failed, and how.
    failed: Option<(Instant, String)>,
    /// It has been seen to work since it last failed, so that "there is no such entry" can be believed.
    pub(super) proved: bool,
}

impl Ring {
    pub(super) fn new(open: OpenKeyring, service: String, retry: Duration, pulse: Pulse) -> Self {
        Self { pulse, open, store: None, service, retry, failed: None, proved: false }
    }

    /// An entry's value; `None` = the keyring says that there is no such entry.
    pub(super) fn read(&mut self, user: &str) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        self.entry(user, false, |entry| match entry.get_secret() {
            Ok(value) => Ok(Some(Zeroizing::new(value))),
            Err(Error::NoEntry) => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// The value of an entry that another program wrote, as text.
    pub(super) fn read_foreign(&mut self, user: &str) -> Result<Option<Zeroizing<String>>, VaultError> {
        let value = self.entry(user, true, |entry| match entry.get_password() {
            Ok(value) => Ok(Some(Zeroizing::new(value))),
            Err(Error::NoEntry) => Ok(None),
            Err(error) => Err(error),
        })?;
        if value.as_ref().is_some_and(|value| value.len() > FOREIGN_LIMIT) {
            return Err(RecordFault::Damaged.into());
        }
        Ok(value)
    }

    /// Sets an entry, and sees whether it was kept.
    pub(super) fn write(&mut self, user: &str, value: &[u8]) -> Result<(), VaultError> {
        if value.len() > ENTRY_LIMIT {
            return Err(VaultError::TooLarge { bytes: value.len(), limit: ENTRY_LIMIT });
        }
        self.entry(user, false, |entry| entry.set_secret(value))?;
        if self.read(user)?.is_none_or(|kept| kept.as_slice() != value) {
            return Err(self.fail("it did not keep what it was given".into()));
        }
        Ok(())
    }

    /// Deletes an entry; `false` = there was none.
    pub(super) fn delete(&mut self, user: &str) -> Result<bool, VaultError> {
        self.entry(user, false, |entry| match entry.delete_credential() {
            Ok(()) => Ok(true),
            Err(Error::NoEntry) => Ok(false),
            Err(error) => Err(error),
        })
    }

    /// Whether it works at all: an entry is set, read and deleted. (One that is locked, or has no collection, opens
    /// without an error.)
    pub(super) fn probe(&mut self) -> Result<(), VaultError> {
        let user = format!("probe-{:016x}", getrandom::u64().unwrap_or_default());
        self.write(&user, b"whether the keyring works; may be deleted")?;
        if !self.delete(&user)? || self.read(&user)?.is_some() {
            return Err(self.fail("it did not delete what it was told to".into()));
        }
        self.proved = true;
        Ok(())
    }

    fn entry<T>(
        &mut self,
        user: &str,
        foreign: bool,
        call: impl FnOnce(&Entry) -> keyring_core::Result<T>,
    ) -> Result<T, VaultError> {
        if let Some((at, why)) = &self.failed
            && at.elapsed() < self.retry
        {
            return Err(VaultError::Unavailable(why.clone()));
        }
        let result = self.pulse.call(|| {
            let store = match self.store.take() {
                Some(store) => store,
                None => (self.open)()?,
            };
            // Python's keyring names an entry by its service alone where the platform has one name for each.
            let modifiers = [("target", self.service.as_str())].into();
            let modifiers = (foreign && cfg!(windows)).then_some(&modifiers);
            let result = store.build(&self.service, user, modifiers).and_then(|entry| call(&entry));
            self.store = Some(store);
            result
        });
        match result {
            Ok(value) => {
                self.failed = None;
                Ok(value)
            }
            // These hold the value: nothing of them goes into an error of ours.
            Err(Error::BadEncoding(_) | Error::BadDataFormat(..)) => Err(RecordFault::Damaged.into()),
            Err(Error::Ambiguous(entries)) => Err(self.fail(format!("it has {} entries of one name", entries.len()))),
            Err(error) => Err(self.fail(crate::log::printable(&error.to_string()))),
        }
    }

    fn fail(&mut self, why: String) -> VaultError {
        // The connection may be what is broken.
        (self.store, self.proved) = (None, false);
        let why = format!("the keyring: {why}");
        self.failed = Some((Instant::now(), why.clone()));
        VaultError::Unavailable(why)
    }
}
