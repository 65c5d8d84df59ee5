//! Reads from the headers of a 429 until when, and for what, the provider refuses. Pure, and never surprised: what
//! cannot be read is not there.
//!
//! The first source that tells something decides:
//!
//! | | source | taken |
//! |---|---|---|
//! | 1 | `anthropic-ratelimit-unified-<WINDOW>-reset` of the windows whose `-status` is a refusal | the latest, for all of them must have passed |
//! | 2 | `anthropic-ratelimit-unified-reset`, unless `unified-status` says that the account may go on | |
//! | 3 | `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-reset` whose `-remaining` is 0 | the latest |
//! | 4 | `retry-after` | |
//! | 5 | the resets of 3 that have no `-remaining` beside them | the latest |
//!
//! A unified reset that has passed is stale and tells nothing (the 429 is then bare, or a later row decides); a classic
//! one that has passed, or `retry-after: 0`, means "now", which is one second from now. Windows are an open list:
//! `overage`, which is about paying for more, counts only where no other window refuses; and where it is allowed, and
//! `unified-status` is no refusal, the windows that are used up keep nobody away.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};

/// A refusal with an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// By our clock; at least a second, at most seven days away.
    pub until: SystemTime,
    /// Only models of one family are refused, not the account.
    pub model_only: bool,
}

/// The limit that the headers of a 429 tell; nothing where it is bare.
pub fn read(headers: &HeaderMap, now: SystemTime) -> Option<Limit> {
    let origin = origin(headers, now);
    let rejected = rejected_windows(headers);
    let account_goes_on = text(headers, "anthropic-ratelimit-unified-status").is_some_and(|status| !is_hard(status));
    let model_only = match rejected.as_slice() {
        [] => {
            !account_goes_on && text(headers, "anthropic-ratelimit-unified-representative-claim").is_some_and(is_model)
        }
        windows => windows.iter().all(|window| is_model(window)),
    };

    let windows = || rejected.iter().filter_map(|window| reset(headers, &format!("{UNIFIED}{window}-reset"), origin));
    let unified = || (!account_goes_on).then(|| reset(headers, "anthropic-ratelimit-unified-reset", origin)).flatten();
    let wait = windows().filter(|wait| !wait.is_zero()).max();
    let wait = wait.or_else(|| unified().filter(|wait| !wait.is_zero()));
    let wait = wait.or_else(|| classic(headers, origin, |remaining| remaining.is_some_and(is_exhausted)));
    let wait = wait.or_else(|| retry_after(headers, now));
    let wait = wait.or_else(|| classic(headers, origin, |remaining| remaining.is_none()))?;
    Some(Limit { until: now.checked_add(wait.clamp(FLOOR, RESET_CAP)).unwrap_or(now), model_only })
}

/// How long `retry-after` asks to wait, at most six hours: seconds, or a date in one of the three forms of HTTP,
/// relative to the answer's own `Date`. A date that has passed is zero.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get_all(RETRY_AFTER).iter().find_map(|value| {
        let value = value.to_str().ok()?.trim();
        match decimal(value) {
            Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
            None => http_date(value).map(|date| date.saturating_sub(origin(headers, now))),
        }
    });
    value.map(|wait| wait.min(RETRY_AFTER_CAP))
}

const UNIFIED: &str = "anthropic-ratelimit-unified-";
const CLASSIC: [&str; 4] = ["requests", "tokens", "input-tokens", "output-tokens"];
const HARD: [&str; 5] = ["rejected", "rate_limited", "blocked", "queueing_hard", "payment_required"];
const FAMILIES: [&str; 3] = ["opus", "sonnet", "haiku"];
const OVERAGE: &str = "overage";

/// Nothing that a provider says is asked again sooner.
const FLOOR: Duration = Duration::from_secs(1);
/// The longest window is a week.
const RESET_CAP: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Without a window to vouch for it a wait is believed less long.
const RETRY_AFTER_CAP: Duration = Duration::from_secs(6 * 60 * 60);
/// A `Date` further from our clock than this is no clock to go by.
const SKEW_CAP: Duration = Duration::from_secs(24 * 60 * 60);
/// From here on a number counts milliseconds: as seconds it would be the year 5138.
const MILLISECONDS_FROM: f64 = 1e11;

/// The names of the windows that refuse.
fn rejected_windows(headers: &HeaderMap) -> Vec<&str> {
    let mut windows: Vec<&str> = headers
        .iter()
        .filter(|(_, status)| status.to_str().is_ok_and(is_hard))
        .filter_map(|(name, _)| name.as_str().strip_prefix(UNIFIED)?.strip_suffix("-status"))
        .collect();
    let status = |name: &str| text(headers, &format!("{UNIFIED}{name}status"));
    let pays_for_more = status("overage-").is_some_and(|status| matches!(status, "allowed" | "allowed_warning"));
    if pays_for_more && !status("").is_some_and(is_hard) {
        windows.clear();
    }
    if windows.iter().any(|window| *window != OVERAGE) {
        windows.retain(|window| *window != OVERAGE);
    }
    windows
}

/// The latest of the classic resets whose `-remaining` is as wanted.
fn classic(headers: &HeaderMap, origin: Duration, wanted: impl Fn(Option<&str>) -> bool) -> Option<Duration> {
    CLASSIC
        .iter()
        .filter(|kind| wanted(text(headers, &format!("anthropic-ratelimit-{kind}-remaining"))))
        .filter_map(|kind| reset(headers, &format!("anthropic-ratelimit-{kind}-reset"), origin))
        .max()
}

/// The time from the answer to the reset of that name; zero when it has passed.
fn reset(headers: &HeaderMap, name: &str, origin: Duration) -> Option<Duration> {
    moment(text(headers, name)?).map(|reset| reset.saturating_sub(origin))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn is_hard(status: &str) -> bool {
    HARD.iter().any(|hard| status.trim().eq_ignore_ascii_case(hard))
}

fn is_model(window: &str) -> bool {
    let window = window.to_ascii_lowercase();
    FAMILIES.iter().any(|family| window.contains(family))
}

fn is_exhausted(remaining: &str) -> bool {
    remaining.parse().is_ok_and(|remaining: f64| remaining <= 0.0)
}

/// "Now" by the clock that wrote the resets: the answer's `Date`, or ours where there is none or it is absurd.
fn origin(headers: &HeaderMap, now: SystemTime) -> Duration {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let date = headers.get(DATE).and_then(|date| http_date(date.to_str().ok()?.trim()));
    date.filter(|date| date.abs_diff(now) <= SKEW_CAP).unwrap_or(now)
}

/// A time since the epoch: seconds, milliseconds, RFC 3339, or a date of HTTP.
fn moment(value: &str) -> Option<Duration> {
    if let Some(number) = decimal(value) {
        let seconds = if number < MILLISECONDS_FROM { number } else { number / 1000.0 };
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let timestamp = value.parse::<jiff::Timestamp>().ok();
    // Before the epoch is long ago.
    let timestamp = timestamp.map(|timestamp| Duration::try_from(timestamp.as_duration()).unwrap_or_default());
    timestamp.or_else(|| http_date(value))
}

/// Digits and at most one point; no sign, no exponent, no `NaN`.
fn decimal(value: &str) -> Option<f64> {
    let plain = value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if plain { value.parse().ok() } else { None }
}

fn http_date(value: &str) -> Option<Duration> {
    httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests;
