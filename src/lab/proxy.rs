//! An HTTP egress proxy, plain or over TLS: CONNECT, credentials, a map of names that only it can resolve, and several
//! bad manners.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::http2;
use super::passage::{Passage, accept};
use super::record::{add, locked, until};
use super::request::{Received, read_head};
use super::wire::{Stream, Wire};
use super::{bind, free_port};

/// What the proxy does with a CONNECT that it has read and admitted.
#[derive(Clone, Debug)]
pub enum Manner {
    /// Connects and passes bytes both ways.
    Pipe,
    /// The same, with these headers in its 200.
    PipeWith(Vec<(String, String)>),
    /// Answers with this status.
    Refuse(u16),
    /// Never answers.
    Hang,
    /// Closes without an answer.
    Close,
    /// Answers 200 and closes.
    CloseAfterOk,
    /// Answers with these bytes and closes.
    Raw(Vec<u8>),
}

/// An HTTP egress proxy on loopback, which reaches loopback only. Dropping it ends it and its connections.
pub struct Tunnel {
    shared: Arc<Shared>,
    passage: Arc<Passage>,
    address: SocketAddr,
    secure: bool,
    tasks: JoinSet<()>,
}

struct Shared {
    manner: Mutex<Manner>,
    authorization: Mutex<Option<String>>,
    requests: Mutex<Vec<Received>>,
    received: watch::Sender<usize>,
}

impl Tunnel {
    /// On a free port of 127.0.0.1, open to everybody, piping.
    pub async fn start() -> io::Result<Self> {
        Self::begin(None).await
    }

    /// The same, spoken to over TLS.
    pub async fn start_tls(config: Arc<ServerConfig>) -> io::Result<Self> {
        Self::begin(Some(TlsAcceptor::from(config))).await
    }

    async fn begin(tls: Option<TlsAcceptor>) -> io::Result<Self> {
        let listener = bind(free_port()).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            manner: Mutex::new(Manner::Pipe),
            authorization: Mutex::default(),
            requests: Mutex::default(),
            received: watch::Sender::new(0),
        });
        let (passage, secure) = (Arc::new(Passage::new()), tls.is_some());
        let (ours, through) = (Arc::clone(&shared), Arc::clone(&passage));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&passage), move |tcp, number| {
            serve(Arc::clone(&ours), Arc::clone(&through), tls.clone(), tcp, number)
        }));
        Ok(Self { shared, passage, address, secure, tasks })
    }

    /// Ends the listener and all connections, and returns when that is done.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, without credentials; by name where it speaks TLS.
    pub fn url(&self) -> String {
        if self.secure {
            return format!("https://localhost:{}", self.address.port());
        }
        format!("http://{}", self.address)
    }

    /// How it behaves from now on.
    pub fn manner(&self, manner: Manner) {
        *locked(&self.shared.manner) = manner;
    }

    /// Requires these credentials; who comes without them gets 407.
    pub fn require(&self, user: &str, password: &str) {
        let credentials = STANDARD.encode(format!("{user}:{password}"));
        *locked(&self.shared.authorization) = Some(format!("Basic {credentials}"));
    }

    /// Resolves `name:port` to an address.
    pub fn map(&self, name: &str, address: SocketAddr) {
        self.passage.map(name, address);
    }

    /// All requests so far, heads as they were on the wire, those refused with 407 included.
    pub fn requests(&self) -> Vec<Received> {
        locked(&self.shared.requests).clone()
    }

    /// The targets of all CONNECTs so far.
    pub fn targets(&self) -> Vec<String> {
        locked(&self.shared.requests).iter().map(|request| request.target.clone()).collect()
    }

    /// Waits until `count` requests have arrived in all.
    pub async fn received(&self, count: usize) {
        until(&self.shared.received, |received| *received >= count).await;
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        *self.passage.connections.borrow()
    }

    /// Waits until no connection is open.
    pub async fn deserted(&self) {
        until(&self.passage.open, |open| *open == 0).await;
    }

    /// What clients have sent, heads and what went through the tunnels, as it was inside the proxy's own TLS.
    pub fn seen(&self) -> Vec<u8> {
        self.passage.seen()
    }
}

async fn serve(
    shared: Arc<Shared>,
    passage: Arc<Passage>,
    tls: Option<TlsAcceptor>,
    tcp: TcpStream,
    number: usize,
) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut wire = match tls {
        Some(tls) => {
            let stream = tls.accept(tcp).await?;
            // It would be HTTP/2 from here on, which a client that means to say CONNECT must not have offered.
            if stream.get_ref().1.alpn_protocol() == Some(http2::NAME) {
                return Ok(());
            }
            Wire::tls(stream)
        }
        None => Wire::plain(tcp),
    };
    let Ok(request) = read_head(&mut wire, number).await else { return Ok(()) };
    passage.remember(&request.head);
    locked(&shared.requests).push(request.clone());
    add(&shared.received);
    let (mut stream, early) = wire.into_parts();

    let required = locked(&shared.authorization).clone();
    if required.is_some() && required.as_deref() != request.header("proxy-authorization") {
        let challenge = [("proxy-authenticate".to_owned(), "Basic realm=\"lab\"".to_owned())];
        return refuse(stream, 407, &challenge).await;
    }
    let manner = locked(&shared.manner).clone();
    let headers = match manner {
        Manner::Pipe => Vec::new(),
        Manner::PipeWith(headers) => headers,
        Manner::Refuse(status) => return refuse(stream, status, &[]).await,
        Manner::Hang => return stream.read_to_end(&mut Vec::new()).await.map(drop),
        Manner::Close => return Ok(()),
        Manner::CloseAfterOk => {
            stream.write_all(&head(200, &[])).await?;
            return stream.shutdown().await;
        }
        Manner::Raw(bytes) => {
            stream.write_all(&bytes).await?;
            return stream.shutdown().await;
        }
    };
    if request.method != "CONNECT" {
        return refuse(stream, 405, &[]).await;
    }
    let Ok(beyond) = passage.connect(&request.target).await else { return refuse(stream, 502, &[]).await };
    stream.write_all(&head(200, &headers)).await?;
    stream.flush().await?;
    passage.pipe(stream, &early, beyond).await
}

async fn refuse(mut stream: Stream, status: u16, headers: &[(String, String)]) -> io::Result<()> {
    let mut headers = headers.to_vec();
    headers.push(("content-length".to_owned(), "0".to_owned()));
    headers.push(("connection".to_owned(), "close".to_owned()));
    stream.write_all(&head(status, &headers)).await?;
    stream.shutdown().await
}

fn head(status: u16, headers: &[(String, String)]) -> Vec<u8> {
    let reason = if status == 200 { "Connection established" } else { super::acts::reason(status) };
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}
