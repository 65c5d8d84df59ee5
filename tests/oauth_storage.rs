//! The real program where its store is in trouble: a keyring that is absent, hangs or is locked; a disk that is full, a
//! folder that cannot be written. Requests of others are served, nothing is written to a second place, and what could
//! not be stored is stored when it can be.
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::disk::{Trouble, stored_when_it_can_be};
use crate::support::ordeal::{Kept, Ordeal, answered, request};
use crate::vault::tell;

const KEYRING: &str = r#"{"storage":"keyring","service":"SERVICE"}"#;

/// Everything below a folder, by name.
fn names(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    names
}

/// Serves with accounts in a keyring that does not answer at this address, and ends.
async fn without_an_answer(bus: &str, what: &str) {
    let mut ordeal = Ordeal::new(0, Kept::Keyring, 28_800, "").await;
    ordeal.count = 1;
    ordeal.configure("");
    let config = ordeal.binary.home().join("config.yaml");
    let text = std::fs::read_to_string(&config).unwrap().replace("storage: keyring", "storage: auto");
    std::fs::write(config, text).unwrap();
    ordeal.binary = std::mem::take(&mut ordeal.binary).with("DBUS_SESSION_BUS_ADDRESS", bus);
    let marker = KEYRING.replace("SERVICE", &ordeal.service);
    ordeal.binary.file("state/claude-code-balancer/storage.json", &marker);
    let note = ordeal.folder().join("storage.json");
    let private: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&note, private).unwrap();

    let began = Instant::now();
    let (mut service, address) = ordeal.serve().await;
    let listening = began.elapsed();
    // Before the keyring has answered or was given up.
    answered(address, "key").await;
    assert!(!service.seen.iter().any(|line| line.contains("cannot be read")), "{what}: {:?}", service.seen);
    let served = began.elapsed();
    let reply = request(address, "0").await.unwrap();
    let text = reply.text();
    assert_eq!(reply.status, 503, "{what}: {text}");
    assert!(text.contains("unavailable"), "{what}: {text}");
    service.line("the accounts cannot be read; trying again every 30 s").await;
    answered(address, "key").await;

    let ending = Instant::now();
    service.signal("TERM");
    assert_eq!(service.end().await, Some(0), "{what}: {:?}", service.seen);
    assert!(ending.elapsed() < Duration::from_secs(5), "{what}: {:?}", ending.elapsed());
    tell(&format!("{what}: listens after {listening:?}, served after {served:?}, ended within {:?}", ending.elapsed()));
    let left = names(&ordeal.folder());
    assert!(!left.contains(&"accounts.json".to_owned()) && !left.contains(&"journal".to_owned()), "{what}: {left:?}");
    assert_eq!(std::fs::read_to_string(note).unwrap(), marker, "{what}");
    assert!(ordeal.authority.ledger().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyring_that_is_absent_or_hangs_stops_nobody_else_and_nothing_is_written_elsewhere() {
    let place = tempfile::tempdir().unwrap();
    let hanging = place.path().join("bus");
    // Whoever connects waits for ever: it is listened to and not accepted.
    let _listener = UnixListener::bind(&hanging).unwrap();
    let absent = place.path().join("nobody");
    for (path, what) in [(absent, "absent"), (hanging, "hanging")] {
        without_an_answer(&format!("unix:path={}", path.display()), what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a keyring: `.ci/run` brings one along"]
async fn keyring_real_one_that_is_locked_stops_nobody_else_and_nothing_is_written_elsewhere() {
    let home = tempfile::tempdir().unwrap();
    let session = |script: &str| {
        // A bus of its own, which the keyring ends with.
        let mut command = Command::new("dbus-run-session");
        command.args(["--", "sh", "-c", script]).env("HOME", home.path()).env("XDG_RUNTIME_DIR", home.path());
        command.env("XDG_DATA_HOME", home.path().join("data")).env_remove("DBUS_SESSION_BUS_ADDRESS");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    let lock =
        "gnome-keyring-daemon --start --components=secrets >/dev/null; echo \"$DBUS_SESSION_BUS_ADDRESS\"; read -r _";
    for what in ["without a collection", "locked"] {
        let mut keyring = session(lock);
        let mut bus = String::new();
        BufReader::new(keyring.stdout.as_mut().unwrap()).read_line(&mut bus).unwrap();
        without_an_answer(bus.trim(), what).await;
        drop(keyring.stdin.take());
        keyring.wait().unwrap();
        // Makes a collection, which the next one finds and nobody unlocks.
        let mut unlocked = session(
            "echo | gnome-keyring-daemon --foreground --unlock --components=secrets >/dev/null & \
             for _ in $(seq 200); do ls \"$XDG_DATA_HOME\"/keyrings/*.keyring && break; sleep 0.05; done; kill $!",
        );
        assert!(unlocked.wait().unwrap().success());
    }
    assert!(!names(&home.path().join("data/keyrings")).is_empty(), "there was nothing to be locked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_can_be_written_tokens_serve_from_memory_and_are_stored_when_it_can() {
    // Side by side, for each waits for the next try.
    let (full, read_only) =
        tokio::join!(stored_when_it_can_be(Trouble::Full), stored_when_it_can_be(Trouble::ReadOnly));
    for (what, took) in [("full", full), ("read-only", read_only)] {
        match took {
            Some(took) => tell(&format!("{what}: stored {took:?} after that was possible again")),
            None => tell("left out: a small disk of memory needs root, or a user namespace"),
        }
    }
}
