//! `login`: the link, the browser where there is one, the code that a human brings back. By a running server if one
//! answers, for it then has the token at once; else with the store itself.

use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::client::{Answer, Server};
use super::{UNUSABLE, complain, quiet_log, say, serve, unusable};
use crate::config::{OAuthStorage, Overrides, Settings, Snapshot};
use crate::oauth::{Accounts, ExchangeError, human, vault};
use crate::provider::{Auth, Email};
use crate::upstream::{Upstream, tls};

/// How often a wrong code may be followed by another.
const TRIES: usize = 3;
/// How long the code is waited for; the login is over then (spec: 600 s).
const CODE_TIME: Duration = Duration::from_secs(600);

/// What may be tried after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// Another code, for the same link.
    Code,
    /// Another login: the code has gone to the authorization server, and the link with it.
    Login,
    /// Nothing.
    No,
}

/// Who finishes the login.
enum Way {
    Server(Server),
    Alone(Arc<Accounts>),
}

pub(super) async fn run(email: Option<&str>, config: Option<&Path>) -> ExitCode {
    let live = match super::open(config, Overrides::default()) {
        Ok(live) => live,
        Err(report) => return unusable(&report),
    };
    let snapshot = live.load();
    let email = match email {
        Some(text) => Email::parse(text.trim()),
        None => match the_only_one(&snapshot) {
            Some(email) => Some(email),
            None => ask("E-mail of the account: ").await.and_then(|line| Email::parse(line.trim())),
        },
    };
    let Some(email) = email else {
        complain("an e-mail address is needed: claude-code-balancer login you@example.com");
        return ExitCode::from(UNUSABLE);
    };
    let log = quiet_log();
    let done = sign_in(&snapshot, &email).await;
    log.flush();
    match done {
        Ok(message) => {
            say(&message);
            ExitCode::SUCCESS
        }
        Err(message) => {
            complain(&message);
            ExitCode::from(1)
        }
    }
}

async fn sign_in(snapshot: &Snapshot, email: &Email) -> Result<String, String> {
    let mut left = TRIES;
    let mut way = begin(snapshot, email).await?;
    loop {
        let code = tokio::time::timeout(CODE_TIME, ask("Paste the code that is shown at the end: ")).await;
        let code = code.map_err(|_| "the login is over after ten minutes; please begin again".to_owned())?;
        let code = code.ok_or("no code was given; nothing was changed")?;
        left -= 1;
        match way.exchange(&code, email).await {
            Ok(message) => return Ok(message),
            Err((message, Again::Code)) if left > 0 => complain(&format!("{message}; please try again")),
            Err((message, Again::Login)) if left > 0 => {
                // The login went with the code.
                complain(&message);
                way = begin(snapshot, email).await?;
            }
            Err((message, _)) => return Err(message),
        }
    }
}

/// Shows the link, from a running server or of our own.
async fn begin(snapshot: &Snapshot, email: &Email) -> Result<Way, String> {
    let (url, way) = link(snapshot, email).await?;
    say(&format!("Sign in as {email}: open this address in your browser\n\n  {url}\n"));
    show(&url, snapshot);
    Ok(way)
}

async fn link(snapshot: &Snapshot, email: &Email) -> Result<(String, Way), String> {
    let server = Server::of(snapshot);
    let target = human::login_url("", Some(email));
    if let Some(answer) = server.ask(Method::GET, &target, None).await.and_then(|answer| answer.json()) {
        return match answer.get("authorization_url").and_then(Value::as_str) {
            Some(url) => Ok((url.to_owned(), Way::Server(server))),
            None => Err(format!("the running server refuses: {}", message(&answer))),
        };
    }
    let accounts = alone(&snapshot.settings).await?;
    let begun = accounts.begin(Some(email.clone())).map_err(|fault| fault.to_string())?;
    Ok((begun.authorization_url, Way::Alone(accounts)))
}

/// The accounts without a server.
pub(super) async fn alone(settings: &Settings) -> Result<Arc<Accounts>, String> {
    if settings.oauth.storage == OAuthStorage::Memory || !settings.oauth.enable_persistence {
        return Err("accounts are kept in the memory of the server (settings.oauth), and no server answers".into());
    }
    let storage = serve::storage(settings).map_err(|fault| fault.to_string())?;
    let upstream = Arc::new(Upstream::new(tls::system_roots()));
    let accounts = Accounts::new(storage, upstream, Arc::default(), settings);
    accounts.open().await;
    match accounts.store_fault() {
        Some(fault) => Err(fault),
        None => Ok(accounts),
    }
}

impl Way {
    /// What is said at the end; or what went wrong, and what may be tried now.
    async fn exchange(&self, code: &str, email: &Email) -> Result<String, (String, Again)> {
        match self {
            Self::Server(server) => {
                let body = json!({ "code": code, "account_email": email.as_str() }).to_string();
                let answer = server.exchange("/oauth/exchange-code", Bytes::from(body)).await;
                let Some(answer) = answer else {
                    return Err(("the running server did not answer".into(), Again::No));
                };
                finished(&answer, email)
            }
            Self::Alone(accounts) => {
                let signed_in = accounts.exchange(code, Some(email.clone())).await;
                let signed_in = signed_in.map_err(|error| {
                    let again = match &error {
                        ExchangeError::Paste(_) | ExchangeError::Login(_) => Again::Code,
                        ExchangeError::Server(_) => Again::Login,
                        _ => Again::No,
                    };
                    (error.to_string(), again)
                })?;
                accounts.finish().await;
                if !signed_in.persisted {
                    return Err(("the token could not be stored; nothing was changed".into(), Again::No));
                }
                let place = accounts.place().unwrap_or_default();
                Ok(format!("Signed in as {email}; stored in the {place}.{}", doubt(signed_in.verified)))
            }
        }
    }
}

fn finished(answer: &Answer, email: &Email) -> Result<String, (String, Again)> {
    let value = answer.json().unwrap_or_default();
    if !answer.status.is_success() {
        let message = message(&value);
        let again = match answer.status.as_u16() {
            400 if message.contains("begin a new login") => Again::Login,
            // A text that is no code, or a code of another login.
            400 => Again::Code,
            _ => Again::No,
        };
        return Err((message, again));
    }
    let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(true);
    let stored = if flag("persisted") { "" } else { " It is not stored and ends with the server." };
    Ok(format!("Signed in as {email} at the running server.{stored}{}", doubt(flag("verified"))))
}

fn doubt(verified: bool) -> &'static str {
    if verified { "" } else { " (The authorization server did not say whose token it is.)" }
}

/// The sentence of an error.
fn message(answer: &Value) -> String {
    let text = answer.pointer("/error/message").or_else(|| answer.get("message")).and_then(Value::as_str);
    text.unwrap_or("it gives no reason").to_owned()
}

/// The account of a configuration that has no other.
fn the_only_one(snapshot: &Snapshot) -> Option<Email> {
    let mut accounts = configured(snapshot);
    let first = accounts.next()?;
    accounts.all(|other| other == first).then_some(first)
}

/// The accounts that the configuration names.
pub(super) fn configured(snapshot: &Snapshot) -> impl Iterator<Item = Email> {
    let oauth = snapshot.providers.iter().filter(|provider| provider.auth == Auth::OAuth);
    oauth.filter_map(|provider| provider.key.account.clone())
}

/// Opens the browser, where somebody sits in front of one.
fn show(url: &str, snapshot: &Snapshot) {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let far = set("SSH_CONNECTION") || set("SSH_TTY");
    let screen = cfg!(any(target_os = "macos", windows)) || set("DISPLAY") || set("WAYLAND_DISPLAY");
    if far || !screen || !std::io::stdout().is_terminal() {
        return;
    }
    for mut command in open::commands(url) {
        keep_back(&mut command, snapshot, std::env::vars_os());
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Ok(mut child) = quiet.spawn() {
            // Some browsers stay; whoever waits for them is not us.
            std::thread::spawn(move || child.wait());
            return;
        }
    }
}

/// A browser, and whatever it starts, inherits neither the passphrase nor a variable that holds a credential.
fn keep_back(command: &mut Command, snapshot: &Snapshot, environment: impl Iterator<Item = (OsString, OsString)>) {
    let of_providers = snapshot.providers.iter().filter_map(|provider| match &provider.auth {
        Auth::ApiKey(secret) | Auth::Bearer(secret) => Some(secret),
        Auth::OAuth | Auth::Passthrough => None,
    });
    let secrets: Vec<_> = of_providers.chain(snapshot.settings.auth.keys.iter().map(|key| &key.secret)).collect();
    for (name, value) in environment {
        let known = secrets.iter().any(|secret| secret.matches(value.as_encoded_bytes().trim_ascii()));
        if known || name == vault::PASSPHRASE || name == vault::PASSPHRASE_FILE {
            command.env_remove(name);
        }
    }
}

/// A line from the user; `None` = there is none.
async fn ask(question: &str) -> Option<String> {
    {
        let mut out = std::io::stdout().lock();
        let _ = write!(out, "{question}").and_then(|()| out.flush());
    }
    let (answer, answered) = tokio::sync::oneshot::channel();
    // A thread of its own: the runtime must be able to end while somebody thinks.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        let _ = answer.send(read.ok().filter(|length| *length > 0).map(|_| line));
    });
    answered.await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Surroundings};

    #[test]
    fn a_browser_inherits_no_secret() {
        let text = "providers:\n  - { name: A, auth_value: \"${KEY_A}\" }\n  - { name: B, auth_type: auth_token, \
                    auth_value: \"${KEY_B}\" }\nsettings: { auth: { enabled: true, api_key: \"${OWN}\" } }\n";
        let pairs = [
            ("KEY_A", "sk-canary-a"),
            ("KEY_B", "sk-canary-b"),
            ("OWN", "the-canary-key-of-this-one"),
            ("CLAUDE_CODE_BALANCER_PASSPHRASE", "canary"),
            ("CLAUDE_CODE_BALANCER_PASSPHRASE_FILE", "/canary"),
            ("DISPLAY", ":0"),
            ("PATH", "/bin"),
        ];
        let env = |name: &str| pairs.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
        let read = config::parse(text.as_bytes(), "config.yaml", &Surroundings::pure(&env));
        let (snapshot, _) = read.unwrap_or_else(|report| panic!("{report}"));
        let mut command = Command::new("browser");
        keep_back(&mut command, &snapshot, pairs.into_iter().map(|(name, value)| (name.into(), value.into())));
        let kept_back: Vec<_> = command.get_envs().map(|(name, value)| (name.to_string_lossy(), value)).collect();
        let mut wanted: Vec<_> = pairs.iter().take(5).map(|(name, _)| ((*name).into(), None)).collect();
        wanted.sort();
        assert_eq!(kept_back, wanted);
    }
}
