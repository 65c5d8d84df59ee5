//! The paths under `/oauth/`: the walk of the user's guide, and what programs build upon.

use std::time::{Duration, SystemTime};

use claude_code_balancer::admin::explain::{LiveView, explain};
use claude_code_balancer::config::{OAuthSettings, OAuthStorage};
use claude_code_balancer::health::{Now, Penalty, Scope};
use claude_code_balancer::lab::{Gate, Script, Whim};
use claude_code_balancer::oauth::Storage;
use claude_code_balancer::oauth::vault::Options;
use claude_code_balancer::provider::Email;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::canaries;
use crate::support::endpoints::{JSON, World};
use crate::support::running::assert_is_our_error;
use crate::support::{Client, overhear, soon};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn the_whole_walk_of_the_users_guide_with_curl_alone() {
    let world = World::new().await;
    let endpoint = format!("http://{}", world.running.host());
    assert_eq!(world.running.get("/health").await.status, 503);

    // A request is told to sign in, and how.
    let refused = world.ask("claude-main").await;
    assert_is_our_error(&refused, 401, "authentication_error", "nobody is signed in");
    let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    let page = format!("{endpoint}/oauth/generate-url?account_email=main@example.com");
    assert!(message.contains(&page), "{message}");
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert_eq!(world.provider.connections(), 0);
    let needed = &world.status().await["logins_required"];
    assert_eq!(needed[0]["login_page"], page);

    // The link.
    let begun = world.running.get("/oauth/generate-url?account_email=main@example.com").await.json();
    assert_eq!(
        (&begun["status"], &begun["expires_in"], &begun["account_email"]),
        (&json!("success"), &json!(600), &json!("main@example.com"))
    );
    assert_eq!(begun["authorization_url"], begun["login_url"]);
    assert!(begun["instructions"].is_string());
    let url = begun["authorization_url"].as_str().unwrap();
    assert!(url.starts_with(&world.authority.authorize_url()), "{url}");
    let example = begun["exchange_example"].as_str().unwrap();
    assert!(example.contains(&format!("{endpoint}/oauth/exchange-code")), "{example}");

    // The code, for a token.
    let code = world.authority.sign_in(url, "main@example.com");
    let reply = world.exchange(&json!({ "code": code, "account_email": "main@example.com" })).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let done = reply.json();
    let expected = ["status", "message", "account_email", "expires_at", "scopes", "verified", "persisted"];
    assert_eq!(keys(&done), expected);
    assert_eq!((&done["status"], &done["message"]), (&json!("success"), &json!("Authorization successful")));
    // This one keeps accounts in memory, and says so.
    assert_eq!((&done["verified"], &done["persisted"]), (&json!(true), &json!(false)));
    assert_eq!(done["scopes"], json!(["user:profile", "user:inference"]));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(done["expires_at"].as_u64().unwrap().abs_diff(now + 28_800) < 60, "{done}");

    // The same request answers; the other account does not yet.
    let answered = world.ask("claude-main").await;
    assert_eq!((answered.status, answered.header("x-provider-used")), (200, Some("Official (main@example.com)")));
    assert_eq!(world.ask("claude-other").await.status, 401);

    // The second account.
    world.sign_in("other").await;
    let answered = world.ask("claude-other").await;
    assert_eq!((answered.status, answered.header("x-provider-used")), (200, Some("Official (other@example.com)")));

    // The status.
    let status = world.status().await;
    assert_eq!(status["system"]["oauth_manager_status"], "active");
    assert_eq!((&status["summary"]["total_tokens"], &status["summary"]["healthy_tokens"]), (&json!(2), &json!(2)));
    assert_eq!(status["tokens"][0]["account_email"], "main@example.com");
    assert_eq!((&status["tokens"][0]["usage_count"], &status["tokens"][0]["is_healthy"]), (&json!(1), &json!(true)));

    // A refresh by hand, at most one in 30 s.
    let refreshed = world.refresh("main@example.com").await;
    assert_eq!(refreshed.status, 200, "{}", refreshed.text());
    assert_eq!(refreshed.json()["message"], "Token refreshed successfully for account: main@example.com");
    assert_eq!(world.authority.redeemed(), 1);
    let too_soon = world.refresh("MAIN%40example.com").await;
    assert_is_our_error(&too_soon, 429, "rate_limit_error", "twice at once");
    let wait: u64 = too_soon.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(world.ask("claude-main").await.status, 200);

    // One is removed, then all.
    let removed = world.remove("main@example.com").await;
    assert_eq!((removed.status, &removed.json()["message"]), (200, &json!("Token for main@example.com removed")));
    assert_is_our_error(&world.remove("main@example.com").await, 404, "not_found_error", "removed already");
    assert_eq!(world.ask("claude-main").await.status, 401);
    assert_eq!(world.ask("claude-other").await.status, 200);
    let cleared = world.running.send("DELETE", "/oauth/tokens", &[], "").await;
    assert_eq!(cleared.status, 200, "{}", cleared.text());
    let cleared = cleared.json();
    assert_eq!((&cleared["status"], &cleared["message"]), (&json!("success"), &json!("All tokens cleared")));
    assert_eq!(cleared["removed"], json!(["other@example.com"]));
    assert_eq!(world.running.send("DELETE", "/oauth/tokens", &[], "").await.json()["removed"], json!([]));
    assert_eq!(world.ask("claude-other").await.status, 401);
    let status = world.status().await;
    assert_eq!((&status["summary"]["total_tokens"], &status["active_token"]), (&json!(0), &Value::Null));
    assert_eq!(world.authority.reuses(), 0);
}

#[tokio::test]
async fn the_status_has_the_predecessors_keys_and_no_part_of_a_token() {
    let world = World::signed_in(&["main", "other"]).await;
    assert_eq!(world.ask("claude-other").await.status, 200);
    let status = world.status().await;
    assert_eq!(keys(&status), ["system", "summary", "active_token", "tokens", "logins_required"]);
    let system = ["oauth_manager_status", "current_time", "current_time_iso", "timezone", "storage", "storage_error"];
    assert_eq!(keys(&status["system"]), system);
    let iso = status["system"]["current_time_iso"].as_str().unwrap();
    let shape: String = iso.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00 00:00:00");
    assert!(status["system"]["storage"].is_string() && status["system"]["storage_error"].is_null(), "{status}");
    assert_eq!(
        status["summary"],
        json!({
            "total_tokens": 2, "healthy_tokens": 2, "expired_tokens": 0, "expiring_soon": 0, "login_required": 0,
            "current_token_index": 1, "rotation_enabled": true,
        })
    );
    assert_eq!(status["active_token"]["account_email"], "other@example.com");
    assert_eq!(keys(&status["active_token"]), ["account_email", "expires_in_human", "is_healthy", "scopes"]);
    let token = &status["tokens"][1];
    for key in [
        "account_email",
        "index",
        "is_current",
        "created_at",
        "expires_at",
        "expires_in_seconds",
        "expires_in_minutes",
        "expires_in_human",
        "is_expired",
        "is_healthy",
        "will_expire_soon",
        "scopes",
        "scope_count",
        "usage_count",
        "last_used",
        "last_used_timestamp",
        "state",
        "rate_limited_until",
        "persisted",
        "verified",
        "last_error",
    ] {
        assert!(keys(token).contains(&key), "{key}");
    }
    assert_eq!((&token["index"], &token["is_current"], &token["state"]), (&json!(1), &json!(true), &json!("healthy")));
    assert_eq!((&token["expires_in_human"], &token["scope_count"]), (&json!("7h 59m"), &json!(2)));
    assert_eq!(status["tokens"][0]["last_used"], "Never");
    let text = status.to_string();
    for part in ["lab-access", "lab-refresh", "preview", "access_token", "refresh_token"] {
        assert!(!text.contains(part), "{part} in {text}");
    }

    let chinese = World::with("  language: zh", Storage::memory()).await;
    chinese.sign_in("main").await;
    assert_eq!(chinese.token("main").await.unwrap()["expires_in_human"], "7小时59分钟");
}

#[tokio::test]
async fn a_limited_account_and_one_that_must_sign_in_say_so_everywhere() {
    let world = World::signed_in(&["main", "other"]).await;
    let provider = |account: &str| {
        let email = Email::parse(account);
        let snapshot = world.running.app.admin.live.load();
        snapshot.providers.iter().find(|provider| provider.key.account == email).unwrap().clone()
    };
    let entry = async |name: &str, account: Value| {
        let all = world.running.get("/providers").await.json();
        let mut entries = all["providers"].as_array().unwrap().iter();
        entries.find(|entry| entry["name"] == name && entry["account_email"] == account).unwrap().clone()
    };
    let (main, other) = (json!("main@example.com"), json!("other@example.com"));
    let any = entry("Any", Value::Null).await;
    assert_eq!((&any["healthy"], &any["account_state"]), (&json!(true), &json!("healthy")));

    let until = SystemTime::now() + Duration::from_secs(3600);
    let limited = Penalty::Limited { until, model_only: false };
    let scope = Scope { model: "claude-main".into(), count_tokens: false };
    world.running.app.admin.health.penalise(&provider("main@example.com"), &scope, &limited, "429", Now::read());
    let token = world.token("main").await.unwrap();
    assert_eq!((&token["state"], &token["is_healthy"]), (&json!("rate_limited"), &json!(false)));
    assert!(token["rate_limited_until"].as_f64().is_some_and(|at| at > 1.7e9), "{token}");
    let seen = entry("Official", main.clone()).await;
    assert_eq!((&seen["healthy"], &seen["account_state"]), (&json!(false), &json!("rate_limited")));
    assert_eq!(seen["login_required"], false);

    // A refresh by hand forgives that.
    assert_eq!(world.refresh("main@example.com").await.status, 200);
    assert_eq!(world.token("main").await.unwrap()["state"], "healthy");

    // Without credit it is not well either, whether or not anybody knows until when.
    for penalty in [Penalty::Spent, Penalty::Unpaid] {
        let health = &world.running.app.admin.health;
        health.penalise(&provider("main@example.com"), &scope, &penalty, "credit", Now::read());
        let token = world.token("main").await.unwrap();
        assert_eq!((&token["state"], &token["is_healthy"]), (&json!("out_of_credit"), &json!(false)), "{token}");
        assert!(token["out_of_credit_until"].as_f64().is_some_and(|at| at > 1.7e9), "{token}");
        let seen = entry("Official", main.clone()).await;
        assert_eq!((&seen["healthy"], &seen["account_state"]), (&json!(false), &json!("out_of_credit")), "{seen}");
        assert_eq!(world.status().await["summary"]["healthy_tokens"], 1);
        health.forgive(&Email::parse("main@example.com").unwrap());
        assert_eq!(world.token("main").await.unwrap()["state"], "healthy");
    }

    // Its sessions are ended: a refresh says so, and what to do.
    world.authority.revoke("other@example.com");
    let refused = world.refresh("other@example.com").await;
    assert_is_our_error(&refused, 401, "authentication_error", "revoked");
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("/oauth/generate-url?account_email=other@example.com"), "{message}");
    let token = world.token("other").await.unwrap();
    assert_eq!((&token["state"], &token["is_healthy"]), (&json!("login_required"), &json!(false)));
    let status = world.status().await;
    assert_eq!((&status["summary"]["login_required"], &status["summary"]["healthy_tokens"]), (&json!(1), &json!(1)));
    let seen = entry("Official", other.clone()).await;
    assert_eq!((&seen["login_required"], &seen["healthy"]), (&json!(true), &json!(false)));
    // Whoever may use any account is as well as the best of them.
    let any = entry("Any", Value::Null).await;
    assert_eq!((&any["healthy"], &any["login_required"]), (&json!(true), &json!(false)));
    assert_eq!(world.running.get("/health").await.status, 200);
    assert_eq!(world.running.get("/providers").await.json()["healthy_providers"], 2);
    world.sign_in("other").await;
    assert_eq!(entry("Official", other).await["account_state"], "healthy");
}

#[tokio::test]
async fn explain_tells_of_accounts_what_the_running_server_says() {
    let world = World::signed_in(&["main"]).await;
    let snapshot = world.running.app.admin.live.load();
    let explained = async |model: &str| {
        let live = LiveView::parse(&world.running.get("/providers").await.body).unwrap();
        explain(&snapshot, model, Some(&live)).unwrap()
    };
    let main = explained("claude-main").await;
    assert!(main.contains("1. Official (main@example.com)") && !main.contains("not tried"), "{main}");
    assert!(explained("claude-other").await.contains("not tried: login required"));
    assert!(explained("any-model").await.contains("1. Any at"));
    // Whose token is refused, also a renewed one, must have a human look; it is asked again all the same.
    world.provider.always(Script::error(401, "authentication_error", "no"));
    assert_eq!(world.ask("claude-main").await.status, 401);
    let seen = world.running.provider("Official").await;
    assert_eq!((&seen["login_required"], &seen["account_state"]), (&json!(true), &json!("refused")), "{seen}");
    let refused = explained("claude-main").await;
    assert!(refused.contains("1. Official (main@example.com)") && refused.contains("cooling for"), "{refused}");
    assert!(!refused.contains("login required"), "{refused}");
    assert_eq!(world.remove("main@example.com").await.status, 200);
    assert!(explained("any-model").await.contains("not tried: login required"));
}

#[tokio::test]
async fn a_login_forgives_what_was_held_against_the_account() {
    let world = World::signed_in(&["main"]).await;
    let email = Email::parse("main@example.com").unwrap();
    let snapshot = world.running.app.admin.live.load();
    let provider = snapshot.providers.iter().find(|provider| provider.key.account.as_ref() == Some(&email)).unwrap();
    let scope = Scope { model: "m".into(), count_tokens: false };
    let health = &world.running.app.admin.health;
    health.penalise(provider, &scope, &Penalty::Refused, "401", Now::read());
    assert!(!health.report(provider, Now::read()).is_well());
    world.sign_in("main").await;
    assert!(health.report(provider, Now::read()).is_well());
}

#[tokio::test]
async fn a_client_that_leaves_stops_neither_an_exchange_nor_a_refresh() {
    let world = World::new().await;
    let leave = async |method: &str, target: &str, body: String, calls: usize| {
        let gate = Gate::new();
        world.authority.next(Whim::Hold(gate.clone()));
        let mut client = Client::connect(world.running.address).await.unwrap();
        let host = world.running.host();
        client.send(method, target, &[("host", &host), JSON], body).await.unwrap();
        soon("the call", gate.reached(1)).await;
        assert_eq!(world.calls(), calls);
        drop(client);
        gate.open();
    };
    let code = world.code(None, "main@example.com").await;
    let body = json!({ "code": code, "account_email": "main@example.com" }).to_string();
    leave("POST", "/oauth/exchange-code", body, 1).await;
    let there = async {
        while world.token("main").await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    soon("the account", there).await;
    leave("POST", "/oauth/refresh/main@example.com", String::new(), 2).await;
    let renewed = async {
        while world.token("main").await.unwrap()["state"] != "healthy" {
            tokio::task::yield_now().await;
        }
    };
    soon("the new token", renewed).await;
    assert_eq!(world.ask("claude-main").await.status, 200);
    assert_eq!((world.authority.redeemed(), world.authority.reuses(), world.calls()), (1, 0, 2));
}

#[tokio::test]
async fn an_account_that_is_removed_during_its_refresh_or_login_stays_removed() {
    let world = World::signed_in(&["main"]).await;
    let gate = Gate::new();
    world.authority.next(Whim::Hold(gate.clone()));
    let mut tasks = JoinSet::new();
    let (address, host) = (world.running.address, world.running.host());
    tasks.spawn(async move {
        let mut client = Client::connect(address).await.unwrap();
        client.send("POST", "/oauth/refresh/main@example.com", &[("host", &host)], "").await.unwrap();
        client.read_to_end().await.unwrap()
    });
    soon("the call", gate.reached(1)).await;
    assert_eq!(world.token("main").await.unwrap()["state"], "refreshing");
    assert_eq!(world.remove("main@example.com").await.status, 200);
    gate.open();
    let reply = soon("the end of the refresh", tasks.join_next()).await.unwrap().unwrap();
    assert!(matches!(reply.status, 401 | 404), "{}", reply.text());
    assert!(world.token("main").await.is_none());
    assert_eq!(world.ask("claude-main").await.status, 401);
    assert_eq!(world.authority.reuses(), 0);
}

#[tokio::test]
async fn a_store_that_cannot_be_read_is_said_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("accounts.json");
    std::fs::write(&file, "{\"v\":1,\"accounts\":{\"broken").unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let settings = OAuthSettings { storage: OAuthStorage::File, ..OAuthSettings::default() };
    let options = Options::new(&settings, folder.path().to_owned(), None);
    let world = World::with("", Storage::Later(Box::new(options))).await;
    soon("the store's word", world.running.app.accounts.settled()).await;
    let status = world.status().await;
    assert_eq!(status["system"]["oauth_manager_status"], "storage_unavailable");
    assert!(status["system"]["storage_error"].as_str().unwrap().contains("damaged"), "{status}");
    let seen = world.running.provider("Official").await;
    assert_eq!((&seen["account_state"], &seen["login_required"]), (&json!("storage_unavailable"), &json!(false)));
    assert_eq!(world.running.provider("Any").await["account_state"], "storage_unavailable");
    assert_eq!(world.running.get("/health").await.status, 503);
    let refresh = world.refresh("main@example.com").await;
    assert_is_our_error(&refresh, 503, "api_error", "refresh");
    assert_eq!(refresh.header("retry-after"), Some("30"));
    assert_is_our_error(&world.remove("main@example.com").await, 503, "api_error", "remove");
    let all = world.running.send("DELETE", "/oauth/tokens", &[], "").await;
    assert_is_our_error(&all, 503, "api_error", "remove all");
    assert_eq!(all.json()["removed"], json!([]));
    // A login works from memory, and says that it is not stored.
    let code = world.code(Some("main@example.com"), "main@example.com").await;
    let reply = world.exchange(&json!({ "code": code })).await;
    assert_eq!((reply.status, &reply.json()["persisted"]), (200, &json!(false)), "{}", reply.text());
    assert_eq!(world.token("main").await.unwrap()["persisted"], false);
    assert_eq!(world.ask("claude-main").await.status, 200);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\"v\":1,\"accounts\":{\"broken");
}

#[tokio::test]
async fn no_secret_is_in_an_answer_or_in_the_log_at_trace() {
    let (buffer, writer, guard) = overhear();

    let world = World::new().await;
    world.authority.prefix("canary");
    let mut said = String::new();
    let mut states = Vec::new();
    for name in ["main", "other"] {
        let email = format!("{name}@example.com");
        let begun = world.running.get(&format!("/oauth/generate-url?account_email={email}")).await.json();
        let url = begun["authorization_url"].as_str().unwrap();
        states.push(url.split_once("&state=").unwrap().1.to_owned());
        let code = world.authority.sign_in(url, &email);
        for body in [
            json!({ "code": "canary-code#canary-state", "account_email": email }),
            json!({ "code": ["canary-list"], "account_email": email }),
            json!({ "code": code, "account_email": "canary" }),
            json!({ "code": code, "account_email": email }),
            json!({ "code": code, "account_email": email }),
        ] {
            said += &world.exchange(&body).await.text();
        }
        let broken = format!("{{\"code\":\"{code}");
        said += &world.running.send("POST", "/oauth/exchange-code", &[JSON], broken).await.text();
    }
    for whim in [
        Whim::Instead(Box::new(Script::body(400, "text/plain", "canary-text"))),
        Whim::Instead(Box::new(Script::body(500, "text/html", "<html>canary-page"))),
        Whim::Change(json!({ "access_token": "canary\nline" })),
    ] {
        let code = world.code(Some("main@example.com"), "main@example.com").await;
        world.authority.next(whim);
        said += &world.exchange(&json!({ "code": code })).await.text();
    }
    said += &world.refresh("main@example.com").await.text();
    said += &world.ask("claude-main").await.text();
    for path in ["/oauth/status", "/providers", "/health", "/metrics", "/"] {
        said += &world.running.get(path).await.text();
    }
    said += &world.remove("other@example.com").await.text();
    said += &world.running.send("DELETE", "/oauth/tokens", &[], "").await.text();

    drop(guard);
    writer.flush();
    let log = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    for event in ["signed in", "renewed the token", "was removed"] {
        assert!(log.contains(event), "{event}\n{log}");
    }
    let mut secrets = vec!["canary-".to_owned(), "<html>".to_owned()];
    secrets.extend(states);
    secrets.extend(canaries::asked_of(&world.authority));
    assert!(secrets.len() > 8);
    for (what, text) in [("the log", &log), ("an answer", &said)] {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{what} holds {secret}:\n{text}");
        }
    }
}
