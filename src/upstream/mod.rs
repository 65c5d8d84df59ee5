//! Requests to providers: a finished request goes in, a response head and a body come out.
//!
//! This room knows connections, pools, tunnels and TLS. It knows no accounts, no routes and no client, and it judges
//! nothing: [`SendError`] states facts. One thing it does by itself, for it is free: when a kept-alive connection
//! turns out to be dead before any byte of an answer, or a provider says in HTTP/2 that it did not look at a request,
//! the request is sent once more.

mod body;
mod connect;
mod error;
pub mod http1;
mod http2;
mod pool;
mod socks;
pub mod tls;
mod tunnel;

use std::borrow::Cow;
use std::io::Write as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use rustls::ClientConfig;

pub use body::Body;
pub use connect::DialLimits;
pub use error::{BodyError, HeadFault, SendError, TunnelFault};
pub use http1::Payload;

use crate::provider::Provider;
use connect::Stream;
use http1::{Connection, Exchange};
use http2::Way;
use pool::{Http2, Pool, Pools};

/// Room for a head: most have less, and the allocator has so much at hand.
const HEAD_ROOM: usize = 1000;

/// All connections to all providers.
#[derive(Debug)]
pub struct Upstream {
    pools: Pools,
}

/// A finished request: its head says everything but the framing, which follows from the payload. What it is made of is
/// mostly the client's, and borrowed.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query, byte for byte as they go on the wire.
    pub target: Cow<'a, str>,
    /// All fields but `content-length` and `transfer-encoding`; `host` and exactly one credential among them.
    pub headers: Vec<Field<'a>>,
    /// The body.
    pub payload: Payload<'a>,
}

/// A header field: its name in lower case, and its value.
pub type Field<'a> = (&'a str, Cow<'a, HeaderValue>);

/// A final response.
#[derive(Debug)]
pub struct Response {
    /// The status; any number that a provider likes.
    pub status: StatusCode,
    /// As they came.
    pub headers: HeaderMap,
    /// The body.
    pub body: Body,
}

impl Upstream {
    /// Trusts `roots` (see [`tls::system_roots`]).
    pub fn new(roots: rustls::RootCertStore) -> Self {
        Self { pools: Pools::new(tls::client_config(roots)) }
    }

    /// Sends a request to a provider and waits for the final response head. There is no limit on that wait: the
    /// caller has one. Dropping the future ends the request, and its connection in HTTP/1.1.
    ///
    /// # Errors
    /// [`SendError`], with what is known of whether the provider saw anything.
    pub async fn send(
        &self,
        provider: &Provider,
        request: Request<'_>,
        limits: DialLimits,
    ) -> Result<Response, SendError> {
        let pool = self.pools.of(&provider.peer);
        let head_request = *request.method == Method::HEAD;
        if let Payload::Stream(_) = request.payload {
            // Sent twice it cannot be, so it never goes on a connection that may be dead.
            let head = serialize(&request);
            let fresh = self.dial(&pool, provider, limits).await?;
            return Ok(Response::new(fresh.exchange(head, request.payload, head_request).await?, pool));
        }
        let payload = || match &request.payload {
            Payload::Pieces(pieces) => Payload::Pieces(Cow::Borrowed(pieces)),
            Payload::Empty | Payload::Stream(_) => Payload::Empty,
        };
        let mut again = false;
        loop {
            let way = match pool.way(again) {
                Some(way) => way,
                None => pin!(self.fresh(&pool, provider, limits)).await?,
            };
            match way {
                Way::Stream(slot) => match Box::pin(slot.exchange(&request)).await {
                    Err(error) if error.nothing_sent() && !again => {
                        tracing::debug!(provider = %provider.key, %error, "the request was not taken; sending again");
                    }
                    result => return result,
                },
                Way::Idle(connection) => {
                    match pin!(connection.exchange(serialize(&request), payload(), head_request)).await {
                        Err(SendError::Closed { reused: true, .. }) => {
                            tracing::debug!(provider = %provider.key, "an idle connection was dead; sending on a new one");
                        }
                        // Some servers say so before they close an idle connection (RFC 9110 §15.5.9): it met our request.
                        Ok(exchange) if exchange.is_farewell() => {
                            tracing::debug!(provider = %provider.key, "an idle connection had ended; sending on a new one");
                        }
                        result => return Ok(Response::new(result?, pool)),
                    }
                }
                Way::Fresh(connection) => {
                    let exchange = pin!(connection.exchange(serialize(&request), payload(), head_request)).await?;
                    return Ok(Response::new(exchange, pool));
                }
            }
            again = true;
        }
    }

    /// Like [`Upstream::send`], but on a new connection in HTTP/1.1 that serves nothing before or after it: for what
    /// must never be sent twice, not even where an idle connection was dead.
    ///
    /// # Errors
    /// [`SendError`], with what is known of whether the provider saw anything.
    pub async fn send_once(
        &self,
        provider: &Provider,
        request: Request<'_>,
        limits: DialLimits,
    ) -> Result<Response, SendError> {
        let fresh = self.dial(&self.pools.of(&provider.peer), provider, limits).await?;
        let head = serialize(&request);
        let head_request = *request.method == Method::HEAD;
        Ok(Response::alone(fresh.exchange(head, request.payload, head_request).await?))
    }

    /// A new way for a request.
    async fn fresh(&self, pool: &Pool, provider: &Provider, limits: DialLimits) -> Result<Way, SendError> {
        match &pool.http2 {
            None => self.dial(pool, provider, limits).await.map(Way::Fresh),
            Some(http2) => Box::pin(http2.lines.dial(self.offer(pool, http2, provider, limits))).await,
        }
    }

    /// Opens a connection, offering HTTP/2.
    async fn offer(
        &self,
        pool: &Pool,
        http2: &Http2,
        provider: &Provider,
        limits: DialLimits,
    ) -> Result<Way, SendError> {
        let stream = self.reach(&http2.tls, &pool.tls, provider, limits).await?;
        if !stream.chose_http2() {
            return Ok(Way::Fresh(Connection::new(stream)));
        }
        http2.lines.open(stream, &provider.base.host, limits.tls).await.map(Way::Stream)
    }

    /// Opens a connection in HTTP/1.1.
    async fn dial(&self, pool: &Pool, provider: &Provider, limits: DialLimits) -> Result<Connection, SendError> {
        self.reach(&pool.tls, &pool.tls, provider, limits).await.map(Connection::new)
    }

    /// Opens a connection. Where no descriptor is left for it, idle ones give up theirs.
    async fn reach(
        &self,
        tls: &Arc<ClientConfig>,
        proxies: &Arc<ClientConfig>,
        provider: &Provider,
        limits: DialLimits,
    ) -> Result<Stream, SendError> {
        // Making one is seldom and takes a lot of room: it has its own.
        let dial = || Box::pin(connect::dial(tls, proxies, provider, limits));
        match dial().await {
            Err(error) if error.is_want_of_descriptors() => {
                tracing::debug!(provider = %provider.key, "no descriptor is left: idle connections are closed");
                self.drop_idle();
                dial().await
            }
            result => result,
        }
    }

    /// Closes connections that have been idle for too long; to be called every few seconds.
    pub fn expire_idle(&self) {
        self.pools.expire(Duration::MAX);
    }

    /// Closes every idle connection.
    pub fn drop_idle(&self) {
        self.pools.expire(Duration::ZERO);
    }

    /// After a reload: idle connections to peers that nobody uses any longer are closed.
    pub fn retain(&self, providers: &[Arc<Provider>]) {
        self.pools.retain(providers);
    }
}

impl Response {
    fn new(exchange: Exchange, pool: Arc<Pool>) -> Self {
        // Where HTTP/2 was not offered but might be chosen, the next request is to find that out.
        let home = (exchange.head.keep_alive && pool.speaks_http1()).then_some(pool);
        Self::at_home(exchange, home)
    }

    /// On a connection that ends with it.
    fn alone(exchange: Exchange) -> Self {
        Self::at_home(exchange, None)
    }

    fn at_home(exchange: Exchange, home: Option<Arc<Pool>>) -> Self {
        let Exchange { connection, head, upload } = exchange;
        let body = http1::Body::new(connection, head.framing, upload, home);
        Self { status: head.status, headers: head.headers, body: body.into() }
    }
}

fn serialize(request: &Request<'_>) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_ROOM);
    head.extend_from_slice(request.method.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(request.target.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in &request.headers {
        for part in [name.as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    let length = match &request.payload {
        Payload::Stream(body) => body.length(),
        Payload::Pieces(pieces) => Some(pieces.iter().map(|piece| piece.len() as u64).sum()),
        Payload::Empty => None,
    };
    if let Some(length) = length {
        // Writing to a Vec cannot fail.
        let _ = write!(head, "content-length: {length}\r\n");
    } else if let Payload::Stream(_) = request.payload {
        head.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}
