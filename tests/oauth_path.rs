//! Requests with the tokens of accounts: which account, which token, what a refusal leads to.

use std::sync::Arc;

use claude_code_balancer::health::Now;
use claude_code_balancer::lab::{Authority, Lab, Script};
use claude_code_balancer::oauth::{Need, State};
use claude_code_balancer::provider::Email;

use crate::support::accounts::email;
use crate::support::balancer::{Balancer, JSON, request, request_for};
use crate::support::{Reply, soon};

/// A provider that takes every token that the authorization server stands by, and a balancer in front of it.
struct World {
    authority: Arc<Authority>,
    lab: Lab,
    balancer: Balancer,
}

/// Answers only to tokens that are good.
fn guard(lab: &Lab, authority: &Arc<Authority>) {
    let authority = authority.clone();
    lab.answer(move |request| {
        let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        match token.is_some_and(|token| authority.accepts(token)) {
            true => Script::as_asked(request),
            false => Script::error(401, "authentication_error", "OAuth token has expired"),
        }
    });
}

impl World {
    /// `entries` and `routes` with `LAB` for the provider's URL.
    async fn new(entries: &str, routes: &str) -> Self {
        let authority = Arc::new(Authority::start().await.unwrap());
        let lab = Lab::start().await.unwrap();
        guard(&lab, &authority);
        let settings = format!(
            "settings:\n  log_file_path: \"\"\n  oauth:\n    token_url: \"{}\"\n    authorize_url: \"{}\"\n",
            authority.token_url(),
            authority.authorize_url()
        );
        let yaml = format!("providers:\n{entries}{routes}{settings}").replace("LAB", &lab.url());
        Self { balancer: Balancer::start(&yaml).await, authority, lab }
    }

    /// One entry for each of these accounts, all of the same name.
    async fn of(accounts: &[&str]) -> Self {
        let entries = accounts.iter().map(|name| {
            format!("  - {{ name: P, base_url: LAB, auth_value: oauth, account_email: {name}@example.com }}\n")
        });
        Self::new(&entries.collect::<String>(), "").await
    }

    async fn sign_in(&self, name: &str) {
        let accounts = &self.balancer.app.accounts;
        let begun = accounts.begin(Some(email(name))).unwrap();
        let pasted = self.authority.sign_in(&begun.authorization_url, email(name).as_str());
        soon("the exchange", accounts.exchange(&pasted, None)).await.unwrap();
    }

    async fn signed_in(self, names: &[&str]) -> Self {
        for name in names {
            self.sign_in(name).await;
        }
        self
    }

    fn state(&self, name: &str) -> State {
        self.balancer.app.accounts.state(&email(name), Now::read())
    }

    /// Nobody who came to the provider had anything but a token of the authorization server's.
    fn only_tokens(&self) {
        for request in self.lab.requests() {
            assert_eq!(request.headers_named("authorization").len(), 1);
            assert_eq!(request.header("x-api-key"), None);
        }
    }
}

fn used(reply: &Reply) -> &str {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.header("x-provider-used").unwrap()
}

#[tokio::test]
async fn a_request_carries_the_token_of_its_account_and_nothing_of_the_client() {
    let world = World::of(&["main"]).await.signed_in(&["main"]).await;
    let own = [JSON, ("authorization", "Bearer canary"), ("x-api-key", "canary")];
    // The client's list, and what the provider gets.
    for (list, sent) in [
        (&[][..], "oauth-2025-04-20"),
        (&["a-1,b-2"], "oauth-2025-04-20,a-1,b-2"),
        (&["a-1, oauth-2025-04-20 ,b-2"], "a-1, oauth-2025-04-20 ,b-2"),
        (&["a-1", "oauth-2025-04-20"], "a-1"),
        (&["a-1", "b-2"], "oauth-2025-04-20,a-1"),
    ] {
        let betas: Vec<_> = list.iter().map(|value| ("anthropic-beta", *value)).collect();
        let headers = [&own[..], &betas].concat();
        let reply = world.balancer.fetch("POST", "/v1/messages", &headers, request(true)).await;
        assert_eq!(used(&reply), "P (main@example.com)");
        assert_eq!(reply.header("x-balancer-attempts"), Some("1"));
        let request = world.lab.requests().pop().unwrap();
        assert_eq!(request.headers_named("anthropic-beta").first(), Some(&sent), "{list:?}");
        assert_eq!(request.headers_named("anthropic-beta").len(), list.len().max(1), "{list:?}");
        assert!(!format!("{:?}", request.headers).contains("canary"));
    }
    world.only_tokens();
    assert_eq!(world.balancer.app.accounts.status(Now::read())[0].usage_count, 5);
}

#[tokio::test]
async fn after_a_401_the_same_target_is_asked_once_more_with_a_new_token() {
    let world = World::of(&["main"]).await.signed_in(&["main"]).await;
    let mut first = Script::error(401, "authentication_error", "OAuth token has expired");
    for stream in [true, false] {
        world.lab.next(first.clone());
        let reply = world.balancer.ask(stream).await;
        assert_eq!(used(&reply), "P (main@example.com)");
        // Not an attempt of its own.
        assert_eq!(reply.header("x-balancer-attempts"), Some("1"));
        first = first.header("x-again", "1");
    }
    assert_eq!((world.authority.redeemed(), world.authority.reuses()), (2, 0));
    assert_eq!(world.lab.requests().len(), 4);
    assert_eq!(world.balancer.failures("P").await, 0);
    assert_eq!(world.state("main"), State::Healthy);
}

#[tokio::test]
async fn a_second_401_is_the_next_targets_turn_and_a_case_for_a_human() {
    let entries = "  - { name: P, base_url: LAB, auth_value: oauth, account_email: main@example.com }\n  \
                   - { name: K, base_url: LAB, auth_value: a-key }\n";
    let world = World::new(entries, "").await.signed_in(&["main"]).await;
    world.lab.answer(|request| match request.header("x-api-key") {
        Some(_) => Script::as_asked(request),
        None => Script::error(401, "authentication_error", "no"),
    });
    let needy = world.balancer.app.accounts.needing_login();
    let reply = world.balancer.ask(false).await;
    assert_eq!((used(&reply), reply.header("x-balancer-attempts")), ("K", Some("2")));
    assert_eq!((world.authority.redeemed(), world.lab.requests().len()), (1, 3));
    assert_eq!(*needy.borrow(), [(Some(email("main")), Need::Refused)]);
    // It cools for five minutes, so the next request goes elsewhere at once.
    let reply = world.balancer.ask(false).await;
    assert_eq!((used(&reply), reply.header("x-balancer-attempts")), ("K", Some("1")));
    let entry = world.balancer.provider("P").await;
    let left = entry["cooldown_until"].as_f64().unwrap() - entry["last_failure_time"].as_f64().unwrap();
    assert!((200.0..=361.0).contains(&left), "{entry}");
    // Well again by itself: nobody has to sign in any longer.
    guard(&world.lab, &world.authority);
    let only = request_for("claude-lab", false).replacen('{', r#"{"provider":"P","#, 1);
    assert_eq!(used(&world.balancer.post(only).await), "P (main@example.com)");
    assert!(needy.borrow().is_empty());
}

#[tokio::test]
async fn a_403_benches_that_account_for_that_model_only() {
    let world = World::of(&["main", "other"]).await.signed_in(&["main", "other"]).await;
    world.lab.next(Script::error(403, "permission_error", "not for you"));
    assert_eq!(used(&world.balancer.ask(false).await), "P (other@example.com)");
    assert_eq!(used(&world.balancer.ask(false).await), "P (other@example.com)");
    let another = world.balancer.post(request_for("another-model", false)).await;
    assert_eq!(used(&another), "P (main@example.com)");
    assert_eq!(world.authority.redeemed(), 0);
}

#[tokio::test]
async fn accounts_of_one_name_are_chosen_by_the_route() {
    let routes = "model_routes:\n  \"one-*\": [{ provider: P, account_email: Other@Example.com }]\n  \
                  \"*\": [{ provider: P, account_email: main@example.com }]\n";
    let entries = "  - { name: P, base_url: LAB, auth_value: oauth, account_email: main@example.com }\n  \
                   - { name: P, auth_value: oauth, account_email: other@example.com }\n";
    let world = World::new(entries, routes).await.signed_in(&["main", "other"]).await;
    for (model, account) in [("one-x", "P (other@example.com)"), ("two-x", "P (main@example.com)")] {
        assert_eq!(used(&world.balancer.post(request_for(model, false)).await), account);
    }
    let tokens: Vec<_> = world.lab.requests().iter().map(|r| r.header("authorization").unwrap().to_owned()).collect();
    assert_ne!(tokens[0], tokens[1]);
}

#[tokio::test]
async fn without_an_account_in_the_entry_all_take_turns_and_stand_in_for_each_other() {
    let world = World::new("  - { name: P, base_url: LAB, auth_value: oauth }\n", "").await;
    // Nobody yet: told so, with the page of no certain account.
    let reply = world.balancer.ask(false).await;
    assert_eq!((reply.status, reply.header("x-should-retry")), (401, Some("false")));
    assert!(reply.text().contains(&format!("{}/oauth/generate-url ", world.balancer.url)), "{}", reply.text());
    assert_eq!(*world.balancer.app.accounts.needing_login().borrow(), [(None, Need::NotSignedIn)]);
    let world = world.signed_in(&["a", "b", "c"]).await;
    assert!(world.balancer.app.accounts.needing_login().borrow().is_empty());
    let mut turns = Vec::new();
    for _ in 0..6 {
        turns.push(used(&world.balancer.ask(false).await).to_owned());
    }
    turns.sort();
    let [a, b, c] = ["P (a@example.com)", "P (b@example.com)", "P (c@example.com)"];
    assert_eq!(turns, [a, a, b, b, c, c]);
    // A session keeps its own.
    let session = |id| [JSON, ("x-claude-code-session-id", id)];
    let ask = async |id| {
        let reply = world.balancer.fetch("POST", "/v1/messages", &session(id), request(false)).await;
        used(&reply).to_owned()
    };
    let own = ask("one").await;
    for _ in 0..5 {
        assert_eq!(ask("one").await, own);
    }
    // A limited one is passed over, in the very request and in those that follow, by its session too.
    let limit = Script::error(429, "rate_limit_error", "wait").header("retry-after", "600");
    world.lab.next(limit);
    let other = ask("one").await;
    assert_ne!(other, own);
    // The one that has answered is its own from now on.
    for _ in 0..6 {
        assert_eq!(ask("one").await, other);
        assert_ne!(used(&world.balancer.ask(false).await), own);
        assert_eq!(ask("one").await, other);
    }
    world.only_tokens();
    // A reload keeps what is known of them.
    world.balancer.app.admin.reload().unwrap();
    for _ in 0..6 {
        assert_ne!(used(&world.balancer.ask(false).await), own);
    }
}

#[tokio::test]
async fn a_rejected_refresh_token_is_a_login_and_a_login_mends_it() {
    let world = World::of(&["main"]).await.signed_in(&["main"]).await;
    world.authority.revoke("main@example.com");
    for round in 0..3 {
        let reply = world.balancer.ask(true).await;
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!((reply.status, reply.header("x-should-retry")), (401, Some("false")), "{message}");
        let page = format!("{}/oauth/generate-url?account_email=main@example.com", world.balancer.url);
        assert!(message.contains(&page) && message.contains("main@example.com"), "{message}");
        // Known to be hopeless before the first attempt: no upstream is touched.
        assert_eq!((world.lab.requests().len(), world.authority.lab().requests().len()), (1, 2), "{round}");
    }
    assert!(matches!(world.state("main"), State::LoginRequired(Need::Rejected(_))));
    world.sign_in("main").await;
    assert_eq!(used(&world.balancer.ask(true).await), "P (main@example.com)");
}

#[tokio::test]
async fn a_failing_authorization_server_is_no_login_and_the_next_target_serves() {
    let world = World::of(&["main", "other"]).await.signed_in(&["main", "other"]).await;
    world.lab.next(Script::error(401, "authentication_error", "expired"));
    world.authority.next(claude_code_balancer::lab::Whim::Instead(Box::new(Script::html(403))));
    let reply = world.balancer.ask(true).await;
    assert_eq!((used(&reply), reply.header("x-balancer-attempts")), ("P (other@example.com)", Some("2")));
    assert!(world.balancer.app.accounts.needing_login().borrow().is_empty());
    // While it backs off, its account is not asked for a token again, and no page reaches a client.
    let calls = world.authority.lab().requests().len();
    assert_eq!(used(&world.balancer.ask(true).await), "P (other@example.com)");
    assert_eq!(world.authority.lab().requests().len(), calls);
}

#[tokio::test]
async fn other_paths_and_lists_carry_the_token_too() {
    let world = World::of(&["main"]).await.signed_in(&["main"]).await;
    for (method, path) in [("GET", "/v1/models"), ("GET", "/v1/files?limit=2"), ("POST", "/v1/messages/batches")] {
        let reply = world.balancer.fetch(method, path, &[JSON], if method == "POST" { "{}" } else { "" }).await;
        assert_eq!(used(&reply), "P (main@example.com)", "{path}");
    }
    world.only_tokens();
    let out = World::of(&["nobody"]).await;
    let reply = out.balancer.fetch("GET", "/v1/files", &[], "").await;
    assert_eq!((reply.status, reply.header("x-should-retry")), (401, Some("false")));
    assert!(reply.text().contains("account_email=nobody@example.com"), "{}", reply.text());
    assert_eq!(out.lab.connections(), 0);
}

#[tokio::test]
async fn an_account_is_not_asked_for_where_another_target_serves_but_a_human_is_told() {
    let entries = "  - { name: P, base_url: LAB, auth_value: oauth, account_email: main@example.com }\n  \
                   - { name: K, base_url: LAB, auth_value: a-key }\n";
    let world = World::new(entries, "").await;
    world.lab.always(Script::message("hi"));
    let mut needy = world.balancer.app.accounts.needing_login();
    let reply = world.balancer.ask(false).await;
    assert_eq!((used(&reply), reply.header("x-balancer-attempts")), ("K", Some("1")));
    let needy = soon("the box", needy.wait_for(|needy| !needy.is_empty())).await.unwrap().clone();
    assert_eq!(needy, [(Email::parse("main@example.com"), Need::NotSignedIn)]);
}

#[tokio::test]
async fn an_only_account_whose_token_cannot_be_renewed_is_explained_by_us() {
    let world = World::of(&["main"]).await.signed_in(&["main"]).await;
    world.lab.next(Script::error(401, "authentication_error", "theirs"));
    world.authority.next(claude_code_balancer::lab::Whim::Instead(Box::new(Script::html(403))));
    let reply = world.balancer.ask(true).await;
    // Not the provider's 401, on which clients would ask their user to sign in.
    assert_eq!(reply.status, 503, "{}", reply.text());
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("cannot be renewed at the moment: ") && !message.contains("theirs"), "{message}");
    // Why, and when it is tried again; also to those who come until then.
    let why = world.balancer.app.accounts.trouble(&email("main")).unwrap();
    for (method, path) in
        [("POST", "/v1/messages"), ("POST", "/v1/messages"), ("GET", "/v1/models"), ("GET", "/v1/files")]
    {
        let body = if method == "POST" { request(true) } else { String::new() };
        let again = world.balancer.fetch(method, path, &[JSON], body).await;
        assert_eq!(again.status, 503, "{path}: {}", again.text());
        assert!(again.text().contains(&*why), "{path}: {why}: {}", again.text());
        let wait: u64 = again.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=31).contains(&wait), "{path}: {wait}");
    }
    assert!(message.contains(&*why) && reply.header("retry-after").is_some(), "{message}");
}
