//! `GET /oauth/status`: the accounts, under the names that scripts know from the predecessor, and what those do not
//! tell.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::unix;
use crate::admin::{Admin, entry, providers};
use crate::config::Snapshot;
use crate::health::Now;
use crate::oauth::{AccountStatus, State, human};

/// A token that ends within it is about to.
const SOON: Duration = Duration::from_secs(900);

impl Admin {
    pub(in crate::admin) fn accounts_page(&self, snapshot: &Snapshot) -> Value {
        let now = Now::read();
        let zone = TimeZone::system();
        let accounts = self.accounts.status(now);
        // The predecessor used one account at a time; the one that served last is the nearest to it.
        let latest =
            accounts.iter().enumerate().max_by_key(|(index, account)| (account.last_used, std::cmp::Reverse(*index)));
        let current = latest.map(|(index, _)| index);
        let tokens: Vec<Value> = accounts
            .iter()
            .enumerate()
            .map(|(index, account)| {
                let mut token = self.token(snapshot, account, now, &zone);
                if let Value::Object(fields) = &mut token {
                    fields.insert("index".into(), index.into());
                    fields.insert("is_current".into(), (Some(index) == current).into());
                }
                token
            })
            .collect();
        let active = current.and_then(|index| tokens.get(index)).map(|token| {
            let of = |key: &str| token.get(key).cloned().unwrap_or_default();
            let keys = ["account_email", "expires_in_human", "is_healthy", "scopes"];
            keys.iter().map(|key| ((*key).to_owned(), of(key))).collect::<serde_json::Map<_, _>>()
        });
        let count = |key: &str| tokens.iter().filter(|token| token.get(key) == Some(&Value::Bool(true))).count();
        let needy = self.accounts.needing_login().borrow().clone();
        let logins: Vec<Value> = needy
            .iter()
            .map(|(account, need)| {
                json!({
                    "account_email": account.as_ref().map(ToString::to_string),
                    "reason": need.to_string(),
                    "login_page": human::login_url(&self.endpoint, account.as_ref()),
                })
            })
            .collect();
        let fault = self.accounts.store_fault();
        json!({
            "system": {
                "oauth_manager_status": match (&fault, self.accounts.is_settled()) {
                    (Some(_), _) => "storage_unavailable",
                    (None, false) => "starting",
                    (None, true) => "active",
                },
                "current_time": unix(now.wall),
                "current_time_iso": human::moment(now.wall, &zone),
                "timezone": "Local",
                "storage": self.accounts.place(),
                "storage_error": fault,
            },
            "summary": {
                "total_tokens": tokens.len(),
                "healthy_tokens": count("is_healthy"),
                "expired_tokens": count("is_expired"),
                "expiring_soon": count("will_expire_soon"),
                "login_required": logins.len(),
                "current_token_index": current,
                "rotation_enabled": tokens.len() > 1,
            },
            "active_token": active,
            "tokens": tokens,
            "logins_required": logins,
        })
    }

    fn token(&self, snapshot: &Snapshot, account: &AccountStatus, now: Now, zone: &TimeZone) -> Value {
        let language = snapshot.settings.language;
        let limited = self.health.limited_until(&account.email, now);
        let unpaid = self.health.out_of_credit_until(&account.email, now);
        let ready = matches!(account.state, State::Healthy | State::Refreshing);
        json!({
            "account_email": account.email.as_str(),
            "state": entry::word(&account.state, limited.is_some(), unpaid.is_some()),
            "is_healthy": ready && limited.is_none() && unpaid.is_none(),
            "rate_limited_until": providers::seconds(limited),
            "out_of_credit_until": providers::seconds(unpaid),
            "persisted": account.persisted && self.accounts.keeps(),
            "verified": account.verified,
            "last_error": account.last_error,
            "created_at": unix(account.created_at),
            "expires_at": unix(account.expires_at),
            "expires_in_seconds": account.expires_in.as_secs(),
            "expires_in_minutes": minutes(account.expires_in),
            "expires_in_human": human::remaining(account.expires_in, language),
            "is_expired": account.expires_in.is_zero(),
            "will_expire_soon": !account.expires_in.is_zero() && account.expires_in <= SOON,
            "renewable": account.renewable,
            "refresh_in_seconds": account.refresh_in.map(|left| left.as_secs()),
            "scopes": account.scopes,
            "scope_count": account.scopes.len(),
            "usage_count": account.usage_count,
            "last_used": human::last_used(account.last_used, now.wall, zone, language),
            "last_used_timestamp": account.last_used.map_or(0, unix),
        })
    }
}

/// To one decimal.
pub(super) fn minutes(left: Duration) -> f64 {
    (left.as_secs_f64() / 6.0).round() / 10.0
}
