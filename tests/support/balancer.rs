//! The real balancer on a free port, with a configuration of the test's own.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use claude_code_balancer::app::App;
use claude_code_balancer::config::{Live, Overrides};
use claude_code_balancer::lab::Lab;
use claude_code_balancer::oauth::Storage;
use claude_code_balancer::server::{self, Limits};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::tls::Authority;
use super::{Client, Reply, soon};

/// The model of requests that do not care.
pub const MODEL: &str = "claude-lab";

/// One running balancer.
pub struct Balancer {
    pub address: SocketAddr,
    pub url: String,
    pub app: Arc<App>,
    stop: CancellationToken,
    serving: JoinSet<std::io::Result<()>>,
    _beside: JoinSet<()>,
    _folder: TempDir,
}

/// The usual limits, with a short drain time.
pub fn limits() -> Limits {
    Limits { drain_time: Duration::from_secs(5), ..Limits::default() }
}

impl Balancer {
    /// With this configuration; a missing `settings` switches the log file off.
    pub async fn start(yaml: &str) -> Self {
        Self::start_with(yaml, Duration::from_secs(5)).await
    }

    /// With this configuration and this drain time.
    pub async fn start_with(yaml: &str, drain: Duration) -> Self {
        Self::within(yaml, Limits { drain_time: drain, ..limits() }).await
    }

    /// With this configuration and these limits.
    pub async fn within(yaml: &str, limits: Limits) -> Self {
        Self::launch(yaml, limits, RootCertStore::empty()).await
    }

    /// With this configuration; it trusts this authority and nobody else.
    pub async fn start_trusting(yaml: &str, authority: &Authority) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        Self::launch(yaml, limits(), roots).await
    }

    async fn launch(yaml: &str, limits: Limits, roots: RootCertStore) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        let settings = if yaml.contains("settings:") { "" } else { "\nsettings:\n  log_file_path: \"\"\n" };
        std::fs::write(&file, format!("{yaml}{settings}")).unwrap();
        let overrides = Overrides { host: None, port: Some(0) };
        let live =
            Live::open_in(Some(&file), overrides, Box::new(|_| None)).unwrap_or_else(|report| panic!("{report}"));
        let listeners = server::bind("127.0.0.1", 0).unwrap();
        let address = listeners[0].local_addr().unwrap();
        let app = Arc::new(App::new(Arc::new(live), roots, Arc::default(), address.port(), None, Storage::memory()));
        let stop = CancellationToken::new();
        let (mut serving, mut beside) = (JoinSet::new(), JoinSet::new());
        serving.spawn(server::serve(
            listeners,
            app.clone(),
            stop.clone().cancelled_owned(),
            limits,
            server::Workers::here(),
        ));
        let background = app.clone();
        beside.spawn(async move { background.background().await });
        Self { address, url: format!("http://{address}"), app, stop, serving, _beside: beside, _folder: folder }
    }

    /// In front of these providers, named A, B, C …, with the keys `key-a`, `key-b` …, and these lines of `settings`.
    pub async fn before(labs: &[&Lab], settings: &str) -> Self {
        let places: Vec<String> = labs.iter().map(|lab| lab.url()).collect();
        Self::start(&fleet(&places, settings)).await
    }

    /// Begins the graceful end.
    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Waits for the end, which must come.
    pub async fn stopped(mut self) {
        self.stop.cancel();
        soon("the end of the balancer", self.serving.join_next()).await.unwrap().unwrap().unwrap();
    }

    /// Whether it still serves.
    pub fn is_serving(&mut self) -> bool {
        self.serving.try_join_next().is_none()
    }

    /// A connection to it.
    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await.unwrap()
    }

    /// A connection on which a request has been sent.
    pub async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Client {
        let mut client = self.connect().await;
        self.send_on(&mut client, method, target, headers, body).await;
        client
    }

    /// Sends a request on a connection, with the right `host`.
    pub async fn send_on(
        &self,
        client: &mut Client,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) {
        let host = self.address.to_string();
        let headers = [&[("host", host.as_str())], headers].concat();
        soon("the request is written", client.send(method, target, &headers, body)).await.unwrap();
    }

    /// One request on a connection of its own, and the whole answer.
    pub async fn fetch(&self, method: &str, target: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Reply {
        let mut client = self.send(method, target, headers, body).await;
        soon("the whole answer", client.read_to_end()).await.unwrap()
    }

    /// `POST /v1/messages`, as a client of the API sends it.
    pub async fn post(&self, body: impl AsRef<[u8]>) -> Reply {
        self.fetch("POST", "/v1/messages", &[JSON], body).await
    }

    /// A message, streaming or not.
    pub async fn ask(&self, stream: bool) -> Reply {
        self.post(request(stream)).await
    }

    /// A connection on which a message was asked for.
    pub async fn asking(&self, stream: bool) -> Client {
        self.send("POST", "/v1/messages", &[JSON], request(stream)).await
    }

    /// What `/providers` says of an entry.
    pub async fn provider(&self, name: &str) -> Value {
        let reply = self.fetch("GET", "/providers", &[], "").await.json();
        let mut entries = reply["providers"].as_array().unwrap().iter();
        entries.find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("no {name}: {reply}")).clone()
    }

    /// Waits until so many requests are under way.
    pub async fn inflight(&self, count: usize) {
        let line = format!("inflight_requests {count}\n");
        let polling = async {
            while !self.fetch("GET", "/metrics", &[], "").await.text().contains(&line) {
                tokio::task::yield_now().await;
            }
        };
        soon("the number of requests under way", polling).await;
    }

    /// The failures in a row that an entry has.
    pub async fn failures(&self, name: &str) -> u64 {
        self.provider(name).await["failure_count"].as_u64().unwrap()
    }

    /// Waits until `/providers` satisfies a condition for an entry.
    pub async fn until(&self, what: &str, name: &str, condition: impl Fn(&Value) -> bool) {
        let polling = async {
            while !condition(&self.provider(name).await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(what, polling).await;
    }
}

pub const JSON: (&str, &str) = ("content-type", "application/json");

/// A small request for a message.
pub fn request(stream: bool) -> String {
    request_for(MODEL, stream)
}

/// A small request for a message of a model.
pub fn request_for(model: &str, stream: bool) -> String {
    format!(r#"{{"model":"{model}","max_tokens":16,"stream":{stream},"messages":[{{"role":"user","content":"hi"}}]}}"#)
}

/// Providers A, B, C … at these places, with keys, without routes; `settings` is a list of lines.
pub fn fleet(places: &[String], settings: &str) -> String {
    let mut yaml = String::from("providers:\n");
    for (place, name) in places.iter().zip('A'..='Z') {
        let key = name.to_ascii_lowercase();
        writeln!(yaml, "  - {{ name: \"{name}\", base_url: \"{place}\", auth_value: \"key-{key}\" }}").unwrap();
    }
    yaml.push_str("settings:\n  log_file_path: \"\"\n");
    settings.lines().for_each(|line| writeln!(yaml, "  {}", line.trim()).unwrap());
    yaml
}
