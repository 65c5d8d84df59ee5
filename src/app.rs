//! The assembly: builds the rooms once and leads a request to its room.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use rustls::RootCertStore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Admin};
use crate::config::Live;
use crate::gate::{self, Refusal};
use crate::health::Health;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::proxy::reject::Error;
use crate::proxy::relay::Outbound;
use crate::proxy::{self, Proxy};
use crate::route::Sticky;
use crate::upstream::Upstream;

/// How often idle connections to providers are looked through.
const SWEEP_TIME: Duration = Duration::from_secs(5);

/// Everything, for the whole life of the process.
pub struct App {
    /// The data path.
    pub proxy: Proxy,
    /// The balancer's own state, shown and changed.
    pub admin: Arc<Admin>,
    port: u16,
}

impl App {
    /// Builds the rooms. `port` is the one that is really bound; `log`, if there is one, follows `log_level`.
    pub fn new(live: Arc<Live>, roots: RootCertStore, metrics: Arc<Metrics>, port: u16, log: Option<Arc<Log>>) -> Self {
        let snapshot = live.load();
        metrics.config_generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        let health = Arc::new(Health::new(snapshot.settings.health.clone()));
        let upstream = Arc::new(Upstream::new(roots));
        let endpoint = endpoint(&snapshot.settings.host, port);
        let proxy = Proxy {
            health: health.clone(),
            upstream: upstream.clone(),
            metrics: metrics.clone(),
            sticky: Sticky::default(),
            tasks: TaskTracker::new(),
            endpoint,
        };
        let admin = Arc::new(Admin { live, health, upstream, metrics, log });
        Self { proxy, admin, port }
    }

    /// Answers one request; `drain` ends it when the service has no time left.
    pub async fn handle(
        &self,
        mut request: Request<Incoming>,
        peer: IpAddr,
        drain: &CancellationToken,
    ) -> Response<Outbound> {
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
                        // A preflight is refused wherever it goes.
                        None if path.starts_with("/v1/") || request.method() == Method::OPTIONS => {
                            Error::method(proxy::methods(path))
                        }
                        None => admin::nothing_at(path),
                    },
                    refusal => Error::from(refusal),
                };
                let mut response = admin::protect(error.response(None));
                if refusal == Refusal::Framing {
                    // Nobody knows where the next request on this connection begins.
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                } else {
                    let (head, body) = request.into_parts();
                    self.proxy.linger(&head.headers, body);
                }
                return response;
            }
        };
        if request.uri().path().starts_with("/v1/") {
            return self.proxy.handle(&snapshot, &admitted, request, drain).await;
        }
        let response = self.admin.handle(&snapshot, &request).await;
        let (head, body) = request.into_parts();
        self.proxy.linger(&head.headers, body);
        response
    }

    /// Closes connections to providers that have been idle for too long; runs as long as it is polled.
    pub async fn sweep(&self) {
        loop {
            tokio::time::sleep(SWEEP_TIME).await;
            self.proxy.upstream.expire_idle();
        }
    }
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
