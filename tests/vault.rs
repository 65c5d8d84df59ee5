//! The file of accounts and what lies beside it: who may read it, what happens when it cannot be read or written, and
//! what many writers do to each other. Other processes are this very binary, started for one act.
#![cfg(unix)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use claude_code_balancer::config::{OAuthSettings, OAuthStorage};
use claude_code_balancer::oauth::vault::{Options, Usage};
use claude_code_balancer::oauth::{Generation, Token, Vault, VaultError};
use claude_code_balancer::provider::Email;
use claude_code_balancer::secret::Secret;
use tokio::time::Instant;

/// What a process that was started for an act says to its test, and tests to who measures.
pub(crate) fn tell(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).unwrap();
}

pub(crate) fn email(text: &str) -> Email {
    Email::parse(text).unwrap()
}

pub(crate) fn token(account: &str, generation: u64) -> Token {
    Token {
        email: email(account),
        access: Secret::new(format!("sk-ant-oat-canary-{generation}")),
        refresh: Some(Secret::new(format!("sk-ant-ort-canary-{generation}"))),
        expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        scopes: vec!["user:inference".into()],
        verified: true,
        created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        generation: Generation(generation),
    }
}

/// Options for the file; `passphrase` seals it.
pub(crate) fn options(folder: &Path, passphrase: Option<&str>) -> Options {
    let settings = OAuthSettings { storage: OAuthStorage::File, ..OAuthSettings::default() };
    Options::new(&settings, folder.to_owned(), passphrase.map(Secret::new))
}

async fn open(folder: &Path) -> Vault {
    Vault::open(options(folder, None)).await
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(everything(&path));
        }
        found.push(path);
    }
    found
}

const A: &str = "main@example.com";

#[tokio::test]
async fn what_is_stored_is_private_and_is_there_again_plain_and_sealed() {
    for passphrase in [None, Some("correct horse")] {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("deep/state");
        let vault = Vault::open(options(&folder, passphrase)).await;
        assert!(vault.load_all().await.unwrap().is_empty());
        assert!(!folder.exists(), "reading creates nothing");
        let entry = vault.journal(&email(A), Generation(0), b"canary reply").await.unwrap();
        vault.save(&token(A, 1), None).await.unwrap();
        vault.save(&token("second@example.com", 1), None).await.unwrap();
        let _lock = vault.lock(&email(A), Duration::from_secs(1)).await.unwrap();
        vault.save_usage(HashMap::from([(email(A), Usage { count: 3, last_used: None })]));
        vault.flush_usage().await.unwrap();
        assert_eq!(mode(&folder), 0o700);
        for path in everything(&folder) {
            assert_eq!(mode(&path), if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
            if passphrase.is_some() && path.is_file() {
                let bytes = fs::read(&path).unwrap();
                let text = String::from_utf8_lossy(&bytes);
                assert!(!text.contains("canary"), "{} holds a token", path.display());
            }
        }
        entry.erase().await.unwrap();
        let again = Vault::open(Options { storage: OAuthStorage::Auto, ..options(&folder, passphrase) }).await;
        assert!(matches!(again, Vault::File(_)), "the note says so: {}", again.place());
        assert_eq!(again.load(&email("MAIN@example.com")).await.unwrap(), Some(token(A, 1)));
        assert_eq!(again.load_all().await.unwrap().len(), 2);
        assert_eq!(again.load_usage().await.unwrap()[&email(A)].count, 3);
        assert!(again.pending_journal().await.unwrap().is_empty());
        assert!(again.remove(&email(A)).await.unwrap() && !again.remove(&email(A)).await.unwrap());
        assert_eq!(vault.load(&email(A)).await.unwrap(), None);
        // A refresh that was under way must not bring it back.
        let late = vault.save(&token(A, 2), Some(Generation(1))).await;
        assert!(matches!(late, Err(VaultError::Stale { stored: None })), "{late:?}");
    }
}

#[tokio::test]
async fn a_folder_of_ours_is_closed_to_others_and_files_that_others_may_read_are_refused() {
    for (bits, fine) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false), (0o666, false)] {
        let place = tempfile::tempdir().unwrap();
        let vault = open(place.path()).await;
        vault.save(&token(A, 1), None).await.unwrap();
        let file = place.path().join("accounts.json");
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(bits)).unwrap();
        let before = fs::read(&file).unwrap();
        let loaded = vault.load(&email(A)).await;
        assert_eq!(mode(place.path()), 0o700, "tightened");
        if fine {
            assert_eq!(loaded.unwrap(), Some(token(A, 1)), "{bits:o}");
            continue;
        }
        for error in [loaded.unwrap_err(), vault.save(&token(A, 2), Some(Generation(1))).await.unwrap_err()] {
            assert!(error.to_string().contains("chmod 600"), "{bits:o}: {error}");
        }
        assert_eq!(fs::read(&file).unwrap(), before, "left as it is");
    }
}

#[tokio::test]
async fn links_and_what_is_no_file_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let (real, linked) = (place.path().join("real"), place.path().join("linked"));
    open(&real).await.save(&token(A, 1), None).await.unwrap();
    symlink(&real, &linked).unwrap();
    let error = open(&linked).await.load_all().await.unwrap_err();
    assert!(matches!(error, VaultError::Insecure { .. }), "{error}");
    // The file itself is a link, to a file that is fine; or a pipe, which must not make anybody wait; or a folder.
    let file = real.join("accounts.json");
    let target = place.path().join("target.json");
    fs::rename(&file, &target).unwrap();
    let vault = open(&real).await;
    let pipe = |path: &Path| assert!(Command::new("mkfifo").args(["-m", "600"]).arg(path).status().unwrap().success());
    let link = |path: &Path| symlink(&target, path).unwrap();
    let folder = |path: &Path| fs::create_dir(path).unwrap();
    for (what, put) in [("link", &link as &dyn Fn(&Path)), ("pipe", &pipe), ("folder", &folder)] {
        put(&file);
        for error in [vault.load_all().await.unwrap_err(), vault.save(&token(A, 2), None).await.unwrap_err()] {
            assert!(matches!(error, VaultError::Insecure { .. }), "{what}: {error}");
        }
        fs::remove_file(&file).or_else(|_| fs::remove_dir(&file)).unwrap();
    }
    assert!(fs::read_to_string(&target).unwrap().contains("canary-1"), "the target of the link was not touched");
    // A link in the place of the journal, the locks, the usage.
    for name in ["journal", "locks"] {
        let _ = fs::remove_dir_all(real.join(name));
        symlink(place.path(), real.join(name)).unwrap();
    }
    assert!(vault.journal(&email(A), Generation(1), b"x").await.is_err());
    assert!(vault.lock(&email(A), Duration::ZERO).await.is_err());
    assert!(vault.save(&token(A, 1), None).await.is_err());
    assert_eq!(everything(place.path()).iter().filter(|path| path.ends_with("x.lock")).count(), 0);
}

#[tokio::test]
async fn what_belongs_to_another_user_is_refused() {
    let place = tempfile::tempdir().unwrap();
    open(place.path()).await.save(&token(A, 1), None).await.unwrap();
    // Only root can give a file away.
    if std::os::unix::fs::chown(place.path().join("accounts.json"), Some(1), None).is_err() {
        return;
    }
    let error = open(place.path()).await.load(&email(A)).await.unwrap_err();
    assert!(error.to_string().contains("another user"), "{error}");
    std::os::unix::fs::chown(place.path().join("accounts.json"), Some(0), None).unwrap();
    std::os::unix::fs::chown(place.path(), Some(1), None).unwrap();
    let error = open(place.path()).await.load(&email(A)).await.unwrap_err();
    assert!(error.to_string().contains("another user"), "{error}");
}

#[tokio::test]
async fn a_wrong_or_missing_passphrase_is_said_and_nothing_is_overwritten() {
    let place = tempfile::tempdir().unwrap();
    Vault::open(options(place.path(), Some("correct horse"))).await.save(&token(A, 1), None).await.unwrap();
    let file = place.path().join("accounts.json");
    let before = fs::read(&file).unwrap();
    let wrong = Vault::open(options(place.path(), Some("wrong"))).await;
    let none = open(place.path()).await;
    for (vault, words) in [(wrong, "another passphrase"), (none, "set CLAUDE_CODE_BALANCER_PASSPHRASE")] {
        for error in [
            vault.load_all().await.map(drop).unwrap_err(),
            vault.load(&email(A)).await.map(drop).unwrap_err(),
            vault.save(&token(A, 1), None).await.unwrap_err(),
            vault.save(&token(A, 2), Some(Generation(1))).await.unwrap_err(),
            vault.remove(&email(A)).await.map(drop).unwrap_err(),
        ] {
            assert!(error.to_string().contains(words) && !error.is_temporary(), "{error}");
        }
    }
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn a_plain_file_is_sealed_by_the_next_save_once_there_is_a_passphrase() {
    let place = tempfile::tempdir().unwrap();
    open(place.path()).await.save(&token(A, 1), None).await.unwrap();
    let vault = Vault::open(options(place.path(), Some("correct horse"))).await;
    assert_eq!(vault.load(&email(A)).await.unwrap(), Some(token(A, 1)));
    vault.save(&token(A, 2), Some(Generation(1))).await.unwrap();
    assert!(!fs::read_to_string(place.path().join("accounts.json")).unwrap().contains("canary"));
    assert_eq!(vault.load(&email(A)).await.unwrap(), Some(token(A, 2)));
}

#[tokio::test]
async fn a_torn_or_foreign_file_is_kept_whatever_is_asked() {
    for passphrase in [None, Some("correct horse")] {
        let place = tempfile::tempdir().unwrap();
        let vault = Vault::open(options(place.path(), passphrase)).await;
        vault.save(&token(A, 1), None).await.unwrap();
        let file = place.path().join("accounts.json");
        let whole = fs::read(&file).unwrap();
        let mut bad: Vec<Vec<u8>> = [0, 1, 9, whole.len() / 2, whole.len() - 2].map(|cut| whole[..cut].to_vec()).into();
        bad.extend([b"\xff\xfe".to_vec(), b"[]".to_vec(), b"null".to_vec(), vec![b' '; 1024 * 1024 + 1]]);
        let text = String::from_utf8(whole).unwrap();
        bad.push(text.replacen("\"v\":1", "\"v\":99", 1).into_bytes());
        for bytes in bad {
            fs::write(&file, &bytes).unwrap();
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            for error in [
                vault.load_all().await.map(drop).unwrap_err(),
                vault.save(&token(A, 1), None).await.unwrap_err(),
                vault.save(&token("new@example.com", 1), None).await.unwrap_err(),
                vault.remove(&email(A)).await.map(drop).unwrap_err(),
            ] {
                assert!(!error.is_temporary() && !error.to_string().contains("canary"), "{shown}: {error}");
            }
            assert_eq!(fs::read(&file).unwrap(), bytes, "{shown}");
        }
    }
}

#[tokio::test]
async fn one_record_that_cannot_be_read_costs_no_other_account() {
    let place = tempfile::tempdir().unwrap();
    let vault = open(place.path()).await;
    vault.save(&token(A, 1), None).await.unwrap();
    vault.save(&token("b@example.com", 1), None).await.unwrap();
    let file = place.path().join("accounts.json");
    let text = fs::read_to_string(&file).unwrap();
    // Another account's record under this name: somebody else's token must not be used.
    fs::write(&file, text.replace(r#""email":"main@example.com""#, r#""email":"x@example.com""#)).unwrap();
    let all = vault.load_all().await.unwrap();
    assert_eq!(all.iter().filter(|(_, token)| token.is_ok()).count(), 1, "{all:?}");
    assert!(matches!(vault.load(&email(A)).await, Err(VaultError::Record(_))));
    assert!(matches!(vault.save(&token(A, 1), None).await, Err(VaultError::Record(_))));
    // Writing another account keeps it byte for byte.
    vault.save(&token("b@example.com", 2), Some(Generation(1))).await.unwrap();
    assert!(fs::read_to_string(&file).unwrap().contains("x@example.com"));
    assert!(vault.remove(&email(A)).await.unwrap(), "it can be removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_writers_exactly_one_replaces_each_generation() {
    let place = tempfile::tempdir().unwrap();
    // Two vaults on one folder are to each other as two processes are.
    let vaults = [Arc::new(open(place.path()).await), Arc::new(open(place.path()).await)];
    vaults[0].save(&token(A, 1), None).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..16 {
        let vault = vaults[number % 2].clone();
        tasks.spawn(async move {
            let mut won = 0;
            for _ in 0..12 {
                let stored = vault.load(&email(A)).await.unwrap().unwrap().generation;
                // Each writes something of its own: two of one generation are not the same record.
                let mine = Token { scopes: vec![number.to_string()], ..token(A, stored.0 + 1) };
                match vault.save(&mine, Some(stored)).await {
                    Ok(()) => won += 1,
                    Err(VaultError::Stale { stored: Some(newer) }) => assert!(newer > stored),
                    Err(error) => panic!("{error}"),
                }
            }
            won
        });
    }
    let won: u64 = tasks.join_all().await.into_iter().sum();
    let last = vaults[1].load(&email(A)).await.unwrap().unwrap().generation;
    assert_eq!(last, Generation(1 + won));
    assert!(won >= 12, "{won}");
    // What is stored already may be stored again: an earlier save may have arrived late.
    let stored = vaults[0].load(&email(A)).await.unwrap().unwrap();
    vaults[0].save(&stored, Some(Generation(last.0 - 1))).await.unwrap();
    assert!(matches!(vaults[0].save(&token(A, 1), None).await, Err(VaultError::Stale { stored: Some(_) })));
}

#[tokio::test]
async fn counters_are_written_a_moment_later_and_at_the_end() {
    let place = tempfile::tempdir().unwrap();
    let vault = open(place.path()).await;
    for count in 0..1000 {
        vault.save_usage(HashMap::from([(email(A), Usage { count, last_used: Some(SystemTime::UNIX_EPOCH) })]));
    }
    assert!(!place.path().join("usage.json").exists(), "not at each request");
    drop(vault);
    let again = open(place.path()).await;
    let until = Instant::now() + Duration::from_secs(5);
    while again.load_usage().await.unwrap().is_empty() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let usage = Usage { count: 999, last_used: Some(SystemTime::UNIX_EPOCH) };
    assert_eq!(again.load_usage().await.unwrap(), HashMap::from([(email(A), usage)]));
    fs::write(place.path().join("usage.json"), "{\"accounts\":").unwrap();
    assert!(again.load_usage().await.unwrap().is_empty(), "damaged counters start anew");
}

#[tokio::test]
async fn without_persistence_nothing_is_written() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("state");
    for (storage, persistence) in [(OAuthStorage::Memory, true), (OAuthStorage::Auto, false)] {
        let vault = Vault::open(Options { storage, persistence, ..options(&folder, None) }).await;
        vault.save(&token(A, 1), None).await.unwrap();
        let stale = vault.save(&token(A, 3), Some(Generation(2))).await;
        assert!(matches!(stale, Err(VaultError::Stale { stored: Some(Generation(1)) })), "{stale:?}");
        let _lock = vault.lock(&email(A), Duration::ZERO).await.unwrap();
        vault.journal(&email(A), Generation(1), b"reply").await.unwrap().erase().await.unwrap();
        vault.save_usage(HashMap::new());
        vault.flush_usage().await.unwrap();
        assert_eq!(vault.load_all().await.unwrap().len(), 1);
        assert!(!folder.exists());
    }
}

// Other processes.

const ACT: &str = "VAULT_TEST_ACT";

/// Starts this binary for one act in `folder`; `prefix` is a command that starts it in turn.
fn act(act: &str, folder: &Path, prefix: &[&str]) -> Child {
    let own = std::env::current_exe().unwrap();
    let mut words: Vec<_> = prefix.iter().map(std::ffi::OsString::from).collect();
    words.push(own.into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["--ignored", "--exact", "vault::an_act_for_another_test", "--nocapture"]);
    command.env(ACT, act).env("VAULT_TEST_FOLDER", folder).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn line(child: &mut Child, wanted: &str) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(wanted)), "the other process did not say {wanted:?}");
}

#[tokio::test]
#[ignore = "started by other tests, in a process of its own"]
async fn an_act_for_another_test() {
    let (Ok(act), Some(folder)) = (std::env::var(ACT), std::env::var_os("VAULT_TEST_FOLDER")) else { return };
    let folder = PathBuf::from(folder);
    let vault = open(&folder).await;
    match act.as_str() {
        "hold" => {
            let _lock = vault.lock(&email(A), Duration::from_secs(5)).await.unwrap();
            tell("held");
            std::future::pending::<()>().await;
        }
        "count" => {
            // A counter that only the lock makes right.
            let counter = folder.join("counter");
            for _ in 0..25 {
                let _lock = vault.lock(&email(A), Duration::from_secs(60)).await.unwrap();
                let count: u32 = fs::read_to_string(&counter).unwrap().parse().unwrap();
                tokio::task::yield_now().await;
                fs::write(&counter, (count + 1).to_string()).unwrap();
            }
        }
        "rotate" => rotate(&folder, vault).await,
        "fill" => fill(&folder, vault).await,
        other => panic!("unknown act {other}"),
    }
}

#[tokio::test]
async fn a_lock_is_free_as_soon_as_its_holder_is_killed() {
    let place = tempfile::tempdir().unwrap();
    let vault = open(place.path()).await;
    let mut other = act("hold", place.path(), &[]);
    line(&mut other, "held");
    let busy = vault.lock(&email(A), Duration::from_millis(150)).await;
    assert!(matches!(busy, Err(VaultError::Busy(_))), "{busy:?}");
    // Another account's is another lock.
    let _other = vault.lock(&email("b@example.com"), Duration::ZERO).await.unwrap();
    let waiting = async {
        let lock = vault.lock(&email(A), Duration::from_secs(10)).await.unwrap();
        (lock, Instant::now())
    };
    let (killed, (lock, got)) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            other.kill().unwrap();
            Instant::now()
        },
        waiting
    );
    other.wait().unwrap();
    assert!(got.duration_since(killed) < Duration::from_secs(1), "{:?}", got.duration_since(killed));
    assert!(matches!(vault.lock(&email(A), Duration::ZERO).await, Err(VaultError::Busy(_))), "also within a process");
    drop(lock);
    let _free = vault.lock(&email(A), Duration::ZERO).await.unwrap();
}

#[test]
fn processes_that_share_an_account_take_turns() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("counter"), "0").unwrap();
    let others: Vec<_> = (0..4).map(|_| act("count", place.path(), &[])).collect();
    for other in others {
        let output = other.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(fs::read_to_string(place.path().join("counter")).unwrap(), "100");
}

fn say(ledger: &Path, generation: u64) {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(ledger).unwrap();
    file.write_all(format!("{generation}\n").as_bytes()).unwrap();
}

fn last(ledger: &Path) -> u64 {
    let text = fs::read_to_string(ledger).unwrap_or_default();
    text.lines().last().map_or(0, |line| line.parse().unwrap())
}

/// Rotates as fast as it can; says what the authorization server has given out, and what was read of that.
async fn rotate(folder: &Path, vault: Vault) {
    let mut stored = vault.load(&email(A)).await.unwrap().unwrap();
    tell("rotating");
    loop {
        let _lock = vault.lock(&email(A), Duration::from_secs(5)).await.unwrap();
        let next = token(A, stored.generation.0 + 1);
        say(&folder.join("given"), next.generation.0);
        let entry = vault.journal(&email(A), stored.generation, next.to_record().as_bytes()).await.unwrap();
        say(&folder.join("read"), next.generation.0);
        vault.save(&next, Some(stored.generation)).await.unwrap();
        entry.erase().await.unwrap();
        stored = next;
    }
}

#[tokio::test]
async fn a_kill_at_any_moment_of_a_rotation_loses_nothing_that_was_read() {
    let place = tempfile::tempdir().unwrap();
    open(place.path()).await.save(&token(A, 1), None).await.unwrap();
    let (given, read) = (place.path().join("given"), place.path().join("read"));
    let (mut recovered, mut unread, kills) = (0, 0, 60);
    for kill in 0..kills {
        let mut other = act("rotate", place.path(), &[]);
        line(&mut other, "rotating");
        // Moments that differ, also within one rotation.
        std::thread::sleep(Duration::from_micros(2000 + kill * 731 % 24_000));
        other.kill().unwrap();
        other.wait().unwrap();
        // The next start.
        let vault = open(place.path()).await;
        let _lock = vault.lock(&email(A), Duration::from_secs(1)).await.unwrap();
        for pending in vault.pending_journal().await.unwrap() {
            let stored = vault.load(&pending.email).await.unwrap().unwrap().generation;
            if pending.generation >= stored {
                let token = Token::from_record(&pending.reply).unwrap();
                vault.save(&token, Some(stored)).await.unwrap();
                recovered += 1;
            }
            vault.erase_journal(&pending.email).await.unwrap();
        }
        let stored = vault.load(&email(A)).await.unwrap().unwrap();
        assert_eq!(stored, token(A, stored.generation.0), "whole");
        assert!(stored.generation.0 >= last(&read), "lost: {} was read, {stored:?} is stored", last(&read));
        unread += u32::from(last(&given) > stored.generation.0);
        assert!(vault.pending_journal().await.unwrap().is_empty());
        // The next round continues from what is stored.
        say(&given, stored.generation.0);
        say(&read, stored.generation.0);
    }
    tell(&format!("{kills} kills: {recovered} recovered from the journal, {unread} before the reply was journalled"));
    let left = fs::read_dir(place.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".new"));
    assert!(left.count() <= 1, "unfinished files are swept by the next save");
}

/// Saves until the disk is full, again and again; what was stored stays.
async fn fill(folder: &Path, vault: Vault) {
    vault.save(&token(A, 1), None).await.unwrap();
    let filler = folder.join("filler");
    let mut generation = 1;
    let (mut failed, mut worked) = (0, 0);
    for round in 0..40 {
        // Leaves between none and some of the space that a save needs.
        let mut file = fs::File::create(&filler).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
        let size = file.metadata().unwrap().len();
        file.set_len(size.saturating_sub(round % 10 * 4096)).unwrap();
        let long = Token { scopes: vec!["x".repeat(6000)], ..token(A, generation + 1) };
        match vault.save(&long, Some(Generation(generation))).await {
            Ok(()) => {
                worked += 1;
                generation += 1;
            }
            Err(error) => {
                assert!(error.is_temporary() && !format!("{error:?}").contains("canary"), "{error:?}");
                failed += 1;
            }
        }
        let stored = vault.load(&email(A)).await.unwrap().unwrap();
        assert_eq!(stored.generation, Generation(generation), "what was stored stays");
        let names: Vec<_> =
            everything(folder).into_iter().filter(|path| path.to_string_lossy().contains(".new")).collect();
        assert!(names.is_empty(), "{names:?}");
        match vault.journal(&email(A), Generation(generation), &[b'x'; 5000]).await {
            Ok(entry) => entry.erase().await.unwrap(),
            Err(error) => assert!(error.is_temporary(), "{error:?}"),
        }
        assert!(vault.pending_journal().await.unwrap().is_empty(), "nothing torn is taken for whole");
        drop(file);
        fs::remove_file(&filler).unwrap();
    }
    tell(&format!("full: {failed} failed, {worked} worked"));
    assert!(failed > 0 && worked > 0);
}

#[tokio::test]
async fn a_full_disk_leaves_what_was_stored() {
    let place = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=64k,mode=700 none \"$VAULT_TEST_FOLDER\" || exit 77; exec \"$@\"";
    let prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"];
    let output = match Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).output() {
        Ok(output) if output.status.success() => act("fill", place.path(), &prefix).wait_with_output().unwrap(),
        _ => return read_only(place.path()).await,
    };
    if output.status.code() == Some(77) {
        return read_only(place.path()).await;
    }
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("full:"), "{out}\n{err}");
}

/// Where no small disk can be had: a folder that cannot be written. (Root can write it all the same.)
async fn read_only(folder: &Path) {
    let vault = open(folder).await;
    vault.save(&token(A, 1), None).await.unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o500)).unwrap();
    if let Err(error) = vault.save(&token(A, 2), Some(Generation(1))).await {
        assert!(error.is_temporary(), "{error}");
        assert_eq!(vault.load(&email(A)).await.unwrap(), Some(token(A, 1)));
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
}
