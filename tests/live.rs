//! Saving the file applies it, however it is saved; a mistake costs nothing.
#![cfg(unix)]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use claude_code_balancer::lab::{Gate, Lab, Script};
use serde_json::{Value, json};

use crate::support::binary::{Binary, Service, ask};
use crate::support::running::{ask_for, providers, stream_of};
use crate::support::{Client, soon, sse};

/// Between two pieces of a save; shorter than any quiet time.
const GAP: Duration = Duration::from_millis(20);

async fn config(address: SocketAddr) -> Value {
    ask(address, "GET", "/providers", &[], "").await.json()["config"].clone()
}

/// Asks until `/providers` says so.
async fn until(address: SocketAddr, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    let asking = async {
        loop {
            let config = config(address).await;
            if condition(&config) {
                return config;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, asking).await
}

async fn generation(address: SocketAddr, wanted: u64) -> Value {
    until(address, &format!("generation {wanted}"), |config| config["generation"].as_u64() >= Some(wanted)).await
}

async fn rejected(address: SocketAddr, wanted: &str) -> Value {
    until(address, wanted, |config| config["rejected"].to_string().contains(wanted)).await
}

/// A counter of `/metrics`.
async fn counter(address: SocketAddr, name: &str) -> f64 {
    let text = ask(address, "GET", "/metrics", &[], "").await.text();
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{name} in\n{text}"))
}

/// How the file comes to hold a text.
#[derive(Clone, Copy, Debug)]
enum Save {
    InPlace,
    Rename,
    Anew,
    Swap,
}

const SAVES: [Save; 4] = [Save::InPlace, Save::Rename, Save::Anew, Save::Swap];

/// A folder like that of a ConfigMap: `config.yaml -> ..data/config.yaml`, `..data -> ..N`.
struct Folder {
    path: PathBuf,
    versions: usize,
}

impl Folder {
    fn new(path: PathBuf, text: &str) -> Self {
        std::fs::create_dir_all(path.join("..0")).unwrap();
        std::fs::write(path.join("..0/config.yaml"), text).unwrap();
        symlink("..0", path.join("..data")).unwrap();
        symlink("..data/config.yaml", path.join("config.yaml")).unwrap();
        Self { path, versions: 0 }
    }

    fn file(&self) -> PathBuf {
        self.path.join("config.yaml")
    }

    async fn save(&mut self, text: &str, how: Save) {
        match how {
            Save::InPlace => in_place(&self.file(), text).await,
            Save::Rename => {
                // Over the file that the link leads to: the link stays.
                let real = self.file().canonicalize().unwrap();
                std::fs::write(self.path.join("new"), text).unwrap();
                std::fs::rename(self.path.join("new"), real).unwrap();
            }
            Save::Anew => {
                let real = self.file().canonicalize().unwrap();
                std::fs::remove_file(&real).unwrap();
                tokio::time::sleep(GAP).await;
                std::fs::write(&real, text).unwrap();
            }
            Save::Swap => {
                let old = self.path.join(format!("..{}", self.versions));
                self.versions += 1;
                let version = format!("..{}", self.versions);
                std::fs::create_dir(self.path.join(&version)).unwrap();
                std::fs::write(self.path.join(&version).join("config.yaml"), text).unwrap();
                symlink(&version, self.path.join("..tmp")).unwrap();
                std::fs::rename(self.path.join("..tmp"), self.path.join("..data")).unwrap();
                std::fs::remove_dir_all(old).unwrap();
            }
        }
    }
}

/// Truncated, and written in two pieces.
async fn in_place(file: &Path, text: &str) {
    use std::io::Write as _;
    let mut open = std::fs::File::create(file).unwrap();
    let (first, second) = text.as_bytes().split_at(text.len() / 2);
    open.write_all(first).unwrap();
    tokio::time::sleep(GAP).await;
    open.write_all(second).unwrap();
}

/// What is asked of the balancer all the while, and how it went.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    plain: AtomicUsize,
    streams: AtomicUsize,
}

impl Load {
    async fn go(self: Arc<Self>, address: SocketAddr, stream: bool) {
        let mut client = Client::connect(address).await.unwrap();
        let host = address.to_string();
        while !self.over.load(Ordering::Relaxed) {
            let body = if stream { stream_of("m") } else { ask_for("m") };
            client.send("POST", "/v1/messages", &[("host", &host)], body).await.unwrap();
            let reply = soon("an answer", client.read_to_end()).await.unwrap();
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert!(reply.clean_end, "a truncated answer");
            if stream {
                assert_eq!(sse::names(&reply.body).last().map(String::as_str), Some("message_stop"));
                self.streams.fetch_add(1, Ordering::Relaxed);
            } else {
                assert_eq!(reply.json()["type"], "message");
                self.plain.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn kernel(id: u32, what: &str) -> Option<usize> {
    Some(std::fs::read_dir(format!("/proc/{id}/{what}")).ok()?.count())
}

/// KiB.
fn memory(id: u32) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Edits after which memory is as large as it gets.
const SETTLED: usize = 300;

/// Edits under load: valid and invalid ones in turn, saved in every way. Answers how long valid ones took, sorted.
async fn edits_under_load(count: usize, pause: Duration) -> Vec<Duration> {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    a.remember(false);
    b.remember(false);
    let valid = |number: usize| {
        let mut text = providers(&[("A", &a), ("B", &b)]);
        // Providers come, go and change; two of them always answer.
        for extra in 0..number % 3 {
            writeln!(text, "  - {{ name: X{extra}, base_url: \"{}\", auth_value: key-{number} }}", a.url()).unwrap();
        }
        let (first, second) = if number.is_multiple_of(2) { ("A", "B") } else { ("B", "A") };
        writeln!(text, "model_routes:\n  \"*\": [{{ provider: {first} }}, {{ provider: {second}, priority: 2 }}]")
            .unwrap();
        writeln!(text, "settings: {{ log_file_path: \"\", sticky_provider_duration: {number} }}").unwrap();
        text
    };
    let invalid = |number: usize| {
        let good = valid(number + 1);
        match number % 5 {
            0 => good.replace("providers:", "providrs:"),
            1 => format!("{good}  log_level: [\n"),
            2 => good.replace("priority: 2", "priority: high"),
            3 => format!("{good}\u{1}\n"),
            _ => good.replace("provider: A ", "provider: Nobody "),
        }
    };
    let binary = Binary::new();
    let mut folder = Folder::new(binary.home().join("volume"), &valid(0));
    let (mut service, address) = binary.serve(&["--config", folder.file().to_str().unwrap()]).await;
    let load = Arc::new(Load::default());
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..4 {
        clients.spawn(load.clone().go(address, number % 2 == 1));
    }
    // Two edits, so that all that is built once is there before anything is counted.
    let (mut wanted, mut took, mut begin, mut settled) = (1, Vec::new(), None, None);
    for number in 1..=count {
        let how = SAVES[(number / 2) % 4];
        let good = number.is_multiple_of(2);
        let text = if good { valid(number) } else { format!("# {number}\n{}", invalid(number)) };
        let before = counter(address, "balancer_config_rejections_total").await;
        folder.save(&text, how).await;
        let saved = SystemTime::now();
        if good {
            wanted += 1;
            let in_force = async {
                loop {
                    let config = generation(address, wanted).await;
                    if config["rejected"].is_null() {
                        return config;
                    }
                }
            };
            let config = soon("the edit", in_force).await;
            took.push(saved.elapsed().unwrap_or_default());
            if matches!(how, Save::InPlace) {
                // On a busy machine the writer may rest for long enough between its pieces to be taken for done.
                let all_of_it = async {
                    while ask(address, "POST", "/providers/reload?dry_run=1", &[], "").await.json()["changes"]
                        != json!([])
                    {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                soon("all of the edit", all_of_it).await;
                wanted = self::config(address).await["generation"].as_u64().unwrap();
            } else {
                assert_eq!(config["generation"], json!(wanted), "{number} {how:?}");
            }
        } else {
            let until_rejected = async {
                while counter(address, "balancer_config_rejections_total").await <= before {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            soon(&format!("the rejection of edit {number}, {how:?}:\n{text}"), until_rejected).await;
            let config = config(address).await;
            assert_eq!(config["generation"], json!(wanted), "{number} {how:?}");
            assert!(config["rejected"]["problems"].as_array().is_some_and(|all| !all.is_empty()), "{number}: {config}");
        }
        if number == 8 {
            begin = Some(["fd", "task"].map(|what| kernel(service.id(), what)));
        }
        if number == SETTLED {
            settled = memory(service.id());
        }
        tokio::time::sleep(pause).await;
    }
    if let (Some(then), Some(now)) = (settled, memory(service.id())) {
        let slope = now.saturating_sub(then) as f64 / (count - SETTLED) as f64;
        say(&format!("memory {then} KiB after {SETTLED} edits, {now} KiB after {count}: {slope:.2} KiB for each"));
        assert!(slope <= 1.0, "{slope} KiB for each edit");
    }
    // The last state is the last valid file.
    let last = ask(address, "POST", "/providers/reload?dry_run=1", &[], "").await.json();
    assert_eq!((&last["status"], &last["changes"]), (&json!("success"), &json!([])), "{last}");
    let calm = async {
        // Connections of the questions themselves come and go.
        let near = |a: Option<usize>, b: Option<usize>| a.unwrap_or(0).abs_diff(b.unwrap_or(0)) <= 2;
        while !["fd", "task"].iter().zip(begin.unwrap()).all(|(what, then)| near(kernel(service.id(), what), then)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("as many descriptors and threads as at the beginning", calm).await;
    load.over.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let (plain, streams) = (load.plain.load(Ordering::Relaxed), load.streams.load(Ordering::Relaxed));
    assert!(plain >= count && streams >= count, "{plain} plain and {streams} streaming requests");
    // Each rejected edit was told of once.
    let told = service.said().iter().filter(|line| line.contains("was not accepted")).count();
    assert!((count.div_ceil(2)..count).contains(&told), "{told} rejections of {count} edits");
    took.sort();
    say(&format!(
        "{count} edits, {plain} plain and {streams} streaming requests; memory {:?} KiB",
        memory(service.id())
    ));
    took
}

fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_edits_under_load_break_nothing() {
    let took = edits_under_load(100, Duration::ZERO).await;
    say(&format!("in force after {:?} (median), {:?} (p99)", percentile(&took, 50), percentile(&took, 99)));
    assert!(percentile(&took, 50) < Duration::from_secs(1), "{took:?}");
}

/// `cargo test --release --test main -- --ignored --nocapture a_thousand_edits` (seven minutes, on an idle machine)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes seven minutes"]
async fn a_thousand_edits_under_load_break_nothing() {
    let took = edits_under_load(1000, Duration::from_millis(200)).await;
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
