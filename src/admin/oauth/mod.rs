//! The paths under `/oauth/`: signing in, how the accounts are, renewing and removing them. What they do is done in
//! tasks of `oauth` that a client's departure does not stop; here it becomes an answer. No token, or part of one, is in
//! any of them.

mod login;
mod page;
mod status;

use std::time::{Duration, SystemTime};

use http::{Response, StatusCode};
use serde_json::json;

use super::{Admin, reply};
use crate::config::Snapshot;
use crate::health::Now;
use crate::oauth::{ManualFault, RefreshFault, VaultError, human};
use crate::provider::{Email, percent_decode};
use crate::proxy::reject::Error;
use crate::proxy::relay::Outbound;

pub(super) const GENERATE_URL: &str = "/oauth/generate-url";
pub(super) const EXCHANGE_CODE: &str = "/oauth/exchange-code";
pub(super) const TOKENS: &str = "/oauth/tokens";
pub(super) const TOKENS_OF: &str = "/oauth/tokens/";
pub(super) const REFRESH: &str = "/oauth/refresh/";

/// How long a call waits for a store that is being read for the first time.
const STORE_TIME: Duration = Duration::from_secs(4);
/// When a store that does not answer is asked again.
const STORE_GAP: Duration = Duration::from_secs(30);

impl Admin {
    /// `POST /oauth/refresh/{email}`
    pub(super) async fn refresh(&self, snapshot: &Snapshot, path: &str) -> Response<Outbound> {
        let Some(email) = account_in(path, REFRESH) else { return reply::refusal(not_an_address()) };
        let _ = tokio::time::timeout(STORE_TIME, self.accounts.settled()).await;
        if let Err(fault) = self.accounts.refresh(&email).await {
            return reply::refusal(self.not_refreshed(&email, fault));
        }
        self.health.forgive(&email);
        let now = Now::read();
        let Some(account) = self.accounts.status(now).into_iter().find(|account| account.email == email) else {
            return reply::refusal(unknown(&email));
        };
        let seconds = account.expires_in.as_secs();
        reply::json(&json!({
            "status": "success",
            "message": format!("Token refreshed successfully for account: {}", account.email),
            "account_email": account.email.as_str(),
            "account_id": account.email.as_str(),
            "expires_at": unix(account.expires_at),
            "expires_in_seconds": seconds,
            "expires_in_minutes": status::minutes(account.expires_in),
            "expires_in_human": human::remaining(account.expires_in, snapshot.settings.language),
            "scopes": account.scopes,
            "persisted": account.persisted && self.accounts.keeps(),
            "refreshed_at": unix(now.wall),
        }))
    }

    /// `DELETE /oauth/tokens/{email}`
    pub(super) async fn remove(&self, path: &str) -> Response<Outbound> {
        let Some(email) = account_in(path, TOKENS_OF) else { return reply::refusal(not_an_address()) };
        match self.accounts.remove(&email).await {
            Ok(true) => {
                let message = format!("Token for {email} removed");
                reply::json(&json!({ "status": "success", "message": message, "removed": [email.as_str()] }))
            }
            Ok(false) => reply::refusal(unknown(&email)),
            Err(error) => reply::refusal(not_removed(&format!("Token for {email} was not removed"), &error)),
        }
    }

    /// `DELETE /oauth/tokens`
    pub(super) async fn remove_all(&self) -> Response<Outbound> {
        let names = |emails: &[Email]| emails.iter().map(ToString::to_string).collect::<Vec<_>>();
        match self.accounts.remove_all().await {
            Ok(removed) => reply::json(&json!({
                "status": "success",
                "message": "All tokens cleared",
                "removed": names(&removed),
            })),
            Err(error) => {
                let what = format!("{} of the tokens were removed, the others were not", error.removed.len());
                reply::error(not_removed(&what, &error.source), json!({ "removed": names(&error.removed) }))
            }
        }
    }

    fn not_refreshed(&self, email: &Email, fault: ManualFault) -> Error {
        let what = format!("Token not refreshed for account {email}: {fault}");
        match fault {
            ManualFault::Unknown if self.accounts.is_open() => unknown(email),
            ManualFault::TooSoon(wait) => Error::new(StatusCode::TOO_MANY_REQUESTS, what).retry_in(wait),
            ManualFault::Failed(RefreshFault::LoginRequired(_)) => {
                let steps = human::login_steps(&self.endpoint, Some(email));
                Error::new(StatusCode::UNAUTHORIZED, format!("{what}. {steps}"))
            }
            ManualFault::Failed(RefreshFault::Failing { retry_in }) => {
                let why = self.accounts.trouble(email).map(|why| format!(": {why}")).unwrap_or_default();
                unavailable(format!("{what}{why}")).retry_in(retry_in)
            }
            ManualFault::Failed(RefreshFault::Stopped) => unavailable(what).retry_in(Duration::from_secs(1)),
            ManualFault::Unknown | ManualFault::Failed(RefreshFault::StorageUnavailable) => {
                let why = self.accounts.store_fault().unwrap_or_else(|| "the store of tokens is unavailable".into());
                let what = format!("Token not refreshed for account {email}: {why}; nothing was lost");
                unavailable(what).retry_in(STORE_GAP)
            }
        }
    }
}

fn unknown(email: &Email) -> Error {
    Error::new(StatusCode::NOT_FOUND, format!("Token for {email} not found: this account is not signed in"))
}

fn unavailable(message: String) -> Error {
    Error::new(StatusCode::SERVICE_UNAVAILABLE, message)
}

fn not_removed(what: &str, error: &VaultError) -> Error {
    let refusal = unavailable(format!("{what}: {error}"));
    if error.is_temporary() { refusal.retry_in(STORE_GAP) } else { refusal }
}

fn not_an_address() -> Error {
    Error::new(StatusCode::BAD_REQUEST, "account_email is not an e-mail address")
}

/// The account that a path ends with; `None` = that is no e-mail.
fn account_in(path: &str, prefix: &str) -> Option<Email> {
    Email::parse(&percent_decode(path.strip_prefix(prefix)?)?)
}

/// Whole seconds since 1970.
fn unix(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
