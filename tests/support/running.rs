//! The real server on a free port, in this process, with a configuration file of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use claude_code_balancer::app::App;
use claude_code_balancer::config::{Live, Overrides};
use claude_code_balancer::lab::Lab;
use claude_code_balancer::metrics::Metrics;
use claude_code_balancer::oauth::Storage;
use claude_code_balancer::server;
use rustls::RootCertStore;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::balancer::limits;
use super::{Client, Reply, soon};

/// The balancer. Dropping it ends it.
pub struct Running {
    pub app: Arc<App>,
    pub address: SocketAddr,
    folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    tasks: JoinSet<std::io::Result<()>>,
    _beside: JoinSet<()>,
}

/// A plain request body for a model.
pub fn ask_for(model: &str) -> String {
    format!(r#"{{"model":"{model}","max_tokens":8,"messages":[{{"role":"user","content":"hi"}}]}}"#)
}

/// The same, for a stream.
pub fn stream_of(model: &str) -> String {
    format!(r#"{{"model":"{model}","max_tokens":8,"stream":true,"messages":[{{"role":"user","content":"hi"}}]}}"#)
}

/// A configuration with these providers, in this order, and nothing else; each has the key `key-NAME`.
pub fn providers(labs: &[(&str, &Lab)]) -> String {
    let entry = |(name, lab): &(&str, &Lab)| {
        format!("  - {{ name: {name}, base_url: \"{}\", auth_value: key-{name} }}\n", lab.url())
    };
    format!("providers:\n{}", labs.iter().map(entry).collect::<String>())
}

impl Running {
    pub async fn start(config: &str) -> Self {
        Self::trusting(RootCertStore::empty(), config).await
    }

    pub async fn trusting(roots: RootCertStore, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.yaml"), config).unwrap();
        let path = folder.path().join("config.yaml");
        let live = Live::open(Some(&path), Overrides { host: None, port: Some(0) });
        Self::over(live.unwrap_or_else(|report| panic!("{report}")), folder, roots)
    }

    /// Over a configuration that is open already, from `config.yaml` in this folder.
    pub fn over(live: Live, folder: tempfile::TempDir, roots: RootCertStore) -> Self {
        Self::storing(live, folder, roots, Storage::memory())
    }

    /// The same with a store of tokens.
    pub fn storing(live: Live, folder: tempfile::TempDir, roots: RootCertStore, storage: Storage) -> Self {
        let listeners = server::bind("127.0.0.1", 0).unwrap();
        let address = listeners[0].local_addr().unwrap();
        let app =
            Arc::new(App::new(Arc::new(live), roots, Arc::new(Metrics::default()), address.port(), None, storage));
        let (stop, stopped) = oneshot::channel();
        let (mut tasks, mut beside) = (JoinSet::new(), JoinSet::new());
        let end = async {
            let _ = stopped.await;
        };
        tasks.spawn(server::serve(listeners, app.clone(), end, limits(), server::Workers::here()));
        let background = app.clone();
        beside.spawn(async move { background.background().await });
        Self { app, address, folder, stop: Some(stop), tasks, _beside: beside }
    }

    /// `127.0.0.1:port`
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The configuration file.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    pub fn write(&self, config: &str) {
        std::fs::write(self.file(), config).unwrap();
    }

    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await.unwrap()
    }

    /// One request on a connection of its own; `host` is ours unless given.
    pub async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Reply {
        let host = self.host();
        let mut all = headers.to_vec();
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            all.push(("host", &host));
        }
        all.push(("connection", "close"));
        let mut client = self.connect().await;
        client.send(method, target, &all, body).await.unwrap();
        if method != "HEAD" {
            return soon(target, client.read_to_end()).await.unwrap();
        }
        let head = soon(target, client.head()).await.unwrap();
        let (surplus, _) = soon("the end of the connection", client.raw_to_end()).await;
        assert_eq!(&surplus[..], b"", "a body after HEAD {target}");
        Reply { status: head.status, headers: head.headers, body: surplus, clean_end: true }
    }

    pub async fn get(&self, target: &str) -> Reply {
        self.send("GET", target, &[], "").await
    }

    /// `POST /v1/messages`
    pub async fn message(&self, body: impl AsRef<[u8]>) -> Reply {
        self.send("POST", "/v1/messages", &[("content-type", "application/json")], body).await
    }

    /// What `/providers` says of an entry.
    pub async fn provider(&self, name: &str) -> serde_json::Value {
        let all = self.get("/providers").await.json();
        let found = all["providers"].as_array().unwrap().iter().find(|entry| entry["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {all}")).clone()
    }

    pub async fn reload(&self) -> Reply {
        self.send("POST", "/providers/reload", &[], "").await
    }

    /// Ends it as a signal would, and waits for that.
    pub async fn stop(mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        soon("the end", self.tasks.join_next()).await.unwrap().unwrap().unwrap();
    }
}

/// What every error of ours must be.
pub fn assert_is_our_error(reply: &Reply, status: u16, kind: &str, what: &str) {
    assert_eq!(reply.status, status, "{what}: {}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/json"), "{what}");
    let body = reply.json();
    assert_eq!(body["type"], "error", "{what}: {body}");
    assert_eq!(body["error"]["type"], kind, "{what}: {body}");
    assert!(body["error"]["message"].as_str().is_some_and(|message| message.len() > 5), "{what}: {body}");
    let id = body["request_id"].as_str();
    assert!(id.is_some_and(|id| id.starts_with("req_")), "{what}: {body}");
    assert_eq!(reply.header("request-id"), id, "{what}");
    assert_grants_no_origin(reply, what);
}

pub fn assert_grants_no_origin(reply: &Reply, what: &str) {
    let granted = reply.headers.iter().find(|(name, _)| name.to_ascii_lowercase().starts_with("access-control-"));
    assert!(granted.is_none(), "{what}: {granted:?}");
}
