//! Keys of the predecessor: what they are called, and what became of them.
//!
//! Those without a meaning here are accepted, with one warning each. Its nested `timeouts` are translated: a
//! connection's limit is the larger of both, `streaming.read_timeout` (silence between two reads) is `idle`, and
//! `non_streaming.read_timeout` is `first_byte`, for there a provider sends nothing until the answer is complete.

use std::time::Duration;

use super::fields::{At, Fields};
use super::file::DAY;
use super::keys::{self, Tolerated};
use super::problem::Problems;
use super::snapshot::Timeouts;

const NO_PATTERNS: &str = "statuses and errors are judged by kind here; remove the key";
const NO_DEDUPLICATION: &str = "every request is forwarded once and on its own; remove the key";
const NO_RELOAD: &str = "saving the file applies it; remove the key";
const NO_NAME: &str = "remove the key";

/// Beside `providers:`.
pub(super) const TOP: [Tolerated; 1] =
    [("auth", "the key that opens this proxy stands in settings.auth; move it there")];

/// In an entry of `providers:`.
pub(super) const PROVIDER: [Tolerated; 1] =
    [("streaming_mode", "answers are always streamed as they come; remove the key")];

/// In `settings:`.
pub(super) const SETTINGS: [Tolerated; 11] = [
    ("unhealthy_reset_on_success", "a success always resets the count; remove the key"),
    ("unhealthy_exception_patterns", NO_PATTERNS),
    ("unhealthy_response_body_patterns", NO_PATTERNS),
    ("unhealthy_error_types", NO_PATTERNS),
    ("deduplication", NO_DEDUPLICATION),
    ("app_name", NO_NAME),
    ("app_version", NO_NAME),
    ("reload", NO_RELOAD),
    ("reload_includes", NO_RELOAD),
    ("testing", "`claude-code-balancer demo` rehearses failures; remove the key"),
    ("simulate_delay", "`claude-code-balancer demo` rehearses failures; remove the key"),
];

/// In `settings.timeouts:`.
pub(super) const TIMEOUTS: [Tolerated; 1] = [("caching", NO_DEDUPLICATION)];

/// In `settings.timeouts.streaming:` and `.non_streaming:`.
pub(super) const NESTED_TOLERATED: [Tolerated; 1] =
    [("pool_timeout", "a request never waits for a free connection here; remove the key")];

/// Fills `timeouts` from the nested form; what the new form says is applied later, and so wins.
pub(super) fn nested_timeouts(fields: &Fields<'_>, timeouts: &mut Timeouts, problems: &mut Problems) {
    let range = Duration::from_millis(1)..=DAY;
    let mut connect = Vec::new();
    for key in ["streaming", "non_streaming"] {
        let Some(nested) = fields.section(key, &keys::NESTED, &NESTED_TOLERATED, problems) else { continue };
        connect.extend(nested.duration("connect_timeout", range.clone(), problems).map(|At { value, .. }| value));
        if let Some(read) = nested.duration("read_timeout", range.clone(), problems) {
            match key {
                "streaming" => timeouts.idle = read.value,
                _ => timeouts.first_byte = read.value,
            }
        }
    }
    if let Some(larger) = connect.into_iter().max() {
        timeouts.connect = larger;
    }
}
