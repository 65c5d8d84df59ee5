//! The part after the answer, with a store that fails: nothing is lost, and all of it is saved in the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use tokio::time::Instant;

use super::{Refreshed, Urgency, rotate};
use crate::config::{OAuthSettings, OAuthStorage, Settings};
use crate::health::Now;
use crate::oauth::accounts::{Account, Accounts};
use crate::oauth::reply::Reply;
use crate::oauth::vault::{Memory, Options};
use crate::oauth::{Generation, Lacking, RefreshFault, State, Storage, Token, Vault};
use crate::provider::Email;
use crate::secret::Secret;
use crate::upstream::Upstream;

const LIFE: Duration = Duration::from_secs(8 * 3600);

fn email() -> Email {
    Email::parse("main@example.com").expect("valid")
}

fn token(generation: u64) -> Token {
    Token {
        email: email(),
        access: Secret::new(format!("access-{generation}")),
        refresh: Some(Secret::new(format!("refresh-{generation}"))),
        expires_at: SystemTime::now() + LIFE,
        scopes: vec!["user:inference".into()],
        verified: true,
        created_at: SystemTime::now(),
        generation: Generation(generation),
    }
}

fn reply(generation: u64) -> String {
    format!(r#"{{"access_token":"access-{generation}","refresh_token":"refresh-{generation}","expires_in":28800}}"#)
}

/// A process whose store holds a token of generation 1, read or not.
async fn accounts(read: bool) -> (Arc<Accounts>, Arc<Vault>) {
    let vault = Arc::new(Vault::Memory(Memory::default()));
    let accounts = process(&vault).await;
    if read {
        accounts.open().await;
    }
    (accounts, vault)
}

async fn process(vault: &Arc<Vault>) -> Arc<Accounts> {
    vault.save(&token(1), None).await.expect("room");
    let upstream = Arc::new(Upstream::new(RootCertStore::empty()));
    Accounts::new(Storage::Open(vault.clone()), upstream, Arc::default(), &Settings::default())
}

/// The same with a file, which has a journal.
async fn with_journal() -> (Arc<Accounts>, Arc<Vault>, tempfile::TempDir) {
    let place = tempfile::tempdir().expect("folder");
    let settings = OAuthSettings { storage: OAuthStorage::File, ..Settings::default().oauth };
    let vault = Arc::new(Vault::open(Options::new(&settings, place.path().join("state"), None)).await);
    (process(&vault).await, vault, place)
}

/// What a process leaves that ends between the answer and the save.
async fn leave(vault: &Vault, base: u64, raw: &str) {
    let _entry = vault.journal(&email(), Generation(base), raw.as_bytes()).await.expect("journalled");
}

fn trouble(accounts: &Accounts, trouble: bool) {
    accounts.store.trouble.store(trouble, Ordering::Relaxed);
}

/// What follows when the authorization server has answered.
async fn settle(accounts: &Accounts, account: &Account, generation: u64) -> super::Outcome {
    let base = account.standing().token.clone().expect("a token");
    let reply = Reply::parse(reply(generation).as_bytes()).expect("a reply");
    let (next, life) = rotate::next(&base, reply, SystemTime::now());
    accounts.settle(account, &base, next, Some((Instant::now(), life)), None).await
}

async fn stored(vault: &Vault) -> Option<u64> {
    vault.load(&email()).await.expect("memory").map(|token| token.generation.0)
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_saved_serves_from_memory_and_is_saved_later() {
    let (accounts, vault) = accounts(true).await;
    let account = accounts.find(&email()).expect("entered");
    trouble(&accounts, true);
    for generation in 2..=3 {
        assert_eq!(settle(&accounts, &account, generation).await, Ok(Refreshed::Renewed));
        let bearer = accounts.bearer(&email(), Now::read()).expect("a token");
        assert_eq!(bearer.access().expose(), format!("access-{generation}"));
        assert!(!accounts.status(Now::read())[0].persisted);
    }
    assert_eq!(stored(&vault).await, Some(1));
    // Every 30 s, and not more often.
    tokio::time::advance(Duration::from_secs(30)).await;
    accounts.tick(Now::read()).await;
    accounts.finish().await;
    trouble(&accounts, false);
    tokio::time::advance(Duration::from_secs(29)).await;
    accounts.tick(Now::read()).await;
    accounts.finish().await;
    assert_eq!(stored(&vault).await, Some(1));
    tokio::time::advance(Duration::from_secs(1)).await;
    accounts.tick(Now::read()).await;
    accounts.finish().await;
    assert_eq!(stored(&vault).await, Some(3));
    assert!(accounts.status(Now::read())[0].persisted);
}

#[tokio::test]
async fn an_unsaved_token_gives_way_to_a_newer_one_and_to_a_removal() {
    for (there, left) in [(Some(token(9)), Some(9)), (None, None)] {
        let (accounts, vault) = accounts(true).await;
        let account = accounts.find(&email()).expect("entered");
        trouble(&accounts, true);
        settle(&accounts, &account, 2).await.expect("in memory");
        match &there {
            Some(newer) => vault.save(newer, Some(Generation(1))).await.expect("no race"),
            None => assert!(vault.remove(&email()).await.expect("memory")),
        }
        trouble(&accounts, false);
        accounts.save_again(&account).await;
        assert_eq!(account.standing().generation().map(|generation| generation.0), left);
        assert_eq!(stored(&vault).await, left);
    }
}

#[tokio::test]
async fn an_unsaved_token_gives_way_to_a_later_login_with_fewer_refreshes() {
    let (accounts, vault) = accounts(true).await;
    let account = accounts.find(&email()).expect("entered");
    trouble(&accounts, true);
    for generation in 2..=4 {
        settle(&accounts, &account, generation).await.expect("in memory");
    }
    let login = Token { created_at: SystemTime::now() + Duration::from_secs(9), ..token(2) };
    vault.save(&login, Some(Generation(1))).await.expect("no race");
    trouble(&accounts, false);
    accounts.save_again(&account).await;
    let held = account.standing().token.clone().expect("a token");
    assert_eq!((held.created_at, held.generation), (login.created_at, Generation(2)));
    assert_eq!(stored(&vault).await, Some(2));
}

#[tokio::test]
async fn a_token_that_is_seen_in_the_store_before_it_is_published_is_a_renewed_one() {
    let (accounts, vault) = accounts(true).await;
    let account = accounts.find(&email()).expect("entered");
    let base = account.standing().token.clone().expect("a token");
    let reply = Reply::parse(reply(2).as_bytes()).expect("a reply");
    let (next, life) = rotate::next(&base, reply, SystemTime::now());
    // It is stored; then somebody looks again.
    vault.save(&next, Some(Generation(1))).await.expect("no race");
    accounts.compare(&account).await.expect("memory");
    let outcome = accounts.settle(&account, &base, next, Some((Instant::now(), life)), None).await;
    assert_eq!(outcome, Ok(Refreshed::Renewed));
    assert_eq!((stored(&vault).await, accounts.status(Now::read()).len()), (Some(2), 1));
}

#[tokio::test]
async fn a_removal_between_the_answer_and_the_save_is_final() {
    let (accounts, vault) = accounts(true).await;
    let account = accounts.find(&email()).expect("entered");
    let base = account.standing().token.clone().expect("a token");
    // Never stored: the compare-and-swap alone cannot see that it was removed.
    vault.remove(&email()).await.expect("memory");
    account.change(|standing| standing.stored = None);
    let reply = Reply::parse(reply(2).as_bytes()).expect("a reply");
    let (next, _) = rotate::next(&base, reply, SystemTime::now());
    accounts.remove(&email()).await.expect("memory");
    let outcome = accounts.settle(&account, &base, next, None, None).await;
    assert!(matches!(outcome, Err(RefreshFault::LoginRequired(_))), "{outcome:?}");
    assert_eq!((stored(&vault).await, account.standing().generation()), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_no_empty_store() {
    let (accounts, _vault) = accounts(false).await;
    trouble(&accounts, true);
    accounts.open().await;
    assert!(accounts.store_fault().is_some());
    assert_eq!(accounts.state(&email(), Now::read()), State::StorageUnavailable);
    for lacking in [accounts.bearer(&email(), Now::read()), accounts.access(&email(), Now::read()).await] {
        assert_eq!(lacking.err(), Some(Lacking::StorageUnavailable));
    }
    assert!(accounts.needing_login().borrow().is_empty());
    trouble(&accounts, false);
    accounts.tick(Now::read()).await;
    assert!(accounts.bearer(&email(), Now::read()).is_ok() && accounts.store_fault().is_none());
    // Without the store no refresh goes out: its token might be spent.
    trouble(&accounts, true);
    let refused = accounts.refused(&email(), Generation(1)).await;
    assert_eq!(refused.err(), Some(Lacking::StorageUnavailable));
    assert_eq!(accounts.state(&email(), Now::read()), State::StorageUnavailable);
    assert!(accounts.remove(&email()).await.is_err() && accounts.status(Now::read()).len() == 1);
}

#[tokio::test]
async fn what_a_process_left_in_the_journal_is_saved_by_the_next() {
    // The reply's base, its text; then the generation that is stored and published.
    for (base, raw, after) in [
        (1, reply(2), 2),
        (0, reply(1), 1),
        // Those between were journalled elsewhere, or lost: this one is the newest that there is.
        (7, reply(8), 8),
        (1, "{\"access_tok".to_owned(), 1),
        (1, "<html>".to_owned(), 1),
    ] {
        let (accounts, vault, _place) = with_journal().await;
        leave(&vault, base, &raw).await;
        accounts.open().await;
        assert_eq!(stored(&vault).await, Some(after), "{base}");
        let bearer = accounts.bearer(&email(), Now::read()).expect("a token");
        assert_eq!(bearer.access().expose(), format!("access-{after}"), "{base}");
        assert!(vault.pending_journal().await.expect("read").is_empty(), "{base}");
    }
}

#[tokio::test]
async fn a_refresh_token_that_came_alone_is_taken_from_the_journal() {
    let (accounts, vault, _place) = with_journal().await;
    leave(&vault, 1, r#"{"refresh_token":"refresh-2"}"#).await;
    accounts.open().await;
    let stored = vault.load(&email()).await.expect("read").expect("there");
    assert_eq!(stored.refresh.expect("kept").expose(), "refresh-2");
    assert_eq!((stored.access.expose(), stored.generation), ("access-1", Generation(2)));
    assert!(vault.pending_journal().await.expect("read").is_empty());
}

#[tokio::test]
async fn two_replies_in_the_journal_follow_from_each_other() {
    let (accounts, vault, _place) = with_journal().await;
    for base in [1, 2] {
        leave(&vault, base, &reply(base + 1)).await;
    }
    accounts.open().await;
    assert_eq!(stored(&vault).await, Some(3));
    assert_eq!(accounts.bearer(&email(), Now::read()).expect("a token").access().expose(), "access-3");
}

#[tokio::test]
async fn a_process_that_dies_beside_us_leaves_its_token_to_us() {
    let (accounts, vault, _place) = with_journal().await;
    accounts.open().await;
    leave(&vault, 1, &reply(2)).await;
    // No authorization server answers here: the token can only be the one in the journal.
    let renewed = accounts.refused(&email(), Generation(1)).await.expect("a token");
    assert_eq!(renewed.access().expose(), "access-2");
    assert_eq!(stored(&vault).await, Some(2));
    assert!(vault.pending_journal().await.expect("read").is_empty());
}

#[tokio::test]
async fn what_was_journalled_of_a_removed_account_does_not_bring_it_back() {
    let (accounts, vault, _place) = with_journal().await;
    vault.remove(&email()).await.expect("removed");
    leave(&vault, 1, &reply(2)).await;
    accounts.open().await;
    assert_eq!(stored(&vault).await, None);
    assert!(accounts.status(Now::read()).is_empty());
    assert!(vault.pending_journal().await.expect("read").is_empty());
}

#[tokio::test]
async fn a_refresh_for_a_token_that_is_renewed_already_does_not_begin() {
    let (accounts, _vault) = accounts(true).await;
    let account = accounts.find(&email()).expect("entered");
    settle(&accounts, &account, 2).await.expect("renewed");
    for urgency in [Urgency::Use, Urgency::Hand] {
        assert!(matches!(accounts.fly(&account, Generation(1), urgency), Ok(None)));
    }
    assert!(!account.is_refreshing());
}
