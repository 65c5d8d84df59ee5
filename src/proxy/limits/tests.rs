use super::*;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

/// 2026-01-15T12:00:00Z.
const NOW: u64 = 1_768_478_400;
const DAY: u64 = 24 * 60 * 60;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

/// One header a line; `u-` stands for the unified prefix, `c-` for the classic one.
fn headers(lines: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap();
        let name = match (name.strip_prefix("u-"), name.strip_prefix("c-")) {
            (Some(name), _) => format!("{UNIFIED}{name}"),
            (_, Some(name)) => format!("anthropic-ratelimit-{name}"),
            _ => name.to_owned(),
        };
        headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value.trim()).unwrap());
    }
    headers
}

/// Seconds from now, and whether it is the model's.
fn told(lines: &str) -> Option<(f64, bool)> {
    let limit = read(&headers(lines), now())?;
    Some((limit.until.duration_since(now()).unwrap().as_secs_f64(), limit.model_only))
}

/// `{+5}` becomes the epoch second five after now.
fn filled(lines: &str) -> String {
    let mut filled = String::new();
    let mut rest = lines;
    while let Some((before, after)) = rest.split_once('{') {
        let (offset, tail) = after.split_once('}').unwrap();
        filled += before;
        filled += &(NOW as i64 + offset.parse::<i64>().unwrap()).to_string();
        rest = tail;
    }
    filled + rest
}

fn check(table: &[(&str, Option<(f64, bool)>)]) {
    for (lines, want) in table {
        assert_eq!(told(&filled(lines)), *want, "{lines}");
    }
}

#[test]
fn a_429_without_any_word_is_bare() {
    check(&[
        ("", None),
        ("content-type: application/json", None),
        ("u-status: rejected", None),
        ("u-5h-status: rejected\nu-7d-status: allowed", None),
        ("u-status: allowed\nu-reset: {600}", None),
        ("u-status: allowed_warning\nu-5h-status: allowed\nu-5h-reset: {600}", None),
        ("c-requests-remaining: 3\nc-requests-reset: {60}", None),
        ("retry-after: soon", None),
    ]);
}

#[test]
fn the_latest_rejected_window_decides() {
    check(&[
        (
            "u-5h-status: rejected\nu-5h-reset: {3600}\nu-7d-status: allowed\nu-7d-reset: {400000}",
            Some((3600.0, false)),
        ),
        (
            "u-5h-status: rejected\nu-5h-reset: {3600}\nu-7d-status: Rejected\nu-7d-reset: {400000}",
            Some((400_000.0, false)),
        ),
        ("u-new-thing-status: BLOCKED\nu-new-thing-reset: {50}", Some((50.0, false))),
        ("u-5h-status: rate_limited\nu-5h-reset: {50}", Some((50.0, false))),
        ("u-5h-status: queueing_hard\nu-5h-reset: {50}", Some((50.0, false))),
        ("u-5h-status: payment_required\nu-5h-reset: {50}", Some((50.0, false))),
        ("u-5h-status: queueing_soft\nu-5h-reset: {50}", None),
        // A window goes before everything else, even where the account as a whole is said to be allowed.
        (
            "u-status: allowed\nu-5h-status: rejected\nu-5h-reset: {70}\nu-reset: {900}\nretry-after: 5",
            Some((70.0, false)),
        ),
        // Overage alone, and beside another.
        ("u-overage-status: rejected\nu-overage-reset: {90}", Some((90.0, false))),
        (
            "u-overage-status: rejected\nu-overage-reset: {900}\nu-5h-status: rejected\nu-5h-reset: {90}",
            Some((90.0, false)),
        ),
        // One of two resets unreadable, or past: the other.
        ("u-5h-status: rejected\nu-5h-reset: x\nu-7d-status: rejected\nu-7d-reset: {80}", Some((80.0, false))),
        ("u-5h-status: rejected\nu-5h-reset: {-9}\nu-7d-status: rejected\nu-7d-reset: {80}", Some((80.0, false))),
    ]);
}

#[test]
fn an_account_that_pays_for_more_is_not_kept_away_by_a_window_that_is_used_up() {
    let window = "u-5h-status: rejected\nu-5h-reset: {3600}\nu-overage-status";
    let rows: [(String, Option<(f64, bool)>); 7] = [
        (format!("{window}: allowed"), None),
        (format!("{window}: allowed_warning\nu-status: allowed"), None),
        (format!("{window}: allowed\nu-status: allowed\nretry-after: 7"), Some((7.0, false))),
        // The account as a whole is refused all the same.
        (format!("{window}: allowed\nu-status: rejected"), Some((3600.0, false))),
        (format!("{window}: rejected\nu-status: allowed"), Some((3600.0, false))),
        (format!("{window}: disabled"), Some((3600.0, false))),
        (format!("{window}-x: allowed"), Some((3600.0, false))),
    ];
    check(&rows.iter().map(|(fields, wanted)| (fields.as_str(), *wanted)).collect::<Vec<_>>());
}

#[test]
fn without_a_window_the_unified_reset_decides() {
    check(&[
        ("u-reset: {120}", Some((120.0, false))),
        ("u-status: rejected\nu-reset: {120}\nretry-after: 7", Some((120.0, false))),
        ("u-5h-status: rejected\nu-reset: {120}", Some((120.0, false))),
        ("u-status: allowed\nu-reset: {120}\nretry-after: 7", Some((7.0, false))),
        // Stale: bare, or what comes next.
        ("u-status: rejected\nu-reset: {-1}", None),
        ("u-status: rejected\nu-reset: {0}", None),
        ("u-status: rejected\nu-reset: {-1}\nretry-after: 7", Some((7.0, false))),
    ]);
}

#[test]
fn classic_resets_and_retry_after_follow() {
    check(&[
        (
            "c-requests-remaining: 0\nc-requests-reset: 2026-01-15T12:00:30Z\nc-tokens-remaining: 0\nc-tokens-reset: 2026-01-15T13:01:00+01:00\nretry-after: 7",
            Some((60.0, false)),
        ),
        (
            "c-requests-remaining: 4\nc-requests-reset: {500}\nc-input-tokens-remaining: 0\nc-input-tokens-reset: {30}",
            Some((30.0, false)),
        ),
        ("c-output-tokens-remaining: 0.0\nc-output-tokens-reset: {30}", Some((30.0, false))),
        ("c-requests-remaining: -2\nc-requests-reset: {30}", Some((30.0, false))),
        ("c-requests-remaining: 0\nc-requests-reset: {-30}", Some((1.0, false))),
        ("c-requests-remaining: 0\nc-requests-reset: 1969-12-31T00:00:00Z", Some((1.0, false))),
        ("c-requests-remaining: 0\nc-requests-reset: junk\nretry-after: 7", Some((7.0, false))),
        ("c-requests-remaining: NaN\nc-requests-reset: {30}", None),
        ("c-requests-reset: {30}\nretry-after: 7", Some((7.0, false))),
        ("c-requests-reset: {30}\nc-tokens-reset: {40}", Some((40.0, false))),
        ("c-requests-reset: {30}\nc-tokens-reset: {40}\nc-tokens-remaining: 9", Some((30.0, false))),
        ("retry-after: 0", Some((1.0, false))),
        ("retry-after: 1.5", Some((1.5, false))),
        ("retry-after: junk\nretry-after: 3", Some((3.0, false))),
    ]);
}

#[test]
fn a_reset_may_be_written_in_many_ways() {
    for (written, seconds) in [
        ("{5}", Some(5.0)),
        (" {5} ", Some(5.0)),
        ("{5}.5", Some(5.5)),
        ("{5}000", Some(5.0)),
        ("{5}000.0", Some(5.0)),
        ("2026-01-15T12:00:05Z", Some(5.0)),
        ("2026-01-15T12:00:05.25Z", Some(5.25)),
        ("2026-01-15T04:00:05-08:00", Some(5.0)),
        ("Thu, 15 Jan 2026 12:00:05 GMT", Some(5.0)),
        ("Thursday, 15-Jan-26 12:00:05 GMT", Some(5.0)),
        ("Thu Jan 15 12:00:05 2026", Some(5.0)),
        // Too far: a week.
        ("{999999999}", Some(604_800.0)),
        ("9998-12-31T00:00:00Z", Some(604_800.0)),
        ("{5}000000000", Some(604_800.0)),
        // Nothing that can be meant.
        ("", None),
        (".", None),
        ("1.2.3", None),
        ("NaN", None),
        ("inf", None),
        ("-1", None),
        ("-{5}", None),
        ("1e10", None),
        ("0x70000000", None),
        ("99999999999999999999999999999999", None),
        ("5s", None),
        ("tomorrow", None),
        ("2026-01-15", None),
        ("2026-02-30T00:00:00Z", None),
        // A number of seconds from now is no time.
        ("3600", None),
    ] {
        let want = seconds.map(|seconds| (seconds, false));
        let got = told(&filled(&format!("u-5h-status: rejected\nu-5h-reset: {written}")));
        assert_eq!(got.map(|(wait, model)| ((wait * 1000.0).round() / 1000.0, model)), want, "{written}");
    }
}

#[test]
fn waits_are_believed_up_to_a_cap() {
    check(&[
        ("u-5h-status: rejected\nu-5h-reset: {700000}", Some((604_800.0, false))),
        ("u-5h-status: rejected\nu-5h-reset: {0}.25", Some((1.0, false))),
        ("c-requests-remaining: 0\nc-requests-reset: {700000}", Some((604_800.0, false))),
        ("c-requests-reset: {700000}", Some((604_800.0, false))),
        ("retry-after: 7999", Some((7999.0, false))),
        ("retry-after: 604800", Some((21_600.0, false))),
    ]);
}

#[test]
fn resets_are_measured_by_the_answers_own_clock() {
    let ahead = "date: Thu, 15 Jan 2026 13:00:00 GMT";
    let behind = "date: Thu, 15 Jan 2026 11:50:00 GMT";
    check(&[
        (&format!("{ahead}\nu-reset: {{3660}}"), Some((60.0, false))),
        (&format!("{ahead}\nu-reset: {{60}}"), None),
        (&format!("{behind}\nu-reset: {{-540}}"), Some((60.0, false))),
        (&format!("{behind}\nc-tokens-reset: 2026-01-15T11:51:00Z"), Some((60.0, false))),
        (&format!("{ahead}\nretry-after: Thu, 15 Jan 2026 13:01:00 GMT"), Some((60.0, false))),
        (&format!("{ahead}\nretry-after: 60"), Some((60.0, false))),
        // No clock to go by.
        ("date: Thu, 01 Jan 1970 00:00:00 GMT\nu-reset: {60}", Some((60.0, false))),
        ("date: Sun, 18 Jan 2026 12:00:00 GMT\nu-reset: {60}", Some((60.0, false))),
        ("date: yesterday\nu-reset: {60}", Some((60.0, false))),
    ]);
}

#[test]
fn a_limit_may_be_one_models() {
    check(&[
        ("u-7d_opus-status: rejected\nu-7d_opus-reset: {50}", Some((50.0, true))),
        (
            "u-7d_sonnet-status: rejected\nu-7d_sonnet-reset: {50}\nu-5h-status: allowed\nu-status: rejected",
            Some((50.0, true)),
        ),
        ("u-7d_opus-status: rejected\nu-7d_opus-reset: {50}\nu-overage-status: rejected", Some((50.0, true))),
        ("u-7d_opus-status: rejected\nu-7d_opus-reset: {50}\nu-representative-claim: five_hour", Some((50.0, true))),
        (
            "u-7d_opus-status: rejected\nu-7d_opus-reset: {50}\nu-5h-status: rejected\nu-5h-reset: {9}",
            Some((50.0, false)),
        ),
        ("u-status: rejected\nu-reset: {50}\nu-representative-claim: seven_day_opus", Some((50.0, true))),
        ("u-reset: {50}\nu-representative-claim: Seven_Day_Haiku", Some((50.0, true))),
        ("u-status: rejected\nu-reset: {50}\nu-representative-claim: seven_day", Some((50.0, false))),
        (
            "u-reset: {50}\nu-representative-claim: seven_day_opus\nu-7d-status: rejected\nu-7d-reset: {60}",
            Some((60.0, false)),
        ),
        // The claim is sent with every answer; where the account may go on it says nothing of a refusal.
        ("u-status: allowed\nu-representative-claim: seven_day_opus\nretry-after: 9", Some((9.0, false))),
    ]);
}

#[test]
fn retry_after_as_asked() {
    for (value, want) in [
        ("0", Some(0.0)),
        ("30", Some(30.0)),
        (" 30 ", Some(30.0)),
        ("0.25", Some(0.25)),
        ("Thu, 15 Jan 2026 12:01:00 GMT", Some(60.0)),
        ("Thursday, 15-Jan-26 12:01:00 GMT", Some(60.0)),
        ("Thu Jan 15 12:01:00 2026", Some(60.0)),
        ("Thu, 15 Jan 2026 11:00:00 GMT", Some(0.0)),
        ("99999999", Some(21_600.0)),
        ("99999999999999999999999999", None),
        ("-1", None),
        ("NaN", None),
        ("", None),
        ("30s", None),
        ("2026-01-15T12:01:00Z", None),
    ] {
        let wait = retry_after(&headers(&format!("retry-after: {value}")), now());
        assert_eq!(wait.map(|wait| wait.as_secs_f64()), want, "{value:?}");
    }
    assert_eq!(retry_after(&HeaderMap::new(), now()), None);
}

/// Values between sense and nonsense.
fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(HARD.to_vec()).prop_map(|status| status.as_bytes().to_vec()),
        (0..NOW * 2).prop_map(|number| number.to_string().into_bytes()),
        any::<f64>().prop_map(|number| number.to_string().into_bytes()),
        (-(1i64 << 40)..1 << 40).prop_filter_map("no such time", |second| {
            jiff::Timestamp::from_second(second).ok().map(|time| time.to_string().into_bytes())
        }),
        (0..253_402_300_800u64).prop_map(|second| {
            httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).into_bytes()
        }),
        "[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT".prop_map(String::into_bytes),
        "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..30),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn whatever_the_headers_the_limit_lies_within_a_week(
        fields in prop::collection::vec((0usize..16, value()), 0..12),
        now in prop_oneof![Just(NOW), 0..NOW * 3],
    ) {
        const NAMES: [&str; 16] = [
            "date", "retry-after", "anthropic-ratelimit-unified-reset", "anthropic-ratelimit-unified-status",
            "anthropic-ratelimit-unified-5h-status", "anthropic-ratelimit-unified-5h-reset",
            "anthropic-ratelimit-unified-7d_opus-status", "anthropic-ratelimit-unified-7d_opus-reset",
            "anthropic-ratelimit-unified--status", "anthropic-ratelimit-unified--reset",
            "anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset",
            "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset",
            "anthropic-ratelimit-unified-representative-claim", "anthropic-ratelimit-unified-overage-status",
        ];
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.append(NAMES[name], value);
            }
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
        prop_assert!(retry_after(&headers, now).unwrap_or_default() <= RETRY_AFTER_CAP);
        if let Some(limit) = read(&headers, now) {
            prop_assert!(limit.until >= now + FLOOR);
            prop_assert!(limit.until <= now + Duration::from_secs(7 * DAY));
        }
    }
}
