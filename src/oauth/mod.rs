//! Accounts: signing in (PKCE), tokens, their refresh, and where they are kept.
//!
//! The number one way such programs hurt their users is a refresh token that is lost between rotation and storage.
//! Here the raw reply of a rotation is journalled before it is parsed, stored before it is published, and every write
//! of a record is a compare-and-swap on its generation.

mod accounts;
pub mod client;
pub mod human;
pub mod login;
pub mod paste;
pub mod pkce;
mod refresh;
pub mod reply;
mod standing;
mod store;
pub mod token;
pub mod vault;

pub use accounts::{
    AccountStatus, Accounts, Bearer, ExchangeError, Lacking, Needy, RemoveError, SignedIn, State, WAIT_LIMIT,
};
pub use paste::parse_pasted;
pub use refresh::{ManualFault, RefreshFault, Refreshed};
pub use standing::Need;
pub use store::Storage;
pub use token::{Generation, Token};
pub use vault::{Vault, VaultError};
