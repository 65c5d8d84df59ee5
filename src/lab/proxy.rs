//! An egress proxy: CONNECT, credentials, a map of names that only it can resolve, and several bad manners.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::record::{add, locked, until};
use super::request::{Received, read_head};
use super::wire::Wire;
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
    address: SocketAddr,
    tasks: JoinSet<()>,
}

struct Shared {
    manner: Mutex<Manner>,
    authorization: Mutex<Option<String>>,
    names: Mutex<HashMap<String, SocketAddr>>,
    requests: Mutex<Vec<Received>>,
    received: watch::Sender<usize>,
    connections: watch::Sender<usize>,
}

impl Tunnel {
    /// On a free port of 127.0.0.1, open to everybody, piping.
    pub async fn start() -> io::Result<Self> {
        let listener = bind(free_port()).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            manner: Mutex::new(Manner::Pipe),
            authorization: Mutex::default(),
            names: Mutex::default(),
            requests: Mutex::default(),
            received: watch::Sender::new(0),
            connections: watch::Sender::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { shared, address, tasks })
    }

    /// Ends the listener and all connections, and returns when that is done.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, without credentials.
    pub fn url(&self) -> String {
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
        locked(&self.shared.names).insert(name.to_owned(), address);
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
        *self.shared.connections.borrow()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((tcp, _)) = accepted else { tokio::task::yield_now().await; continue };
                let number = *shared.connections.borrow();
                add(&shared.connections);
                let shared = Arc::clone(&shared);
                // An error is the end of one connection; its peer has seen it too.
                connections.spawn(async move { drop(serve(&shared, tcp, number).await) });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(shared: &Shared, tcp: TcpStream, number: usize) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut wire = Wire::plain(tcp);
    let Ok(request) = read_head(&mut wire, number).await else { return Ok(()) };
    locked(&shared.requests).push(request.clone());
    add(&shared.received);
    let (mut tcp, early) = wire.into_plain()?;

    let required = locked(&shared.authorization).clone();
    if required.is_some() && required.as_deref() != request.header("proxy-authorization") {
        let challenge = [("proxy-authenticate".to_owned(), "Basic realm=\"lab\"".to_owned())];
        return refuse(tcp, 407, &challenge).await;
    }
    let manner = locked(&shared.manner).clone();
    let headers = match manner {
        Manner::Pipe => Vec::new(),
        Manner::PipeWith(headers) => headers,
        Manner::Refuse(status) => return refuse(tcp, status, &[]).await,
        Manner::Hang => return tcp.read_to_end(&mut Vec::new()).await.map(drop),
        Manner::Close => return Ok(()),
        Manner::CloseAfterOk => {
            tcp.write_all(&head(200, &[])).await?;
            return tcp.shutdown().await;
        }
        Manner::Raw(bytes) => {
            tcp.write_all(&bytes).await?;
            return tcp.shutdown().await;
        }
    };
    if request.method != "CONNECT" {
        return refuse(tcp, 405, &[]).await;
    }
    let Some(address) = resolve(shared, &request.target) else { return refuse(tcp, 502, &[]).await };
    let Ok(mut beyond) = TcpStream::connect(address).await else { return refuse(tcp, 502, &[]).await };
    beyond.set_nodelay(true)?;
    tcp.write_all(&head(200, &headers)).await?;
    beyond.write_all(&early).await?;
    tokio::io::copy_bidirectional(&mut tcp, &mut beyond).await.map(drop)
}

/// A mapped name, `localhost`, or a loopback address; nothing else.
fn resolve(shared: &Shared, target: &str) -> Option<SocketAddr> {
    if let Some(address) = locked(&shared.names).get(target) {
        return Some(*address);
    }
    let target = target.replace("localhost:", "127.0.0.1:");
    target.parse().ok().filter(|address: &SocketAddr| address.ip().is_loopback())
}

async fn refuse(mut tcp: TcpStream, status: u16, headers: &[(String, String)]) -> io::Result<()> {
    let mut headers = headers.to_vec();
    headers.push(("content-length".to_owned(), "0".to_owned()));
    headers.push(("connection".to_owned(), "close".to_owned()));
    tcp.write_all(&head(status, &headers)).await?;
    tcp.shutdown().await
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
