//! Where tokens are kept. All of it may be slow or absent: calls are async, have a limit, and never run on a thread
//! that serves requests. A read that fails is never "no token", and a write names the generation that it replaces.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::token::{Generation, RecordFault, Token};
use crate::provider::Email;

/// A store of tokens.
#[derive(Debug)]
pub enum Vault {
    /// Nowhere: tokens end with the process.
    Memory(Memory),
}

/// Why a store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// It does not answer, or not in time; it may later.
    #[error("the store of tokens is unavailable: {0}")]
    Unavailable(String),
    /// Somebody else has written a newer record; it is to be read and used.
    #[error("the stored token is newer")]
    Stale {
        /// The generation that is stored; none = the account was removed.
        stored: Option<Generation>,
    },
    /// A record is there, but cannot be read.
    #[error(transparent)]
    Record(#[from] RecordFault),
}

/// See [`Vault::Memory`].
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<Email, Token>>);

impl Vault {
    /// Every account with its token, or why its record cannot be read.
    ///
    /// # Errors
    /// The store as a whole cannot be read.
    pub async fn load_all(&self) -> Result<Vec<(Email, Result<Token, RecordFault>)>, VaultError> {
        match self {
            Self::Memory(memory) => {
                Ok(memory.lock().iter().map(|(email, token)| (email.clone(), Ok(token.clone()))).collect())
            }
        }
    }

    /// The stored token of one account; `None` = the store says that there is none.
    ///
    /// # Errors
    /// The store or the record cannot be read.
    pub async fn load(&self, email: &Email) -> Result<Option<Token>, VaultError> {
        match self {
            Self::Memory(memory) => Ok(memory.lock().get(email).cloned()),
        }
    }

    /// Stores a token, if what is stored has the generation `replaces` (`None` = nothing is stored).
    ///
    /// # Errors
    /// [`VaultError::Stale`] where it has another; what was stored stays, whatever fails.
    pub async fn save(&self, token: &Token, replaces: Option<Generation>) -> Result<(), VaultError> {
        match self {
            Self::Memory(memory) => {
                let mut tokens = memory.lock();
                let stored = tokens.get(&token.email).map(|token| token.generation);
                if stored != replaces {
                    return Err(VaultError::Stale { stored });
                }
                tokens.insert(token.email.clone(), token.clone());
                Ok(())
            }
        }
    }

    /// Removes an account's token; `false` = there was none.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn remove(&self, email: &Email) -> Result<bool, VaultError> {
        match self {
            Self::Memory(memory) => Ok(memory.lock().remove(email).is_some()),
        }
    }
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, HashMap<Email, Token>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
