//! One refresh, from the lock to the new token. The order is the whole point: lock, read the store again, ask the
//! authorization server, make its raw reply safe, save, publish, erase the copy. A stored token is never deleted
//! because a refresh failed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Outcome, RefreshFault, Refreshed};
use crate::health::Now;
use crate::oauth::accounts::{Account, Accounts};
use crate::oauth::client::{Client, ClientError, Code, Trouble};
use crate::oauth::reply::{Named, Raw, Reply, ReplyFault};
use crate::oauth::standing::{GAP, Need, expiry};
use crate::oauth::store::Store;
use crate::oauth::token::{Generation, Token};
use crate::oauth::vault::{JournalEntry, Pen, VaultError};
use crate::secret::Secret;

/// The wait before the same refresh token is sent again, after a reply was lost; and as much again at random.
const LOST_WAIT: Duration = Duration::from_secs(1);

/// A reply that has been read, and its copy in the journal.
struct Rotation {
    reply: Reply,
    entry: Option<JournalEntry>,
    received: (Instant, SystemTime),
}

impl Accounts {
    /// Renews an account's token, or finds that somebody has.
    pub(super) async fn rotate(self: &Arc<Self>, account: &Account) -> Outcome {
        let before = account.standing().generation();
        let _turn = account.turn.lock().await;
        let _lock = match self.store.lock(&account.email).await {
            Ok(lock) => lock,
            Err(error) => return Err(unavailable(account, &error)),
        };
        if let Err(error) = self.compare(account).await {
            return Err(unavailable(account, &error));
        }
        // A process may have ended between the authorization server's answer and its save: then what is stored is spent.
        if let Err(error) = self.recover(account).await {
            return Err(unavailable(account, &error));
        }
        let standing = account.standing();
        let Some(token) = standing.token.clone() else { return Err(RefreshFault::LoginRequired(Need::NotSignedIn)) };
        if Some(token.generation) != before && !standing.expired(Now::read()) {
            // A token that lasts for seconds is due again at once: all processes together must not hurry either.
            account.change(|standing| standing.attempted = Some(Instant::now()));
            tracing::info!(account = %account.email, "another process had renewed the token");
            return Ok(Refreshed::Adopted);
        }
        drop(standing);
        let Some(refresh) = token.refresh.clone() else {
            self.require_login(account, Need::NoRefreshToken);
            return Err(RefreshFault::LoginRequired(Need::NoRefreshToken));
        };
        account.change(|standing| standing.attempted = Some(Instant::now()));
        tracing::debug!(account = %account.email, "renewing the token");
        match self.ask(account, token.generation, &refresh).await {
            Ok(rotation) => {
                let (next, life) = next(&token, rotation.reply, rotation.received.1);
                let received = Some((rotation.received.0, life));
                let outcome = self.settle(account, &token, next, received, rotation.entry).await;
                if outcome == Ok(Refreshed::Renewed) {
                    tracing::info!(account = %account.email, seconds = life.as_secs(), "renewed the token");
                }
                outcome
            }
            Err(Unanswered::Client(ClientError::Rejected(code))) => self.rejected(account, &token, code).await,
            Err(Unanswered::Client(error)) => Err(failed(account, error)),
            Err(Unanswered::Salvaged(refresh, entry)) => {
                // The rotation has happened: what is left of it must not be lost, although it brings no token.
                let kept = salvaged(&token, refresh);
                let (received, refused) = {
                    let standing = account.standing();
                    (standing.received, standing.refused)
                };
                self.settle(account, &token, kept, received, entry).await?;
                account.change(|standing| standing.refused = refused);
                Err(failed(account, ClientError::Transient { trouble: Trouble::Unreadable, retry_after: None }))
            }
        }
    }

    /// Asks the authorization server; once more with the same refresh token where a reply was lost, for it may have
    /// a grace. There is nothing to lose: without the reply, the old token is all there is.
    async fn ask(&self, account: &Account, generation: Generation, refresh: &Secret) -> Result<Rotation, Unanswered> {
        let setup = self.setup.load_full();
        let client = Client { upstream: &self.upstream, settings: &setup.oauth, limits: setup.limits };
        let mut again = false;
        loop {
            // Before it is asked: when the reply is here, nothing but a write may be between it and the journal.
            let pen = self.store.pen(&account.email).await;
            let error = match client.refresh(refresh).await {
                Ok(raw) => match self.read(account, generation, &raw, pen).await {
                    Ok(rotation) => return Ok(rotation),
                    Err(Unanswered::Client(error)) => error,
                    Err(salvaged) => return Err(salvaged),
                },
                Err(error) => error,
            };
            match error {
                ClientError::Unknown(trouble) => {
                    account.change(|standing| standing.lost = true);
                    if again {
                        return Err(ClientError::Unknown(trouble).into());
                    }
                    tracing::warn!(account = %account.email, %trouble, "the reply to a refresh was lost; asking again");
                    let random = f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX);
                    tokio::time::sleep(LOST_WAIT + LOST_WAIT.mul_f64(random)).await;
                    again = true;
                }
                error => return Err(error.into()),
            }
        }
    }

    /// Makes a raw reply safe, and only then looks into it.
    async fn read(
        &self,
        account: &Account,
        generation: Generation,
        raw: &Raw,
        pen: Option<Pen>,
    ) -> Result<Rotation, Unanswered> {
        let received = (Instant::now(), SystemTime::now());
        let entry = Store::journal(pen, &account.email, generation, raw.expose());
        let fault = match Reply::parse(raw.expose()) {
            Ok(reply) => return Ok(Rotation { reply, entry, received }),
            Err(ReplyFault::NoAccess(Some(refresh))) => return Err(Unanswered::Salvaged(refresh, entry)),
            Err(fault) => fault,
        };
        if let Some(entry) = entry {
            self.store.erase(entry).await;
        }
        Err(match fault {
            ReplyFault::Page => ClientError::Transient { trouble: Trouble::Page(200), retry_after: None }.into(),
            ReplyFault::Unreadable | ReplyFault::NoAccess(_) => ClientError::Unknown(Trouble::Unreadable).into(),
        })
    }

    /// The refresh token is spent. Perhaps because somebody else has spent it: then there is a newer one.
    async fn rejected(&self, account: &Account, used: &Token, code: Code) -> Outcome {
        match self.store.load(&account.email).await {
            Ok(Some(stored)) if stored.generation > used.generation => {
                account.change(|standing| standing.adopt(stored));
                tracing::info!(account = %account.email, "another process had renewed the token");
                return Ok(Refreshed::Adopted);
            }
            Ok(_) => {}
            Err(error) => return Err(unavailable(account, &error)),
        }
        let need = if account.standing().lost { Need::ReplyLost } else { Need::Rejected(code) };
        self.require_login(account, need);
        Err(RefreshFault::LoginRequired(need))
    }
}

/// What came instead of a reply.
enum Unanswered {
    Client(ClientError),
    /// A new refresh token, and no access token; and its copy in the journal.
    Salvaged(Secret, Option<JournalEntry>),
}

impl From<ClientError> for Unanswered {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

/// The token that follows from a reply, and its life. One that names another account is kept all the same, for the old
/// one is spent; but whose it is nobody vouches for any longer.
pub(super) fn next(token: &Token, reply: Reply, received: SystemTime) -> (Token, Duration) {
    let verified = match &reply.account {
        Named::Account(named) => *named == token.email,
        Named::Nobody => token.verified,
        Named::Unreadable => false,
    };
    let next = Token {
        email: token.email.clone(),
        access: reply.access,
        refresh: reply.refresh.or_else(|| token.refresh.clone()),
        expires_at: expiry(received, reply.expires_in),
        scopes: reply.scopes.unwrap_or_else(|| token.scopes.clone()),
        verified,
        created_at: token.created_at,
        generation: token.generation.next(),
    };
    (next, reply.expires_in)
}

/// The token as it was, with the refresh token of a reply that held nothing else.
pub(super) fn salvaged(token: &Token, refresh: Secret) -> Token {
    Token { refresh: Some(refresh), generation: token.generation.next(), ..token.clone() }
}

fn failed(account: &Account, error: ClientError) -> RefreshFault {
    let retry_after = match &error {
        ClientError::Transient { retry_after, .. } => *retry_after,
        _ => None,
    };
    let now = Instant::now();
    let retry_in = account.change(|standing| standing.fail(error.to_string().into(), retry_after, now));
    tracing::warn!(account = %account.email, %error, retry_in = retry_in.as_secs(), "the token was not renewed");
    RefreshFault::Failing { retry_in }
}

/// The store is asked again soon, and for as long as it takes.
fn unavailable(account: &Account, error: &VaultError) -> RefreshFault {
    tracing::warn!(account = %account.email, %error, "the token is not renewed while the store does not answer");
    account.change(|standing| {
        standing.storage = Some(error.to_string().into());
        standing.not_before = Some(Instant::now() + GAP);
    });
    RefreshFault::StorageUnavailable
}
