//! The keyring: one that behaves, one that hangs, fails, is locked, is slow or keeps half of what it is given, and (by
//! name: `keyring_real_…`, see `.ci/run`) the system's own.
#![cfg(unix)]

use std::any::Any;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use claude_code_balancer::config::{OAuthSettings, OAuthStorage};
use claude_code_balancer::oauth::vault::{OpenKeyring, Options};
use claude_code_balancer::oauth::{Generation, Token, Vault, VaultError};
use keyring_core::api::{CredentialApi, CredentialStoreApi};
use keyring_core::{Credential, CredentialStore, Entry, Error, Result};
use tokio::time::Instant;

use crate::vault::{email, token};

const A: &str = "main@example.com";
const SERVICE: &str = "claude-code-balancer";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    /// Each call waits until the mood changes.
    Hangs,
    Fails,
    /// It opens, and holds nothing: its collection is not there.
    Bare,
    Slow(u64),
    /// Keeps only the beginning.
    Truncates,
}

/// A keyring with moods, written against the interface that the real ones have.
#[derive(Clone)]
struct Ring(Arc<(Mutex<State>, Condvar)>);

struct State {
    mood: Mood,
    entries: HashMap<(String, String), Vec<u8>>,
    calls: u32,
}

impl Ring {
    fn new(mood: Mood) -> Self {
        Self(Arc::new((Mutex::new(State { mood, entries: HashMap::new(), calls: 0 }), Condvar::new())))
    }

    fn mood(&self, mood: Mood) {
        self.0.0.lock().unwrap().mood = mood;
        self.0.1.notify_all();
    }

    fn put(&self, user: &str, value: &[u8]) {
        self.0.0.lock().unwrap().entries.insert((SERVICE.into(), user.into()), value.into());
    }

    fn entries(&self) -> HashMap<String, Vec<u8>> {
        let state = self.0.0.lock().unwrap();
        state.entries.iter().map(|((_, user), value)| (user.clone(), value.clone())).collect()
    }

    fn calls(&self) -> u32 {
        self.0.0.lock().unwrap().calls
    }

    fn open(&self) -> OpenKeyring {
        let ring = self.clone();
        Arc::new(move || Ok(Arc::new(ring.clone()) as Arc<CredentialStore>))
    }

    fn call<T>(&self, act: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.0.0.lock().unwrap();
        state.calls += 1;
        while state.mood == Mood::Hangs {
            state = self.0.1.wait(state).unwrap();
        }
        if let Mood::Slow(millis) = state.mood {
            drop(state);
            std::thread::sleep(Duration::from_millis(millis));
            state = self.0.0.lock().unwrap();
        }
        match state.mood {
            Mood::Fails => Err(Error::NoStorageAccess("locked".into())),
            _ => act(&mut state),
        }
    }

    async fn vault(&self, folder: &Path, storage: OAuthStorage) -> Vault {
        Vault::open(options(folder, storage, self.open())).await
    }
}

fn options(folder: &Path, storage: OAuthStorage, keyring: OpenKeyring) -> Options {
    let settings = OAuthSettings { storage, ..OAuthSettings::default() };
    let retry = Duration::from_millis(300);
    Options { keyring, retry, ..Options::new(&settings, folder.to_owned(), None) }
}

impl CredentialStoreApi for Ring {
    fn vendor(&self) -> String {
        "test".into()
    }
    fn id(&self) -> String {
        "test".into()
    }
    fn build(&self, service: &str, user: &str, _: Option<&HashMap<&str, &str>>) -> Result<Entry> {
        Ok(Entry::new_with_credential(Arc::new(Item(self.clone(), (service.into(), user.into())))))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Item(Ring, (String, String));

impl CredentialApi for Item {
    fn set_secret(&self, secret: &[u8]) -> Result<()> {
        self.0.call(|state| {
            let kept = match state.mood {
                Mood::Bare => return Err(Error::NoStorageAccess("no result".into())),
                Mood::Truncates => &secret[..secret.len().min(16)],
                _ => secret,
            };
            state.entries.insert(self.1.clone(), kept.into());
            Ok(())
        })
    }
    fn get_secret(&self) -> Result<Vec<u8>> {
        self.0.call(|state| match state.mood {
            Mood::Bare => Err(Error::NoEntry),
            _ => state.entries.get(&self.1).cloned().ok_or(Error::NoEntry),
        })
    }
    fn delete_credential(&self) -> Result<()> {
        self.0.call(|state| state.entries.remove(&self.1).map(drop).ok_or(Error::NoEntry))
    }
    fn get_credential(&self) -> Result<Option<Arc<Credential>>> {
        Ok(None)
    }
    fn get_specifiers(&self) -> Option<(String, String)> {
        Some(self.1.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[tokio::test]
async fn accounts_are_kept_one_to_an_entry_and_are_there_again() {
    let (place, ring) = (tempfile::tempdir().unwrap(), Ring::new(Mood::Well));
    let vault = ring.vault(place.path(), OAuthStorage::Auto).await;
    assert!(matches!(vault, Vault::Keyring(_)), "{}", vault.place());
    assert!(ring.entries().is_empty(), "the probe leaves nothing");
    vault.save(&token(A, 1), None).await.unwrap();
    vault.save(&token("b@example.com", 1), None).await.unwrap();
    vault.save(&token(A, 2), Some(Generation(1))).await.unwrap();
    let stale = vault.save(&token(A, 2 + 1), Some(Generation(1))).await;
    assert!(matches!(stale, Err(VaultError::Stale { stored: Some(Generation(2)) })), "{stale:?}");
    vault.save(&token(A, 2), Some(Generation(1))).await.expect("it is stored already");
    let entries = ring.entries();
    assert_eq!(entries.len(), 3, "{:?}", entries.keys());
    assert!(entries.iter().all(|(user, value)| value.len() <= 2560 && !user.contains('@')));
    assert!(!format!("{vault:?}").contains("canary"));

    let again = ring.vault(place.path(), OAuthStorage::Auto).await;
    assert_eq!(again.load_all().await.unwrap().len(), 2);
    assert_eq!(again.load(&email("MAIN@EXAMPLE.COM")).await.unwrap(), Some(token(A, 2)));
    let entry = again.journal(&email(A), Generation(2), b"canary reply").await.unwrap();
    for file in std::fs::read_dir(place.path().join("journal")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("canary") && bytes.get(1) == Some(&b'S'), "sealed");
    }
    drop(entry);
    let third = ring.vault(place.path(), OAuthStorage::Auto).await;
    let pending = third.pending_journal().await.unwrap();
    assert_eq!((pending[0].reply.as_slice(), pending[0].generation), (&b"canary reply"[..], Generation(2)));
    assert!(third.remove(&email(A)).await.unwrap());
    assert!(third.pending_journal().await.unwrap().is_empty(), "its journal goes too");
    assert_eq!(third.load(&email(A)).await.unwrap(), None);
    assert_eq!(third.load_all().await.unwrap().len(), 1);
}

#[tokio::test]
async fn auto_takes_the_file_if_the_keyring_does_not_work_and_stays_with_it() {
    for mood in [Mood::Fails, Mood::Bare, Mood::Truncates] {
        let (place, ring) = (tempfile::tempdir().unwrap(), Ring::new(mood));
        let vault = ring.vault(place.path(), OAuthStorage::Auto).await;
        assert!(matches!(vault, Vault::File(_)), "{mood:?}: {}", vault.place());
        vault.save(&token(A, 1), None).await.unwrap();
        ring.mood(Mood::Well);
        let again = ring.vault(place.path(), OAuthStorage::Auto).await;
        assert_eq!(again.load(&email(A)).await.unwrap(), Some(token(A, 1)), "{mood:?}");
        // To switch is the user's right; nothing moves along, nothing is lost.
        let other = ring.vault(place.path(), OAuthStorage::Keyring).await;
        assert_eq!(other.load(&email(A)).await.unwrap(), None);
        other.save(&token(A, 1), None).await.unwrap();
        assert!(matches!(ring.vault(place.path(), OAuthStorage::Auto).await, Vault::Keyring(_)));
        let back = ring.vault(place.path(), OAuthStorage::File).await;
        assert_eq!(back.load(&email(A)).await.unwrap(), Some(token(A, 1)));
    }
}

#[tokio::test]
async fn accounts_of_a_keyring_that_is_silent_are_waited_for_and_never_taken_for_none() {
    for mood in [Mood::Fails, Mood::Bare, Mood::Truncates] {
        let (place, ring) = (tempfile::tempdir().unwrap(), Ring::new(Mood::Well));
        ring.vault(place.path(), OAuthStorage::Auto).await.save(&token(A, 1), None).await.unwrap();
        ring.mood(mood);
        let vault = ring.vault(place.path(), OAuthStorage::Auto).await;
        assert!(matches!(vault, Vault::Keyring(_)), "no fallback: {}", vault.place());
        for error in [
            vault.save(&token("new@example.com", 1), None).await.unwrap_err(),
            vault.load(&email("new@example.com")).await.map(drop).unwrap_err(),
            vault.save(&token(A, 2), Some(Generation(1))).await.unwrap_err(),
            vault.load_all().await.map(drop).unwrap_err(),
        ] {
            assert!(matches!(error, VaultError::Unavailable(_)), "{mood:?}: {error:?}");
        }
        // It is not asked again at each call.
        let calls = ring.calls();
        for _ in 0..50 {
            vault.load(&email(A)).await.unwrap_err();
        }
        assert_eq!(ring.calls(), calls, "{mood:?}");
        assert!(!place.path().join("accounts.json").exists());
        ring.mood(Mood::Well);
        tokio::time::sleep(Duration::from_millis(350)).await;
        assert_eq!(vault.load(&email(A)).await.unwrap(), Some(token(A, 1)), "{mood:?}");
        vault.save(&token(A, 2), Some(Generation(1))).await.unwrap();
    }
}

#[tokio::test]
async fn a_keyring_that_hangs_costs_three_seconds_once_and_holds_up_nothing_else() {
    let (place, ring) = (tempfile::tempdir().unwrap(), Ring::new(Mood::Well));
    let vault = ring.vault(place.path(), OAuthStorage::Keyring).await;
    vault.save(&token(A, 1), None).await.unwrap();
    assert_eq!(vault.load_all().await.unwrap().len(), 1);
    ring.mood(Mood::Hangs);
    let began = Instant::now();
    let error = vault.save(&token(A, 2), Some(Generation(1))).await.unwrap_err();
    assert!(matches!(error, VaultError::Unavailable(_)), "{error}");
    assert!((2900..4000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    let began = Instant::now();
    for _ in 0..20 {
        vault.load(&email(A)).await.unwrap_err();
    }
    // The lock and the journal need no keyring any more.
    let lock = vault.lock(&email(A), Duration::from_secs(1)).await.unwrap();
    let entry = vault.journal(&email(A), Generation(1), b"reply").await.unwrap();
    entry.erase().await.unwrap();
    drop(lock);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // When it returns, what had begun is done.
    ring.mood(Mood::Well);
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match vault.load(&email(A)).await {
            Ok(stored) => {
                assert_eq!(stored, Some(token(A, 2)));
                break;
            }
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    }
    vault.save(&token(A, 2), Some(Generation(1))).await.expect("it has arrived");
}

#[test]
fn the_end_of_the_process_does_not_wait_for_a_keyring_that_hangs() {
    let (place, ring) = (tempfile::tempdir().unwrap(), Ring::new(Mood::Hangs));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let vault = runtime.block_on(ring.vault(place.path(), OAuthStorage::Keyring));
    let began = Instant::now();
    let asked = runtime.block_on(async { tokio::time::timeout(Duration::from_millis(200), vault.load_all()).await });
    assert!(asked.is_err());
    drop((vault, runtime));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    ring.mood(Mood::Well);
}

#[tokio::test]
async fn a_slow_keyring_is_waited_for_call_by_call() {
    let (place, ring) = (tempfile::tempdir().unwrap(), Ring::new(Mood::Slow(400)));
    let vault = ring.vault(place.path(), OAuthStorage::Keyring).await;
    // Far more than 3 s altogether.
    vault.save(&token(A, 1), None).await.unwrap();
    assert_eq!(vault.load(&email(A)).await.unwrap(), Some(token(A, 1)));
}

#[tokio::test]
async fn what_the_keyring_holds_and_nobody_understands_is_left_alone() {
    let (place, ring) = (tempfile::tempdir().unwrap(), Ring::new(Mood::Well));
    let vault = ring.vault(place.path(), OAuthStorage::Keyring).await;
    vault.save(&token(A, 1), None).await.unwrap();
    vault.save(&token("b@example.com", 1), None).await.unwrap();
    let accounts =
        |name: &str, value: &[u8]| name.starts_with("account-") && String::from_utf8_lossy(value).contains(A);
    let user = ring.entries().into_iter().find(|(name, value)| accounts(name, value)).unwrap().0;
    let record = String::from_utf8(ring.entries()[&user].clone()).unwrap();
    for value in [
        b"\xff\xfe\x00".to_vec(),
        record.replace("\"v\":1", "\"v\":99").into_bytes(),
        record.as_bytes()[..50].to_vec(),
        token("b@example.com", 1).to_record().as_bytes().to_vec(),
        vec![b'x'; 1024 * 1024],
    ] {
        ring.put(&user, &value);
        assert!(matches!(vault.load(&email(A)).await, Err(VaultError::Record(_))));
        assert!(matches!(vault.save(&token(A, 1), None).await, Err(VaultError::Record(_))));
        let all = vault.load_all().await.unwrap();
        assert_eq!(all.iter().filter(|(_, token)| token.is_ok()).count(), 1, "the other account is fine");
        assert_eq!(ring.entries()[&user], value);
    }
    let long = Token { scopes: vec!["x".repeat(20_000)], ..token("c@example.com", 1) };
    assert!(matches!(vault.save(&long, None).await, Err(VaultError::TooLarge { .. })));
}

#[tokio::test]
async fn accounts_of_the_predecessor_are_taken_over_once_and_its_entry_is_left() {
    let (place, ring) = (tempfile::tempdir().unwrap(), Ring::new(Mood::Well));
    let old = br#"{"tokens":[{"access_token":"at-1","refresh_token":"rt-1","expires_at":1753199999,"scopes":["user:inference"],"account_id":"main@example.com","account_email":"main@example.com","account_name":null,"usage_count":127,"last_used":1753196757,"created_at":1753192857},{"access_token":"at-2","refresh_token":"rt-2","expires_at":1753199999,"scopes":[],"account_email":"b@example.com"}],"metadata":{"current_token_index":0,"last_saved":1753196760}}"#;
    ring.put("oauth_tokens", old);
    let vault = ring.vault(place.path(), OAuthStorage::Auto).await;
    // One that has signed in here already keeps what it has.
    vault.save(&token("b@example.com", 4), None).await.unwrap();
    let all = vault.load_all().await.unwrap();
    let [a, b] = ["main@example.com", "b@example.com"]
        .map(|name| all.iter().find(|(found, _)| *found == email(name)).unwrap().1.clone().unwrap());
    assert_eq!((a.access.expose(), a.generation, a.verified), ("at-1", Generation(1), false));
    assert_eq!(b, token("b@example.com", 4));
    assert_eq!(ring.entries()["oauth_tokens"], old);
    // Removed here, it does not come back.
    assert!(vault.remove(&email(A)).await.unwrap());
    let again = ring.vault(place.path(), OAuthStorage::Auto).await;
    assert_eq!(again.load_all().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_writers_exactly_one_replaces_each_generation_in_a_keyring_too() {
    let (place, ring) = (tempfile::tempdir().unwrap(), Ring::new(Mood::Well));
    let open = || ring.vault(place.path(), OAuthStorage::Keyring);
    let vaults = [Arc::new(open().await), Arc::new(open().await), Arc::new(open().await)];
    vaults[0].save(&token(A, 1), None).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..12 {
        let vault = vaults[number % 3].clone();
        tasks.spawn(async move {
            let mut won = 0;
            for _ in 0..20 {
                let stored = vault.load(&email(A)).await.unwrap().unwrap().generation;
                let mine = Token { scopes: vec![number.to_string()], ..token(A, stored.0 + 1) };
                won += u64::from(vault.save(&mine, Some(stored)).await.is_ok());
            }
            won
        });
    }
    let won: u64 = tasks.join_all().await.into_iter().sum();
    assert_eq!(vaults[1].load(&email(A)).await.unwrap().unwrap().generation, Generation(1 + won));
}

// The real one. Each test has a service of its own.

async fn real(folder: &Path, service: &str) -> Vault {
    let settings = OAuthSettings { service_name: service.into(), ..OAuthSettings::default() };
    Vault::open(Options::new(&settings, folder.to_owned(), None)).await
}

#[tokio::test]
#[ignore = "needs a keyring: `.ci/run` brings one along"]
async fn keyring_real_accounts_are_kept_and_removed() {
    let place = tempfile::tempdir().unwrap();
    let service = format!("claude-code-balancer-test-{}", std::process::id());
    let began = Instant::now();
    let vault = real(place.path(), &service).await;
    assert!(matches!(vault, Vault::Keyring(_)), "auto chose {}", vault.place());
    println!("probe: {:?}", began.elapsed());
    let began = Instant::now();
    vault.save(&token(A, 1), None).await.unwrap();
    println!("first save: {:?}", began.elapsed());
    let began = Instant::now();
    vault.save(&token(A, 2), Some(Generation(1))).await.unwrap();
    println!("save: {:?}", began.elapsed());
    let stale = vault.save(&token(A, 3), Some(Generation(1))).await;
    assert!(matches!(stale, Err(VaultError::Stale { stored: Some(Generation(2)) })), "{stale:?}");
    let entry = vault.journal(&email(A), Generation(2), b"canary").await.unwrap();
    drop((entry, vault));
    let again = real(place.path(), &service).await;
    assert_eq!(again.load_all().await.unwrap(), [(email(A), Ok(token(A, 2)))]);
    assert_eq!(again.pending_journal().await.unwrap().len(), 1);
    assert!(!place.path().join("accounts.json").exists());
    assert!(again.remove(&email(A)).await.unwrap());
    assert!(again.load_all().await.unwrap().is_empty());
}

#[tokio::test]
#[cfg(target_os = "linux")]
#[ignore = "needs a keyring: `.ci/run` brings one along"]
async fn keyring_real_accounts_of_the_predecessor_are_found() {
    let place = tempfile::tempdir().unwrap();
    let service = format!("claude-code-balancer-old-{}", std::process::id());
    let old = r#"{"tokens":[{"access_token":"at-1","refresh_token":"rt-1","expires_at":1753199999,"account_email":"main@example.com"}]}"#;
    // As a program of its own would write it.
    let (name, value) = (service.clone(), old.to_owned());
    let write = move || {
        let store = zbus_secret_service_keyring_store::Store::new().unwrap();
        store.build(&name, "oauth_tokens", None).unwrap().set_password(&value).unwrap();
    };
    std::thread::spawn(write).join().unwrap();
    let vault = real(place.path(), &service).await;
    assert_eq!(vault.load(&email(A)).await.unwrap(), None);
    assert_eq!(vault.load_all().await.unwrap().len(), 1);
    assert_eq!(vault.load(&email(A)).await.unwrap().unwrap().access.expose(), "at-1");
}
