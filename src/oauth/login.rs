//! Logins that have begun and are not finished: each for ten minutes, each used once, in memory only. A new one never
//! breaks another, and there are never more than [`PENDING_LIMIT`].

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use super::pkce::{self, NoRandomness, Verifier};
use crate::config::OAuthSettings;
use crate::provider::Email;
use crate::secret::Secret;

/// How long a login may take.
pub const LOGIN_TIME: Duration = Duration::from_secs(600);
/// Logins that may be pending at once.
pub const PENDING_LIMIT: usize = 32;

/// The pending logins.
#[derive(Debug, Default)]
pub struct Logins(Mutex<Vec<Login>>);

/// One of them.
#[derive(Debug)]
pub struct Login {
    /// Goes with the exchange.
    pub verifier: Verifier,
    /// Goes with the exchange as well.
    pub state: Secret,
    /// The account that it was begun for.
    pub email: Option<Email>,
    began: Instant,
}

/// What the human gets.
pub struct Begun {
    /// To be opened in a browser. It holds the state, so it is not for the log.
    pub authorization_url: String,
    /// How long it is good.
    pub expires_in: Duration,
}

/// Why no login was begun or found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginFault {
    /// [`PENDING_LIMIT`] are pending.
    #[error("{PENDING_LIMIT} logins are pending already; finish one, or try again in {} s", .0.as_secs())]
    TooMany(
        /// Until the oldest of them ends.
        Duration,
    ),
    /// See there.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The pasted state belongs to no pending login.
    #[error(
        "no pending login has this state: it is older than 10 minutes, was used already, or began before a restart; \
         begin a new one"
    )]
    UnknownState,
    /// A bare code, and nothing is pending.
    #[error(
        "no login is pending: it is older than 10 minutes, was used already, or began before a restart; begin a new one"
    )]
    NonePending,
    /// The state belongs to the login of another account.
    #[error("this code belongs to a login that was begun for another account")]
    OtherAccount,
}

impl Logins {
    /// Begins a login.
    ///
    /// # Errors
    /// [`LoginFault::TooMany`] or [`LoginFault::Randomness`].
    pub fn begin(&self, settings: &OAuthSettings, email: Option<Email>, now: Instant) -> Result<Begun, LoginFault> {
        let login = Login { verifier: Verifier::new()?, state: pkce::state()?, email, began: now };
        let authorization_url = authorization_url(settings, &login.verifier.challenge(), login.state.expose());
        let mut pending = self.pending(now);
        if pending.len() >= PENDING_LIMIT {
            let oldest = pending.iter().map(|login| login.left(now)).min().unwrap_or_default();
            return Err(LoginFault::TooMany(oldest.max(Duration::from_secs(1))));
        }
        pending.push(login);
        Ok(Begun { authorization_url, expires_in: LOGIN_TIME })
    }

    /// The account for which the login of a state was begun.
    pub fn account_of(&self, state: Option<&Secret>, now: Instant) -> Option<Email> {
        let pending = self.pending(now);
        let login = match state {
            Some(state) => pending.get(position(&pending, state)?)?,
            None => pending.last()?,
        };
        login.email.clone()
    }

    /// Takes a login out: that of the state; without one that of the account, else the newest.
    ///
    /// # Errors
    /// [`LoginFault`]; then nothing was taken.
    pub fn take(&self, state: Option<&Secret>, email: Option<&Email>, now: Instant) -> Result<Login, LoginFault> {
        let mut pending = self.pending(now);
        let other = |login: &Login| email.is_some() && login.email.is_some() && login.email.as_ref() != email;
        let index = match state {
            Some(state) => {
                let index = position(&pending, state).ok_or(LoginFault::UnknownState)?;
                if pending.get(index).is_some_and(other) {
                    return Err(LoginFault::OtherAccount);
                }
                index
            }
            None => {
                let own = pending.iter().rposition(|login| email.is_some() && login.email.as_ref() == email);
                let newest = || pending.iter().rposition(|login| !other(login));
                match own.or_else(newest) {
                    Some(index) => index,
                    None if pending.is_empty() => return Err(LoginFault::NonePending),
                    None => return Err(LoginFault::OtherAccount),
                }
            }
        };
        Ok(pending.remove(index))
    }

    /// Gives back a login whose code never left this machine.
    pub fn put_back(&self, login: Login, now: Instant) {
        let mut pending = self.pending(now);
        if pending.len() < PENDING_LIMIT {
            let index = pending.partition_point(|other| other.began <= login.began);
            pending.insert(index, login);
        }
    }

    /// Forgets those whose time is over; to be called now and then.
    pub fn expire(&self, now: Instant) {
        drop(self.pending(now));
    }

    fn pending(&self, now: Instant) -> MutexGuard<'_, Vec<Login>> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|login| !login.left(now).is_zero());
        pending
    }
}

impl fmt::Debug for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Begun").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

impl Login {
    fn left(&self, now: Instant) -> Duration {
        LOGIN_TIME.saturating_sub(now.saturating_duration_since(self.began))
    }
}

/// Looks at all of them, by digest, so that the time tells nothing.
fn position(pending: &[Login], state: &Secret) -> Option<usize> {
    let wanted = Sha256::digest(state.expose().as_bytes());
    let mut found = None;
    for (index, login) in pending.iter().enumerate() {
        if bool::from(Sha256::digest(login.state.expose().as_bytes()).ct_eq(&wanted)) {
            found = Some(index);
        }
    }
    found
}

/// The order of the parameters is that of the documented login.
fn authorization_url(settings: &OAuthSettings, challenge: &str, state: &str) -> String {
    let parameters = [
        ("code", "true"),
        ("client_id", &settings.client_id),
        ("response_type", "code"),
        ("redirect_uri", &settings.redirect_uri),
        ("scope", &settings.scopes),
        ("code_challenge", challenge),
        ("code_challenge_method", "S256"),
        ("state", state),
    ];
    let query: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={}", form_encoded(value))).collect();
    let joint = if settings.authorize_url.contains('?') { '&' } else { '?' };
    format!("{}{joint}{}", settings.authorize_url, query.join("&"))
}

/// `application/x-www-form-urlencoded` (WHATWG URL §5.2): spaces become `+`.
pub(super) fn form_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            b'*' | b'-' | b'.' | b'_' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => {
                out.push('%');
                for digit in [byte >> 4, byte & 15] {
                    out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0').to_ascii_uppercase());
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn email(name: &str) -> Option<Email> {
        Some(Email::parse(&format!("{name}@example.com")).expect("valid"))
    }

    fn begin(logins: &Logins, email: Option<Email>) -> Secret {
        let begun = logins.begin(&OAuthSettings::default(), email, Instant::now()).expect("room");
        let (_, state) = begun.authorization_url.split_once("&state=").expect("a state");
        Secret::new(state)
    }

    #[test]
    fn the_authorization_url_has_the_documented_parameters_in_the_documented_order() {
        let url = authorization_url(&OAuthSettings::default(), "CHALLENGE", "STATE");
        assert_eq!(
            url,
            "https://claude.ai/oauth/authorize?code=true&client_id=9d1c250a-e61b-44d9-88ed-5944d1962f5e\
             &response_type=code&redirect_uri=https%3A%2F%2Fconsole.anthropic.com%2Foauth%2Fcode%2Fcallback\
             &scope=org%3Acreate_api_key+user%3Aprofile+user%3Ainference&code_challenge=CHALLENGE\
             &code_challenge_method=S256&state=STATE"
        );
        let settings = OAuthSettings { authorize_url: "https://a.example/x?y=z".into(), ..OAuthSettings::default() };
        assert!(authorization_url(&settings, "C", "S").starts_with("https://a.example/x?y=z&code=true&"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_is_taken_once_and_lasts_ten_minutes() {
        let logins = Logins::default();
        let state = begin(&logins, None);
        assert!(logins.take(Some(&state), None, Instant::now()).is_ok());
        assert_eq!(logins.take(Some(&state), None, Instant::now()).err(), Some(LoginFault::UnknownState));
        let state = begin(&logins, None);
        tokio::time::advance(LOGIN_TIME - Duration::from_secs(1)).await;
        let later = begin(&logins, None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(logins.take(Some(&state), None, Instant::now()).err(), Some(LoginFault::UnknownState));
        assert!(logins.take(Some(&later), None, Instant::now()).is_ok());
        assert_eq!(logins.take(None, None, Instant::now()).err(), Some(LoginFault::NonePending));
    }

    #[tokio::test(start_paused = true)]
    async fn thirty_two_may_be_pending_and_none_breaks_another() {
        let logins = Logins::default();
        let states: Vec<Secret> = (0..PENDING_LIMIT).map(|_| begin(&logins, None)).collect();
        tokio::time::advance(Duration::from_secs(100)).await;
        let full = logins.begin(&OAuthSettings::default(), None, Instant::now());
        assert_eq!(full.err(), Some(LoginFault::TooMany(Duration::from_secs(500))));
        for state in &states {
            assert!(logins.take(Some(state), None, Instant::now()).is_ok());
        }
    }

    #[tokio::test]
    async fn a_bare_code_finds_the_login_of_its_account_else_the_newest() {
        let logins = Logins::default();
        begin(&logins, email("a"));
        let nobody = begin(&logins, None);
        let b = begin(&logins, email("b"));
        let now = Instant::now();
        assert_eq!(logins.take(Some(&b), email("a").as_ref(), now).err(), Some(LoginFault::OtherAccount));
        assert_eq!(logins.account_of(Some(&b), now), email("b"));
        assert_eq!(logins.account_of(None, now), email("b"));
        assert_eq!(logins.take(None, email("A").as_ref(), now).expect("a's").email, email("a"));
        let newest = logins.take(None, email("c").as_ref(), now).expect("nobody's");
        assert_eq!(newest.state, nobody);
        assert_eq!(logins.take(None, email("c").as_ref(), now).err(), Some(LoginFault::OtherAccount));
        logins.put_back(newest, now);
        assert!(logins.take(Some(&nobody), email("c").as_ref(), now).is_ok());
        assert_eq!(logins.take(None, None, now).expect("b's").email, email("b"));
    }

    #[test]
    fn nothing_of_a_login_can_be_printed() {
        let logins = Logins::default();
        let state = begin(&logins, None);
        let shown = format!("{logins:?}");
        assert!(!shown.contains(state.expose()), "{shown}");
    }
}
