//! Accounts in use: one refresh for everybody, tokens that are never lost, and what happens when they are.

use std::time::{Duration, SystemTime};

use claude_code_balancer::health::Now;
use claude_code_balancer::lab::{Entry, Gate, Script, Whim};
use claude_code_balancer::oauth::client::Code;
use claude_code_balancer::oauth::{Generation, Lacking, ManualFault, Need, RefreshFault, Refreshed, State, Token};
use claude_code_balancer::secret::Secret;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::accounts::{HOURS, Signed, after, email};
use crate::support::{overhear, soon};

fn instead(script: Script) -> Whim {
    Whim::Instead(Box::new(script))
}

#[tokio::test]
async fn sixty_four_uses_of_an_expired_token_are_one_refresh() {
    let world = Signed::signed_in(&["main"]).await;
    let gate = Gate::new();
    world.authority.next(Whim::Hold(gate.clone()));
    let mut uses = JoinSet::new();
    for _ in 0..64 {
        let accounts = world.accounts.clone();
        uses.spawn(async move { accounts.access(&email("main"), after(9 * HOURS)).await });
    }
    soon("the refresh", gate.reached(1)).await;
    assert_eq!(world.accounts.state(&email("main"), Now::read()), State::Refreshing);
    gate.open();
    for bearer in soon("all uses", uses.join_all()).await {
        assert_eq!(bearer.unwrap().generation(), Generation(2));
    }
    assert_eq!((world.authority.redeemed(), world.authority.reuses(), world.calls()), (1, 0, 2));
    assert_eq!(world.stored("main").await.unwrap().generation, Generation(2));
    let request = &world.authority.lab().requests()[1];
    let keys: Vec<String> = request.json().as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["grant_type", "client_id", "refresh_token"]);
}

#[tokio::test]
async fn sixty_four_refusals_of_one_token_are_one_refresh() {
    let world = Signed::signed_in(&["main", "other"]).await;
    let mut refusals = JoinSet::new();
    for _ in 0..64 {
        let accounts = world.accounts.clone();
        refusals.spawn(async move { accounts.refused(&email("main"), Generation(1)).await });
    }
    for bearer in soon("all", refusals.join_all()).await {
        assert_eq!(bearer.unwrap().generation(), Generation(2));
    }
    // One that comes late gets the new token as well.
    let late = world.accounts.refused(&email("main"), Generation(1)).await.unwrap();
    assert!(world.authority.accepts(late.access().expose()));
    assert_eq!((world.authority.redeemed(), world.authority.reuses()), (1, 0));
    assert_eq!(world.generation("other"), 1);
    // The new one may be refused in its turn.
    assert_eq!(world.accounts.refused(&email("main"), Generation(2)).await.unwrap().generation(), Generation(3));
}

#[tokio::test]
async fn a_refresh_is_finished_although_all_who_asked_have_left() {
    let world = Signed::signed_in(&["main"]).await;
    let gate = Gate::new();
    world.authority.next(Whim::Hold(gate.clone()));
    let mut callers = JoinSet::new();
    for _ in 0..4 {
        let accounts = world.accounts.clone();
        callers.spawn(async move { accounts.access(&email("main"), after(9 * HOURS)).await.is_ok() });
    }
    soon("the call", gate.reached(1)).await;
    callers.shutdown().await;
    assert_eq!(world.authority.lab().departures(), 0);
    gate.open();
    world.until_generation("main", 2).await;
    soon("the end", world.accounts.finish()).await;
    assert_eq!(world.stored("main").await.unwrap().generation, Generation(2));
}

#[tokio::test]
async fn rotations_in_a_row_never_use_a_token_twice() {
    let world = Signed::signed_in(&["main", "other"]).await;
    for generation in 1..=40 {
        let (main, other) = (email("main"), email("other"));
        let both = async {
            tokio::join!(
                world.accounts.refused(&main, Generation(generation)),
                world.accounts.refused(&other, Generation(generation))
            )
        };
        let (a, b) = soon("two refreshes", both).await;
        assert!(a.is_ok() && b.is_ok());
    }
    assert_eq!((world.authority.redeemed(), world.authority.reuses()), (80, 0));
    // A new process finds both as they are.
    let another = world.another().await;
    for name in ["main", "other"] {
        let bearer = another.bearer(&email(name), Now::read()).unwrap();
        assert!(world.authority.accepts(bearer.access().expose()), "{name}");
    }
}

/// A token of the same family that another process has made of ours.
async fn renewed_elsewhere(world: &Signed, name: &str) -> Token {
    let stored = world.stored(name).await.unwrap();
    Token { access: Secret::new("from-elsewhere"), generation: stored.generation.next(), ..stored }
}

#[tokio::test]
async fn a_token_that_another_process_has_renewed_is_taken_from_the_store() {
    let world = Signed::signed_in(&["main"]).await;
    let newer = renewed_elsewhere(&world, "main").await;
    world.vault.save(&newer, Some(Generation(1))).await.unwrap();
    let bearer = world.accounts.refused(&email("main"), Generation(1)).await.unwrap();
    assert_eq!(bearer.access().expose(), "from-elsewhere");
    assert_eq!(world.authority.redeemed(), 0);
}

#[tokio::test]
async fn a_spent_refresh_token_is_no_death_where_the_store_has_a_newer_one() {
    let world = Signed::signed_in(&["main"]).await;
    let gate = Gate::new();
    let refusal = Script::json(400, &json!({"error": "invalid_grant"})).hold_head(gate.clone());
    world.authority.next(instead(refusal));
    let main = email("main");
    let asking = world.accounts.refresh(&main);
    let meanwhile = async {
        gate.reached(1).await;
        let newer = renewed_elsewhere(&world, "main").await;
        world.vault.save(&newer, Some(Generation(1))).await.unwrap();
        gate.open();
    };
    let (outcome, ()) = soon("both", async { tokio::join!(asking, meanwhile) }).await;
    assert_eq!(outcome, Ok(Refreshed::Adopted));
    assert_eq!(world.bearer("main").access().expose(), "from-elsewhere");
    assert!(world.accounts.needing_login().borrow().is_empty());
}

#[tokio::test]
async fn two_processes_with_one_store_never_condemn_an_account() {
    let world = Signed::signed_in(&["main"]).await;
    let another = world.another().await;
    for round in 1..=20 {
        let now = after(9 * HOURS);
        let main = email("main");
        // One after the other: the second reads again under the lock and finds the work done.
        let first = if round % 2 == 0 { &world.accounts } else { &another };
        let second = if round % 2 == 0 { &another } else { &world.accounts };
        let generation = first.refused(&main, Generation(round)).await.unwrap().generation();
        assert_eq!(generation, Generation(round + 1));
        assert_eq!(second.refused(&main, Generation(round)).await.unwrap().generation(), generation);
        assert!(first.access(&main, Now::read()).await.is_ok(), "{now:?}");
    }
    assert_eq!((world.authority.redeemed(), world.authority.reuses()), (20, 0));
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_again_and_a_grace_gives_it() {
    let world = Signed::signed_in(&["main"]).await;
    world.authority.grace(Duration::from_secs(60));
    world.authority.next(Whim::LoseReply);
    let bearer = soon("the second try", world.accounts.refused(&email("main"), Generation(1))).await.unwrap();
    assert!(world.authority.accepts(bearer.access().expose()));
    let expected =
        [Entry::Issued { family: 0 }, Entry::Redeemed { family: 0, number: 1 }, Entry::Graced { family: 0, number: 1 }];
    assert_eq!(world.authority.ledger(), expected);
}

#[tokio::test]
async fn a_lost_reply_without_a_grace_needs_a_login_and_deletes_nothing() {
    let world = Signed::signed_in(&["main", "other"]).await;
    let before = world.stored("main").await;
    world.authority.next(Whim::LoseReply);
    let lost = soon("the second try", world.accounts.refused(&email("main"), Generation(1))).await;
    assert_eq!(lost.err(), Some(Lacking::LoginRequired(Need::ReplyLost)));
    assert_eq!(world.stored("main").await, before);
    let needy = world.accounts.needing_login();
    assert_eq!(*needy.borrow(), [(Some(email("main")), Need::ReplyLost)]);
    assert_eq!(world.accounts.state(&email("other"), Now::read()), State::Healthy);
    // Nobody asks again and again.
    let calls = world.calls();
    for _ in 0..10 {
        assert!(world.accounts.access(&email("main"), Now::read()).await.is_err());
    }
    assert_eq!(world.calls(), calls);
}

#[tokio::test]
async fn an_account_that_is_removed_during_its_refresh_stays_removed() {
    let world = Signed::signed_in(&["main"]).await;
    for round in 0..20 {
        let gate = Gate::new();
        world.authority.next(Whim::Hold(gate.clone()));
        let generation = world.bearer("main").generation();
        let mut asking = JoinSet::new();
        let accounts = world.accounts.clone();
        asking.spawn(async move { accounts.refused(&email("main"), generation).await });
        soon("the call", gate.reached(1)).await;
        if round % 2 == 0 {
            assert!(world.accounts.remove(&email("MAIN")).await.unwrap());
            gate.open();
        } else {
            gate.open();
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            assert!(world.accounts.remove(&email("main")).await.unwrap());
        }
        let outcome = soon("the end", asking.join_next()).await.unwrap().unwrap();
        assert!(world.stored("main").await.is_none(), "round {round}: {outcome:?}");
        assert!(world.accounts.status(Now::read()).is_empty(), "round {round}");
        assert!(!world.accounts.remove(&email("main")).await.unwrap());
        // A login afterwards never has a generation that an old request could know.
        world.sign_in("main").await;
        assert!(world.bearer("main").generation() > generation);
    }
    assert_eq!(world.accounts.remove_all().await.unwrap(), [email("main")]);
    assert_eq!(world.accounts.refresh(&email("main")).await, Err(ManualFault::Unknown));
}

#[tokio::test]
async fn clocks_may_jump_and_each_jump_is_at_most_one_refresh() {
    let world = Signed::signed_in(&["main"]).await;
    let access = async |wall: SystemTime| {
        let now = Now { wall, ..Now::read() };
        soon("a token", world.accounts.access(&email("main"), now)).await.unwrap().generation().0
    };
    let now = SystemTime::now();
    assert_eq!(access(now - HOURS).await, 1);
    assert_eq!(access(SystemTime::UNIX_EPOCH).await, 1);
    assert_eq!(access(now + 9 * HOURS).await, 2);
    assert_eq!(access(now + 87_600 * HOURS).await, 3);
    assert_eq!(access(now).await, 3);
    assert_eq!((world.authority.redeemed(), world.authority.reuses()), (2, 0));
}

#[tokio::test]
async fn what_is_no_answer_of_the_server_leaves_the_token_as_it_was() {
    let world = Signed::signed_in(&["main"]).await;
    let gzip = Script::body(200, "application/json", vec![0x1f, 0x8b, 8, 0]).header("content-encoding", "gzip");
    let large = Script::body(200, "application/json", vec![b' '; 10 << 20]);
    let limited = Script::error(429, "rate_limit_error", "canary").header("retry-after", "90");
    // Each is told once; what leaves the outcome open is asked for again, and answered well.
    for (what, script, outcome) in [
        ("html under 200", Script::html(200), Some(30)),
        ("html under 403", Script::html(403), Some(30)),
        ("json under 403", Script::json(403, &json!({"error": "invalid_grant"})), Some(30)),
        ("a redirect", Script::redirect(302, &world.authority.token_url()), Some(30)),
        ("a limit", limited, Some(90)),
        ("500", Script::error(500, "api_error", "canary"), Some(30)),
        ("400 without JSON", Script::body(400, "text/plain", "canary"), Some(30)),
        ("400 of another kind", Script::json(400, &json!({"error": "invalid_request"})), Some(30)),
        ("401", Script::empty(401), Some(30)),
        ("gzip", gzip, None),
        ("10 MiB", large, None),
        ("truncated JSON", Script::body(200, "application/json", r#"{"access_token":"canary"#), None),
        ("a cut body", Script::message("canary").cut_at_byte(20), None),
        ("a reset", Script::reset(), None),
    ] {
        let refreshed = world.another().await;
        let before = world.stored("main").await.unwrap();
        world.authority.next(instead(script));
        let result = soon(what, refreshed.refresh(&email("main"))).await;
        match outcome {
            Some(seconds) => {
                let retry_in = Duration::from_secs(seconds);
                assert_eq!(result, Err(ManualFault::Failed(RefreshFault::Failing { retry_in })), "{what}");
                assert_eq!(world.stored("main").await.unwrap(), before, "{what}");
                let status = &refreshed.status(Now::read())[0];
                // The access token is as good as before.
                assert_eq!(status.state, State::Healthy, "{what}");
                assert!(!status.last_error.as_ref().unwrap().contains("canary"), "{what}: {status:?}");
                assert!(!status.last_error.as_ref().unwrap().contains('<'), "{what}: {status:?}");
                // Requests with an expired token do not hammer it.
                let calls = world.calls();
                let expired = refreshed.access(&email("main"), after(9 * HOURS)).await;
                assert!(matches!(expired, Err(Lacking::Failing { .. })), "{what}: {expired:?}");
                assert_eq!(world.calls(), calls, "{what}");
            }
            None => assert_eq!(result, Ok(Refreshed::Renewed), "{what}"),
        }
    }
    assert_eq!(world.authority.reuses(), 0);
}

#[tokio::test]
async fn replies_with_odd_fields_are_still_replies() {
    let world = Signed::signed_in(&["main"]).await;
    let year = 366 * 24 * 3600;
    for (fields, life) in [
        (json!({"expires_in": Value::Null}), 3600),
        (json!({"expires_in": 0}), 3600),
        (json!({"expires_in": -1}), 3600),
        (json!({"expires_in": "3600"}), 3600),
        (json!({"expires_in": 1e12}), year),
        (json!({"expires_in": 100.5}), 100),
        (json!({"token_type": "mac", "more": [1]}), 28_800),
        (json!({"scope": "user:inference", "account": Value::Null}), 28_800),
        (json!({"access_token": "x".repeat(8 * 1024)}), 28_800),
    ] {
        world.authority.next(Whim::Change(fields.clone()));
        let generation = world.bearer("main").generation();
        world.accounts.refused(&email("main"), generation).await.unwrap();
        let left = world.accounts.status(Now::read())[0].expires_in.as_secs();
        assert!((life - 5..=life).contains(&left), "{fields}: {left}");
    }
    assert_eq!(world.stored("main").await.unwrap().scopes, ["user:profile", "user:inference"]);
    // A server that does not rotate names no refresh token, and the old one stays good.
    world.authority.rotates(false);
    for _ in 0..2 {
        let refresh = world.stored("main").await.unwrap().refresh;
        world.authority.next(Whim::Change(json!({"refresh_token": Value::Null, "scope": Value::Null})));
        world.accounts.refused(&email("main"), world.bearer("main").generation()).await.unwrap();
        let stored = world.stored("main").await.unwrap();
        assert_eq!((stored.refresh, stored.scopes.len()), (refresh, 2));
    }
    assert_eq!(world.authority.reuses(), 0);
}

#[tokio::test]
async fn a_refresh_that_names_another_account_is_kept_but_no_longer_vouched_for() {
    let (buffer, writer, guard) = overhear();
    let world = Signed::signed_in(&["main"]).await;
    let named = |email: Value| json!({"account": {"email_address": email}});
    for (round, (fields, verified)) in [
        (named(json!("canary@example.com")), false),
        // Who is silent changes nothing.
        (json!({"account": Value::Null}), false),
        (named(json!("MAIN@example.com")), true),
        (json!({"account": Value::Null}), true),
        (named(json!("no address")), false),
    ]
    .into_iter()
    .enumerate()
    {
        let process = world.another().await;
        world.authority.next(Whim::Change(fields.clone()));
        assert_eq!(soon("a refresh", process.refresh(&email("main"))).await, Ok(Refreshed::Renewed), "{fields}");
        // The old token is spent: the new one is never lost, and nobody else has one.
        assert_eq!(process.status(Now::read()).len(), 1, "{fields}");
        assert_eq!(process.status(Now::read())[0].verified, verified, "{fields}");
        let stored = world.stored("main").await.unwrap();
        assert_eq!((stored.generation.0, stored.verified), (round as u64 + 2, verified), "{fields}");
    }
    assert_eq!((world.authority.redeemed(), world.authority.reuses()), (5, 0));
    drop(guard);
    writer.flush();
    let log = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches("WARN  the reply to a refresh names another account").count(), 2, "{log}");
    assert!(!log.contains("canary"), "{log}");
}

#[tokio::test]
async fn a_rotation_without_a_usable_access_token_keeps_its_refresh_token() {
    let world = Signed::signed_in(&["main"]).await;
    for token in ["", "a\nb"] {
        world.authority.next(Whim::Change(json!({"access_token": token})));
        let another = world.another().await;
        let failed = another.refresh(&email("main")).await;
        assert!(matches!(failed, Err(ManualFault::Failed(RefreshFault::Failing { .. }))), "{failed:?}");
    }
    // The next try uses the token that came along.
    assert_eq!(world.accounts.refresh(&email("main")).await, Ok(Refreshed::Adopted));
    world.accounts.refused(&email("main"), world.bearer("main").generation()).await.unwrap();
    assert_eq!((world.authority.redeemed(), world.authority.reuses()), (3, 0));
}

#[tokio::test]
async fn only_definite_answers_end_an_account() {
    for code in
        ["invalid_grant", "invalid_refresh_token", "refresh_token_reused", "invalid_client", "unauthorized_client"]
    {
        let world = Signed::signed_in(&["main"]).await;
        world.authority.next(instead(Script::json(401, &json!({"error": {"type": code}}))));
        let result = world.accounts.refresh(&email("main")).await;
        let Err(ManualFault::Failed(RefreshFault::LoginRequired(Need::Rejected(named)))) = result else {
            panic!("{code}: {result:?}")
        };
        assert_eq!(named.as_str(), code);
        assert!(world.stored("main").await.is_some(), "{code}");
        // The access token serves to its end.
        assert!(world.accounts.access(&email("main"), Now::read()).await.is_ok());
        assert!(matches!(world.accounts.state(&email("main"), Now::read()), State::LoginRequired(_)));
        let ended = world.accounts.access(&email("main"), after(9 * HOURS)).await.err();
        assert_eq!(ended, Some(Lacking::LoginRequired(Need::Rejected(named))));
        assert!(named != Code::InvalidGrant || code == "invalid_grant");
    }
}

#[tokio::test]
async fn a_human_may_ask_for_a_refresh_once_in_30_seconds() {
    let world = Signed::signed_in(&["main", "other"]).await;
    assert_eq!(world.accounts.refresh(&email("main")).await, Ok(Refreshed::Renewed));
    let again = world.accounts.refresh(&email("Main")).await;
    assert!(matches!(again, Err(ManualFault::TooSoon(left)) if left.as_secs() >= 29), "{again:?}");
    assert_eq!(world.accounts.refresh(&email("other")).await, Ok(Refreshed::Renewed));
    assert_eq!(world.accounts.refresh(&email("nobody")).await, Err(ManualFault::Unknown));
    // Neither use nor a 401 is held up by that.
    assert!(world.accounts.refused(&email("main"), Generation(2)).await.is_ok());
    assert!(world.accounts.access(&email("main"), after(9 * HOURS)).await.is_ok());
    assert_eq!((world.generation("main"), world.authority.reuses()), (4, 0));
}

#[tokio::test]
async fn the_background_renews_what_is_due_and_leaves_the_rest() {
    let world = Signed::signed_in(&["main"]).await;
    let rest = world.accounts.tick(Now::read()).await;
    assert_eq!((rest.as_secs(), world.authority.redeemed()), (30, 0));
    world.accounts.tick(after(8 * HOURS - Duration::from_secs(299))).await;
    world.until_generation("main", 2).await;
    // Short-lived from now on: due at once, and again only after 30 s.
    world.authority.life(60);
    world.accounts.refused(&email("main"), Generation(2)).await.unwrap();
    for _ in 0..3 {
        world.accounts.tick(Now::read()).await;
    }
    world.accounts.tick(after(Duration::from_secs(20))).await;
    assert_eq!(world.authority.redeemed(), 2);
    world.accounts.tick(after(Duration::from_secs(31))).await;
    world.until_generation("main", 4).await;
    // Switched off: only on use.
    let mut settings = world.settings.clone();
    settings.oauth.enable_auto_refresh = false;
    world.accounts.configure(&settings);
    world.accounts.tick(after(9 * HOURS)).await;
    soon("nothing under way", world.accounts.finish()).await;
    assert_eq!((world.authority.redeemed(), world.authority.reuses()), (3, 0));
    assert!(world.accounts.access(&email("main"), after(9 * HOURS)).await.is_ok());
}

#[tokio::test]
async fn the_loop_renews_an_account_that_signs_in_with_a_token_that_is_soon_over() {
    let world = Signed::out().await;
    world.authority.life(200);
    let mut background = JoinSet::new();
    let accounts = world.accounts.clone();
    background.spawn(async move { accounts.run().await });
    world.sign_in("main").await;
    world.until_generation("main", 2).await;
    // The loop ends with its owner; the work that it began does not need it.
    background.shutdown().await;
    assert_eq!(world.authority.redeemed(), 1);
}

#[tokio::test]
async fn a_token_without_a_refresh_token_ends_in_a_login() {
    let world = Signed::out().await;
    world.authority.next(Whim::Change(json!({"refresh_token": Value::Null})));
    world.sign_in("main").await;
    assert!(world.accounts.access(&email("main"), Now::read()).await.is_ok());
    let need = Lacking::LoginRequired(Need::NoRefreshToken);
    assert_eq!(world.accounts.access(&email("main"), after(9 * HOURS)).await.err(), Some(need.clone()));
    assert_eq!(world.accounts.refused(&email("main"), Generation(1)).await.err(), Some(need));
    assert_eq!(world.calls(), 1);
}

#[tokio::test]
async fn who_signs_in_beside_us_is_found_by_the_first_use() {
    let world = Signed::signed_in(&["main"]).await;
    let another = world.another().await;
    assert!(another.remove(&email("main")).await.unwrap());
    world.accounts.tick(Now::read()).await;
    let newer = Signed::signed_in(&["late"]).await.stored("late").await.unwrap();
    world.vault.save(&newer, None).await.unwrap();
    assert!(world.accounts.access(&email("late"), Now::read()).await.is_ok());
    // And one that was removed beside us is gone at its next refresh.
    let gone = world.accounts.refused(&email("main"), Generation(1)).await.err();
    assert_eq!(gone, Some(Lacking::LoginRequired(Need::NotSignedIn)));
    assert!(world.stored("main").await.is_none());
}

#[tokio::test]
async fn accounts_take_turns_and_a_session_keeps_its_own() {
    let world = Signed::signed_in(&["a", "b", "c"]).await;
    let choose = |session: Option<&[u8]>, now| {
        let first = world.accounts.order(session, now, |_| true).into_iter().next();
        first.map(|email| email.as_str()[..1].to_owned()).unwrap_or_default()
    };
    let now = Now::read();
    let turns: String = (0..6).map(|_| choose(None, now)).collect();
    assert_eq!(turns, "abcabc");
    let (one, two) = (choose(Some(b"one"), now), choose(Some(b"two"), now));
    assert_ne!(one, two);
    for _ in 0..5 {
        assert_eq!((choose(Some(b"one"), now), choose(Some(b"two"), now)), (one.clone(), two.clone()));
    }
    // Each use begins the time anew.
    let minutes = |count: u64| after(Duration::from_secs(60 * count));
    for count in [4, 8, 12] {
        assert_eq!(choose(Some(b"one"), minutes(count)), one);
    }
    // An account that must sign in is passed over, by its sessions too.
    world.authority.revoke(&format!("{one}@example.com"));
    let refused = world.accounts.refused(&email(&one), Generation(1)).await;
    assert!(refused.is_err());
    assert_ne!(choose(Some(b"one"), minutes(12)), one);
    assert!((0..6).all(|_| choose(None, now) != one));
    // One that is limited or cooling comes last, and so does everybody where all are.
    let others = world.accounts.order(None, now, |email| email.as_str() != "c@example.com");
    assert_eq!(others.len(), 2);
    assert_eq!(others.last(), Some(&email("c")).filter(|_| one != "c").or(others.last()));
    assert_eq!(world.accounts.order(None, now, |_| false).len(), 2);
    // Expired is no reason to be passed over: it is renewed on use.
    assert!(!choose(None, after(9 * HOURS)).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_refusals_on_many_threads_is_one_refresh_for_each_token() {
    const ROUNDS: u64 = 50;
    let world = Signed::signed_in(&["main"]).await;
    for generation in 1..=ROUNDS {
        let mut refusals = JoinSet::new();
        for _ in 0..32 {
            let accounts = world.accounts.clone();
            refusals.spawn(async move { accounts.refused(&email("main"), Generation(generation)).await });
        }
        for bearer in soon("all", refusals.join_all()).await {
            assert_eq!(bearer.unwrap().generation(), Generation(generation + 1));
        }
    }
    assert_eq!((world.authority.redeemed(), world.authority.reuses()), (50, 0));
}

#[tokio::test]
async fn a_caller_may_leave_at_any_point() {
    let world = Signed::signed_in(&["main"]).await;
    for polls in 1..=8 {
        let main = email("main");
        let generation = world.bearer("main").generation();
        {
            let mut asking = std::pin::pin!(world.accounts.refused(&main, generation));
            for _ in 0..polls {
                let once = std::future::poll_fn(|cx| std::task::Poll::Ready(asking.as_mut().poll(cx).is_ready()));
                if once.await {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        world.until_generation("main", generation.0 + 1).await;
    }
    soon("nothing under way", world.accounts.finish()).await;
    assert_eq!((world.authority.redeemed(), world.authority.reuses()), (8, 0));
    assert_eq!(world.stored("main").await.unwrap().generation, world.bearer("main").generation());
}

#[tokio::test]
async fn a_request_waits_for_a_refresh_no_longer_than_15_seconds() {
    let world = Signed::signed_in(&["main"]).await;
    let gate = Gate::new();
    world.authority.next(Whim::Hold(gate.clone()));
    let accounts = world.accounts.clone();
    let mut asking = JoinSet::new();
    asking.spawn(async move { accounts.access(&email("main"), after(9 * HOURS)).await });
    soon("the call", gate.reached(1)).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    assert_eq!(asking.join_next().await.unwrap().unwrap().err(), Some(Lacking::Busy));
    // The paused clock moves in whole milliseconds.
    assert!(began.elapsed() <= Duration::from_millis(15_010));
    tokio::time::resume();
    gate.open();
    world.until_generation("main", 2).await;
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_30_seconds_and_the_token_stays() {
    let world = Signed::signed_in(&["main"]).await;
    let before = world.stored("main").await;
    for _ in 0..2 {
        world.authority.next(instead(Script::stall()));
    }
    let accounts = world.accounts.clone();
    let mut asking = JoinSet::new();
    asking.spawn(async move { accounts.refresh(&email("main")).await });
    for calls in 2..=3 {
        soon("the call", world.authority.lab().received(calls)).await;
        // Nothing but the limit is waited for.
        tokio::time::pause();
        world.authority.lab().departed(calls - 1).await;
        tokio::time::resume();
    }
    let failed = soon("the end", asking.join_next()).await.unwrap().unwrap();
    let retry_in = Duration::from_secs(30);
    assert_eq!(failed, Err(ManualFault::Failed(RefreshFault::Failing { retry_in })));
    assert_eq!(world.stored("main").await, before);
}
