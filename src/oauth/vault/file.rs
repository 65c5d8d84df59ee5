//! The file of accounts, `accounts.json`: one record for each account, plain or sealed with a passphrase. It is read and
//! replaced whole under a lock, so that two processes cannot overwrite each other. What cannot be read is left alone.
//!
//! Everything here blocks, and runs on the thread of the disk.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::error::VaultError;
use super::marker::Marker;
use super::memory::admits;
use super::private::Folder;
use super::seal::{Key, NoRandomness, Stretch};
use super::{Listed, lock};
use crate::oauth::token::{Generation, RecordFault, Token};
use crate::provider::Email;
use crate::secret::Secret;

pub(super) const NAME: &str = "accounts.json";
const LIMIT: usize = 1024 * 1024;
const VERSION: u32 = 1;

/// The file, and what opens it.
#[derive(Debug)]
pub(super) struct Accounts {
    folder: Folder,
    passphrase: Option<Secret>,
    /// The last key that was stretched: it takes a tenth of a second, and the salt stays.
    key: Mutex<Option<(Stretch, Key)>>,
}

/// Lower-cased address → record. Records stay as they were written: a newer version's may be among them.
type Records = BTreeMap<String, Zeroizing<String>>;

/// What a file held, and how it was stretched, if it was sealed.
#[derive(Default)]
struct Contents {
    records: Records,
    stretch: Option<Stretch>,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

#[derive(Deserialize)]
struct Outer<'a> {
    #[serde(borrow, default)]
    accounts: BTreeMap<String, &'a RawValue>,
    sealed: Option<Sealed>,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    stretch: Stretch,
    check: String,
    data: String,
}

impl Accounts {
    pub(super) fn new(folder: Folder, passphrase: Option<Secret>) -> Self {
        Self { folder, passphrase, key: Mutex::default() }
    }

    pub(super) fn load_all(&self) -> Result<Listed, VaultError> {
        let records = self.read()?.records;
        let listed = |(email, record): (&String, &Zeroizing<String>)| {
            let email = Email::parse(email)?;
            let token = read_record(&email, record);
            Some((token.as_ref().map_or(email, |token| token.email.clone()), token))
        };
        Ok(records.iter().filter_map(listed).collect())
    }

    pub(super) fn load(&self, email: &Email) -> Result<Option<Token>, VaultError> {
        Ok(self.read()?.records.get(&name(email)).map(|record| read_record(email, record)).transpose()?)
    }

    pub(super) fn save(&self, token: &Token, replaces: Option<Generation>) -> Result<(), VaultError> {
        let _lock = lock::store(&self.folder, NAME)?;
        self.folder.sweep(NAME);
        let mut contents = self.read()?;
        let stored = contents.records.get(&name(&token.email));
        let stored = stored.map(|record| read_record(&token.email, record)).transpose()?;
        if admits(stored.as_ref(), token, replaces)? {
            contents.records.insert(name(&token.email), token.to_record());
            Marker::File.leave(&self.folder);
            self.write(contents)?;
        }
        Ok(())
    }

    pub(super) fn remove(&self, email: &Email) -> Result<bool, VaultError> {
        if self.folder.read(NAME, LIMIT)?.is_none() {
            return Ok(false);
        }
        let _lock = lock::store(&self.folder, NAME)?;
        let mut contents = self.read()?;
        let found = contents.records.remove(&name(email)).is_some();
        if found {
            self.write(contents)?;
        }
        Ok(found)
    }

    /// What the journal is sealed with; `None` = the file is not sealed, so neither is the journal. The salt must be on
    /// the disk before anything is sealed with it.
    pub(super) fn journal_key(&self) -> Result<Option<Key>, VaultError> {
        let Some(passphrase) = &self.passphrase else { return Ok(None) };
        let mut contents = self.read()?;
        if contents.stretch.is_none() {
            let _lock = lock::store(&self.folder, NAME)?;
            // Somebody may have been faster.
            self.write(self.read()?)?;
            contents = self.read()?;
        }
        let stretch = contents.stretch.ok_or_else(|| self.damaged())?;
        Ok(Some(self.stretched(passphrase, &stretch)?.derive("journal")))
    }

    fn damaged(&self) -> VaultError {
        VaultError::Damaged { path: self.folder.path(NAME) }
    }

    fn read(&self) -> Result<Contents, VaultError> {
        let Some(bytes) = self.folder.read(NAME, LIMIT)? else { return Ok(Contents::default()) };
        let Version { v } = serde_json::from_slice(&bytes).map_err(|_| self.damaged())?;
        if v > VERSION {
            return Err(VaultError::Newer { path: self.folder.path(NAME) });
        }
        let outer: Outer<'_> = serde_json::from_slice(&bytes).map_err(|_| self.damaged())?;
        let Some(sealed) = outer.sealed else {
            return Ok(Contents { records: owned(outer.accounts), stretch: None });
        };
        let path = || self.folder.path(NAME);
        let passphrase = self.passphrase.as_ref().ok_or_else(|| VaultError::Sealed { path: path() })?;
        let key = self.stretched(passphrase, &sealed.stretch)?;
        if key.check() != sealed.check {
            return Err(VaultError::Passphrase { path: path() });
        }
        let data = BASE64.decode(&sealed.data).map_err(|_| self.damaged())?;
        let plain = key.derive("accounts").open(&data).ok_or_else(|| self.damaged())?;
        let accounts = serde_json::from_slice(&plain).map_err(|_| self.damaged())?;
        Ok(Contents { records: owned(accounts), stretch: Some(sealed.stretch) })
    }

    fn write(&self, contents: Contents) -> Result<(), VaultError> {
        let accounts = joined(&contents.records);
        let text = match &self.passphrase {
            None => Zeroizing::new(format!("{{\"v\":{VERSION},\"accounts\":{}}}\n", *accounts)),
            Some(passphrase) => {
                let stretch = contents.stretch.map_or_else(Stretch::new, Ok).map_err(no_randomness)?;
                let key = self.stretched(passphrase, &stretch)?;
                let data = key.derive("accounts").seal(accounts.as_bytes()).map_err(no_randomness)?;
                let sealed = Sealed { stretch, check: key.check(), data: BASE64.encode(data) };
                let sealed = serde_json::to_string(&sealed).unwrap_or_default();
                Zeroizing::new(format!("{{\"v\":{VERSION},\"sealed\":{sealed}}}\n"))
            }
        };
        if text.len() > LIMIT {
            return Err(VaultError::TooLarge { bytes: text.len(), limit: LIMIT });
        }
        self.folder.replace(NAME, text.as_bytes())
    }

    fn stretched(&self, passphrase: &Secret, stretch: &Stretch) -> Result<Key, VaultError> {
        let mut cached = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, key)) = cached.as_ref().filter(|(known, _)| known == stretch) {
            return Ok(key.clone());
        }
        let key = stretch.key(passphrase).ok_or_else(|| self.damaged())?;
        *cached = Some((stretch.clone(), key.clone()));
        Ok(key)
    }
}

pub(super) fn no_randomness(_: NoRandomness) -> VaultError {
    VaultError::Unavailable("the system gives no random numbers".into())
}

fn name(email: &Email) -> String {
    email.as_str().to_ascii_lowercase()
}

/// A record that was found under an account's name must be this account's.
pub(super) fn read_record(email: &Email, record: &str) -> Result<Token, RecordFault> {
    Token::from_record(record.as_bytes())
        .and_then(|token| if token.email == *email { Ok(token) } else { Err(RecordFault::Damaged) })
}

fn owned(accounts: BTreeMap<String, &RawValue>) -> Records {
    let owned =
        |(email, record): (String, &RawValue)| (email.to_ascii_lowercase(), Zeroizing::new(record.get().into()));
    accounts.into_iter().map(owned).collect()
}

/// A JSON object of records, byte for byte. Built in one piece: a text that grows leaves copies behind.
fn joined(records: &Records) -> Zeroizing<String> {
    let names = records.keys().map(|name| serde_json::Value::from(name.as_str()).to_string());
    let names: Vec<String> = names.collect();
    let size =
        names.iter().map(String::len).sum::<usize>() + records.values().map(|record| record.len()).sum::<usize>();
    let mut text = Zeroizing::new(String::with_capacity(size + 2 * names.len() + 2));
    text.push('{');
    for (at, (name, record)) in names.iter().zip(records.values()).enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(name);
        text.push(':');
        text.push_str(record);
    }
    text.push('}');
    text
}
