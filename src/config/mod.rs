//! The configuration: from YAML text to an immutable [`Snapshot`].
//!
//! `file` knows what the text says and where, `resolve` what it means; both collect every problem with its place
//! and a cure. [`Live`] holds the snapshot in force. Nothing here knows HTTP.

mod snapshot;

pub use snapshot::{ClientAuth, Language, LogLevel, OAuthSettings, OAuthStorage, Settings, Snapshot, Timeouts};
