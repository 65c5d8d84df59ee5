//! Whatever may come in at the paths under `/oauth/`: the right status, a clear message, nothing stored, nothing lost.

use claude_code_balancer::lab::{Script, Whim};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::endpoints::{JSON, World};
use crate::support::running::assert_is_our_error;
use crate::support::{Client, soon};

const MAIN: &str = "main@example.com";

/// Nobody is signed in.
async fn assert_nothing_stored(world: &World, what: &str) {
    let status = world.status().await;
    assert_eq!(status["summary"]["total_tokens"], 0, "{what}: {status}");
}

#[tokio::test]
async fn bodies_of_an_exchange_that_are_none_are_400_and_use_nothing_up() {
    let world = World::new().await;
    let code = world.code(Some(MAIN), MAIN).await;
    let missing = "Missing authorization code";
    let long = "x".repeat(60 * 1024);
    let deep = format!("{}{}", "{\"a\":".repeat(5000), "1");
    for (body, message) in [
        ("", "must be a JSON object"),
        ("{", "not valid JSON"),
        ("null", "must be a JSON object"),
        ("[\"a\",\"b\"]", "must be a JSON object"),
        ("\"code\"", "must be a JSON object"),
        (&deep, "not valid JSON"),
        ("{\"code\":\"a\",\"code\":\"b\"}", "not valid JSON"),
        ("{\"code\":\"\\ud800\"}", "not valid JSON"),
        ("{}", missing),
        ("{\"code\":null}", missing),
        ("{\"code\":\"\"}", missing),
        ("{\"code\":\" \\u200b\\n\"}", missing),
        ("{\"code\":1}", "code must be a string"),
        ("{\"code\":{}}", "code must be a string"),
        ("{\"code\":\"a\",\"account_email\":1}", "account_email must be a string"),
        ("{\"code\":\"a\",\"account_email\":\"nobody\"}", "not an e-mail address"),
        ("{\"code\":\"a\",\"account_email\":\"ü@x.y\"}", "not an e-mail address"),
        (&format!("{{\"code\":\"{long}\"}}"), "too long"),
        ("{\"code\":\"https://x.example/callback?error=access_denied\"}", "not granted"),
        ("{\"code\":\"https://x.example/\"}", "holds no authorization code"),
        ("{\"code\":\"ü\"}", "not an authorization code"),
    ] {
        let reply = world.running.send("POST", "/oauth/exchange-code", &[JSON], body).await;
        assert_is_our_error(&reply, 400, "invalid_request_error", &format!("{body:.60}"));
        let said = reply.json();
        assert_eq!((&said["status"], &said["message"]), (&json!("error"), &said["error"]["message"]), "{body:.60}");
        assert!(said["message"].as_str().unwrap().contains(message), "{body:.60}: {said}");
    }
    let mut latin = b"{\"code\":\"a".to_vec();
    latin.extend_from_slice(b"\xe9\"}");
    let reply = world.running.send("POST", "/oauth/exchange-code", &[JSON], latin).await;
    assert_is_our_error(&reply, 400, "invalid_request_error", "Latin-1");
    assert_nothing_stored(&world, "bad bodies").await;
    assert_eq!(world.calls(), 0);
    assert_eq!(world.exchange(&json!({ "code": code })).await.status, 200);
}

#[tokio::test]
async fn a_body_over_64_kib_is_413_announced_or_not() {
    let world = World::new().await;
    let large = format!("{{\"code\":\"{}\"}}", "x".repeat(100 * 1024));
    let reply = world.running.send("POST", "/oauth/exchange-code", &[JSON], &large).await;
    assert_is_our_error(&reply, 413, "request_too_large", "announced");
    let chunked = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let headers = [JSON, ("transfer-encoding", "chunked")];
    let reply = world.running.send("POST", "/oauth/exchange-code", &headers, chunked).await;
    assert_is_our_error(&reply, 413, "request_too_large", "chunked");
}

#[tokio::test]
async fn states_that_belong_to_no_login_are_400() {
    let world = World::new().await;
    let (main, other) =
        (world.code(Some(MAIN), MAIN).await, world.code(Some("other@example.com"), "other@example.com").await);
    let (bare, state) = main.split_once('#').unwrap();
    for (what, code, email) in [
        ("a state of nobody's", "code#no-such-state", MAIN),
        ("a state from before a restart", "code#AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", MAIN),
        ("another account's state", &*other, MAIN),
        ("another account's login", &*main, "third@example.com"),
        ("a bare code of nobody's", bare, "third@example.com"),
    ] {
        let reply = world.exchange(&json!({ "code": code, "account_email": email })).await;
        assert_is_our_error(&reply, 400, "invalid_request_error", what);
        assert!(
            reply.json()["message"].as_str().unwrap().starts_with("Failed to exchange authorization code"),
            "{what}"
        );
    }
    assert_eq!(world.calls(), 0);
    assert_nothing_stored(&world, "states").await;
    // What was refused is not used up. A whole callback, encoded twice, with dirt around it.
    let url = format!("  https%253A%252F%252Fx.example%252Fcb%253Fcode%253D{bare}%2526state%253D{state}\u{200b}\n");
    assert_eq!(world.exchange(&json!({ "code": url, "account_email": " MAIN@example.com " })).await.status, 200);
    let again = world.exchange(&json!({ "code": main, "account_email": MAIN })).await;
    assert_is_our_error(&again, 400, "invalid_request_error", "used");
    // The other account's own code, without its state.
    let bare = other.split_once('#').unwrap().0;
    let body = json!({ "code": bare, "account_email": "other@example.com" });
    assert_eq!(world.exchange(&body).await.status, 200);
    assert_eq!(world.calls(), 2);
}

#[tokio::test]
async fn a_code_without_an_email_needs_a_login_that_names_one() {
    let world = World::new().await;
    let none = world.exchange(&json!({ "code": "abc" })).await;
    assert_is_our_error(&none, 400, "invalid_request_error", "nothing pending");
    assert!(none.json()["message"].as_str().unwrap().contains("no login is pending"), "{}", none.text());
    let code = world.code(None, MAIN).await;
    for body in [json!({ "code": code }), json!({ "code": code, "account_email": "" })] {
        let reply = world.exchange(&body).await;
        assert_is_our_error(&reply, 400, "invalid_request_error", "one pending, for nobody");
        let message = "Missing account_email parameter. Please provide your email address for account identification.";
        assert_eq!(reply.json()["message"], message);
    }
    let named = world.code(Some("other@example.com"), "other@example.com").await;
    let reply = world.exchange(&json!({ "code": named, "account_email": null })).await;
    assert_eq!((reply.status, &reply.json()["account_email"]), (200, &json!("other@example.com")));
    assert_eq!(world.exchange(&json!({ "code": code, "account_email": MAIN })).await.status, 200);
}

#[tokio::test]
async fn another_account_than_the_one_asked_for_is_409_and_not_stored() {
    let world = World::new().await;
    let code = world.code(Some(MAIN), "private@example.com").await;
    let reply = world.exchange(&json!({ "code": code, "account_email": MAIN })).await;
    assert_is_our_error(&reply, 409, "invalid_request_error", "mismatch");
    let message = reply.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains(MAIN) && message.contains("p…@example.com") && !message.contains("private"), "{message}");
    assert_nothing_stored(&world, "mismatch").await;
    // Names that differ in case only are one account.
    let code = world.code(Some("Main@Example.com"), MAIN).await;
    assert_eq!(world.exchange(&json!({ "code": code })).await.status, 200);
    world.sign_in("main").await;
    assert_eq!(world.status().await["summary"]["total_tokens"], 1);
}

#[tokio::test]
async fn one_code_at_sixteen_calls_at_once_is_exchanged_once() {
    let world = World::new().await;
    let code = world.code(Some(MAIN), MAIN).await;
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let (address, host) = (world.running.address, world.running.host());
        let body = json!({ "code": code, "account_email": MAIN }).to_string();
        tasks.spawn(async move {
            let mut client = Client::connect(address).await.unwrap();
            client.send("POST", "/oauth/exchange-code", &[("host", &host), JSON], body).await.unwrap();
            client.read_to_end().await.unwrap().status
        });
    }
    let mut statuses = soon("all exchanges", tasks.join_all()).await;
    statuses.sort_unstable();
    assert_eq!((statuses[0], &statuses[1..]), (200, &[400_u16; 15][..]));
    assert_eq!(world.calls(), 1);
}

#[tokio::test]
async fn what_the_authorization_server_answers_to_an_exchange_decides_its_status() {
    let world = World::new().await;
    let instead = |script: Script| Whim::Instead(Box::new(script));
    let oauth_error = |status: u16, code: &str| instead(Script::json(status, &json!({ "error": code })));
    let limit = Script::error(429, "rate_limit_error", "x").header("retry-after", "17");
    for (what, whim, status, retry_after) in [
        ("invalid_grant", oauth_error(400, "invalid_grant"), 400, None),
        ("invalid_client", oauth_error(401, "invalid_client"), 400, None),
        ("no JSON under 400", instead(Script::body(400, "text/plain", "no")), 400, None),
        ("a page under 403", instead(Script::html(403)), 502, None),
        ("a page under 200", instead(Script::html(200)), 502, None),
        ("a page under 500", instead(Script::html(500)), 502, None),
        ("an error", instead(Script::error(500, "api_error", "x")), 502, None),
        ("a limit", instead(limit), 502, Some("17")),
        ("a redirect", instead(Script::redirect(302, "/v1/oauth/token")), 502, None),
        ("half a reply", instead(Script::body(200, "application/json", r#"{"access_token":"a"#)), 502, None),
        ("10 MiB", instead(Script::body(200, "application/json", vec![b' '; 10 << 20])), 502, None),
        ("compressed", instead(Script::json(200, &json!({})).header("content-encoding", "gzip")), 502, None),
        ("a reset", instead(Script::reset()), 502, None),
        ("no reply", Whim::LoseReply, 502, None),
        ("no token", Whim::Change(json!({ "access_token": Value::Null })), 502, None),
        ("an empty token", Whim::Change(json!({ "access_token": "" })), 502, None),
        ("two lines", Whim::Change(json!({ "access_token": "a\nb" })), 502, None),
    ] {
        let code = world.code(Some(MAIN), MAIN).await;
        world.authority.next(whim);
        let reply = world.exchange(&json!({ "code": code, "account_email": MAIN })).await;
        let kind = if status == 400 { "invalid_request_error" } else { "api_error" };
        assert_is_our_error(&reply, status, kind, what);
        assert_eq!(reply.header("retry-after"), retry_after, "{what}");
        let message = reply.json()["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with("Failed to exchange authorization code: "), "{what}: {message}");
        assert!(message.contains("begin a new login") && !message.contains('<'), "{what}: {message}");
        assert_nothing_stored(&world, what).await;
    }
    // What can be used is used.
    for (what, change) in [
        ("no lifetime", json!({ "expires_in": Value::Null })),
        ("a lifetime in words", json!({ "expires_in": "3600" })),
        ("half a second", json!({ "expires_in": 1.5 })),
        ("ages", json!({ "expires_in": 1e12 })),
        ("no refresh token", json!({ "refresh_token": Value::Null })),
        ("fewer scopes", json!({ "scope": "user:inference" })),
        ("8 KiB", json!({ "access_token": "a".repeat(8192) })),
        ("another kind of token", json!({ "token_type": "mac" })),
        ("more fields", json!({ "more": [1, 2, 3] })),
    ] {
        let code = world.code(Some(MAIN), MAIN).await;
        world.authority.next(Whim::Change(change));
        let reply = world.exchange(&json!({ "code": code })).await;
        assert_eq!(reply.status, 200, "{what}: {}", reply.text());
        assert!(reply.json()["expires_at"].is_u64(), "{what}");
        let token = world.token("main").await.unwrap();
        assert!(token["expires_in_human"].is_string(), "{what}: {token}");
    }
    assert_eq!(world.authority.reuses(), 0);
}

#[tokio::test]
async fn an_account_in_a_path_may_be_anything() {
    let world = World::new().await;
    let long = format!("{}@example.com", "a".repeat(300));
    for (account, statuses) in [
        ("nobody@example.com", [404, 404]),
        ("me+tag@example.com", [404, 404]),
        ("me%2Btag%40example.com", [404, 404]),
        ("MAIN%40EXAMPLE.com", [404, 404]),
        ("main@example.com.", [404, 404]),
        ("nobody", [400, 400]),
        ("%2f", [400, 400]),
        ("a%2fb@c", [400, 400]),
        ("%00", [400, 400]),
        ("a%00b@c", [400, 400]),
        ("a%0ab@c", [400, 400]),
        ("..", [400, 400]),
        ("%2e%2e", [400, 400]),
        ("%C3%BC@example.com", [400, 400]),
        ("%ff@example.com", [400, 400]),
        ("%zz@example.com", [400, 400]),
        ("%", [400, 400]),
        ("%3Cscript%3E@c", [400, 400]),
        (&long, [400, 400]),
        ("a/b@c", [404, 404]),
        ("", [404, 404]),
    ] {
        for (reply, status) in [world.refresh(account).await, world.remove(account).await].into_iter().zip(statuses) {
            let kind = if status == 404 { "not_found_error" } else { "invalid_request_error" };
            assert_is_our_error(&reply, status, kind, account);
        }
    }
    // A tag in an account's name, in both spellings.
    for spelling in ["me+tag@example.com", "ME%2Btag%40example.com"] {
        let code = world.code(Some("me+tag@example.com"), "me+tag@example.com").await;
        assert_eq!(world.exchange(&json!({ "code": code })).await.status, 200);
        assert_eq!(world.remove(spelling).await.status, 200, "{spelling}");
    }
    assert_eq!(world.calls(), 2);
}

#[tokio::test]
async fn a_thousand_refreshes_are_one() {
    let world = World::signed_in(&["main"]).await;
    let mut tasks = JoinSet::new();
    for _ in 0..10 {
        let (address, host) = (world.running.address, world.running.host());
        tasks.spawn(async move {
            let mut client = Client::connect(address).await.unwrap();
            let mut good = 0;
            for _ in 0..100 {
                client.send("POST", "/oauth/refresh/main@example.com", &[("host", &host)], "").await.unwrap();
                let reply = client.read_to_end().await.unwrap();
                assert!(matches!(reply.status, 200 | 429), "{}", reply.text());
                good += usize::from(reply.status == 200);
            }
            good
        });
    }
    let good: usize = soon("a thousand", tasks.join_all()).await.into_iter().sum();
    assert_eq!((good, world.authority.redeemed(), world.authority.reuses()), (1, 1, 0));
}

#[tokio::test]
async fn what_the_authorization_server_answers_to_a_refresh_decides_its_status_and_loses_nothing() {
    let instead = |script: Script| Whim::Instead(Box::new(script));
    for (what, whim, status) in [
        ("a page", instead(Script::html(403)), 503),
        ("an error", instead(Script::error(500, "api_error", "x")), 503),
        ("a limit", instead(Script::error(429, "rate_limit_error", "x").header("retry-after", "40")), 503),
        ("invalid_grant", instead(Script::json(400, &json!({ "error": "invalid_grant" }))), 401),
    ] {
        let world = World::signed_in(&["main"]).await;
        world.authority.next(whim);
        let reply = world.refresh(MAIN).await;
        let kind = if status == 401 { "authentication_error" } else { "api_error" };
        assert_is_our_error(&reply, status, kind, what);
        assert!(!reply.text().contains('<'), "{what}: {}", reply.text());
        assert_eq!(reply.header("retry-after").is_some(), status == 503, "{what}");
        assert_eq!(reply.header("x-should-retry").is_some(), status == 401, "{what}");
        // The token at hand still serves.
        assert_eq!(world.token("main").await.unwrap()["last_error"].is_string(), status == 503, "{what}");
        assert_eq!(world.ask("claude-main").await.status, 200, "{what}");
    }
}

#[tokio::test]
async fn a_33rd_login_is_429_and_breaks_none_of_the_others() {
    let world = World::new().await;
    let first = world.code(Some(MAIN), MAIN).await;
    // HEAD begins none, nor does what is refused.
    for _ in 0..40 {
        let head = world.running.send("HEAD", "/oauth/generate-url", &[], "").await;
        assert_eq!((head.status, head.header("cache-control")), (200, Some("no-store")));
        let foreign = [("sec-fetch-site", "cross-site")];
        assert_eq!(world.running.send("GET", "/oauth/generate-url", &foreign, "").await.status, 403);
        for bad in ["nobody", "%3Cscript%3E@x", "a@b&account_email=c@d"] {
            let reply = world.running.get(&format!("/oauth/generate-url?account_email={bad}")).await;
            assert_is_our_error(&reply, 400, "invalid_request_error", bad);
        }
    }
    for _ in 0..31 {
        // What begins a login is GET, for a browser and the user's guide.
        let posted = world.running.send("POST", "/oauth/generate-url", &[], "").await;
        assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")));
        assert_eq!(world.running.get("/oauth/generate-url").await.status, 200);
    }
    for _ in 0..40 {
        let full = world.running.get("/oauth/generate-url").await;
        assert_is_our_error(&full, 429, "rate_limit_error", "the 33rd");
        let wait: u64 = full.header("retry-after").unwrap().parse().unwrap();
        assert!((590..=600).contains(&wait), "{wait}");
    }
    assert_eq!(world.exchange(&json!({ "code": first })).await.status, 200);
    assert_eq!(world.running.get("/oauth/generate-url").await.status, 200);
}
