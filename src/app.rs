//! The assembly: builds the rooms once and leads a request to its room.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response};
use rustls::RootCertStore;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Admin};
use crate::config::Live;
use crate::gate::{self, Refusal};
use crate::health::Health;
use crate::inflow::Body;
use crate::log::Log;
use crate::memory::Budget;
use crate::metrics::Metrics;
use crate::oauth::{Accounts, Storage, human};
use crate::proxy::intake::BUFFER_LIMIT;
use crate::proxy::reject::Error;
use crate::proxy::relay::Outbound;
use crate::proxy::{self, Drain, Proxy};
use crate::route::Sticky;
use crate::upstream::Upstream;

/// How often idle connections to providers are looked through.
const SWEEP_TIME: Duration = Duration::from_secs(5);

/// A look that comes later than this was kept from it by a suspended machine, or a stopped process.
const SLEEP_TIME: Duration = Duration::from_secs(5);
/// Longest wait for a store of tokens at the end.
const SAVE_TIME: Duration = Duration::from_millis(4500);
/// Longest wait for an authorization server at the end.
const ROTATION_TIME: Duration = Duration::from_secs(20);

/// Everything, for the whole life of the process.
pub struct App {
    /// The data path.
    pub proxy: Proxy,
    /// The balancer's own state, shown and changed.
    pub admin: Arc<Admin>,
    /// Who is signed in.
    pub accounts: Arc<Accounts>,
    port: u16,
}

impl App {
    /// Builds the rooms. `port` is the one that is really bound; `log`, if there is one, follows `log_level` and shows
    /// the login box. Nothing happens by itself until [`App::background`] is polled.
    pub fn new(
        live: Arc<Live>,
        roots: RootCertStore,
        metrics: Arc<Metrics>,
        port: u16,
        log: Option<Arc<Log>>,
        storage: Storage,
    ) -> Self {
        let snapshot = live.load();
        metrics.config_generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        let health = Arc::new(Health::new(snapshot.settings.health.clone()));
        let upstream = Arc::new(Upstream::new(roots));
        let endpoint = endpoint(&snapshot.settings.host, port);
        let accounts = Accounts::new(storage, upstream.clone(), metrics.clone(), &snapshot.settings);
        let proxy = Proxy {
            health: health.clone(),
            upstream: upstream.clone(),
            metrics: metrics.clone(),
            accounts: accounts.clone(),
            sticky: Sticky::default(),
            buffers: Budget::new(BUFFER_LIMIT),
            tasks: TaskTracker::new(),
            hop: HeaderValue::from(getrandom::u64().unwrap_or_default() >> 1),
            endpoint: endpoint.clone(),
        };
        let admin = Admin { live, health, upstream, metrics, log, accounts: accounts.clone(), endpoint };
        Self { proxy, admin: Arc::new(admin), accounts, port }
    }

    /// Answers one request; `drain` ends it when the service has no time left.
    pub async fn handle(&self, mut request: Request<Body>, peer: IpAddr, drain: &Drain) -> Response<Outbound> {
        gate::mask(request.headers_mut());
        let snapshot = self.admin.live.load();
        let settings = &snapshot.settings;
        let policy = gate::Policy {
            port: self.port,
            bound: &settings.host,
            allowed_hosts: &settings.allowed_hosts,
            keys: &settings.auth.keys,
            exempt_paths: &settings.auth.exempt_paths,
            peer_is_local: peer.to_canonical().is_loopback(),
        };
        let admitted = match gate::admit(request.method(), request.uri(), request.headers(), policy) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                let path = request.uri().path();
                tracing::debug!(method = %request.method(), path, %refusal, "refused");
                let error = match refusal {
                    Refusal::Method => match admin::methods(path) {
                        Some(allow) => Error::method(allow),
                        // A preflight is refused wherever it goes, and a tunnel has no path.
                        None if path.starts_with("/v1/")
                            || matches!(*request.method(), Method::OPTIONS | Method::CONNECT) =>
                        {
                            Error::method(proxy::methods(path))
                        }
                        None => admin::nothing_at(path),
                    },
                    refusal => Error::from(refusal),
                };
                if refusal == Refusal::Framing {
                    return turn_away(error);
                }
                // A browser cannot send the key by itself: the page asks for it.
                let page = (refusal == Refusal::NoKey).then(|| self.admin.locked(&snapshot, &request)).flatten();
                return page.unwrap_or_else(|| admin::protect(error.response(None)));
            }
        };
        if request.uri().path().starts_with("/v1/") {
            return pin!(self.proxy.handle(&snapshot, &admitted, request, drain)).await;
        }
        let (head, mut body) = request.into_parts();
        Box::pin(self.admin.handle(&snapshot, &head, &mut body)).await
    }

    /// What happens without being asked for, as long as it is polled: accounts are kept well, the login box is shown,
    /// idle connections to providers are closed.
    pub async fn background(&self) {
        tokio::join!(self.sweep(), self.accounts.run(), self.show_boxes());
    }

    /// Waits until no token is between the authorization server and the store, for 4.5 s at most, or
    /// 20 s where a refresh is under way: cutting it off might cost the account.
    pub async fn finish(&self) {
        let saved = tokio::time::timeout(SAVE_TIME, self.accounts.finish()).await;
        if saved.is_err() && self.accounts.is_refreshing() {
            tracing::info!("waiting for the authorization server: a refresh is under way");
            if tokio::time::timeout(ROTATION_TIME, self.accounts.finish()).await.is_err() {
                tracing::warn!("a refresh was not answered in time");
            }
        }
    }

    /// Shows the login box, once for each account until it is solved.
    async fn show_boxes(&self) {
        let mut needy = self.accounts.needing_login();
        let mut shown = Vec::new();
        loop {
            let now = needy.borrow_and_update().clone();
            shown.retain(|account| now.iter().any(|(other, _)| other == account));
            for (account, _) in now {
                if !shown.contains(&account) {
                    let language = self.admin.live.load().settings.language;
                    let text = human::login_box(&self.admin.endpoint, account.as_ref(), language);
                    if let Some(log) = &self.admin.log {
                        log.show(text);
                    }
                    shown.push(account);
                }
            }
            if needy.changed().await.is_err() {
                return;
            }
        }
    }

    async fn sweep(&self) {
        loop {
            let before = SystemTime::now();
            tokio::time::sleep(SWEEP_TIME).await;
            // By the wall clock: the other one stands still while a laptop sleeps.
            let slept = before.elapsed().unwrap_or_default().saturating_sub(SWEEP_TIME);
            if slept > SLEEP_TIME {
                tracing::info!(
                    seconds = slept.as_secs(),
                    "this machine was asleep: connections to providers are made anew"
                );
                self.proxy.upstream.drop_idle();
            } else {
                self.proxy.upstream.expire_idle();
            }
        }
    }
}

/// The last answer on a connection: nobody knows where its next request begins, or it has no next one.
pub fn turn_away(error: Error) -> Response<Outbound> {
    let mut response = admin::protect(error.response(None));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The URL under which this machine reaches the balancer.
pub fn endpoint(host: &str, port: u16) -> String {
    let name = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(address) => crate::provider::bracketed(&address.to_string()),
        Err(_) => host.to_owned(),
    };
    format!("http://{name}:{port}")
}
