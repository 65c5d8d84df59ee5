//! A balancer on this machine, asked by a subcommand.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use serde_json::Value;

use crate::config::Snapshot;
use crate::provider::{Auth, BaseUrl, Egress, Kind, Provider, ProviderKey};
use crate::secret::Secret;
use crate::upstream::{DialLimits, Payload, Request, Response, Upstream};

/// How long a running server has to answer what needs nobody else.
const ASK_TIME: Duration = Duration::from_secs(1);
/// How long one has that asks the authorization server in its turn.
const EXCHANGE_TIME: Duration = Duration::from_secs(60);
/// Longest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;

/// The server that a configuration describes.
pub(super) struct Server {
    url: String,
    key: Option<Secret>,
}

/// What it said.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The JSON object, if it is one.
    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok().filter(Value::is_object)
    }
}

impl Server {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let url = crate::app::endpoint(&snapshot.settings.host, snapshot.settings.port);
        Self { url, key: snapshot.settings.auth.keys.first().map(|key| key.secret.clone()) }
    }

    /// `None` = nobody answers in time.
    pub(super) async fn ask(&self, method: Method, target: &str, body: Option<Bytes>) -> Option<Answer> {
        self.ask_within(ASK_TIME, method, target, body).await
    }

    /// The same, where the server has to ask the authorization server.
    pub(super) async fn exchange(&self, target: &str, body: Bytes) -> Option<Answer> {
        self.ask_within(EXCHANGE_TIME, Method::POST, target, Some(body)).await
    }

    async fn ask_within(&self, limit: Duration, method: Method, target: &str, body: Option<Bytes>) -> Option<Answer> {
        let asking = async {
            let mut response = fetch(&self.url, method, target, self.key.as_ref(), body).await?;
            let mut body = Vec::new();
            while let Some(frame) = response.body.frame().await {
                body.extend_from_slice(&frame.ok()?);
                if body.len() > ANSWER_LIMIT {
                    return None;
                }
            }
            Some(Answer { status: response.status, body })
        };
        tokio::time::timeout(limit, asking).await.ok()?
    }
}

/// A request of our own to a balancer on this machine.
pub(super) async fn fetch(
    url: &str,
    method: Method,
    target: &str,
    key: Option<&Secret>,
    body: Option<Bytes>,
) -> Option<Response> {
    let name = ProviderKey { name: "balancer".into(), account: None };
    let balancer = Provider::new(name, Kind::Anthropic, BaseUrl::parse(url).ok()?, Auth::Passthrough, Egress::Direct);
    let mut headers = vec![("host", Cow::Owned(HeaderValue::from_str(&balancer.base.authority()).ok()?))];
    if let Some(key) = key {
        let mut value = HeaderValue::from_str(key.expose()).ok()?;
        value.set_sensitive(true);
        headers.push(("x-api-key", Cow::Owned(value)));
    }
    let payload = match body {
        Some(body) => {
            headers.push(("content-type", Cow::Owned(HeaderValue::from_static("application/json"))));
            Payload::Pieces(vec![body].into())
        }
        None => Payload::Empty,
    };
    let request = Request { method: &method, target: target.into(), headers, payload };
    let limits = DialLimits { connect: ASK_TIME, tls: ASK_TIME };
    Upstream::new(rustls::RootCertStore::empty()).send(&balancer, request, limits).await.ok()
}
