//! The head of an answer on its way to the client.

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::HopByHop;

/// Which provider answered.
pub const X_PROVIDER_USED: HeaderName = HeaderName::from_static("x-provider-used");
/// How many targets were tried.
pub const X_BALANCER_ATTEMPTS: HeaderName = HeaderName::from_static("x-balancer-attempts");

/// Fields of a response that would reach beyond one answer into the client's state, and those that speak for us: a
/// provider that is such a balancer does not.
fn is_not_downstream(name: &str) -> bool {
    matches!(
        name,
        "set-cookie"
            | "alt-svc"
            | "strict-transport-security"
            | "clear-site-data"
            | "x-provider-used"
            | "x-balancer-attempts"
    ) || name.starts_with("access-control-")
}

/// Makes a head that came from a provider, `from`, into one for the client, in the order in which it came. What `into` had
/// goes, its room is used. `content-length` stays only where the body passes exactly as it was announced.
pub fn downstream(from: HeaderMap, keep_length: bool, mut into: HeaderMap) -> HeaderMap {
    into.clear();
    let hop = HopByHop::of(&from);
    let mut last = None;
    for (name, value) in from {
        // What has no name goes by that of the one before.
        if let Some(name) = name {
            let text = name.as_str();
            let dropped = is_not_downstream(text) || (!keep_length && name == CONTENT_LENGTH) || hop.has(text);
            last = (!dropped).then_some(name);
        }
        if let Some(name) = &last {
            into.append(name, value);
        }
    }
    into
}

/// Says who answered, after how many attempts.
pub fn sign(headers: &mut HeaderMap, provider: Option<HeaderValue>, attempts: usize) {
    if let Some(label) = provider {
        headers.insert(X_PROVIDER_USED, label);
    }
    // Nearly always it is the first.
    let attempts = if attempts == 1 { HeaderValue::from_static("1") } else { HeaderValue::from(attempts) };
    headers.insert(X_BALANCER_ATTEMPTS, attempts);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn answers_lose_only_what_would_reach_beyond_them() {
        let kept = downstream(
            headers(&[
                ("connection", "close, x-hop"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("transfer-encoding", "chunked"),
                ("set-cookie", "a=b"),
                ("access-control-allow-origin", "*"),
                ("alt-svc", "h3"),
                ("strict-transport-security", "max-age=1"),
                ("clear-site-data", "*"),
                ("x-provider-used", "forged"),
                ("request-id", "req_1"),
                ("retry-after", "3"),
                ("anthropic-ratelimit-unified-status", "allowed"),
                ("content-length", "3"),
                ("x-new", "1"),
            ]),
            false,
            HeaderMap::new(),
        );
        let names: Vec<_> = kept.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["request-id", "retry-after", "anthropic-ratelimit-unified-status", "x-new"]);
    }

    #[test]
    fn the_room_of_another_head_is_used_and_nothing_of_it_stays() {
        let other = headers(&[("x-api-key", "canary"), ("x-more", "1"), ("x-more", "2")]);
        let kept = downstream(headers(&[("x-a", "1"), ("x-b", "2"), ("x-a", "3")]), true, other);
        let fields: Vec<_> = kept.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(fields, [("x-a", &b"1"[..]), ("x-a", b"3"), ("x-b", b"2")]);
        assert!(kept.capacity() >= 3);
    }

    #[test]
    fn an_answer_says_who_gave_it_and_after_how_many_attempts() {
        let mut map = HeaderMap::new();
        for (attempts, said) in [(1, "1"), (2, "2"), (12, "12")] {
            sign(&mut map, Some(HeaderValue::from_static("P (a@b.c)")), attempts);
            assert_eq!(
                (&map["x-provider-used"], &map["x-balancer-attempts"]),
                (&"P (a@b.c)".parse().unwrap(), &said.parse().unwrap())
            );
        }
    }
}
