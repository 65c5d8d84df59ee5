//! The limits that a refusal tells: whatever stands there, the wait has an end, and what cannot be read is not there.

use std::time::{Duration, SystemTime};

use claude_code_balancer::proxy::limits::{self, Limit};
use http::{HeaderMap, HeaderName, HeaderValue};

const HOUR: Duration = Duration::from_secs(3600);

/// `name: value` lines, as far as they are fields.
pub(super) fn fields(bytes: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(line[..colon].trim_ascii());
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

/// The epoch, a day of this year, and days no clock should show.
pub(super) fn moments() -> [SystemTime; 4] {
    [0, 1_790_000_000, 253_402_300_799, 1 << 40].map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// At least a second away, at most a week.
pub(super) fn is_bounded(until: SystemTime, now: SystemTime) {
    let wait = until.duration_since(now).expect("a time to come");
    assert!((Duration::from_secs(1)..=7 * 24 * HOUR).contains(&wait), "a wait of {wait:?}");
}

pub fn check(bytes: &[u8]) {
    let headers = fields(bytes);
    let mut more = headers.clone();
    more.insert("x-unrelated", HeaderValue::from_static("rejected"));
    for now in moments() {
        let limit = limits::read(&headers, now);
        assert_eq!(limit, limits::read(&headers, now), "read twice, meant two things");
        assert_eq!(limit, limits::read(&more, now), "another field counts");
        let asked = limits::retry_after(&headers, now);
        assert!(asked.is_none_or(|wait| wait <= 6 * HOUR), "a wait of {asked:?}");
        let Some(Limit { until, .. }) = limit else {
            assert_eq!(asked, None, "retry-after was not heard");
            continue;
        };
        is_bounded(until, now);
        let reset = headers
            .keys()
            .any(|name| name.as_str().starts_with("anthropic-ratelimit-") && name.as_str().ends_with("-reset"));
        assert!(reset || asked.is_some(), "a limit that nobody spoke of");
        assert!(reset || until <= now + 6 * HOUR, "a bare retry-after is believed for too long");
    }
}
