//! Answers of the management paths.

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use crate::proxy::ledger::request_id;
use crate::proxy::reject::REQUEST_ID;
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
    json_with(StatusCode::OK, value)
}

/// A status with a JSON body.
fn json_with(status: StatusCode, value: &Value) -> Response<Outbound> {
    text(status, "application/json", value.to_string())
}

/// An error in the words of these paths (`status`, and what else is in `value`) and in Anthropic's shape at once.
pub(super) fn error(status: StatusCode, kind: &str, message: &str, mut value: Value) -> Response<Outbound> {
    let id = request_id();
    if let Value::Object(fields) = &mut value {
        fields.insert("message".into(), message.into());
        fields.insert("type".into(), "error".into());
        fields.insert("error".into(), json!({ "type": kind, "message": message }));
        fields.insert("request_id".into(), id.as_str().into());
    }
    let mut response = json_with(status, &value);
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
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
