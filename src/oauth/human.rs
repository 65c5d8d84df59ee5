//! What people are told, in English and in Chinese: times, and how to sign in. The Chinese forms of times, the
//! thresholds and the box are the predecessor's.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::login::form_encoded;
use crate::config::Language;
use crate::provider::Email;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// How long something still lasts, zero = no longer: `2h 30m`, `2小时30分钟`.
pub fn remaining(left: Duration, language: Language) -> String {
    let seconds = left.as_secs();
    let (days, hours, minutes) = (seconds / DAY, seconds % DAY / HOUR, seconds % HOUR / MINUTE);
    match (language, seconds) {
        (Language::En, 0) => "expired".into(),
        (Language::Zh, 0) => "已过期".into(),
        (Language::En, 1..MINUTE) => format!("{seconds}s"),
        (Language::Zh, 1..MINUTE) => format!("{seconds}秒"),
        (Language::En, MINUTE..HOUR) => format!("{minutes}m"),
        (Language::Zh, MINUTE..HOUR) => format!("{minutes}分钟"),
        (Language::En, HOUR..DAY) => format!("{hours}h {minutes}m"),
        (Language::Zh, HOUR..DAY) => format!("{hours}小时{minutes}分钟"),
        (Language::En, _) => format!("{days}d {hours}h"),
        (Language::Zh, _) => format!("{days}天{hours}小时"),
    }
}

/// How long ago something was last used: `5m ago`, `5分钟前`. An account that never was is `Never` in both languages,
/// as scripts know it from the predecessor.
pub fn last_used(at: Option<SystemTime>, now: SystemTime, zone: &TimeZone, language: Language) -> String {
    let Some(at) = at else { return "Never".into() };
    // A clock that was set back makes the past the future; that is "just now" as well.
    let seconds = now.duration_since(at).unwrap_or_default().as_secs();
    let (days, hours, minutes, rest) = (seconds / DAY, seconds / HOUR, seconds / MINUTE, seconds % MINUTE);
    match (language, seconds) {
        (Language::En, 0) => "just now".into(),
        (Language::Zh, 0) => "刚刚".into(),
        (Language::En, 1..MINUTE) => format!("{seconds}s ago"),
        (Language::Zh, 1..MINUTE) => format!("{seconds}秒前"),
        (Language::En, MINUTE..HOUR) if rest == 0 => format!("{minutes}m ago"),
        (Language::Zh, MINUTE..HOUR) if rest == 0 => format!("{minutes}分钟前"),
        (Language::En, MINUTE..HOUR) => format!("{minutes}m {rest}s ago"),
        (Language::Zh, MINUTE..HOUR) => format!("{minutes}分{rest}秒前"),
        (Language::En, HOUR..DAY) => format!("{hours}h ago"),
        (Language::Zh, HOUR..DAY) => format!("{hours}小时前"),
        (Language::En, _) if days == 1 => "yesterday".into(),
        (Language::Zh, _) if days == 1 => "昨天".into(),
        (Language::En, _) if days < 7 => format!("{days}d ago"),
        (Language::Zh, _) if days < 7 => format!("{days}天前"),
        _ => date(at, zone),
    }
}

/// `YYYY-MM-DD HH:MM`.
fn date(at: SystemTime, zone: &TimeZone) -> String {
    formatted(at, zone, "%Y-%m-%d %H:%M").unwrap_or_else(|| "long ago".into())
}

/// `YYYY-MM-DD HH:MM:SS`.
pub fn moment(at: SystemTime, zone: &TimeZone) -> String {
    formatted(at, zone, "%Y-%m-%d %H:%M:%S").unwrap_or_default()
}

fn formatted(at: SystemTime, zone: &TimeZone, format: &str) -> Option<String> {
    let at = Timestamp::try_from(at).ok()?;
    Some(at.to_zoned(zone.clone()).strftime(format).to_string())
}

/// The page on which an account (or any) is signed in.
pub fn login_url(endpoint: &str, account: Option<&Email>) -> String {
    // An `@` may stand in a query as it is (RFC 3986 §3.4), and is easier to read.
    let query = account.map(|account| format!("?account_email={}", form_encoded(account.as_str()).replace("%40", "@")));
    format!("{endpoint}/oauth/generate-url{}", query.unwrap_or_default())
}

/// What a client is told whose request needs an account that is not signed in: the facts of the box, in one line.
pub fn login_steps(endpoint: &str, account: Option<&Email>) -> String {
    let url = login_url(endpoint, account);
    let with = account.map_or_else(|| "your Claude account".into(), |account| format!("the account {account}"));
    format!(
        "Authentication required: open {url} in your browser, sign in with {with}, grant permission, give the code that is shown to that page, then retry"
    )
}

/// The box on the terminal when an account (or any) must sign in.
pub fn login_box(endpoint: &str, account: Option<&Email>, language: Language) -> String {
    let rule = "=".repeat(80);
    let url = login_url(endpoint, account);
    let (required, use_it) = match (language, account) {
        (_, None) => Default::default(),
        (Language::En, Some(account)) => {
            (format!("👤 Required account: {account}\n"), format!("   ⚠️  Make sure to use account: {account}\n"))
        }
        (Language::Zh, Some(account)) => {
            (format!("👤 需要的账户: {account}\n"), format!("   ⚠️  请务必使用账户: {account}\n"))
        }
    };
    match language {
        Language::En => format!(
            "\n{rule}\n🔐 AUTHENTICATION REQUIRED - OAUTH LOGIN NEEDED\n{required}{rule}\n\n\
             To continue using Claude Code Provider Balancer, you need to:\n\n\
             1. 🌐 Open this URL in your browser:\n   {url}\n\n\
             2. 🔑 Sign in with your Claude Code account\n{use_it}\n\
             3. ✅ Grant permission to the application\n\n\
             4. 🔄 Paste the code that is shown into that page: the token is then saved\n\n\
             5. ⚡ Retry your request - it should work now!\n\n{rule}\n\n"
        ),
        Language::Zh => format!(
            "\n{rule}\n🔐 AUTHENTICATION REQUIRED - OAUTH LOGIN NEEDED（需要登录）\n{required}{rule}\n\n\
             要继续使用 Claude Code Provider Balancer，请：\n\n\
             1. 🌐 在浏览器中打开此网址:\n   {url}\n\n\
             2. 🔑 使用您的 Claude Code 账户登录\n{use_it}\n\
             3. ✅ 授予应用程序权限\n\n\
             4. 🔄 将显示的授权码粘贴到该页面，令牌随即保存\n\n\
             5. ⚡ 重试您的请求，现在应该可以了！\n\n{rule}\n\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_in_both_languages() {
        for (seconds, english, chinese) in [
            (0, "expired", "已过期"),
            (1, "1s", "1秒"),
            (59, "59s", "59秒"),
            (60, "1m", "1分钟"),
            (3300, "55m", "55分钟"),
            (3599, "59m", "59分钟"),
            (3600, "1h 0m", "1小时0分钟"),
            (9000, "2h 30m", "2小时30分钟"),
            (86_399, "23h 59m", "23小时59分钟"),
            (86_400, "1d 0h", "1天0小时"),
            (277_200, "3d 5h", "3天5小时"),
        ] {
            let left = Duration::from_secs(seconds);
            assert_eq!(remaining(left, Language::En), english, "{seconds}");
            assert_eq!(remaining(left, Language::Zh), chinese, "{seconds}");
        }
        assert_eq!(remaining(Duration::from_millis(900), Language::En), "expired");
    }

    #[test]
    fn when_it_was_last_used_in_both_languages() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_753_196_757);
        for (ago, english, chinese) in [
            (0, "just now", "刚刚"),
            (1, "1s ago", "1秒前"),
            (59, "59s ago", "59秒前"),
            (60, "1m ago", "1分钟前"),
            (300, "5m ago", "5分钟前"),
            (303, "5m 3s ago", "5分3秒前"),
            (3600, "1h ago", "1小时前"),
            (86_399, "23h ago", "23小时前"),
            (86_400, "yesterday", "昨天"),
            (172_799, "yesterday", "昨天"),
            (172_800, "2d ago", "2天前"),
            (604_799, "6d ago", "6天前"),
            (604_800, "2025-07-15 15:05", "2025-07-15 15:05"),
        ] {
            let at = Some(now - Duration::from_secs(ago));
            assert_eq!(last_used(at, now, &TimeZone::UTC, Language::En), english, "{ago}");
            assert_eq!(last_used(at, now, &TimeZone::UTC, Language::Zh), chinese, "{ago}");
        }
        let ahead = Some(now + Duration::from_secs(3600));
        assert_eq!(last_used(ahead, now, &TimeZone::UTC, Language::Zh), "刚刚");
        assert_eq!(last_used(None, now, &TimeZone::UTC, Language::Zh), "Never");
    }

    #[test]
    fn the_box_names_the_account_the_address_and_five_steps() {
        let email = Email::parse("me+work@example.com").expect("valid");
        for language in [Language::En, Language::Zh] {
            let text = login_box("http://127.0.0.1:9090", Some(&email), language);
            for part in [
                "🔐 AUTHENTICATION REQUIRED - OAUTH LOGIN NEEDED",
                "👤 ",
                ": me+work@example.com\n",
                "http://127.0.0.1:9090/oauth/generate-url?account_email=me%2Bwork@example.com\n",
                "\n1. ",
                "\n2. ",
                "\n3. ",
                "\n4. ",
                "\n5. ",
                &"=".repeat(80),
            ] {
                assert!(text.contains(part), "{part:?} is not in {text}");
            }
            let any = login_box("http://127.0.0.1:9090", None, language);
            assert!(any.contains("/oauth/generate-url\n") && !any.contains("👤") && !any.contains("⚠️"), "{any}");
        }
    }
}
