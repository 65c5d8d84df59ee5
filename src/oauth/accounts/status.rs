//! How the accounts are, for people and for `/oauth/status`. No token or part of one is in it.

use std::time::{Duration, SystemTime};

use super::{Account, Accounts};
use crate::health::Now;
use crate::oauth::standing::Need;
use crate::provider::Email;

/// How one account is.
#[derive(Clone, Debug)]
pub struct AccountStatus {
    /// Whose.
    pub email: Email,
    /// In one word.
    pub state: State,
    /// Whether the authorization server named the account itself.
    pub verified: bool,
    /// Whether the store holds its current token.
    pub persisted: bool,
    /// When it signed in.
    pub created_at: SystemTime,
    /// When its token ends.
    pub expires_at: SystemTime,
    /// How long that is; zero = it has ended.
    pub expires_in: Duration,
    /// What the token permits.
    pub scopes: Vec<String>,
    /// Whether it can be renewed.
    pub renewable: bool,
    /// Until it is renewed ahead of time.
    pub refresh_in: Option<Duration>,
    /// What the last refresh failed for.
    pub last_error: Option<String>,
    /// Requests it has served.
    pub usage_count: u64,
    /// The last of them.
    pub last_used: Option<SystemTime>,
}

/// The state of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its token can be used, or renewed.
    Healthy,
    /// Its token is being renewed.
    Refreshing,
    /// A human must act.
    LoginRequired(Need),
    /// Its token has ended, and renewing it does not work at the moment.
    Failing {
        /// Until the next try.
        retry_in: Duration,
    },
    /// The store does not answer, or its record cannot be read.
    StorageUnavailable,
}

impl State {
    /// As `/oauth/status` has it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Refreshing => "refreshing",
            // Requests try it again after a while, though a human had better look.
            Self::LoginRequired(Need::Refused) => "refused",
            Self::LoginRequired(_) => "login_required",
            Self::Failing { .. } => "failing",
            Self::StorageUnavailable => "storage_unavailable",
        }
    }
}

impl Accounts {
    /// Every account that is signed in, in the order in which they became known.
    pub fn status(&self, now: Now) -> Vec<AccountStatus> {
        self.roll().iter().filter_map(|account| status(account, now)).collect()
    }

    /// How one account is, also one that was never signed in.
    pub fn state(&self, email: &Email, now: Now) -> State {
        match self.find(email) {
            Some(account) => match state(&account, now) {
                State::LoginRequired(Need::NotSignedIn) => self.nobody(),
                state => state,
            },
            None => self.nobody(),
        }
    }

    /// How an account is of which nothing is known.
    pub fn nobody(&self) -> State {
        if self.is_open() { State::LoginRequired(Need::NotSignedIn) } else { State::StorageUnavailable }
    }

    /// Whether any account is being renewed at this moment.
    pub fn is_refreshing(&self) -> bool {
        self.roll().iter().any(|account| account.is_refreshing())
    }

    /// Where the accounts are kept, for people; `None` = that is not decided yet.
    pub fn place(&self) -> Option<String> {
        self.store.place()
    }

    /// What the last refresh of an account failed for, in our words.
    pub fn trouble(&self, email: &Email) -> Option<std::sync::Arc<str>> {
        self.find(email)?.standing().trouble.clone()
    }

    /// Whether what is saved outlives the process: not in memory.
    pub fn keeps(&self) -> bool {
        self.store.keeps()
    }

    /// Why the store could not be read, if it could not.
    pub fn store_fault(&self) -> Option<String> {
        self.closed.load_full().map(|text| String::clone(&text))
    }
}

fn status(account: &Account, now: Now) -> Option<AccountStatus> {
    let standing = account.standing();
    let token = standing.token.as_ref()?;
    let usage = account.usage();
    Some(AccountStatus {
        email: token.email.clone(),
        state: state(account, now),
        verified: token.verified,
        persisted: standing.persisted,
        created_at: token.created_at,
        expires_at: token.expires_at,
        expires_in: standing.left(now),
        scopes: token.scopes.clone(),
        renewable: token.refresh.is_some(),
        refresh_in: standing.due_in(now),
        last_error: standing.trouble.as_ref().or(standing.storage.as_ref()).map(ToString::to_string),
        usage_count: usage.count,
        last_used: usage.last_used,
    })
}

fn state(account: &Account, now: Now) -> State {
    if account.is_refreshing() {
        return State::Refreshing;
    }
    let standing = account.standing();
    let usable = standing.usable(now).is_ok();
    match (standing.need, &standing.token) {
        (Some(need), _) => State::LoginRequired(need),
        (None, Some(_)) if usable => State::Healthy,
        (None, _) if standing.storage.is_some() => State::StorageUnavailable,
        (None, None) => State::LoginRequired(Need::NotSignedIn),
        (None, Some(token)) if token.refresh.is_none() => State::LoginRequired(Need::NoRefreshToken),
        (None, Some(_)) => match standing.backing_off(now.monotonic) {
            Some(retry_in) => State::Failing { retry_in },
            None => State::Healthy,
        },
    }
}
