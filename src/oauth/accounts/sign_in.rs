//! Signing in: the link, and what comes of the code that a human brings back. The account that the authorization
//! server names must be the one that was asked for.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::{Account, Accounts, locked};
use crate::health::Now;
use crate::oauth::client::{Client, ClientError};
use crate::oauth::login::{Begun, Login, LoginFault};
use crate::oauth::paste::{PasteFault, parse_pasted};
use crate::oauth::refresh::Saved;
use crate::oauth::reply::{Named, Reply};
use crate::oauth::standing::expiry;
use crate::oauth::token::{Generation, Token};
use crate::provider::Email;
use crate::secret::Secret;

/// A login that is finished.
#[derive(Clone, Debug)]
pub struct SignedIn {
    /// Whose.
    pub email: Email,
    /// Whether the authorization server named the account itself.
    pub verified: bool,
    /// Whether the store holds the token.
    pub persisted: bool,
    /// When its token ends.
    pub expires_at: SystemTime,
    /// What it permits.
    pub scopes: Vec<String>,
}

/// Why a login was not finished. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The text is no code.
    #[error(transparent)]
    Paste(#[from] PasteFault),
    /// The code belongs to no pending login.
    #[error(transparent)]
    Login(#[from] LoginFault),
    /// Neither the call nor the login says for which account it is.
    #[error("the account's e-mail is missing: give account_email with the code")]
    NoEmail,
    /// The authorization server did not take the code, or could not be asked.
    #[error("{0}")]
    Server(#[from] ClientError),
    /// It answered without a token.
    #[error("the authorization server's answer holds no usable token")]
    Unusable,
    /// Another account has signed in than the one that was asked for.
    #[error("the login was for {asked}, but {named} has signed in; nothing was stored")]
    Mismatch {
        /// The account that was asked for.
        asked: Email,
        /// The account that the server named, masked.
        named: String,
    },
    /// The process is ending.
    #[error("the balancer is ending")]
    Stopped,
}

impl Accounts {
    /// Begins a login, for a certain account or for any.
    ///
    /// # Errors
    /// [`LoginFault::TooMany`], which lasts until one is finished or over, or [`LoginFault::Randomness`].
    pub fn begin(&self, email: Option<Email>) -> Result<Begun, LoginFault> {
        self.logins.begin(&self.setup.load().oauth, email, Instant::now())
    }

    /// Finishes a login with what the human pasted, for the account that is named here, else for the one that the
    /// login was begun for. A caller that leaves does not stop it.
    ///
    /// # Errors
    /// [`ExchangeError`]; the login is used up once its code has left this machine.
    pub async fn exchange(self: &Arc<Self>, pasted: &str, email: Option<Email>) -> Result<SignedIn, ExchangeError> {
        let pasted = parse_pasted(pasted)?;
        let now = Instant::now();
        let bound = || self.logins.account_of(pasted.state.as_ref(), now);
        let login = match email.clone().or_else(bound) {
            Some(asked) => self.logins.take(pasted.state.as_ref(), email.as_ref(), now).map(|login| (login, asked))?,
            None => {
                // A login that cannot be found is the greater mistake.
                let login = self.logins.take(pasted.state.as_ref(), None, now)?;
                self.logins.put_back(login, now);
                return Err(ExchangeError::NoEmail);
            }
        };
        let accounts = self.clone();
        let task = self.tasks.spawn(async move { accounts.sign_in(login.0, &pasted.code, login.1).await });
        task.await.unwrap_or(Err(ExchangeError::Stopped))
    }

    /// Forgets the logins whose time is over.
    pub(in crate::oauth) fn forget_logins(&self, now: Now) {
        self.logins.expire(now.monotonic);
    }

    async fn sign_in(&self, login: Login, code: &Secret, asked: Email) -> Result<SignedIn, ExchangeError> {
        let setup = self.setup.load_full();
        let client = Client { upstream: &self.upstream, settings: &setup.oauth, limits: setup.limits };
        let raw = match client.exchange(&login, code).await {
            Ok(raw) => raw,
            Err(error) => {
                if error.nothing_sent() {
                    self.logins.put_back(login, Instant::now());
                }
                tracing::warn!(account = %asked, %error, "a login was not finished");
                return Err(error.into());
            }
        };
        let received = (Instant::now(), SystemTime::now());
        let reply = Reply::parse(raw.expose()).map_err(|_| ExchangeError::Unusable)?;
        let verified = match reply.account {
            Named::Account(named) if named == asked => true,
            Named::Nobody => false,
            Named::Account(named) => return Err(ExchangeError::Mismatch { asked, named: masked(&named) }),
            Named::Unreadable => return Err(ExchangeError::Mismatch { asked, named: "another account".into() }),
        };
        let token = Token {
            email: asked.clone(),
            access: reply.access,
            refresh: reply.refresh,
            expires_at: expiry(received.1, reply.expires_in),
            scopes: reply
                .scopes
                .unwrap_or_else(|| setup.oauth.scopes.split_ascii_whitespace().map(str::to_owned).collect()),
            verified,
            created_at: received.1,
            generation: Generation::default(),
        };
        let account = self.enter(&asked);
        let signed_in = self.take_in(&account, token, (received.0, reply.expires_in)).await;
        tracing::info!(account = %asked, verified, persisted = signed_in.persisted, "signed in");
        Ok(signed_in)
    }

    /// Stores the token of a login over whatever is there, and publishes it.
    async fn take_in(&self, account: &Account, mut token: Token, received: (Instant, std::time::Duration)) -> SignedIn {
        // A refresh under way ends first; its token is then replaced.
        let _turn = account.turn.lock().await;
        let lock = self.store.lock(&account.email).await;
        let (floor, mut known) = {
            let standing = account.standing();
            (standing.floor, standing.stored)
        };
        let mut saved = None;
        // Another process may write between the two; it is overwritten, for this login is the newest.
        for _ in 0..3 {
            let stored = match self.store.load(&account.email).await {
                Ok(stored) => stored.map(|stored| stored.generation),
                Err(error) => {
                    // Above every count of writes: the store will be asked again later, and must not win then.
                    let seconds = token.created_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                    token.generation = floor.next().max(Generation(seconds));
                    tracing::warn!(account = %account.email, %error, "the token is not stored; trying every 30 s");
                    break;
                }
            };
            token.generation = floor.max(stored.unwrap_or_default()).next();
            known = stored;
            match self.put(&token, stored).await {
                Saved::Yes => saved = Some(token.generation),
                Saved::Newer(_) | Saved::Removed => continue,
                Saved::NotNow(error) => {
                    tracing::warn!(account = %account.email, %error, "the token is not stored; trying every 30 s");
                }
            }
            break;
        }
        if saved.is_some() {
            // Replies to refreshes of the login before, which no process has saved: they are not to come after this one.
            self.store.erase_journal(&account.email).await;
            locked(&account.unerased).clear();
        }
        drop(lock);
        let signed_in = SignedIn {
            email: token.email.clone(),
            verified: token.verified,
            persisted: saved.is_some(),
            expires_at: token.expires_at,
            scopes: token.scopes.clone(),
        };
        account.change(|standing| {
            standing.hold(token, Some(received));
            standing.persisted = saved.is_some();
            standing.stored = saved.or(known);
            standing.retried = Some(Instant::now());
        });
        self.announce();
        self.woken.notify_one();
        signed_in
    }
}

/// `m…@example.com`: enough to see which login was used.
fn masked(email: &Email) -> String {
    let (local, domain) = email.as_str().split_once('@').unwrap_or_default();
    format!("{}…@{domain}", local.chars().next().unwrap_or_default())
}
