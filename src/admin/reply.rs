//! Answers of the management paths.

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::{Map, Value};

use crate::proxy::reject::Error;
use crate::proxy::relay::Outbound;

/// Nothing of ours is framed, sniffed, cached or allowed to load anything.
const PROTECTION: [(&str, &str); 4] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("referrer-policy", "no-referrer"),
];

/// 200 with a JSON body.
pub(super) fn json(value: &Value) -> Response<Outbound> {
    text(StatusCode::OK, "application/json", value.to_string())
}

/// An error in Anthropic's shape and in the words of these paths at once: `status`, `message`, and what else is in
/// `value`.
pub(super) fn error(error: Error, value: Value) -> Response<Outbound> {
    let mut fields = Map::new();
    fields.insert("status".into(), "error".into());
    fields.insert("message".into(), error.message.as_str().into());
    if let Value::Object(more) = value {
        fields.extend(more);
    }
    protect(error.response_with(fields, None))
}

/// The same without further fields.
pub(super) fn refusal(error: Error) -> Response<Outbound> {
    self::error(error, Value::Null)
}

/// A status with a body of another type.
pub(super) fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Outbound> {
    let mut response = Response::new(Outbound::text(body, None));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    protect(response)
}

/// 200 without a body.
pub(super) fn empty() -> Response<Outbound> {
    protect(Response::new(Outbound::whole(Vec::new(), None)))
}

/// Adds the headers that every answer of these paths carries, refusals of the gate among them.
pub fn protect(mut response: Response<Outbound>) -> Response<Outbound> {
    let headers = response.headers_mut();
    for (name, value) in PROTECTION {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
