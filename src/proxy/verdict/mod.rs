//! What an attempt's outcome means: one pure function, [`judge`].
//!
//! | outcome of an attempt | what happens | health |
//! |---|---|---|
//! | 2xx, as asked | commit | success at its end |
//! | 400, 405, 409, 413, 415, 422, other 4xx about the request | to the client | none |
//! | 400 or 429 about credit or a spend limit; 402 | next | until its reset, else 1 h |
//! | 401 with OAuth | one refresh, then next | the account |
//! | 401 or 403 with a key | next | 5 min, doubling to 1 h |
//! | 403 with OAuth | next | 10 min, account and model |
//! | 404 `not_found_error` that names the model | next | 10 min, provider and model |
//! | any other 404 | to the client | none |
//! | 408, 5xx but 529, above 599 | next | failure |
//! | 429 with a reset | next | until then |
//! | 429 bare | next | 10 s, account and model |
//! | 529, `overloaded_error` as first event | next | 10 s, provider and model |
//! | first event `error` of another type; 200 with a JSON error | as that error's status | |
//! | no connection, no head in time, malformed head, cut before the commit point | next | failure |
//! | 1xx, 204, 206, 3xx; HTML, invalid JSON, the wrong kind of answer | next | failure |
//!
//! `passthrough` differs, for the credential is the client's: 401 and 403 go to the client, 402 and 429 go to the
//! next target, and none of the four has a health effect.

use std::time::SystemTime;

use http::HeaderMap;

use super::limits;
use crate::health::Penalty;
use crate::metrics::AttemptKind;
use crate::provider::Auth;
use crate::upstream::SendError;

/// The side of the request that a verdict depends on.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Whose credential was sent.
    pub auth: &'a Auth,
    /// The model as it was named upstream.
    pub model: &'a str,
    /// `settings.unhealthy_http_codes`.
    pub unhealthy_codes: &'a [u16],
    /// `settings.replay_after_send`.
    pub replay_after_send: bool,
}

/// What came of an attempt, as facts.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// A response head, and what its body turned out to be.
    Answer {
        /// The status of the head.
        status: u16,
        /// Its fields.
        headers: &'a HeaderMap,
        /// The body, as far as it was read before the commit point.
        content: Content<'a>,
    },
    /// No response head.
    Failed(&'a SendError),
    /// No response head in time.
    HeadTimeout,
    /// The body broke or stalled before the commit point.
    BrokenBody,
}

/// What a body turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// What was asked for, or what nobody can look into.
    AsAsked,
    /// An error in Anthropic's shape or close to it: in a JSON body, or as the first event.
    Error(ErrorBody<'a>),
    /// A web page.
    Html,
    /// Neither: broken JSON, an event stream for a plain request, a message for a stream, a stream without events.
    Unusable(&'static str),
}

/// The error of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ErrorBody<'a> {
    /// `error.type`.
    pub kind: &'a str,
    /// `error.message`.
    pub message: &'a str,
    /// `error.details.error_code` or `error.code`.
    pub code: &'a str,
}

/// What happens next.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The answer belongs to the client.
    Commit,
    /// The error answer goes to the client, with this status.
    Forward(u16),
    /// The next target is tried.
    Next(Fault),
    /// No other target may be tried: the request may have been processed, and the user wants no replay.
    Stop(Fault),
}

/// Why a target did not answer, and what it costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What kind of failure: decides the final status when nothing worked.
    pub class: Class,
    /// For the target's health.
    pub penalty: Penalty,
    /// Whether the provider may have processed the request without our knowing.
    pub maybe_processed: bool,
}

/// The kinds of failure that a final answer tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Somebody must sign in.
    Login,
    /// 401, 402, 403.
    Refused,
    /// The model is not known there.
    NotFound,
    /// A rate or spend limit.
    RateLimit,
    /// Overloaded.
    Overload,
    /// No answer in time.
    Timeout,
    /// Anything else.
    Failure,
}

impl Class {
    /// The label under which `/metrics` counts it.
    pub fn metric(self) -> AttemptKind {
        match self {
            Self::Login | Self::Refused => AttemptKind::Refused,
            Self::NotFound => AttemptKind::NotFound,
            Self::RateLimit => AttemptKind::RateLimit,
            Self::Overload => AttemptKind::Overload,
            Self::Timeout => AttemptKind::Timeout,
            Self::Failure => AttemptKind::Failure,
        }
    }
}

/// Judges an outcome. `now` is when the head arrived.
pub fn judge(asked: Asked<'_>, outcome: &Outcome<'_>, now: SystemTime) -> Verdict {
    let verdict = match outcome {
        Outcome::Answer { status, headers, content } => answer(asked, *status, headers, *content, now),
        Outcome::Failed(error) => Verdict::Next(Fault {
            class: match error {
                SendError::ConnectTimeout { .. } | SendError::TlsTimeout { .. } | SendError::Http2Timeout { .. } => {
                    Class::Timeout
                }
                _ => Class::Failure,
            },
            penalty: if matches!(error, SendError::RequestBody { .. }) { Penalty::None } else { Penalty::Failure },
            maybe_processed: matches!(
                error,
                SendError::Closed { sent: true, .. } | SendError::Reset { unprocessed: false, .. }
            ),
        }),
        Outcome::HeadTimeout => {
            Verdict::Next(Fault { class: Class::Timeout, penalty: Penalty::Failure, maybe_processed: true })
        }
        Outcome::BrokenBody => failure(),
    };
    match verdict {
        Verdict::Next(fault) if fault.maybe_processed && !asked.replay_after_send => Verdict::Stop(fault),
        verdict => verdict,
    }
}

fn answer(asked: Asked<'_>, status: u16, headers: &HeaderMap, content: Content<'_>, now: SystemTime) -> Verdict {
    let error = match content {
        Content::Error(error) => error,
        _ => ErrorBody::default(),
    };
    let effective = match content {
        Content::Error(error) if (200..300).contains(&status) => status_of(error.kind),
        _ => status,
    };
    let own_credential = matches!(asked.auth, Auth::Passthrough);
    let next = |class, penalty| Verdict::Next(Fault { class, penalty, maybe_processed: false });
    // A limit on the client's own credential says nothing about ours.
    let limited = |class, penalty| next(class, if own_credential { Penalty::None } else { penalty });
    let verdict = match effective {
        204 | 206 => failure(),
        200..=299 => match content {
            Content::AsAsked => Verdict::Commit,
            _ => failure(),
        },
        ..=399 | 600.. => failure(),
        400 | 429 if speaks_of_credit(error) => limited(Class::RateLimit, spent(headers, now)),
        402 => limited(Class::Refused, unpaid(headers, now)),
        401 | 403 if own_credential => Verdict::Forward(effective),
        401 if *asked.auth == Auth::OAuth => next(Class::Login, Penalty::Refused),
        403 if *asked.auth == Auth::OAuth => next(Class::Refused, Penalty::RefusedModel),
        401 | 403 if content == Content::Html => failure(),
        401 | 403 => next(Class::Refused, Penalty::Refused),
        404 if names_model(error, asked.model) => next(Class::NotFound, Penalty::UnknownModel),
        408 | 504 => next(Class::Timeout, Penalty::Failure),
        429 => limited(Class::RateLimit, rate_limit(headers, now)),
        529 => next(Class::Overload, Penalty::Overloaded),
        500..=599 => failure(),
        _ => Verdict::Forward(effective),
    };
    match verdict {
        // A web page is never forwarded, nor half an error; and `unhealthy_http_codes` only ever adds.
        Verdict::Forward(_) if matches!(content, Content::Html | Content::Unusable(_)) => failure(),
        Verdict::Forward(_) if asked.unhealthy_codes.contains(&effective) => failure(),
        verdict => verdict,
    }
}

fn failure() -> Verdict {
    Verdict::Next(Fault { class: Class::Failure, penalty: Penalty::Failure, maybe_processed: false })
}

fn rate_limit(headers: &HeaderMap, now: SystemTime) -> Penalty {
    match limits::read(headers, now) {
        Some(limit) => Penalty::Limited { until: limit.until, model_only: limit.model_only },
        None => Penalty::Busy,
    }
}

fn spent(headers: &HeaderMap, now: SystemTime) -> Penalty {
    match limits::read(headers, now) {
        Some(limit) => Penalty::Limited { until: limit.until, model_only: false },
        None => Penalty::Spent,
    }
}

fn unpaid(headers: &HeaderMap, now: SystemTime) -> Penalty {
    match spent(headers, now) {
        Penalty::Spent => Penalty::Unpaid,
        limited => limited,
    }
}

/// The status that an error type stands for (Anthropic's table of errors).
pub fn status_of(kind: &str) -> u16 {
    match kind {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "conflict_error" => 409,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => 500,
    }
}

/// Whether an error is about money: its type, its code, or what providers say. Words alone are not enough, for a
/// message may quote the user's own text.
fn speaks_of_credit(error: ErrorBody<'_>) -> bool {
    const CODES: [&str; 4] = ["spend_limit", "credit", "quota_exceeded", "insufficient_quota"];
    // A thing, and what became of it.
    const SPENT: [(&[&str], &[&str]); 3] = [
        (&["credit balance", "account balance"], &["too low", "insufficient", "negative", "exhausted", "run out"]),
        (
            &["spend limit", "spending limit", "spend_limit", "usage limits", "usage credits"],
            &["reached", "hit ", "exceeded", "exhausted", "run out"],
        ),
        (
            &["insufficient", "out of", "no "],
            &["insufficient credit", "insufficient balance", "out of credit", "no credits left"],
        ),
    ];
    let message = error.message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    matches!(error.kind, "billing_error" | "insufficient_quota")
        || CODES.iter().any(|code| error.code.contains(code))
        || (message.len() <= SAYING && SPENT.iter().any(|(thing, fate)| says(thing) && says(fate)))
}

/// Longest message that can be a provider's saying about credit; a longer one quotes something.
const SAYING: usize = 400;

fn names_model(error: ErrorBody<'_>, model: &str) -> bool {
    error.kind == "not_found_error"
        && !model.is_empty()
        && error.message.to_ascii_lowercase().contains(&model.to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
