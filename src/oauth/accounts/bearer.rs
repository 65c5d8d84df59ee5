//! Tokens for requests: the current one without a lock, a renewed one where that has ended or a provider refuses it,
//! or a word why there is none.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Account, Accounts};
use crate::health::Now;
use crate::oauth::refresh::{RefreshFault, Urgency};
use crate::oauth::standing::{Lack, Need};
use crate::oauth::token::{Generation, Token};
use crate::provider::Email;
use crate::secret::Secret;

/// How long a request waits for a refresh.
pub const WAIT_LIMIT: Duration = Duration::from_secs(15);

/// A token that may be used now.
#[derive(Clone, Debug)]
pub struct Bearer(Arc<Token>);

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lacking {
    /// A human must act.
    #[error("{0}")]
    LoginRequired(Need),
    /// The store of tokens does not answer.
    #[error("the store of tokens is unavailable")]
    StorageUnavailable,
    /// The token has ended, and renewing it does not work at the moment.
    #[error("the token cannot be renewed at the moment{}", because(.why.as_deref()))]
    Failing {
        /// Until the next try.
        retry_in: Duration,
        /// What the last try failed for, in our words.
        why: Option<Arc<str>>,
    },
    /// It is being renewed, and that takes longer than a request waits.
    #[error("the token is still being renewed")]
    Busy,
}

impl Bearer {
    /// One with this token.
    pub fn new(token: Arc<Token>) -> Self {
        Self(token)
    }

    /// For the `authorization` header.
    pub fn access(&self) -> &Secret {
        &self.0.access
    }

    /// Which token it is: a 401 is reported with it.
    pub fn generation(&self) -> Generation {
        self.0.generation
    }

    /// Whose it is.
    pub fn email(&self) -> &Email {
        &self.0.email
    }
}

impl Accounts {
    /// The current token of an account. No lock, no wait.
    ///
    /// # Errors
    /// [`Lacking`]; where it may be cured by waiting, [`Accounts::access`] does so.
    pub fn bearer(&self, email: &Email, now: Now) -> Result<Bearer, Lacking> {
        let account = self.find(email).ok_or_else(|| self.lacking(Lack::Need(Need::NotSignedIn)))?;
        account.standing().usable(now).map(|token| Bearer::new(token.clone())).map_err(|lack| self.lacking(lack))
    }

    /// The current token of an account; an expired one is renewed first, which the caller may stop waiting for.
    ///
    /// # Errors
    /// [`Lacking`].
    pub async fn access(self: &Arc<Self>, email: &Email, now: Now) -> Result<Bearer, Lacking> {
        let account = self.enter(email);
        let lack = match account.standing().usable(now) {
            Ok(token) => return Ok(Bearer::new(token.clone())),
            Err(lack) => lack,
        };
        match lack {
            Lack::Stale(generation) => self.renewed(&account, generation).await,
            Lack::Need(need) if self.is_open() => {
                // Perhaps somebody has signed in beside us.
                self.look_again(&account).await;
                let found = account.standing().usable(now).map(|token| Bearer::new(token.clone()));
                found.map_err(|lack| {
                    if lack == Lack::Need(need) {
                        self.require_login(&account, need);
                    }
                    self.lacking(lack)
                })
            }
            lack => Err(self.lacking(lack)),
        }
    }

    /// What to do after a 401 to the token of this generation: the newer token where there is one, else one forced
    /// refresh, for everybody who asks.
    ///
    /// # Errors
    /// [`Lacking`].
    pub async fn refused(self: &Arc<Self>, email: &Email, generation: Generation) -> Result<Bearer, Lacking> {
        let account = self.find(email).ok_or_else(|| self.lacking(Lack::Need(Need::NotSignedIn)))?;
        let lack = account.change(|standing| {
            standing.refused |= standing.generation() == Some(generation);
            standing.usable(Now::read()).map(|token| Bearer::new(token.clone()))
        });
        match lack {
            Ok(newer) => Ok(newer),
            Err(Lack::Stale(generation)) => self.renewed(&account, generation).await,
            Err(Lack::Need(need)) => {
                self.require_login(&account, need);
                Err(Lacking::LoginRequired(need))
            }
            Err(lack) => Err(self.lacking(lack)),
        }
    }

    /// A provider refuses also the token that [`Accounts::refused`] brought: a human had better look. It is tried again
    /// all the same, by whoever's turn that is.
    pub fn refused_again(&self, email: &Email) {
        if let Some(account) = self.find(email) {
            self.require_login(&account, Need::Refused);
        }
    }

    /// A provider has answered to the account's token: a few atomic additions.
    pub fn used(&self, email: &Email, wall: SystemTime) {
        let Some(account) = self.find(email) else { return };
        account.count(wall);
        if account.standing().need == Some(Need::Refused) {
            account.change(|standing| standing.need = standing.blocked());
            self.announce();
        }
    }

    async fn renewed(self: &Arc<Self>, account: &Arc<Account>, stale: Generation) -> Result<Bearer, Lacking> {
        let lacking = |fault| Lacking::after(fault, account);
        if let Some(flight) = self.fly(account, stale, Urgency::Use).map_err(lacking)? {
            match tokio::time::timeout(WAIT_LIMIT, Self::landing(flight)).await {
                Ok(outcome) => outcome.map_err(lacking)?,
                Err(_) => return Err(Lacking::Busy),
            };
        }
        // Whatever the clock says of it: it came this moment.
        match &account.standing().token {
            Some(token) => Ok(Bearer::new(token.clone())),
            None => Err(Lacking::LoginRequired(Need::NotSignedIn)),
        }
    }

    fn lacking(&self, lack: Lack) -> Lacking {
        match lack {
            Lack::Need(Need::NotSignedIn) | Lack::Unread if !self.is_open() => Lacking::StorageUnavailable,
            Lack::Need(need) => Lacking::LoginRequired(need),
            Lack::Unread => Lacking::StorageUnavailable,
            Lack::Stale(_) => Lacking::Failing { retry_in: Duration::ZERO, why: None },
        }
    }
}

fn because(why: Option<&str>) -> String {
    why.map(|why| format!(": {why}")).unwrap_or_default()
}

impl Lacking {
    /// What a refresh that failed leaves its account without.
    fn after(fault: RefreshFault, account: &Account) -> Self {
        match fault {
            RefreshFault::LoginRequired(need) => Self::LoginRequired(need),
            RefreshFault::StorageUnavailable => Self::StorageUnavailable,
            RefreshFault::Failing { retry_in } => Self::Failing { retry_in, why: account.standing().trouble.clone() },
            RefreshFault::Stopped => Self::Busy,
        }
    }
}
