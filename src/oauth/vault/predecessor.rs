//! The one entry in which the Python predecessor kept all its accounts.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::oauth::token::{Generation, Token};
use crate::provider::Email;
use crate::secret::Secret;

/// The user name of its entry.
pub(super) const USER: &str = "oauth_tokens";

#[derive(Deserialize)]
struct Stored {
    tokens: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    access_token: String,
    #[serde(default)]
    refresh_token: Option<String>,
    #[serde(default)]
    expires_at: f64,
    #[serde(default)]
    scopes: Option<Vec<String>>,
    #[serde(default)]
    account_id: Option<String>,
    #[serde(default)]
    account_email: Option<String>,
    #[serde(default)]
    created_at: f64,
}

/// Its accounts, as the first generation of ours; `None` = not what it wrote. An account without an address, and an
/// expired one that cannot be renewed, are left out. Of two with one address the later one counts.
pub(super) fn parse(text: &str) -> Option<Vec<Token>> {
    let stored: Stored = serde_json::from_str(text).ok()?;
    let mut tokens: Vec<Token> = Vec::new();
    for token in stored.tokens.into_iter().filter_map(token) {
        tokens.retain(|earlier| earlier.email != token.email);
        tokens.push(token);
    }
    Some(tokens)
}

fn token(record: Record) -> Option<Token> {
    let access = Secret::new(record.access_token);
    let refresh = record.refresh_token.filter(|token| !token.is_empty()).map(Secret::new);
    let email = record.account_email.or(record.account_id)?;
    let usable = |secret: &Secret| !secret.expose().is_empty() && secret.expose().bytes().all(|b| b.is_ascii_graphic());
    let expires_at = time(record.expires_at);
    if !usable(&access) || refresh.as_ref().is_none() && expires_at < SystemTime::now() {
        return None;
    }
    Some(Token {
        email: Email::parse(email.trim())?,
        access,
        refresh: refresh.filter(usable),
        expires_at,
        scopes: record.scopes.unwrap_or_default(),
        // It was what the user had typed.
        verified: false,
        created_at: time(record.created_at),
        generation: Generation(1),
    })
}

/// Python's clock may write fractions; to the second is enough. Nonsense is long past.
fn time(seconds: f64) -> SystemTime {
    let whole = if (0.0..253_402_300_799.0).contains(&seconds) { seconds.floor() } else { 0.0 };
    SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(whole).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_accounts_are_read_as_it_wrote_them() {
        let text = r#"{"tokens":[
            {"access_token":"at-1","refresh_token":"rt-1","expires_at":1753199999,"scopes":["user:inference"],
             "account_id":"a@b.c","account_email":"a@b.c","account_name":null,"usage_count":127,"last_used":1753196757,
             "created_at":1753192857},
            {"access_token":"at-2","refresh_token":"rt-2","expires_at":1753199999.5,"account_id":"c@d.e","account_email":null},
            {"access_token":"at-3","refresh_token":"rt-3","expires_at":-1,"account_email":"A@B.C"},
            {"access_token":"expired","refresh_token":null,"expires_at":1,"account_email":"x@y.z"},
            {"access_token":"nobody","refresh_token":"rt","expires_at":1},
            {"access_token":"line\nbreak","refresh_token":"rt","account_email":"l@b.c"}],
          "metadata":{"current_token_index":0,"last_saved":1753196760}}"#;
        let tokens = parse(text).expect("understood");
        let seen: Vec<_> = tokens.iter().map(|token| (token.email.as_str(), token.access.expose())).collect();
        assert_eq!(seen, [("c@d.e", "at-2"), ("A@B.C", "at-3")]);
        let second = tokens.first().expect("two");
        assert_eq!(second.expires_at, SystemTime::UNIX_EPOCH + Duration::from_secs(1_753_199_999));
        assert_eq!((second.generation, second.verified), (Generation(1), false));
        for nonsense in ["", "[]", "{}", "null", r#"{"tokens":[{"refresh_token":"x"}]}"#] {
            assert!(parse(nonsense).is_none(), "{nonsense}");
        }
    }
}
