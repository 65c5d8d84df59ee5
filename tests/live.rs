//! Saving the file applies it, however it is saved; a mistake costs nothing.
#![cfg(unix)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use claude_code_balancer::lab::{Gate, Lab, Script};
use serde_json::Value;

use crate::support::binary::{Binary, Service, ask};
use crate::support::edits::{config, counter, edits_under_load, generation, in_place, percentile, rejected, until};
use crate::support::running::{ask_for, providers, stream_of};
use crate::support::{Client, soon};

fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{text}");
}

async fn edited(count: usize, pause: Duration) -> Vec<Duration> {
    let edited = edits_under_load(count, pause).await;
    say(&format!("{edited:?}"));
    if let Some(slope) = edited.slope {
        assert!(slope <= 1.0, "{slope} KiB for each edit");
    }
    edited.took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_edits_under_load_break_nothing() {
    let took = edited(100, Duration::ZERO).await;
    say(&format!("in force after {:?} (median), {:?} (p99)", percentile(&took, 50), percentile(&took, 99)));
    assert!(percentile(&took, 50) < Duration::from_secs(1), "{took:?}");
}

/// `cargo test --release --test main -- --ignored --nocapture a_thousand_edits` (seven minutes, on an idle machine)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes seven minutes"]
async fn a_thousand_edits_under_load_break_nothing() {
    let took = edited(1000, Duration::from_millis(200)).await;
    say(&format!("in force after {:?} (median), {:?} (p99)", percentile(&took, 50), percentile(&took, 99)));
    assert!(percentile(&took, 99) < Duration::from_secs(1), "{took:?}");
}

async fn one(name: &str, text: &str) -> (Binary, PathBuf, Service, SocketAddr) {
    let binary = Binary::new();
    let file = binary.file(name, text);
    let (service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    (binary, file, service, address)
}

const TWO: &str = "providers:\n  - { name: A, auth_value: key-a }\n  - { name: B, auth_value: key-b }\n";
const THREE: &str = "providers:\n  - { name: A, auth_value: key-a }\n  - { name: B, auth_value: key-b }\n  \
                     - { name: Backup, auth_value: key-c }\n";

#[tokio::test]
async fn an_accepted_edit_is_told_in_the_users_words_and_what_needs_a_restart_is_a_warning() {
    let routes = |first: &str, second: &str| {
        format!("model_routes:\n  \"*haiku*\": [{{ provider: {first} }}, {{ provider: {second} }}]\n")
    };
    let (_binary, file, mut service, address) = one("config.yaml", &format!("{TWO}{}", routes("A", "B"))).await;
    std::fs::write(&file, format!("{THREE}{}settings: {{ port: 1, log_file_path: x.jsonl }}\n", routes("B", "A")))
        .unwrap();
    generation(address, 2).await;
    let line = service.line("configuration reloaded").await;
    assert!(line.contains("provider \"Backup\" added; route \"*haiku*\": order changed"), "{line}");
    let line = service.line("not in force yet").await;
    assert!(line.contains("WARN") && line.contains("settings.log_file_path"), "{line}");
}

#[tokio::test]
async fn a_touch_and_a_save_without_a_change_are_nothing() {
    let (_binary, file, mut service, address) = one("config.yaml", TWO).await;
    std::fs::write(&file, TWO).unwrap();
    std::fs::File::options().append(true).open(&file).unwrap().set_modified(SystemTime::now()).unwrap();
    in_place(&file, TWO).await;
    // What comes after them is the second generation, and so they were none.
    tokio::time::sleep(Duration::from_millis(200)).await;
    std::fs::write(&file, THREE).unwrap();
    let config = generation(address, 2).await;
    assert_eq!(config["generation"], 2);
    service.line("\"Backup\" added").await;
    assert_eq!(service.said().iter().filter(|line| line.contains("configuration reloaded")).count(), 1);
}

#[tokio::test]
async fn a_rejected_edit_is_told_once_and_shown_until_the_file_is_as_it_was() {
    let (_binary, file, mut service, address) = one("config.yaml", TWO).await;
    std::fs::write(&file, TWO.replace("auth_value: key-a", "auth_valeu: sk-canary")).unwrap();
    let config = rejected(address, "auth_valeu").await;
    assert_eq!(config["generation"], 1);
    assert_eq!(counter(address, "balancer_config_rejections_total").await, 1.0);
    // The poll comes by, and a touch, and nothing more is said.
    std::fs::File::options().append(true).open(&file).unwrap().set_modified(SystemTime::now()).unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(counter(address, "balancer_config_rejections_total").await, 1.0);
    std::fs::write(&file, TWO).unwrap();
    until(address, "the end of the rejection", |config| config["rejected"].is_null()).await;
    service.line("configuration reloaded: nothing changed").await;
    let lines = service.said();
    assert_eq!(lines.iter().filter(|line| line.contains("was not accepted")).count(), 1, "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("canary")), "{lines:?}");
}

#[tokio::test]
async fn a_file_that_vanishes_or_is_emptied_never_replaces_what_is_in_force() {
    let (_binary, file, mut service, address) = one("config.yaml", TWO).await;
    let cases = [("", "is empty"), ("# nothing\n\n", "is empty"), ("~\n", "says nothing")];
    for (what, words) in cases {
        std::fs::write(&file, what).unwrap();
        rejected(address, words).await;
        std::fs::write(&file, TWO).unwrap();
        until(address, "the end of the rejection", |config| config["rejected"].is_null()).await;
        service.line("configuration reloaded: nothing changed").await;
    }
    std::fs::remove_file(&file).unwrap();
    rejected(address, "no such file").await;
    service.line("no such file").await;
    let told = service.said().iter().filter(|line| line.contains("was not accepted")).count();
    assert_eq!(told, cases.len() + 1, "{:?}", service.seen);
    std::fs::write(&file, THREE).unwrap();
    until(address, "the end of the rejection", |config| config["rejected"].is_null()).await;
    service.line("\"Backup\" added").await;
}

#[tokio::test]
async fn a_file_without_half_of_its_providers_is_believed_only_when_it_stays_so() {
    let (_binary, file, mut service, address) = one("config.yaml", THREE).await;
    let one = THREE.lines().take(2).collect::<Vec<_>>().join("\n");
    // Half written, for longer than any quiet time, and then whole.
    let begun = SystemTime::now();
    std::fs::write(&file, &one).unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    let more = format!("{THREE}  - {{ name: D, auth_value: key-d }}\n");
    std::fs::write(&file, &more).unwrap();
    let in_time = begun.elapsed().unwrap_or_default() < Duration::from_millis(450);
    let line = service.line("\"D\" added").await;
    // A machine that is so busy has shown it for too long.
    assert!(!in_time || !line.contains("Backup"), "{line}");
    // And for good.
    std::fs::write(&file, &one).unwrap();
    service.line("\"Backup\" removed").await;
    assert_eq!(config(address).await["rejected"], Value::Null);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_for_a_while_is_taken_up_again_and_a_folder_that_was_made_anew_is_watched() {
    let (binary, file, mut service, address) = one("conf/config.yaml", TWO).await;
    let folder = binary.home().join("conf");
    // Everybody may read everything as root; a pipe in its place is unreadable to all.
    std::fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    rejected(address, "not a plain file").await;
    std::fs::remove_dir_all(&folder).unwrap();
    rejected(address, "no such file").await;
    binary.file("conf/config.yaml", THREE);
    until(address, "the end of the rejection", |config| config["rejected"].is_null()).await;
    service.line("\"Backup\" added").await;
    std::fs::write(&file, TWO).unwrap();
    service.line("\"Backup\" removed").await;
}

#[tokio::test]
async fn an_edit_that_removes_the_provider_of_a_running_stream_lets_it_end_and_keeps_the_others_connections_warm() {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let route = |name: &str, model: &str| format!("model_routes: {{ \"{model}\": [{{ provider: {name} }}] }}\n");
    let both = providers(&[("A", &a), ("B", &b)]);
    let (_binary, file, _service, address) = one("config.yaml", &both).await;
    let gate = Gate::new();
    let script = Script::stream(&["one", "two"]).gate_before(4, gate.clone());
    a.next(script.clone());
    let mut client = Client::connect(address).await.unwrap();
    let host = address.to_string();
    client.send("POST", "/v1/messages", &[("host", &host)], stream_of("m")).await.unwrap();
    assert_eq!(soon("the head", client.head()).await.unwrap().status, 200);
    gate.reached(1).await;
    // B is warm.
    std::fs::write(&file, format!("{both}{}", route("B", "*"))).unwrap();
    generation(address, 2).await;
    ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await;
    assert_eq!(b.connections(), 1);
    // A and its route are gone.
    std::fs::write(&file, format!("{}{}", providers(&[("B", &b)]), route("B", "m*"))).unwrap();
    generation(address, 3).await;
    let reply = ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await;
    assert_eq!(reply.header("x-provider-used"), Some("B"));
    assert_eq!(b.connections(), 1, "the connection to B is used again");
    gate.open();
    let (body, clean) = soon("the end of the stream", client.rest()).await;
    assert_eq!((body, clean), (script.body_bytes(), true));
}
