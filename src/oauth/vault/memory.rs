//! Tokens that end with the process: `storage: memory`, or `enable_persistence: false`.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::VaultError;
use crate::oauth::token::{Generation, Token};
use crate::provider::Email;

/// See [`Vault::Memory`](super::Vault::Memory).
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<Email, Token>>);

impl Memory {
    pub(super) fn load_all(&self) -> Vec<Token> {
        self.lock().values().cloned().collect()
    }

    pub(super) fn load(&self, email: &Email) -> Option<Token> {
        self.lock().get(email).cloned()
    }

    pub(super) fn save(&self, token: &Token, replaces: Option<Generation>) -> Result<(), VaultError> {
        let mut tokens = self.lock();
        if admits(tokens.get(&token.email), token, replaces)? {
            tokens.insert(token.email.clone(), token.clone());
        }
        Ok(())
    }

    pub(super) fn remove(&self, email: &Email) -> bool {
        self.lock().remove(email).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Email, Token>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rule of every store: what is stored must have the generation that the new record replaces. `false` = the very
/// same record is stored already (an earlier save that was given up has arrived after all), so there is nothing to do.
pub(super) fn admits(stored: Option<&Token>, token: &Token, replaces: Option<Generation>) -> Result<bool, VaultError> {
    let generation = stored.map(|token| token.generation);
    if generation == replaces {
        return Ok(true);
    }
    if stored.is_some_and(|stored| stored.to_record() == token.to_record()) {
        return Ok(false);
    }
    Err(VaultError::Stale { stored: generation })
}
