//! The answers that are ours: every error has Anthropic's shape and says what failed, at whom, and what to do. HTTP
//! statuses of the data path are decided here and nowhere else.

use std::time::{Duration, SystemTime};

use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::failover::{Exhausted, Failed};
use super::intake::IntakeError;
use super::ledger::{Entry, RequestId};
use super::relay::Outbound;
use super::rewrite::X_SHOULD_RETRY;
use super::verdict::Class;
use crate::gate::Refusal;
use crate::gate::head::Fault;

/// Clients wait so long by themselves; told to wait longer, they had better fail at once.
const PATIENCE: Duration = Duration::from_secs(60);
/// Names the request in our answer and in the log.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// An error of ours.
#[derive(Debug)]
pub struct Error {
    /// The status.
    pub status: StatusCode,
    /// For a person.
    pub message: String,
    /// Seconds until it is worth trying again.
    pub retry_after: Option<u64>,
    /// `x-should-retry: false`: by itself it will not get better.
    pub hopeless: bool,
    /// For 405.
    pub allow: Option<&'static str>,
}

impl Error {
    /// An error without further fields; 401 and 403 are hopeless.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let hopeless = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        Self { status, message: message.into(), retry_after: None, hopeless, allow: None }
    }

    /// 405, with the methods that would do.
    pub fn method(allow: &'static str) -> Self {
        let message = format!("the method is not supported here; use {allow}");
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, message) }
    }

    /// When it is worth trying again, in whole seconds, at least one.
    #[must_use]
    pub fn retry_in(self, wait: Duration) -> Self {
        Self { retry_after: Some(whole(wait).as_secs()), ..self }
    }

    /// 503, because the service ends before there is an answer.
    pub fn shut_down() -> Self {
        let message = "the balancer was shut down before a provider answered; please retry";
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// 502, because this is a request of our own that came back.
    pub fn loops() -> Self {
        let message = "this request went out from this balancer and came back to it: the base_url of a provider leads \
                       here; correct it";
        Self { hopeless: true, ..Self::new(StatusCode::BAD_GATEWAY, message) }
    }

    /// 503, because too much goes on at once.
    pub fn busy(what: &str) -> Self {
        let message = format!("{what}; please retry");
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// The response, in Anthropic's shape. With an account, that is closed by it.
    pub fn response(self, entry: Option<Entry>) -> Response<Outbound> {
        self.response_with(Map::new(), entry)
    }

    /// The same with further fields, which come first.
    pub fn response_with(self, mut body: Map<String, Value>, mut entry: Option<Entry>) -> Response<Outbound> {
        let id = entry.as_ref().map_or_else(RequestId::next, |entry| entry.id);
        if let Some(entry) = &mut entry {
            entry.committed(self.status.as_u16(), false);
        }
        body.insert("type".into(), "error".into());
        body.insert("error".into(), json!({ "type": kind(self.status), "message": self.message }));
        body.insert("request_id".into(), (*id).into());
        let mut response = Response::new(Outbound::text(Value::from(body).to_string(), entry));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert(REQUEST_ID, id);
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.hopeless {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// Anthropic's error type for a status.
fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        500..=503 => "api_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        _ => "invalid_request_error",
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Host | Refusal::Target | Refusal::Framing => StatusCode::BAD_REQUEST,
            Refusal::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
            Refusal::ForeignOrigin | Refusal::Remote => StatusCode::FORBIDDEN,
            Refusal::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Refusal::Method => return Self::method("GET, HEAD, POST, DELETE"),
            Refusal::NoKey | Refusal::WrongKey => StatusCode::UNAUTHORIZED,
            Refusal::MediaType | Refusal::Encoded => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Refusal::Expectation => StatusCode::EXPECTATION_FAILED,
        };
        Self::new(status, refusal.to_string())
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let status = match fault {
            Fault::Malformed | Fault::Tls | Fault::LineEnd | Fault::Target | Fault::Framing => StatusCode::BAD_REQUEST,
            Fault::Length => StatusCode::PAYLOAD_TOO_LARGE,
            Fault::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Fault::Slow => StatusCode::REQUEST_TIMEOUT,
        };
        Self::new(status, fault.to_string())
    }
}

impl From<IntakeError> for Error {
    fn from(error: IntakeError) -> Self {
        let status = match error {
            IntakeError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            IntakeError::TooSlow => StatusCode::REQUEST_TIMEOUT,
            IntakeError::Busy => return Self::busy(&error.to_string()),
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

/// The status for clients when nothing worked, from what failed.
fn overall(failed: &[Failed], out_of_time: bool) -> StatusCode {
    let all = |wanted: &[Class]| !failed.is_empty() && failed.iter().all(|failed| wanted.contains(&failed.class));
    let code = if out_of_time {
        504
    } else if all(&[Class::Login]) {
        401
    } else if all(&[Class::Login, Class::Refused]) {
        403
    } else if all(&[Class::NotFound]) {
        404
    } else if all(&[Class::RateLimit]) {
        429
    } else if all(&[Class::Overload]) {
        529
    } else if all(&[Class::Timeout]) {
        504
    } else {
        503
    };
    StatusCode::from_u16(code).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

/// The error when nothing worked. `login` tells how to sign in.
pub fn all_failed(exhausted: &Exhausted, login: &str, now: SystemTime) -> Error {
    let failed = &exhausted.failed;
    if failed.is_empty() {
        let message = "No provider of the matching routes is enabled; check model_routes and providers";
        return Error { hopeless: true, ..Error::new(StatusCode::SERVICE_UNAVAILABLE, message) };
    }
    let status = overall(failed, exhausted.out_of_time);
    let list: Vec<_> = failed.iter().map(|failed| format!("{}: {}", failed.label, failed.what)).collect();
    let mut message = format!("All providers failed: {}", list.join("; "));
    if !login.is_empty() {
        message.push_str(". ");
        message.push_str(login);
    }
    let mut error = Error::new(status, message);
    let earliest = |of: &dyn Fn(&&Failed) -> bool| {
        failed.iter().filter(of).filter_map(|failed| failed.reset).min().map(|reset| until(reset, now))
    };
    if failed.iter().all(|failed| failed.reset.is_some() || matches!(failed.class, Class::Login | Class::Refused)) {
        let wait = earliest(&|_| true);
        error.retry_after = wait.map(|wait| wait.as_secs());
        error.hopeless |= wait.is_some_and(|wait| wait > PATIENCE);
    } else {
        // Among those that may recover at any moment, only a limit that ends soon is worth waiting for.
        let wait = earliest(&|failed| failed.class == Class::RateLimit).filter(|wait| *wait <= PATIENCE);
        error.retry_after = wait.map(|wait| wait.as_secs());
    }
    error
}

/// Whole seconds, rounded up, at least one.
fn until(reset: SystemTime, now: SystemTime) -> Duration {
    whole(reset.duration_since(now).unwrap_or_default())
}

fn whole(wait: Duration) -> Duration {
    Duration::from_secs(wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0))).max(Duration::from_secs(1))
}

/// A provider's own error answer goes out as it is, but for what it lacks where clients would try again in vain:
/// `x-should-retry: false` with 401 and 403, and with a reset that is far away.
pub fn discourage(response: &mut Response<Outbound>, reset: Option<SystemTime>, now: SystemTime) {
    let status = response.status().as_u16();
    let far = reset.is_some_and(|reset| until(reset, now) > PATIENCE);
    let headers = response.headers_mut();
    if (matches!(status, 401 | 403) || far) && !headers.contains_key(X_SHOULD_RETRY) {
        headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(class: Class, reset: Option<u64>) -> Failed {
        let reset = reset.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        Failed { label: "P".into(), class, what: "what".into(), reset, tried: true, sign_in: None }
    }

    #[test]
    fn the_overall_status_tells_what_all_have_in_common() {
        use Class::{Failure, Login, NotFound, Overload, RateLimit, Refused, Timeout};
        let rows: [(&[Class], u16); 13] = [
            (&[Login, Login], 401),
            (&[Login, Refused], 403),
            (&[Refused, Refused], 403),
            (&[NotFound, NotFound], 404),
            (&[RateLimit, RateLimit], 429),
            (&[Overload, Overload], 529),
            (&[Timeout, Timeout], 504),
            (&[Failure], 503),
            (&[Failure, Overload], 503),
            (&[RateLimit, Overload], 503),
            (&[Login, Failure], 503),
            (&[NotFound, Failure], 503),
            (&[Timeout, Failure], 503),
        ];
        for (classes, status) in rows {
            let failures: Vec<_> = classes.iter().map(|class| failed(*class, None)).collect();
            assert_eq!(overall(&failures, false).as_u16(), status, "{classes:?}");
            assert_eq!(overall(&failures, true).as_u16(), 504, "{classes:?}");
        }
    }

    #[test]
    fn clients_are_told_how_long_to_wait_and_when_not_to() {
        type Row = (&'static [(Class, Option<u64>)], Option<u64>, bool);
        let rows: [Row; 6] = [
            (&[(Class::RateLimit, Some(30)), (Class::RateLimit, Some(600))], Some(30), false),
            (&[(Class::RateLimit, Some(61))], Some(61), true),
            (&[(Class::RateLimit, Some(60))], Some(60), false),
            (&[(Class::RateLimit, Some(3600)), (Class::Failure, None)], None, false),
            (&[(Class::Refused, None)], None, true),
            (&[(Class::Login, None), (Class::RateLimit, Some(30))], Some(30), false),
        ];
        for (failures, retry_after, hopeless) in rows {
            let failures = failures.iter().map(|(class, reset)| failed(*class, *reset)).collect();
            let error = all_failed(&Exhausted { failed: failures, ..Exhausted::default() }, "", SystemTime::UNIX_EPOCH);
            assert_eq!((error.retry_after, error.hopeless), (retry_after, hopeless), "{}", error.message);
        }
    }
}
