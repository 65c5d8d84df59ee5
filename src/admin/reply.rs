//! Answers of the management paths.

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::proxy::relay::Outbound;

/// Nothing of ours is framed, sniffed, cached or allowed to load anything.
const PROTECTION: [(&str, &str); 4] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("referrer-policy", "no-referrer"),
];

/// 200 with a JSON body.
pub(super) fn json(value: &serde_json::Value) -> Response<Outbound> {
    json_with(StatusCode::OK, value)
}

/// A status with a JSON body.
pub(super) fn json_with(status: StatusCode, value: &serde_json::Value) -> Response<Outbound> {
    text(status, "application/json", value.to_string())
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

/// Adds the headers that every answer of these paths carries.
pub(super) fn protect(mut response: Response<Outbound>) -> Response<Outbound> {
    let headers = response.headers_mut();
    for (name, value) in PROTECTION {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
