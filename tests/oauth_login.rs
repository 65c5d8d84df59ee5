//! Signing in: link, code, and everything that a pasted code can be.

use std::time::Duration;

use claude_code_balancer::health::Now;
use claude_code_balancer::lab::{Entry, Gate, Script, Whim, closed_port};
use claude_code_balancer::oauth::client::{ClientError, Code};
use claude_code_balancer::oauth::login::LoginFault;
use claude_code_balancer::oauth::{ExchangeError, Lacking, Need, State};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::accounts::{Signed, email};
use crate::support::soon;

#[tokio::test]
async fn a_login_brings_a_token_that_the_provider_accepts() {
    let world = Signed::out().await;
    assert_eq!(
        world.accounts.bearer(&email("main"), Now::read()).err(),
        Some(Lacking::LoginRequired(Need::NotSignedIn))
    );
    let signed_in = world.sign_in("main").await;
    assert!(signed_in.verified && signed_in.persisted);
    assert_eq!(signed_in.scopes, ["user:profile", "user:inference"]);
    let bearer = world.bearer("main");
    assert!(world.authority.accepts(bearer.access().expose()));
    assert_eq!(world.stored("main").await.unwrap().access, *bearer.access());

    let request = &world.authority.lab().requests()[0];
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/v1/oauth/token"));
    assert_eq!(request.header("content-type"), Some("application/json"));
    let agent = format!("claude-code-balancer/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(request.header("user-agent"), Some(agent.as_str()));
    for imitation in ["origin", "referer", "cookie", "authorization"] {
        assert_eq!(request.header(imitation), None, "{imitation}");
    }
    let keys: Vec<String> = request.json().as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["grant_type", "client_id", "code", "redirect_uri", "code_verifier", "state"]);

    let status = &world.accounts.status(Now::read())[0];
    assert_eq!((status.email.as_str(), &status.state), ("main@example.com", &State::Healthy));
    assert!(status.persisted && status.renewable && status.verified && status.last_used.is_none());
    world.accounts.used(&email("MAIN"), Now::read().wall);
    let status = &world.accounts.status(Now::read())[0];
    assert_eq!((status.usage_count, status.last_used.is_some()), (1, true));
}

#[tokio::test]
async fn a_state_is_good_once_and_only_for_its_own_account() {
    let world = Signed::out().await;
    let begin = |name: &str| world.accounts.begin(Some(email(name))).unwrap().authorization_url;
    let (main, other) = (begin("main"), begin("other"));
    let main_code = world.authority.sign_in(&main, "main@example.com");
    let other_code = world.authority.sign_in(&other, "other@example.com");
    let exchange = async |pasted: &str, name: Option<&str>| {
        world.accounts.exchange(pasted, name.map(email)).await.map(|signed_in| signed_in.email)
    };
    let refused = |result: Result<_, ExchangeError>| match result {
        Err(ExchangeError::Login(fault)) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(exchange("code#no-state-of-ours", None).await), LoginFault::UnknownState);
    assert_eq!(refused(exchange(&main_code, Some("other")).await), LoginFault::OtherAccount);
    assert_eq!(world.calls(), 0);
    assert_eq!(exchange(&main_code, Some("MAIN")).await.unwrap(), email("main"));
    assert_eq!(refused(exchange(&main_code, Some("main")).await), LoginFault::UnknownState);
    // A whole callback URL, encoded twice.
    let (code, state) = other_code.split_once('#').unwrap();
    let url = format!("https%253A%252F%252Fx.example%252Fcallback%253Fcode%253D{code}%2526state%253D{state}\n");
    assert_eq!(exchange(&url, None).await.unwrap(), email("other"));
    assert_eq!(world.calls(), 2);
    assert_eq!(world.accounts.status(Now::read()).len(), 2);
}

#[tokio::test]
async fn a_code_of_another_login_is_refused_by_its_verifier() {
    let world = Signed::out().await;
    let begin = || world.accounts.begin(None).unwrap().authorization_url;
    let (stranger, ours) = (begin(), begin());
    let stolen = world.authority.sign_in(&stranger, "main@example.com");
    let (stolen, _) = stolen.split_once('#').unwrap();
    let (_, state) = ours.split_once("&state=").unwrap();
    let result = world.accounts.exchange(&format!("{stolen}#{state}"), Some(email("main"))).await;
    let Err(ExchangeError::Server(ClientError::Rejected(Code::InvalidGrant))) = result else { panic!("{result:?}") };
    assert_eq!(world.authority.ledger(), [Entry::Refused("invalid_grant")]);
    assert!(world.accounts.status(Now::read()).is_empty() && world.stored("main").await.is_none());
}

#[tokio::test]
async fn a_bare_code_needs_to_know_its_account() {
    let world = Signed::out().await;
    let begun = world.accounts.begin(None).unwrap();
    let pasted = world.authority.sign_in(&begun.authorization_url, "main@example.com");
    let (code, _) = pasted.split_once('#').unwrap();
    assert!(matches!(world.accounts.exchange(code, None).await, Err(ExchangeError::NoEmail)));
    assert!(matches!(world.accounts.exchange(&pasted, None).await, Err(ExchangeError::NoEmail)));
    // Nothing was used up by that.
    assert_eq!(world.accounts.exchange(code, Some(email("main"))).await.unwrap().email, email("main"));
    let nothing = world.accounts.exchange(code, Some(email("main"))).await;
    assert!(matches!(nothing, Err(ExchangeError::Login(LoginFault::NonePending))), "{nothing:?}");
}

#[tokio::test]
async fn a_code_that_is_pasted_twice_at_once_is_exchanged_once() {
    let world = Signed::out().await;
    let begun = world.accounts.begin(Some(email("main"))).unwrap();
    let pasted = world.authority.sign_in(&begun.authorization_url, "main@example.com");
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let (accounts, pasted) = (world.accounts.clone(), pasted.clone());
        tasks.spawn(async move { accounts.exchange(&pasted, None).await.is_ok() });
    }
    let good = soon("all exchanges", tasks.join_all()).await.into_iter().filter(|ok| *ok).count();
    assert_eq!((good, world.calls()), (1, 1));
}

#[tokio::test]
async fn an_account_other_than_the_one_asked_for_is_not_stored() {
    let world = Signed::out().await;
    let begun = world.accounts.begin(Some(email("main"))).unwrap();
    let pasted = world.authority.sign_in(&begun.authorization_url, "private@example.com");
    let result = world.accounts.exchange(&pasted, None).await;
    let Err(ExchangeError::Mismatch { asked, named }) = result else { panic!("{result:?}") };
    assert_eq!((asked, named.as_str()), (email("main"), "p…@example.com"));
    assert!(world.accounts.status(Now::read()).is_empty());
    assert!(world.stored("main").await.is_none() && world.stored("private").await.is_none());

    // A server that names nobody is believed, and the account is marked.
    world.authority.names_account(false);
    let signed_in = world.sign_in("main").await;
    assert!(!signed_in.verified && !world.stored("main").await.unwrap().verified);
}

#[tokio::test]
async fn a_new_login_replaces_the_token_and_mends_the_account() {
    let world = Signed::signed_in(&["main", "other"]).await;
    world.authority.revoke("main@example.com");
    let refused = world.accounts.refused(&email("main"), world.bearer("main").generation()).await;
    assert_eq!(refused.err(), Some(Lacking::LoginRequired(Need::Rejected(Code::InvalidGrant))));
    let mut needy = world.accounts.needing_login();
    assert_eq!(needy.borrow_and_update().len(), 1);
    // The dead token is still stored: only a login or a human replaces it.
    assert!(world.stored("main").await.is_some());
    world.sign_in("main").await;
    assert!(needy.borrow_and_update().is_empty());
    assert_eq!(world.generation("main"), 2);
    assert!(world.authority.accepts(world.bearer("main").access().expose()));
    assert_eq!(world.generation("other"), 1);
}

#[tokio::test]
async fn a_code_that_never_left_may_be_tried_again() {
    let world = Signed::out().await;
    let begun = world.accounts.begin(Some(email("main"))).unwrap();
    let pasted = world.authority.sign_in(&begun.authorization_url, "main@example.com");
    let mut settings = world.settings.clone();
    for url in [format!("http://{}/token", closed_port().unwrap()), "http://as.invalid/token".into(), "x".into()] {
        settings.oauth.token_url = url.clone();
        world.accounts.configure(&settings);
        let result = world.accounts.exchange(&pasted, None).await;
        assert!(matches!(&result, Err(ExchangeError::Server(error)) if error.nothing_sent()), "{url}: {result:?}");
    }
    world.accounts.configure(&world.settings);
    assert!(world.accounts.exchange(&pasted, None).await.is_ok());
}

#[tokio::test]
async fn replies_to_an_exchange_that_are_none_store_nothing() {
    let world = Signed::out().await;
    let instead = |script: Script| Whim::Instead(Box::new(script));
    for (what, whim) in [
        ("a page", instead(Script::html(200))),
        ("a page under 403", instead(Script::html(403))),
        ("a redirect", instead(Script::redirect(302, "/v1/oauth/token"))),
        ("no JSON", instead(Script::body(400, "text/plain", "no"))),
        ("half of it", instead(Script::body(200, "application/json", r#"{"access_token":"a"#))),
        ("a limit", instead(Script::error(429, "rate_limit_error", "x"))),
        ("an error", instead(Script::error(500, "api_error", "x"))),
        ("no token", Whim::Change(json!({"access_token": Value::Null}))),
        ("an empty token", Whim::Change(json!({"access_token": ""}))),
        ("two lines", Whim::Change(json!({"access_token": "a\nb"}))),
        ("no answer", Whim::LoseReply),
    ] {
        let begun = world.accounts.begin(Some(email("main"))).unwrap();
        let pasted = world.authority.sign_in(&begun.authorization_url, "main@example.com");
        world.authority.next(whim);
        let result = world.accounts.exchange(&pasted, None).await;
        assert!(matches!(result, Err(ExchangeError::Server(_) | ExchangeError::Unusable)), "{what}: {result:?}");
        assert!(world.accounts.status(Now::read()).is_empty() && world.stored("main").await.is_none(), "{what}");
    }
    assert_eq!(world.calls(), 11);
}

#[tokio::test]
async fn an_exchange_is_finished_although_its_caller_has_left() {
    let world = Signed::out().await;
    let gate = Gate::new();
    world.authority.next(Whim::Hold(gate.clone()));
    let begun = world.accounts.begin(Some(email("main"))).unwrap();
    let pasted = world.authority.sign_in(&begun.authorization_url, "main@example.com");
    let mut caller = JoinSet::new();
    let accounts = world.accounts.clone();
    caller.spawn(async move { accounts.exchange(&pasted, None).await });
    soon("the call", gate.reached(1)).await;
    caller.shutdown().await;
    gate.open();
    world.until_generation("main", 1).await;
    soon("the end", world.accounts.finish()).await;
    assert!(world.stored("main").await.is_some());
}

#[tokio::test]
async fn more_than_32_logins_at_once_are_refused() {
    let world = Signed::out().await;
    for _ in 0..32 {
        world.accounts.begin(None).unwrap();
    }
    let Err(LoginFault::TooMany(wait)) = world.accounts.begin(None) else { panic!("a 33rd login") };
    assert!(wait > Duration::from_secs(590) && wait <= Duration::from_secs(600), "{wait:?}");
}
