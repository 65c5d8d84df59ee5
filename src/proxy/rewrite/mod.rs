//! Heads that cross the balancer: what is dropped, what is added. Open lists: a field that nobody here knows passes.
//!
//! The only way to an outgoing request is [`outbound`], and it adds exactly one credential: a request without one
//! cannot be made.

mod downstream;
mod outbound;

use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};

pub use downstream::{X_BALANCER_ATTEMPTS, X_PROVIDER_USED, downstream, sign};
pub use outbound::{Inbound, NoCredential, outbound};

/// Whether the SDKs and Claude Code should try again by themselves.
pub const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Which balancers a request went through: one that finds its own mark has been sent its own request.
pub const X_PROXY_HOP: HeaderName = HeaderName::from_static("x-proxy-hop");

/// Fields of a connection, not of a message (RFC 9110 §7.6.1).
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// The fields of a head that end at its connection: those that always do, and those that `connection` lists.
struct HopByHop(Vec<Vec<u8>>);

impl HopByHop {
    fn of(headers: &HeaderMap) -> Self {
        let lists = headers.get_all(CONNECTION).iter().map(HeaderValue::as_bytes);
        let listed = lists.flat_map(|list| list.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        // What nearly every list is made of: a field that is dropped anyway, and an option that is no field.
        Self(listed.filter(|name| !matches!(*name, b"keep-alive" | b"close")).map(Vec::from).collect())
    }

    fn has(&self, name: &str) -> bool {
        is_hop_by_hop(name) || self.0.iter().any(|listed| listed.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// Whether the media type of a message is one of `kinds` (lower-case, without parameters).
pub fn is_of_kind(headers: &HeaderMap, kinds: &[&str]) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return false };
    let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    kinds.iter().any(|kind| essence.eq_ignore_ascii_case(kind.as_bytes()))
}
