//! `accounts`: who is signed in, and who should be.

use std::path::Path;
use std::process::ExitCode;

use http::Method;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::client::Server;
use super::{complain, login, open, quiet_log, say, unusable};
use crate::config::{Overrides, Snapshot};
use crate::health::Now;
use crate::oauth::human;

/// One account, in words.
struct Row {
    email: String,
    state: String,
    expires: String,
    used: String,
    note: &'static str,
}

pub(super) async fn run(config: Option<&Path>) -> ExitCode {
    let live = match open(config, Overrides::default()) {
        Ok(live) => live,
        Err(report) => return unusable(&report),
    };
    let snapshot = live.load();
    let log = quiet_log();
    let listed = match by_server(&snapshot).await {
        Some(listed) => Ok(listed),
        None => alone(&snapshot).await,
    };
    log.flush();
    let (mut rows, source) = match listed {
        Ok(listed) => listed,
        Err(message) => {
            complain(&message);
            return ExitCode::from(1);
        }
    };
    for email in login::configured(&snapshot) {
        if !rows.iter().any(|row| row.email.eq_ignore_ascii_case(email.as_str())) {
            let [expires, used] = Default::default();
            rows.push(Row { email: email.to_string(), state: "not signed in".into(), expires, used, note: "" });
        }
    }
    if rows.is_empty() {
        say("no account is signed in: claude-code-balancer login you@example.com");
    }
    let widths = [|row: &Row| row.email.chars().count(), |row: &Row| row.state.chars().count()]
        .map(|width| rows.iter().map(width).max().unwrap_or_default());
    for Row { email, state, expires, used, note } in rows {
        let line = format!("{email:0$}  {state:1$}  {expires}{used}{note}", widths[0], widths[1]);
        say(line.trim_end());
    }
    say(&source);
    ExitCode::SUCCESS
}

async fn by_server(snapshot: &Snapshot) -> Option<(Vec<Row>, String)> {
    let answer = Server::of(snapshot).ask(Method::GET, "/oauth/status", None).await?.json()?;
    let rows = answer.get("tokens")?.as_array()?.iter().map(|token| {
        let text = |name: &str| token.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let count = token.get("usage_count").and_then(Value::as_u64).unwrap_or_default();
        row(
            text("account_email"),
            text("state").replace('_', " "),
            &text("expires_in_human"),
            count,
            &text("last_used"),
            token.get("persisted").and_then(Value::as_bool).unwrap_or(true),
        )
    });
    let storage = answer.pointer("/system/storage").and_then(Value::as_str).unwrap_or("not decided yet");
    Some((rows.collect(), format!("(from the running server; storage: {storage})")))
}

async fn alone(snapshot: &Snapshot) -> Result<(Vec<Row>, String), String> {
    let accounts = login::alone(&snapshot.settings).await?;
    let (now, zone, language) = (Now::read(), TimeZone::system(), snapshot.settings.language);
    let rows = accounts.status(now).into_iter().map(|account| {
        let expires = human::remaining(account.expires_in, language);
        let used = human::last_used(account.last_used, now.wall, &zone, language);
        let state = account.state.as_str().replace('_', " ");
        row(account.email.to_string(), state, &expires, account.usage_count, &used, account.persisted)
    });
    let place = accounts.place().unwrap_or_default();
    Ok((rows.collect(), format!("(from the {place}; no server answered)")))
}

fn row(email: String, state: String, expires: &str, count: u64, used: &str, persisted: bool) -> Row {
    let used = if count == 0 { ", not used yet".to_owned() } else { format!(", {count} requests, last {used}") };
    let note = if persisted { "" } else { ", NOT STORED" };
    Row { email, state, expires: format!("token: {expires}"), used, note }
}
