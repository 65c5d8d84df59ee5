//! A whole life of accounts at TRACE: no token, code, verifier or state is in any line, error or `Debug`.

use std::time::Duration;

use claude_code_balancer::health::Now;
use claude_code_balancer::lab::{Script, Whim};
use serde_json::json;

use crate::support::accounts::{HOURS, Signed, after, email};
use crate::support::canaries;
use crate::support::overhear;

#[tokio::test]
async fn no_secret_of_an_account_is_ever_shown() {
    let (buffer, writer, guard) = overhear();

    let world = Signed::out().await;
    world.authority.prefix("canary");
    let mut shown = String::new();
    let mut states = Vec::new();
    for name in ["main", "other"] {
        let begun = world.accounts.begin(Some(email(name))).unwrap();
        states.push(begun.authorization_url.split_once("&state=").unwrap().1.to_owned());
        shown += &format!("{begun:?}");
        let pasted = world.authority.sign_in(&begun.authorization_url, email(name).as_str());
        shown += &format!("{:?}", world.accounts.exchange("canary-code#canary-state", None).await);
        shown += &format!("{:?}", world.accounts.exchange(&pasted, None).await);
        shown += &format!("{:?}", world.accounts.exchange(&pasted, None).await);
    }
    shown += &format!("{:?}", world.bearer("main"));
    world.authority.next(Whim::LoseReply);
    world.authority.grace(Duration::from_secs(60));
    shown += &format!("{:?}", world.accounts.refused(&email("main"), world.bearer("main").generation()).await);
    for whim in [
        Whim::Instead(Box::new(Script::body(400, "text/plain", "canary-text"))),
        Whim::Change(json!({"access_token": "canary\nline"})),
        Whim::Instead(Box::new(Script::json(400, &json!({"error": "invalid_grant", "error_description": "canary"})))),
    ] {
        world.authority.next(whim);
        let another = world.another().await;
        let result = another.refresh(&email("main")).await;
        shown += &format!("{result:?} {another:?} {:?}", another.status(Now::read()));
        shown += &match result {
            Ok(_) => String::new(),
            Err(error) => format!("{error} {error:#}"),
        };
    }
    world.accounts.tick(after(9 * HOURS)).await;
    world.accounts.finish().await;
    shown += &format!("{:?} {:?}", world.accounts, world.accounts.status(Now::read()));
    shown += &format!("{:?}", world.accounts.remove_all().await);

    drop(guard);
    writer.flush();
    let log = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    for event in ["signed in", "renewed the token", "must sign in", "was removed", "was not renewed", "was lost"] {
        assert!(log.contains(event), "{event}\n{log}");
    }
    let mut secrets = vec!["canary".to_owned()];
    secrets.extend(states);
    secrets.extend(canaries::asked_of(&world.authority));
    assert!(secrets.len() > 8);
    for (what, text) in [("the log", &log), ("what was shown", &shown)] {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{what} holds {secret}:\n{text}");
        }
    }
}
