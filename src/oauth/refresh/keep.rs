//! What must not be lost: a new token is saved, then published, then its copy in the journal is erased. What could not
//! be saved is kept in memory and tried again; what a process left in the journal is saved by the next one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{Outcome, RefreshFault, Refreshed, rotate};
use crate::oauth::accounts::{Account, Accounts, locked};
use crate::oauth::reply::{Reply, ReplyFault};
use crate::oauth::standing::Need;
use crate::oauth::token::{Generation, Token};
use crate::oauth::vault::{JournalEntry, Pending, VaultError};
use crate::provider::Email;

/// Longest wait for an account that somebody else is at work on, before its journal is looked at later.
const REPLAY_LIMIT: Duration = Duration::from_secs(5);

/// What became of a save.
#[derive(Debug)]
pub(in crate::oauth) enum Saved {
    /// It is stored.
    Yes,
    /// Somebody has stored a newer one.
    Newer(Box<Token>),
    /// Somebody has removed the account.
    Removed,
    /// The store does not do it now.
    NotNow(VaultError),
}

impl Accounts {
    /// Saves a token over that of the generation `replaces`.
    pub(in crate::oauth) async fn put(&self, token: &Token, mut replaces: Option<Generation>) -> Saved {
        for _ in 0..3 {
            match self.store.save(token, replaces).await {
                Ok(()) => return Saved::Yes,
                Err(VaultError::Stale { stored: None }) => return Saved::Removed,
                Err(VaultError::Stale { stored: Some(_) }) => match self.store.load(&token.email).await {
                    // An older one than we thought, and of the same login: ours follows from all of them.
                    Ok(Some(stored)) if stored.generation < token.generation && !stored.follows_login_of(token) => {
                        replaces = Some(stored.generation);
                    }
                    Ok(Some(stored)) => return Saved::Newer(Box::new(stored)),
                    Ok(None) => return Saved::Removed,
                    Err(error) => return Saved::NotNow(error),
                },
                Err(error) => return Saved::NotNow(error),
            }
        }
        Saved::NotNow(VaultError::Unavailable("its record changes all the time".into()))
    }

    /// Saves and publishes the token that follows `base`. The caller has the account's turn and lock.
    pub(super) async fn settle(
        &self,
        account: &Account,
        base: &Token,
        next: Token,
        received: Option<(Instant, Duration)>,
        entry: Option<JournalEntry>,
    ) -> Outcome {
        let (stored, generation) = (account.standing().stored, next.generation);
        if base.verified && !next.verified {
            tracing::warn!(
                account = %account.email,
                "the reply to a refresh names another account than the one that signed in; if its owner has not changed \
                 its address, remove the account and sign in again"
            );
        }
        let persisted = match self.put(&next, stored).await {
            Saved::Yes => true,
            Saved::Newer(newer) => {
                account.change(|standing| standing.adopt(*newer));
                self.done_with(entry).await;
                return Ok(Refreshed::Adopted);
            }
            Saved::Removed => {
                account.change(|standing| standing.forget());
                self.done_with(entry).await;
                return Err(RefreshFault::LoginRequired(Need::NotSignedIn));
            }
            Saved::NotNow(error) => {
                tracing::error!(account = %account.email, %error, "the new token is not stored; trying every 30 s");
                false
            }
        };
        let published = account.change(|standing| {
            // Or it was seen in the store a moment ago, which is the same.
            let same = standing.generation().is_some_and(|held| held == base.generation || held == generation);
            if same {
                standing.hold(next, received);
                standing.persisted = persisted;
                standing.retried = Some(Instant::now());
                if persisted {
                    standing.stored = Some(generation);
                }
            }
            same
        });
        match (published, persisted) {
            (true, false) => locked(&account.unerased).extend(entry),
            (false, true) => {
                // The account was removed between the two, and stays so.
                self.take_back(account, generation).await;
                self.done_with(entry).await;
            }
            _ => {
                let earlier = std::mem::take(&mut *locked(&account.unerased));
                for entry in earlier.into_iter().chain(entry) {
                    self.store.erase(entry).await;
                }
            }
        }
        if published { Ok(Refreshed::Renewed) } else { Err(RefreshFault::LoginRequired(Need::NotSignedIn)) }
    }

    /// Tries again to save what could not be saved.
    pub(super) async fn save_again(&self, account: &Arc<Account>) {
        let _turn = account.turn.lock().await;
        let Ok(_lock) = self.store.lock(&account.email).await else { return };
        let standing = account.standing();
        let (Some(token), false) = (standing.token.clone(), standing.persisted) else { return };
        let stored = standing.stored;
        drop(standing);
        let saved = self.put(&token, stored).await;
        let current = account.change(|standing| {
            let current = standing.generation() == Some(token.generation);
            match &saved {
                Saved::Yes if current => {
                    standing.persisted = true;
                    standing.stored = Some(token.generation);
                    standing.storage = None;
                }
                Saved::Newer(newer) if current => standing.adopt(Token::clone(newer)),
                Saved::Removed if current => standing.forget(),
                Saved::NotNow(error) if current => standing.storage = Some(error.to_string().into()),
                _ => {}
            }
            current
        });
        match saved {
            Saved::NotNow(_) => return,
            Saved::Yes if !current => self.take_back(account, token.generation).await,
            Saved::Yes => tracing::info!(account = %account.email, "the token is stored now"),
            _ => {}
        }
        let entries = std::mem::take(&mut *locked(&account.unerased));
        for entry in entries {
            self.store.erase(entry).await;
        }
        self.announce();
    }

    /// Saves what processes that have ended read and could not save.
    pub(in crate::oauth) async fn replay(&self) {
        let done = match self.store.pending_journal().await {
            Ok(pending) => {
                let mut emails: Vec<_> = pending.into_iter().map(|pending| pending.email).collect();
                emails.dedup();
                let mut done = true;
                for email in emails {
                    done &= self.replay_account(&email).await;
                }
                done
            }
            Err(error) => {
                if !self.unreplayed.load(Ordering::Relaxed) {
                    tracing::error!(%error, "the journal of refreshes cannot be read; trying again every 30 s");
                }
                false
            }
        };
        self.unreplayed.store(!done, Ordering::Relaxed);
    }

    /// Whether nothing of an account is left to save.
    async fn replay_account(&self, email: &Email) -> bool {
        let account = self.enter(email);
        let _turn = account.turn.lock().await;
        // Whoever holds it is at work on this very account, and looks into the journal.
        let Ok(_lock) = self.store.lock_within(email, REPLAY_LIMIT).await else { return false };
        if self.compare(&account).await.is_err() {
            return false;
        }
        self.recover(&account).await.is_ok() && account.standing().persisted_or_gone()
    }

    /// Takes and saves what the journal has of an account, the oldest first: one may follow from another. The caller
    /// has the account's turn and lock, and has just compared it with the store.
    pub(super) async fn recover(&self, account: &Account) -> Result<(), VaultError> {
        let pending = self.store.pending_journal().await?;
        let pending: Vec<Pending> = pending.into_iter().filter(|pending| pending.email == account.email).collect();
        if pending.is_empty() {
            return Ok(());
        }
        let ours = account.standing().persisted_or_gone();
        for pending in pending {
            let base = account.standing().token.clone();
            // It was saved after all, something newer was, or the account was removed.
            let Some(base) = base.filter(|base| base.generation <= pending.generation) else { continue };
            let next = match Reply::parse(&pending.reply) {
                Ok(reply) => rotate::next(&base, reply, pending.received_at).0,
                Err(ReplyFault::NoAccess(Some(refresh))) => rotate::salvaged(&base, refresh),
                Err(_) => continue,
            };
            let next = Token { generation: pending.generation.next(), ..next };
            // Its age is counted by the wall clock alone: when it came, another process ran.
            let outcome = self.settle(account, &base, next, None, None).await;
            tracing::info!(account = %account.email, ok = outcome.is_ok(), "took a token from the journal");
        }
        // A token of ours that waits for its save keeps its copy.
        if ours && account.standing().persisted_or_gone() {
            self.store.erase_journal(&account.email).await;
        }
        Ok(())
    }

    /// Removes from the store what was saved a moment after its account was removed.
    async fn take_back(&self, account: &Account, saved: Generation) {
        if let Ok(Some(stored)) = self.store.load(&account.email).await
            && stored.generation == saved
            && account.standing().token.is_none()
            && let Err(error) = self.store.remove(&account.email).await
        {
            tracing::error!(account = %account.email, %error, "a removed account is still in the store");
        }
    }

    async fn done_with(&self, entry: Option<JournalEntry>) {
        if let Some(entry) = entry {
            self.store.erase(entry).await;
        }
    }
}
