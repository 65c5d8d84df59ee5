//! One account's token: the record that is stored, and nothing else. Usage lives elsewhere, so that nobody who counts
//! can write a stale token over a fresh one.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::provider::Email;
use crate::secret::Secret;

/// Counts the writes of one account's record, from 1. Every write names the generation that it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A token with what is needed to renew it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose.
    pub email: Email,
    /// For requests.
    pub access: Secret,
    /// For the next one; without it the account must sign in when this one expires.
    pub refresh: Option<Secret>,
    /// Wall clock, to the second.
    pub expires_at: SystemTime,
    /// What it permits.
    pub scopes: Vec<String>,
    /// Whether the authorization server named the account itself.
    pub verified: bool,
    /// When the account signed in.
    pub created_at: SystemTime,
    /// Which write this is.
    pub generation: Generation,
}

/// The version of the record's form.
const VERSION: u32 = 1;
/// Longest record that is read, in bytes. (Windows keeps at most 2,560 bytes in one credential.)
pub const RECORD_LIMIT: usize = 16 * 1024;

#[derive(Serialize)]
struct Record<'a> {
    v: u32,
    email: &'a str,
    access_token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<&'a str>,
    expires_at: u64,
    scopes: Vec<&'a str>,
    verified: bool,
    created_at: u64,
    generation: u64,
}

/// Why a record cannot be read. It is left as it is: a newer version of this program may understand it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// Not a record of ours.
    #[error("the stored record is damaged")]
    Damaged,
    /// Written by a newer version.
    #[error("the stored record was written by a newer version")]
    Newer,
}

impl Token {
    /// Whether it comes from a later login than another one of the same account. (Stored times are whole seconds.)
    pub(super) fn follows_login_of(&self, other: &Self) -> bool {
        seconds(self.created_at) > seconds(other.created_at)
    }

    /// The record that is stored.
    pub fn to_record(&self) -> Zeroizing<String> {
        let record = Record {
            v: VERSION,
            email: self.email.as_str(),
            access_token: self.access.expose(),
            refresh_token: self.refresh.as_ref().map(Secret::expose),
            expires_at: seconds(self.expires_at),
            scopes: self.scopes.iter().map(String::as_str).collect(),
            verified: self.verified,
            created_at: seconds(self.created_at),
            generation: self.generation.0,
        };
        // A struct of strings and numbers always serializes.
        Zeroizing::new(serde_json::to_string(&record).unwrap_or_default())
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordFault`]; it holds nothing of the record.
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordFault> {
        if bytes.len() > RECORD_LIMIT {
            return Err(RecordFault::Damaged);
        }
        let version: u32 = serde_json::from_slice::<serde_json::Value>(bytes)
            .ok()
            .and_then(|record| u32::try_from(record.get("v")?.as_u64()?).ok())
            .ok_or(RecordFault::Damaged)?;
        if version > VERSION {
            return Err(RecordFault::Newer);
        }
        // Escapes in a stored text are possible, so texts are read as owned.
        let record: Owned = serde_json::from_slice(bytes).map_err(|_| RecordFault::Damaged)?;
        let email = Email::parse(&record.email).ok_or(RecordFault::Damaged)?;
        if record.access_token.is_empty() || !record.access_token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(RecordFault::Damaged);
        }
        Ok(Self {
            email,
            access: Secret::new(record.access_token),
            refresh: record.refresh_token.filter(|token| !token.is_empty()).map(Secret::new),
            expires_at: time(record.expires_at),
            scopes: record.scopes,
            verified: record.verified,
            created_at: time(record.created_at),
            generation: Generation(record.generation),
        })
    }
}

#[derive(Deserialize)]
struct Owned {
    email: String,
    access_token: String,
    #[serde(default)]
    refresh_token: Option<String>,
    expires_at: u64,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default)]
    verified: bool,
    #[serde(default)]
    created_at: u64,
    generation: u64,
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn time(seconds: u64) -> SystemTime {
    // Beyond the year 9999 nothing is meant.
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            email: Email::parse("main@example.com").expect("valid"),
            access: Secret::new("sk-ant-oat-access"),
            refresh: Some(Secret::new("sk-ant-ort-refresh")),
            expires_at: time(1_800_000_000),
            scopes: vec!["user:inference".into()],
            verified: true,
            created_at: time(1_700_000_000),
            generation: Generation(7),
        }
    }

    #[test]
    fn a_record_read_again_is_the_same_token() {
        assert_eq!(Token::from_record(token().to_record().as_bytes()), Ok(token()));
        let without = Token { refresh: None, ..token() };
        assert_eq!(Token::from_record(without.to_record().as_bytes()), Ok(without));
    }

    #[test]
    fn what_is_no_record_of_ours_is_said_and_not_guessed() {
        let record = token().to_record().to_string();
        for (text, fault) in [
            (String::new(), RecordFault::Damaged),
            ("{}".into(), RecordFault::Damaged),
            (record[..40].into(), RecordFault::Damaged),
            (record.replace("\"v\":1", "\"v\":99"), RecordFault::Newer),
            (record.replace("main@example.com", "nobody"), RecordFault::Damaged),
            (record.replace("sk-ant-oat-access", "a\\nb"), RecordFault::Damaged),
            ("x".repeat(RECORD_LIMIT + 1), RecordFault::Damaged),
        ] {
            assert_eq!(Token::from_record(text.as_bytes()), Err(fault), "{text:.60}");
        }
    }
}
