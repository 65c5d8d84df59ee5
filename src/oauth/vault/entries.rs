//! What is kept in the keyring: one entry for each account, an index that lists them (a keyring cannot be asked what it
//! holds), and the key of the journal. Everything here runs on the keyring's thread, under the store's lock where it
//! writes.
//!
//! The index is written before a new account's entry and after its removal: a kill in between leaves a name too many
//! in it, never an account that nobody finds.

use std::fs::File;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::VaultError;
use super::file::{no_randomness, read_record};
use super::marker::Marker;
use super::memory::admits;
use super::private::Folder;
use super::ring::Ring;
use super::seal::Key;
use super::{Listed, lock, predecessor};
use crate::oauth::token::{Generation, RecordFault, Token};
use crate::provider::Email;

const INDEX: &str = "index";
const JOURNAL_KEY: &str = "journal-key";
const VERSION: u32 = 1;

/// The keyring's side of a vault.
pub(super) struct Entries {
    ring: Ring,
    folder: Folder,
    marker: Marker,
    lock: String,
}

#[derive(Default, Serialize, Deserialize)]
struct Index {
    v: u32,
    accounts: Vec<String>,
    /// The predecessor's entry has been looked at.
    imported: bool,
}

impl Entries {
    pub(super) fn new(ring: Ring, service: &str, folder: Folder) -> Self {
        let digest = Sha256::digest(service.as_bytes());
        let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let marker = Marker::Keyring { service: service.into() };
        Self { ring, folder, marker, lock: format!("keyring-{digest}") }
    }

    /// Whether the keyring works.
    pub(super) fn probe(&mut self) -> Result<(), VaultError> {
        self.ring.probe()
    }

    pub(super) fn load_all(&mut self) -> Result<Listed, VaultError> {
        let mut index = self.index()?;
        if !index.as_ref().is_some_and(|index| index.imported) {
            match self.import() {
                Ok(()) => index = self.index()?,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the accounts of the predecessor could not be taken over; tried again later");
                }
            }
        }
        let mut listed = Listed::new();
        for email in index.unwrap_or_default().accounts.iter().filter_map(|email| Email::parse(email)) {
            match self.record(&email) {
                Ok(Some(token)) => listed.push((token.email.clone(), Ok(token))),
                Ok(None) => {}
                Err(VaultError::Record(fault)) => listed.push((email, Err(fault))),
                Err(error) => return Err(error),
            }
        }
        Ok(listed)
    }

    pub(super) fn load(&mut self, email: &Email) -> Result<Option<Token>, VaultError> {
        let record = self.record(email)?;
        if record.is_none() {
            self.believe()?;
        }
        Ok(record)
    }

    pub(super) fn save(&mut self, token: &Token, replaces: Option<Generation>) -> Result<(), VaultError> {
        let _lock = self.lock()?;
        self.store(token, replaces)
    }

    pub(super) fn remove(&mut self, email: &Email) -> Result<bool, VaultError> {
        let _lock = self.lock()?;
        let found = self.ring.delete(&user(email))?;
        if let Some(mut index) = self.index()? {
            let before = index.accounts.len();
            index.accounts.retain(|listed| !listed.eq_ignore_ascii_case(email.as_str()));
            if index.accounts.len() < before {
                self.write_index(&index)?;
            }
        }
        Ok(found)
    }

    /// What the journal is sealed with; made if there is none and `create` says so.
    pub(super) fn journal_key(&mut self, create: bool) -> Result<Option<Key>, VaultError> {
        let read = |ring: &mut Ring| match ring.read(JOURNAL_KEY)? {
            Some(text) => Key::from_text(&text).map(Some).ok_or_else(|| VaultError::from(RecordFault::Damaged)),
            None => Ok(None),
        };
        if let Some(key) = read(&mut self.ring)? {
            return Ok(Some(key));
        }
        self.believe()?;
        if !create {
            return Ok(None);
        }
        let _lock = self.lock()?;
        // Somebody may have been faster.
        if let Some(key) = read(&mut self.ring)? {
            return Ok(Some(key));
        }
        let key = Key::random().map_err(no_randomness)?;
        self.ring.write(JOURNAL_KEY, key.to_text().as_bytes())?;
        Ok(Some(key))
    }

    fn lock(&self) -> Result<File, VaultError> {
        lock::store(&self.folder, &self.lock)
    }

    /// With the lock held.
    fn store(&mut self, token: &Token, replaces: Option<Generation>) -> Result<(), VaultError> {
        let stored = self.record(&token.email)?;
        if stored.is_none() {
            self.believe()?;
        }
        if replaces.is_none() {
            self.marker.leave(&self.folder);
            let mut index = self.index()?.unwrap_or_default();
            if !index.accounts.iter().any(|listed| listed.eq_ignore_ascii_case(token.email.as_str())) {
                index.accounts.push(token.email.as_str().into());
                self.write_index(&index)?;
            }
        }
        if admits(stored.as_ref(), token, replaces)? {
            self.ring.write(&user(&token.email), token.to_record().as_bytes())?;
        }
        Ok(())
    }

    fn record(&mut self, email: &Email) -> Result<Option<Token>, VaultError> {
        let Some(bytes) = self.ring.read(&user(email))? else { return Ok(None) };
        let text = std::str::from_utf8(&bytes).map_err(|_| RecordFault::Damaged)?;
        Ok(Some(read_record(email, text)?))
    }

    /// Makes sure that "there is none" is true: a keyring whose collection is not there (yet) says so of everything.
    fn believe(&mut self) -> Result<(), VaultError> {
        if !self.ring.proved && self.ring.read(INDEX)?.is_none() {
            self.ring.probe()?;
        }
        self.ring.proved = true;
        Ok(())
    }

    fn index(&mut self) -> Result<Option<Index>, VaultError> {
        let Some(bytes) = self.ring.read(INDEX)? else {
            self.believe()?;
            return Ok(None);
        };
        let index: Index = serde_json::from_slice(&bytes).map_err(|_| RecordFault::Damaged)?;
        if index.v > VERSION {
            return Err(RecordFault::Newer.into());
        }
        Ok(Some(index))
    }

    fn write_index(&mut self, index: &Index) -> Result<(), VaultError> {
        let index = Index { v: VERSION, accounts: index.accounts.clone(), imported: index.imported };
        self.ring.write(INDEX, serde_json::to_string(&index).unwrap_or_default().as_bytes())
    }

    /// Takes over the predecessor's accounts, once; its entry stays as it is. What is stored here already stays.
    fn import(&mut self) -> Result<(), VaultError> {
        let Some(text) = self.ring.read_foreign(predecessor::USER)? else { return Ok(()) };
        let tokens = predecessor::parse(&text).unwrap_or_else(|| {
            tracing::warn!(
                "the predecessor's entry in the keyring cannot be understood; its accounts must sign in again"
            );
            Vec::new()
        });
        let _lock = self.lock()?;
        let mut taken = 0_u32;
        for token in tokens {
            match self.store(&token, None) {
                Ok(()) => taken += 1,
                Err(VaultError::Stale { .. } | VaultError::Record(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let index = self.index()?.unwrap_or_default();
        self.write_index(&Index { imported: true, ..index })?;
        tracing::info!(accounts = taken, "accounts of the predecessor were taken over from the keyring");
        Ok(())
    }
}

/// The name of an account's entry.
fn user(email: &Email) -> String {
    format!("account-{}", lock::account_name(email))
}
