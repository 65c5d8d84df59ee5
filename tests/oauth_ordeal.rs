//! Accounts under the worst that happens to processes: many of them with one store, stopped and killed in the middle,
//! suspended for longer than a token lasts; replies that are lost; clients that leave or come all at once.
#![cfg(unix)]

use std::time::Duration;

use claude_code_balancer::health::Now;
use claude_code_balancer::lab::{Gate, Lab, Script, Whim};
use claude_code_balancer::oauth::{Generation, Lacking, Need, State};

use crate::support::accounts::{Signed, after, email};
use crate::support::ordeal::{Kept, Ordeal, rounds};
use crate::support::race::{ask_all, eight, inside_the_lock, lost_replies, race, suspended};
use crate::support::{Balancer, soon};
use crate::vault::tell;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_processes_renew_each_token_once() {
    let rounds = rounds(10);
    let rotations = race(rounds).await;
    tell(&format!("8 processes, 4 accounts: {rotations} rotations, {} calls", 4 * rounds));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_stopped_or_killed_inside_the_lock_costs_no_account() {
    let took = inside_the_lock().await;
    tell(&format!("after a kill inside the lock: {took:?} to the answers"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_last_for_seconds_are_renewed_once_in_30_seconds_by_all_processes_together() {
    let ordeal = Ordeal::new(2, Kept::Plain, 60, "").await;
    let mut services = eight(&ordeal).await;
    for (service, _) in &mut services {
        for _ in 0..2 {
            // By itself, or by another process.
            service.line("renewed the token").await;
        }
    }
    let addresses: Vec<_> = services.iter().map(|(_, address)| *address).collect();
    ask_all(&addresses, 0..2).await;
    // Each start finds a token that is due; after that it is not due for a while, whoever has renewed it.
    let before = ordeal.authority.redeemed();
    tokio::time::sleep(Duration::from_secs(1)).await;
    ask_all(&addresses, 0..2).await;
    assert_eq!(ordeal.authority.redeemed(), before);
    assert_eq!(ordeal.authority.reuses(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_slept_longer_than_its_tokens_serves_at_once() {
    let full = std::env::var_os("ORDEAL_FULL").is_some();
    let (life, sleep) = if full { (30, 60) } else { (2, 4) };
    let took = suspended(life, sleep).await;
    tell(&format!("asleep for {sleep} s with tokens of {life} s: answered within {took:?}"));
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_lost_cost_no_account_where_there_is_a_grace() {
    let (world, lost) = lost_replies(true, rounds(40)).await;
    assert_eq!(world.authority.reuses(), 0);
    tell(&format!("{} rotations, {lost} replies lost", world.authority.redeemed()));
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_without_a_grace_costs_that_account_and_no_other() {
    let world = Signed::signed_in(&["main", "other"]).await;
    let kept = world.stored("main").await.unwrap();
    world.authority.next(Whim::LoseReply);
    let lacking = world.accounts.refused(&email("main"), kept.generation).await.unwrap_err();
    assert_eq!(lacking, Lacking::LoginRequired(Need::ReplyLost));
    assert_eq!(world.accounts.state(&email("main"), after(Duration::ZERO)), State::LoginRequired(Need::ReplyLost));
    assert_eq!(world.stored("main").await, Some(kept), "byte for byte");
    let other = world.bearer("other").generation();
    world.accounts.refused(&email("other"), other).await.unwrap();
    assert!(world.authority.accepts(world.bearer("other").access().expose()));
}

/// A balancer in front of a provider that refuses what the authority would; its account is signed in.
async fn joined(provider: &Lab) -> (claude_code_balancer::lab::Authority, Balancer) {
    let authority = claude_code_balancer::lab::Authority::start().await.unwrap();
    let yaml = format!(
        "providers:\n  - {{ name: P, base_url: \"{}\", auth_value: oauth, account_email: main@example.com }}\n\
         settings:\n  log_file_path: \"\"\n  oauth:\n    token_url: \"{}\"\n    authorize_url: \"{}\"\n",
        provider.url(),
        authority.token_url(),
        authority.authorize_url()
    );
    let balancer = Balancer::start(&yaml).await;
    let accounts = &balancer.app.accounts;
    let begun = accounts.begin(Some(email("main"))).unwrap();
    let pasted = authority.sign_in(&begun.authorization_url, "main@example.com");
    accounts.exchange(&pasted, None).await.unwrap();
    (authority, balancer)
}

/// Refuses every token but those from this number on.
fn from_number(provider: &Lab, number: usize) {
    provider.answer(move |request| {
        let bearer = request.header("authorization").unwrap_or_default();
        let found: usize = bearer.rsplit('-').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        if found >= number {
            Script::message("as asked")
        } else {
            Script::error(401, "authentication_error", "Scripted refusal")
        }
    });
}

async fn sixty_four(balancer: &Balancer) {
    let mut clients = Vec::new();
    for _ in 0..64 {
        clients.push(balancer.asking(false).await);
    }
    for mut client in clients {
        let reply = soon("an answer", client.read_to_end()).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_requests_on_a_refused_or_expired_token_are_one_refresh_and_all_are_answered() {
    let provider = Lab::start().await.unwrap();
    from_number(&provider, 2);
    let (authority, balancer) = joined(&provider).await;
    authority.next(Whim::Delay(Duration::from_millis(100)));
    sixty_four(&balancer).await;
    assert_eq!((authority.redeemed(), authority.reuses()), (1, 0), "refused");

    let provider = Lab::start().await.unwrap();
    from_number(&provider, 1);
    let (authority, balancer) = joined(&provider).await;
    // The token of a second login is over at once.
    authority.life(0);
    let begun = balancer.app.accounts.begin(Some(email("main"))).unwrap();
    let pasted = authority.sign_in(&begun.authorization_url, "main@example.com");
    authority.next(Whim::Change(serde_json::json!({"expires_in": 1})));
    balancer.app.accounts.exchange(&pasted, None).await.unwrap();
    authority.life(28_800);
    // Ahead of time it is renewed by itself; from then on by use.
    let settled = async {
        while authority.redeemed() == 0 || balancer.app.accounts.is_refreshing() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon("the refresh ahead of time", settled).await;
    sixty_four(&balancer).await;
    assert_eq!((authority.redeemed(), authority.reuses()), (1, 0), "expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_the_middle_of_a_rotation_costs_nothing() {
    let provider = Lab::start().await.unwrap();
    from_number(&provider, 2);
    let (authority, balancer) = joined(&provider).await;
    let gate = Gate::new();
    authority.next(Whim::Hold(gate.clone()));
    let client = balancer.asking(false).await;
    soon("the refresh", gate.reached(1)).await;
    drop(client);
    // Its request is over before the refresh is.
    balancer.inflight(0).await;
    gate.open();
    let reply = balancer.ask(false).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!((authority.redeemed(), authority.reuses()), (1, 0));
    let status = balancer.app.accounts.status(Now::read());
    assert!(status[0].persisted && status[0].state == State::Healthy, "{status:?}");
}

#[tokio::test]
async fn a_login_ends_what_a_dead_process_has_left_in_the_journal() {
    let mut ordeal = Ordeal::new(1, Kept::Plain, 28_800, "").await;
    let (vault, accounts) = (ordeal.vault().await, ordeal.accounts().await);
    let stored = ordeal.stored(&vault).await.remove(0);
    // Another process could not save two refreshes, and died.
    for ahead in 0..2 {
        let reply = format!(r#"{{"access_token":"old-{ahead}","refresh_token":"old-{ahead}","expires_in":28800}}"#);
        let base = Generation(stored.generation.0 + ahead);
        let _stays = vault.journal(&stored.email, base, reply.as_bytes()).await.unwrap();
    }
    ordeal.sign_in_to(&accounts, 0).await;
    let access = accounts.bearer(&stored.email, Now::read()).unwrap().access().expose().to_owned();
    assert!(ordeal.authority.accepts(&access));
    // The next start finds the login.
    let next = ordeal.accounts().await;
    assert_eq!(next.bearer(&stored.email, Now::read()).unwrap().access().expose(), access);
    assert!(vault.pending_journal().await.unwrap().is_empty());
}
