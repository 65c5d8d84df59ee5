//! What the authorization server answers, read defensively: a rotation that succeeded there must not be lost here
//! because of a field that nobody needs.

use std::time::Duration;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::token::RECORD_LIMIT;
use crate::provider::Email;
use crate::secret::Secret;

/// Longest access or refresh token, in bytes of the record.
const TOKEN_LIMIT: usize = 8 * 1024;
/// Tokens and scopes together, in bytes: the record must have room for them.
const SUM_LIMIT: usize = RECORD_LIMIT - 1024;
/// Scopes that are kept, and the longest of them.
const SCOPE_LIMIT: (usize, usize) = (64, 128);
/// Life of a token whose reply names none, or none that can be meant: a 401 tells sooner.
const UNNAMED_LIFE: Duration = Duration::from_secs(3600);
/// Longest life that is believed.
const LIFE_LIMIT: Duration = Duration::from_secs(366 * 24 * 3600);

/// The body of a 2xx answer, as it came.
pub struct Raw(pub(super) Zeroizing<Vec<u8>>);

/// A reply to an exchange or a refresh.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// For requests.
    pub access: Secret,
    /// For the next refresh; none = the old one stays good.
    pub refresh: Option<Secret>,
    /// How long the access token lives.
    pub expires_in: Duration,
    /// What it permits; none = as before, or as asked.
    pub scopes: Option<Vec<String>>,
    /// Whose it is.
    pub account: Named,
}

/// What a reply says of the account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// Nothing.
    Nobody,
    /// This one.
    Account(Email),
    /// One that cannot be ours: it is no e-mail address.
    Unreadable,
}

/// Why a 2xx answer is no reply.
#[derive(Debug, PartialEq, Eq)]
pub enum ReplyFault {
    /// A page of something between us and the server: the request did not reach it.
    Page,
    /// Cut off, compressed, or no JSON object: what became of the request is not known.
    Unreadable,
    /// No access token that can be sent; a new refresh token may have come all the same.
    NoAccess(Option<Secret>),
}

impl Raw {
    /// The bytes: for the journal, and for nothing else.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Raw({} bytes)", self.0.len())
    }
}

impl Reply {
    /// Reads the body of a 2xx answer.
    ///
    /// # Errors
    /// [`ReplyFault`]; it holds nothing of the body that could be printed.
    pub fn parse(body: &[u8]) -> Result<Self, ReplyFault> {
        // Of a key that stands there twice, the last one counts, as with nearly every reader.
        let Ok(Value::Object(mut reply)) = serde_json::from_slice(body) else {
            let page = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'<');
            return Err(if page { ReplyFault::Page } else { ReplyFault::Unreadable });
        };
        let refresh = token(&mut reply, "refresh_token");
        let Some(access) = token(&mut reply, "access_token") else { return Err(ReplyFault::NoAccess(refresh)) };
        let mut room = SUM_LIMIT - written(access.expose());
        let refresh = refresh.filter(|refresh| written(refresh.expose()) <= room);
        room -= refresh.as_ref().map_or(0, |refresh| written(refresh.expose()));
        Ok(Self {
            access,
            refresh,
            expires_in: reply.get("expires_in").and_then(life).unwrap_or(UNNAMED_LIFE),
            scopes: reply.get("scope").and_then(|scope| scopes(scope, room)),
            account: named(&reply),
        })
    }
}

/// The bytes of a visible text in a record, where quotes and backslashes take two.
fn written(text: &str) -> usize {
    text.len() + text.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count()
}

/// Takes a token out, so that its text is erased with it.
fn token(reply: &mut Map<String, Value>, name: &str) -> Option<Secret> {
    let Value::String(text) = reply.get_mut(name)?.take() else { return None };
    let secret = Secret::new(text);
    let text = secret.expose();
    let clean = !text.is_empty() && written(text) <= TOKEN_LIMIT && text.bytes().all(|byte| byte.is_ascii_graphic());
    clean.then_some(secret)
}

/// Whole seconds above zero, also as a fraction or a text.
fn life(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse::<f64>().ok()?,
        _ => return None,
    };
    // `expires_in: 0` would mean a token that was never good.
    let sensible = seconds.is_finite() && seconds >= 1.0;
    sensible.then(|| Duration::from_secs_f64(seconds.min(LIFE_LIMIT.as_secs_f64()).floor()))
}

fn scopes(value: &Value, room: usize) -> Option<Vec<String>> {
    let words: Vec<&str> = match value {
        Value::String(text) => text.split_ascii_whitespace().collect(),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    let (count, length) = SCOPE_LIMIT;
    let fits = |word: &&str| !word.is_empty() && word.len() <= length && word.bytes().all(|b| b.is_ascii_graphic());
    let mut left = room;
    let fits_all = |word: &&str| {
        let fits = left > written(word) + 3;
        left = left.saturating_sub(written(word) + 3);
        fits
    };
    Some(words.into_iter().filter(fits).take(count).take_while(fits_all).map(str::to_owned).collect())
}

fn named(reply: &Map<String, Value>) -> Named {
    let account = reply.get("account");
    let named = account.and_then(|account| account.get("email_address").or_else(|| account.get("email")));
    match named.and_then(Value::as_str).map(str::trim) {
        None | Some("") => Named::Nobody,
        Some(text) => Email::parse(text).map_or(Named::Unreadable, Named::Account),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(body: &str) -> Result<Reply, ReplyFault> {
        Reply::parse(body.as_bytes())
    }

    #[test]
    fn a_whole_reply_is_read() {
        let body = r#"{"token_type":"Bearer","access_token":"a","refresh_token":"r","expires_in":28800,
            "scope":"user:profile user:inference","account":{"uuid":"u","email_address":"Main@Example.com"},"x":[{}]}"#;
        let expected = Reply {
            access: Secret::new("a"),
            refresh: Some(Secret::new("r")),
            expires_in: Duration::from_secs(28_800),
            scopes: Some(vec!["user:profile".into(), "user:inference".into()]),
            account: Named::Account(Email::parse("main@example.com").expect("valid")),
        };
        assert_eq!(parsed(body), Ok(expected));
    }

    #[test]
    fn the_life_of_a_token_is_sensible_whatever_the_reply_says() {
        let year = LIFE_LIMIT.as_secs();
        for (given, seconds) in [
            ("28800", 28_800),
            ("\"3600\"", 3600),
            ("\" 60 \"", 60),
            ("1.5", 1),
            ("1e12", year),
            ("1e300", year),
            ("18446744073709551615", year),
            ("1", 1),
            ("0", 3600),
            ("-1", 3600),
            ("0.5", 3600),
            ("\"inf\"", 3600),
            ("\"NaN\"", 3600),
            ("\"\"", 3600),
            ("null", 3600),
            ("[]", 3600),
        ] {
            let reply = parsed(&format!(r#"{{"access_token":"a","expires_in":{given}}}"#)).expect(given);
            assert_eq!(reply.expires_in.as_secs(), seconds, "{given}");
        }
        assert_eq!(parsed(r#"{"access_token":"a"}"#).expect("a reply").expires_in, UNNAMED_LIFE);
    }

    #[test]
    fn what_is_missing_stays_as_it_was() {
        for body in [
            r#"{"access_token":"a"}"#,
            r#"{"access_token":"a","refresh_token":null,"scope":null,"account":null}"#,
            r#"{"access_token":"a","refresh_token":"","scope":7,"account":"x"}"#,
            r#"{"access_token":"a","refresh_token":7,"account":{"email_address":null}}"#,
            r#"{"access_token":"old","access_token":"a","token_type":"mac"}"#,
        ] {
            let reply = parsed(body).expect(body);
            assert_eq!((reply.access.expose(), &reply.refresh, &reply.scopes), ("a", &None, &None), "{body}");
            assert_eq!(reply.account, Named::Nobody, "{body}");
        }
        let reduced = parsed(r#"{"access_token":"a","scope":["user:inference",7,""]}"#).expect("a reply");
        assert_eq!(reduced.scopes, Some(vec!["user:inference".into()]));
        let strange = parsed(r#"{"access_token":"a","account":{"email":"no address"}}"#).expect("a reply");
        assert_eq!(strange.account, Named::Unreadable);
    }

    #[test]
    fn an_answer_without_a_usable_token_is_no_reply() {
        let long = "x".repeat(TOKEN_LIMIT + 1);
        let refresh = || Some(Secret::new("r"));
        let gzip = "\u{1f}\u{8b}\u{8}";
        for (body, fault) in [
            ("", ReplyFault::Unreadable),
            ("[]", ReplyFault::Unreadable),
            (r#"{"access_token":"a","refr"#, ReplyFault::Unreadable),
            (gzip, ReplyFault::Unreadable),
            (" \n<!DOCTYPE html>", ReplyFault::Page),
            ("{}", ReplyFault::NoAccess(None)),
            (r#"{"access_token":"","refresh_token":"r"}"#, ReplyFault::NoAccess(refresh())),
            (r#"{"access_token":"a\nb","refresh_token":"r"}"#, ReplyFault::NoAccess(refresh())),
            (r#"{"access_token":7,"refresh_token":"r"}"#, ReplyFault::NoAccess(refresh())),
            (&format!(r#"{{"access_token":"{long}","refresh_token":"r"}}"#), ReplyFault::NoAccess(refresh())),
        ] {
            assert_eq!(parsed(body), Err(fault), "{body:.40}");
        }
    }

    #[test]
    fn the_largest_reply_fits_into_a_record() {
        let token = "x".repeat(TOKEN_LIMIT);
        let scope = ["user:inference"; 500].join(" ");
        let body = format!(r#"{{"access_token":"{token}","refresh_token":"{}","scope":"{scope}"}}"#, &token[..6000]);
        let reply = parsed(&body).expect("a reply");
        assert_eq!(reply.access.expose().len(), TOKEN_LIMIT);
        assert_eq!(reply.refresh.map(|refresh| refresh.expose().len()), Some(6000));
        assert_eq!(reply.scopes.map(|scopes| scopes.len()), Some(64));
    }

    #[test]
    fn what_takes_two_bytes_in_a_record_counts_twice() {
        let quotes = |count: usize| r#"\""#.repeat(count);
        let reply = |access: usize, refresh: usize| {
            parsed(&format!(r#"{{"access_token":"{}","refresh_token":"{}"}}"#, quotes(access), quotes(refresh)))
        };
        assert_eq!(reply(TOKEN_LIMIT / 2 + 1, 1), Err(ReplyFault::NoAccess(Some(Secret::new("\"")))));
        let largest = reply(TOKEN_LIMIT / 2, TOKEN_LIMIT / 2).expect("a reply");
        assert_eq!((largest.access.expose().len(), largest.refresh), (TOKEN_LIMIT / 2, None));
    }
}
