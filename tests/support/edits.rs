//! Edits of the configuration under load, saved in every way that there is.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use claude_code_balancer::lab::Lab;
use serde_json::{Value, json};

use super::binary::{Binary, ask};
use super::running::{ask_for, providers, stream_of};
use super::{Client, soon, sse};

/// Between two pieces of a save; shorter than any quiet time.
const GAP: Duration = Duration::from_millis(20);

pub async fn config(address: SocketAddr) -> Value {
    ask(address, "GET", "/providers", &[], "").await.json()["config"].clone()
}

/// Asks until `/providers` says so.
pub async fn until(address: SocketAddr, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
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

pub async fn generation(address: SocketAddr, wanted: u64) -> Value {
    until(address, &format!("generation {wanted}"), |config| config["generation"].as_u64() >= Some(wanted)).await
}

pub async fn rejected(address: SocketAddr, wanted: &str) -> Value {
    until(address, wanted, |config| config["rejected"].to_string().contains(wanted)).await
}

/// A counter of `/metrics`.
pub async fn counter(address: SocketAddr, name: &str) -> f64 {
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
pub async fn in_place(file: &Path, text: &str) {
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

/// What came of many edits.
#[derive(Debug)]
pub struct Edited {
    /// How long valid ones took to be in force, sorted.
    pub took: Vec<Duration>,
    /// Requests meanwhile; all were answered well.
    pub plain: usize,
    pub streams: usize,
    /// Rejections that the log tells of.
    pub told: usize,
    /// KiB of memory for each edit, where there were enough.
    pub slope: Option<f64>,
}

/// Edits under load: valid and invalid ones in turn, saved in every way.
pub async fn edits_under_load(count: usize, pause: Duration) -> Edited {
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
    let now = memory(service.id());
    let grown = settled.zip(now).map(|(then, now)| now.saturating_sub(then) as f64);
    let slope = grown.map(|grown| grown / (count - SETTLED) as f64);
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
    Edited { took, plain, streams, told, slope }
}

/// That of sorted times.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
