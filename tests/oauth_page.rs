//! The page on which a human signs in, as far as that can be seen without a browser.

use base64::Engine as _;
use claude_code_balancer::oauth::Storage;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::support::Reply;
use crate::support::endpoints::{JSON, World};
use crate::support::running::{assert_grants_no_origin, assert_is_our_error};

/// What browsers say.
const BROWSER: [(&str, &str); 2] =
    [("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"), ("sec-fetch-site", "none")];
const KEY: &str = "a-key-of-sixteen-or-more";

/// The text between two marks.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    text.split_once(from).and_then(|(_, rest)| rest.split_once(to)).unwrap_or_else(|| panic!("no {from} in {text}")).0
}

fn assert_is_strict(reply: &Reply) {
    let text = reply.text();
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    let digest = |text: &str| base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text.as_bytes()));
    let (style, script) = (between(&text, "<style>", "</style>"), between(&text, "<script>", "</script>"));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; form-action 'none'; \
         frame-ancestors 'none'; base-uri 'none'",
        digest(style),
        digest(script)
    );
    assert_eq!(reply.header("content-security-policy"), Some(policy.as_str()));
    for (name, value) in [
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
    assert_grants_no_origin(reply, "the page");
    for remote in ["src=", "@import", "url(", "style=", "onclick", "onload", "innerHTML"] {
        assert!(!text.contains(remote), "{remote} in {text}");
    }
    assert!(!text.contains("{{"), "{text}");
}

#[tokio::test]
async fn a_browser_gets_a_page_with_the_link_and_a_field_for_the_code() {
    let world = World::new().await;
    let page = world.running.send("GET", "/oauth/generate-url?account_email=main@example.com", &BROWSER, "").await;
    assert_eq!(page.status, 200);
    assert_is_strict(&page);
    let text = page.text();
    assert!(text.contains("<strong>main@example.com</strong>") && text.contains("<html lang=\"en\">"), "{text}");
    assert!(text.contains("target=\"_blank\" rel=\"noopener noreferrer\""), "{text}");
    assert!(text.contains("<label for=\"code\">") && text.contains("aria-live=\"polite\""), "{text}");
    let url = between(&text, "id=\"link\" href=\"", "\"").replace("&amp;", "&");
    let code = world.authority.sign_in(&url, "main@example.com");
    // As the page's own script sends it.
    let host = format!("http://{}", world.running.host());
    let headers = [JSON, ("origin", host.as_str()), ("sec-fetch-site", "same-origin")];
    let body = json!({ "code": code, "account_email": "main@example.com" }).to_string();
    let done = world.running.send("POST", "/oauth/exchange-code", &headers, body).await;
    assert_eq!(done.status, 200, "{}", done.text());

    let any = world.running.send("GET", "/oauth/generate-url", &BROWSER, "").await.text();
    assert!(any.contains("type=\"email\"") && any.contains("spellcheck=\"false\" required>"), "{any}");
    // HEAD says what it would be.
    let head = world.running.send("HEAD", "/oauth/generate-url", &BROWSER, "").await;
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/html; charset=utf-8")));
}

#[tokio::test]
async fn the_page_speaks_chinese_where_the_settings_say_so() {
    let world = World::with("  language: zh", Storage::memory()).await;
    let page = world.running.send("GET", "/oauth/generate-url", &BROWSER, "").await;
    assert_is_strict(&page);
    let text = page.text();
    assert!(text.contains("<html lang=\"zh-CN\">") && text.contains("在此粘贴授权码"), "{text}");
}

#[tokio::test]
async fn nothing_that_comes_in_becomes_markup() {
    let world = World::new().await;
    let page =
        world.running.send("GET", "/oauth/generate-url?account_email=a%26b'%7B%7Bjs%7D%7D@x.y", &BROWSER, "").await;
    assert_eq!(page.status, 200, "{}", page.text());
    assert!(page.text().contains("<strong>a&amp;b&#39;{{js}}@x.y</strong>"), "{}", page.text());
    for bad in ["%3Cscript%3Ealert(1)%3C/script%3E", "%22onload=x@y", "nobody"] {
        let page = world.running.send("GET", &format!("/oauth/generate-url?account_email={bad}"), &BROWSER, "").await;
        assert_eq!(page.status, 400, "{bad}");
        assert_is_strict(&page);
        assert!(!page.text().contains("alert(1)") && page.text().contains("role=\"alert\""), "{}", page.text());
    }
    for _ in 0..32 {
        world.running.get("/oauth/generate-url").await;
    }
    let full = world.running.send("GET", "/oauth/generate-url", &BROWSER, "").await;
    assert_eq!((full.status, full.header("retry-after").is_some()), (429, true));
    assert_is_strict(&full);
}

#[tokio::test]
async fn where_a_key_is_needed_the_page_asks_for_it_and_begins_nothing_before() {
    let world = World::with(&format!("  auth: {{ enabled: true, api_key: {KEY} }}"), Storage::memory()).await;
    let path = "/oauth/generate-url?account_email=main@example.com";
    // More often than logins may be pending.
    for _ in 0..40 {
        let page = world.running.send("GET", path, &BROWSER, "").await;
        assert_eq!(page.status, 401);
        assert_is_strict(&page);
        let text = page.text();
        assert!(text.contains("<form id=\"unlock\">") && text.contains("<ol id=\"steps\" hidden>"), "{text}");
        assert!(text.contains("id=\"link\" href=\"\"") && !text.contains("state="), "{text}");
    }
    // Programs get what they got, and other pages give nothing away.
    assert_is_our_error(&world.running.get(path).await, 401, "authentication_error", "a program");
    let other = world.running.send("GET", "/oauth/status", &BROWSER, "").await;
    assert_is_our_error(&other, 401, "authentication_error", "the status");
    let wrong = [BROWSER[0], ("x-api-key", "wrong")];
    assert_is_our_error(&world.running.send("GET", path, &wrong, "").await, 401, "authentication_error", "wrong key");
    let foreign = [BROWSER[0], ("sec-fetch-site", "cross-site")];
    assert_is_our_error(&world.running.send("GET", path, &foreign, "").await, 403, "permission_error", "foreign");
    // With the key, as the page's script sends it.
    let key = ("x-api-key", KEY);
    let json = [("accept", "application/json"), ("sec-fetch-site", "same-origin"), key];
    let begun = world.running.send("GET", path, &json, "").await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    let code = world.authority.sign_in(begun.json()["authorization_url"].as_str().unwrap(), "main@example.com");
    let body = json!({ "code": code, "account_email": "main@example.com" }).to_string();
    let refused = world.running.send("POST", "/oauth/exchange-code", &[JSON], &body).await;
    assert_is_our_error(&refused, 401, "authentication_error", "no key");
    assert_eq!(world.running.send("POST", "/oauth/exchange-code", &[JSON, key], &body).await.status, 200);
}
