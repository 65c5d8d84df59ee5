use super::*;
use crate::secret::Secret;
use std::time::Duration;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn key() -> Auth {
    Auth::ApiKey(Secret::new("k"))
}

fn asked(auth: &Auth) -> Asked<'_> {
    Asked { auth, model: "claude-sonnet-4-5", unhealthy_codes: &[], replay_after_send: true }
}

fn error<'a>(kind: &'a str, message: &'a str) -> Content<'a> {
    Content::Error(ErrorBody { kind, message, code: "" })
}

fn next(class: Class, penalty: Penalty) -> Verdict {
    Verdict::Next(Fault { class, penalty, maybe_processed: false })
}

fn verdict(auth: &Auth, status: u16, fields: &[(&'static str, &'static str)], content: Content<'_>) -> Verdict {
    let headers = fields
        .iter()
        .map(|(n, v)| (http::HeaderName::from_static(n), http::HeaderValue::from_static(v)))
        .collect::<HeaderMap>();
    judge(asked(auth), &Outcome::Answer { status, headers: &headers, content }, NOW)
}

#[test]
fn every_row_of_the_table_holds() {
    use Content::{AsAsked, Html, Unusable};
    let (key, oauth, own) = (key(), Auth::OAuth, Auth::Passthrough);
    let failed = || next(Class::Failure, Penalty::Failure);
    let plain = error("invalid_request_error", "prompt is too long");
    let rows: Vec<(&str, &Auth, u16, Content<'_>, Verdict)> = vec![
        ("2xx as asked", &key, 200, AsAsked, Verdict::Commit),
        ("201 as asked", &key, 201, AsAsked, Verdict::Commit),
        ("400", &key, 400, plain, Verdict::Forward(400)),
        ("405", &key, 405, plain, Verdict::Forward(405)),
        ("409", &key, 409, plain, Verdict::Forward(409)),
        ("413", &key, 413, plain, Verdict::Forward(413)),
        ("415", &key, 415, plain, Verdict::Forward(415)),
        ("422", &key, 422, plain, Verdict::Forward(422)),
        ("418", &key, 418, AsAsked, Verdict::Forward(418)),
        ("400 HTML", &key, 400, Html, failed()),
        (
            "400 credit",
            &key,
            400,
            error("invalid_request_error", "Your credit balance is too low"),
            next(Class::RateLimit, Penalty::Spent),
        ),
        (
            "429 spend limit",
            &key,
            429,
            error("rate_limit_error", "This workspace hit its spend limit"),
            next(Class::RateLimit, Penalty::Spent),
        ),
        ("402", &key, 402, error("billing_error", "pay"), next(Class::Refused, Penalty::Unpaid)),
        ("401 key", &key, 401, error("authentication_error", "x"), next(Class::Refused, Penalty::Refused)),
        ("403 key", &key, 403, error("permission_error", "x"), next(Class::Refused, Penalty::Refused)),
        ("403 HTML", &key, 403, Html, failed()),
        ("401 oauth", &oauth, 401, error("authentication_error", "x"), next(Class::Login, Penalty::Refused)),
        ("403 oauth", &oauth, 403, error("permission_error", "x"), next(Class::Refused, Penalty::RefusedModel)),
        (
            "404 model",
            &key,
            404,
            error("not_found_error", "model: Claude-Sonnet-4-5"),
            next(Class::NotFound, Penalty::UnknownModel),
        ),
        ("404 other model", &key, 404, error("not_found_error", "model: claude-opus"), Verdict::Forward(404)),
        ("404 other", &key, 404, error("not_found_error", "Not found"), Verdict::Forward(404)),
        ("404 other type", &key, 404, error("api_error", "claude-sonnet-4-5"), Verdict::Forward(404)),
        ("408", &key, 408, AsAsked, next(Class::Timeout, Penalty::Failure)),
        ("500", &key, 500, error("api_error", "x"), failed()),
        ("502 HTML", &key, 502, Html, failed()),
        ("503", &key, 503, AsAsked, failed()),
        ("504", &key, 504, AsAsked, next(Class::Timeout, Penalty::Failure)),
        ("520", &key, 520, Html, failed()),
        ("599", &key, 599, AsAsked, failed()),
        ("999", &key, 999, AsAsked, failed()),
        ("429 bare", &key, 429, error("rate_limit_error", "x"), next(Class::RateLimit, Penalty::Busy)),
        ("529", &key, 529, error("overloaded_error", "x"), next(Class::Overload, Penalty::Overloaded)),
        ("200 overloaded", &key, 200, error("overloaded_error", "x"), next(Class::Overload, Penalty::Overloaded)),
        ("200 rate limit", &key, 200, error("rate_limit_error", "x"), next(Class::RateLimit, Penalty::Busy)),
        ("200 api_error", &key, 200, error("api_error", "x"), failed()),
        ("200 unknown error", &key, 200, error("", "x"), failed()),
        ("200 invalid request", &key, 200, plain, Verdict::Forward(400)),
        ("301", &key, 301, AsAsked, failed()),
        ("307", &key, 307, AsAsked, failed()),
        ("204", &key, 204, AsAsked, failed()),
        ("206", &key, 206, AsAsked, failed()),
        ("101", &key, 101, AsAsked, failed()),
        ("200 HTML", &key, 200, Html, failed()),
        ("200 unusable", &key, 200, Unusable("truncated"), failed()),
        ("own 401", &own, 401, error("authentication_error", "x"), Verdict::Forward(401)),
        ("own 403", &own, 403, error("permission_error", "x"), Verdict::Forward(403)),
        ("own 402", &own, 402, error("billing_error", "x"), next(Class::Refused, Penalty::None)),
        ("own 429", &own, 429, error("rate_limit_error", "x"), next(Class::RateLimit, Penalty::None)),
        ("own 529", &own, 529, error("overloaded_error", "x"), next(Class::Overload, Penalty::Overloaded)),
        ("own 500", &own, 500, error("api_error", "x"), failed()),
    ];
    for (row, auth, status, content, wanted) in rows {
        assert_eq!(verdict(auth, status, &[], content), wanted, "{row}");
    }
}

#[test]
fn errors_about_credit_are_told_from_errors_that_mention_it() {
    let credit = [
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
        "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
        "This workspace has reached its spend limit",
        "insufficient balance",
        "You are out of credits",
    ];
    let other = [
        "Your account does not have access to spend limit features",
        "messages.0.content: expected a text, found the object \"credit balance\"",
        "prompt is too long: 210000 tokens > 200000 maximum",
    ];
    for message in credit {
        let verdict = verdict(&key(), 400, &[], error("invalid_request_error", message));
        assert_eq!(verdict, next(Class::RateLimit, Penalty::Spent), "{message}");
    }
    let quoted = format!("messages.0: {} credit balance is too low", "x".repeat(400));
    for message in other.into_iter().chain([quoted.as_str()]) {
        let verdict = verdict(&key(), 400, &[], error("invalid_request_error", message));
        assert_eq!(verdict, Verdict::Forward(400), "{message}");
    }
}

#[test]
fn a_reset_that_is_named_is_kept_to() {
    let limited = |seconds, model_only| {
        next(Class::RateLimit, Penalty::Limited { until: NOW + Duration::from_secs(seconds), model_only })
    };
    let content = error("rate_limit_error", "x");
    assert_eq!(verdict(&key(), 429, &[("retry-after", "30")], content), limited(30, false));
    let unified = [("anthropic-ratelimit-unified-status", "rejected"), ("anthropic-ratelimit-unified-reset", "7200")];
    assert_eq!(verdict(&key(), 429, &unified, content), limited(7200, false));
    let own = Auth::Passthrough;
    assert_eq!(verdict(&own, 429, &unified, content), next(Class::RateLimit, Penalty::None));
}

#[test]
fn further_codes_only_ever_add_failures() {
    let auth = key();
    let asked = Asked { unhealthy_codes: &[404, 409, 529, 429], ..asked(&auth) };
    let headers = HeaderMap::new();
    let judged = |status, content| judge(asked, &Outcome::Answer { status, headers: &headers, content }, NOW);
    assert_eq!(judged(409, Content::AsAsked), next(Class::Failure, Penalty::Failure));
    assert_eq!(judged(404, error("not_found_error", "x")), next(Class::Failure, Penalty::Failure));
    assert_eq!(judged(529, Content::AsAsked), next(Class::Overload, Penalty::Overloaded));
    assert_eq!(judged(429, Content::AsAsked), next(Class::RateLimit, Penalty::Busy));
    assert_eq!(judged(400, Content::AsAsked), Verdict::Forward(400));
}

#[test]
fn without_replay_a_request_that_may_have_been_processed_goes_nowhere_else() {
    let auth = key();
    let sent = SendError::Closed { reused: false, sent: true, source: None };
    let unsent = SendError::Closed { reused: false, sent: false, source: None };
    let careful = Asked { replay_after_send: false, ..asked(&auth) };
    let fault = Fault { class: Class::Failure, penalty: Penalty::Failure, maybe_processed: true };
    assert_eq!(judge(asked(&auth), &Outcome::Failed(&sent), NOW), Verdict::Next(fault.clone()));
    assert_eq!(judge(careful, &Outcome::Failed(&sent), NOW), Verdict::Stop(fault));
    assert!(matches!(judge(careful, &Outcome::Failed(&unsent), NOW), Verdict::Next(_)));
    assert!(matches!(judge(careful, &Outcome::HeadTimeout, NOW), Verdict::Stop(_)));
    assert!(matches!(judge(careful, &Outcome::BrokenBody, NOW), Verdict::Next(_)));
}
