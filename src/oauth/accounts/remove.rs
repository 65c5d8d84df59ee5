//! Removing accounts. What is under way for one goes on and finds it gone: every write names the generation that it
//! replaces.

use std::sync::Arc;
use std::time::Duration;

use super::{Accounts, locked};
use crate::oauth::vault::VaultError;
use crate::provider::Email;

/// Longest wait for a process that is at work on the account.
const LOCK_LIMIT: Duration = Duration::from_secs(2);

/// Why an account was not removed.
#[derive(Debug, thiserror::Error)]
#[error("{} of the accounts were removed; then: {source}", .removed.len())]
pub struct RemoveError {
    /// Those that are gone all the same.
    pub removed: Vec<Email>,
    /// The store's word.
    pub source: VaultError,
}

impl Accounts {
    /// Removes an account here and in the store; a refresh under way does not bring it back. `false` = there was none.
    /// A caller that leaves does not stop it.
    ///
    /// # Errors
    /// The store does not do it; then the account is still there.
    pub async fn remove(self: &Arc<Self>, email: &Email) -> Result<bool, VaultError> {
        let (accounts, email) = (self.clone(), email.clone());
        let task = self.tasks.spawn(async move { accounts.take_out(&email).await });
        task.await.unwrap_or_else(|_| Err(VaultError::Unavailable("the balancer is ending".into())))
    }

    async fn take_out(&self, email: &Email) -> Result<bool, VaultError> {
        // Nobody in another process is then between its refresh and its save. One that hangs there must not keep an account
        // from being removed; a refresh of our own sees that it was.
        let _lock = self.store.lock_within(email, LOCK_LIMIT).await;
        let stored = self.store.remove(email).await?;
        let account = self.find(email);
        let held = account.as_ref().is_some_and(|account| {
            // Their replies belong to nobody now; the next start erases them.
            locked(&account.unerased).clear();
            account.change(|standing| {
                let held = standing.token.is_some();
                standing.forget();
                held
            })
        });
        self.announce();
        if stored || held {
            tracing::info!(account = %email, "the account was removed");
        }
        Ok(stored || held)
    }

    /// Removes all accounts, and names them.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub async fn remove_all(self: &Arc<Self>) -> Result<Vec<Email>, RemoveError> {
        let mut removed = Vec::new();
        let stored = match self.store.load_all().await {
            Ok(stored) => stored,
            Err(source) => return Err(RemoveError { removed, source }),
        };
        let mut emails: Vec<Email> = self.roll.load().iter().map(|account| account.email.clone()).collect();
        for (email, _) in stored {
            if !emails.contains(&email) {
                emails.push(email);
            }
        }
        for email in emails {
            match self.remove(&email).await {
                Ok(true) => removed.push(email),
                Ok(false) => {}
                Err(source) => return Err(RemoveError { removed, source }),
            }
        }
        Ok(removed)
    }
}
