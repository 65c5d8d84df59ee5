//! What every egress proxy of the lab has: a way through, on loopback only, a map of names, and a memory of what it
//! was sent.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::record::{add, locked};

/// How much of what arrives is remembered.
const MEMORY: usize = 4 * 1024 * 1024;

/// The memory of one proxy.
pub(super) struct Passage {
    names: Mutex<HashMap<String, SocketAddr>>,
    seen: Mutex<Vec<u8>>,
    pub(super) connections: watch::Sender<usize>,
    pub(super) open: watch::Sender<usize>,
}

impl Passage {
    pub(super) fn new() -> Self {
        Self {
            names: Mutex::default(),
            seen: Mutex::default(),
            connections: watch::Sender::new(0),
            open: watch::Sender::new(0),
        }
    }

    pub(super) fn map(&self, name: &str, address: SocketAddr) {
        locked(&self.names).insert(name.to_owned(), address);
    }

    pub(super) fn remember(&self, bytes: &[u8]) {
        let mut seen = locked(&self.seen);
        let room = MEMORY.saturating_sub(seen.len()).min(bytes.len());
        seen.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }

    pub(super) fn seen(&self) -> Vec<u8> {
        locked(&self.seen).clone()
    }

    /// A mapped name, `localhost`, or a loopback address; nothing else.
    fn resolve(&self, target: &str) -> Option<SocketAddr> {
        if let Some(address) = locked(&self.names).get(target) {
            return Some(*address);
        }
        let target = target.replace("localhost:", "127.0.0.1:");
        target.parse().ok().filter(|address: &SocketAddr| address.ip().is_loopback())
    }

    /// Connects to `host:port`.
    pub(super) async fn connect(&self, target: &str) -> io::Result<TcpStream> {
        let address = self.resolve(target).ok_or(io::ErrorKind::NotFound)?;
        let beyond = TcpStream::connect(address).await?;
        beyond.set_nodelay(true)?;
        Ok(beyond)
    }

    /// Passes bytes both ways until both sides have ended; `early` was read already.
    pub(super) async fn pipe<S>(&self, near: S, early: &[u8], mut beyond: TcpStream) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.remember(early);
        beyond.write_all(early).await?;
        tokio::io::copy_bidirectional(&mut Tap { near, passage: self }, &mut beyond).await.map(drop)
    }
}

/// Accepts connections for ever; they end with this future.
pub(super) async fn accept<F>(listener: TcpListener, passage: Arc<Passage>, serve: impl Fn(TcpStream, usize) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((tcp, _)) = accepted else { tokio::task::yield_now().await; continue };
                let number = *passage.connections.borrow();
                add(&passage.connections);
                add(&passage.open);
                let open = Open(Arc::clone(&passage));
                let served = serve(tcp, number);
                connections.spawn(async move {
                    // An error is the end of one connection; its peer has seen it too.
                    drop(served.await);
                    drop(open);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// An open connection.
struct Open(Arc<Passage>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open = open.saturating_sub(1));
    }
}

/// The near side; what is read from it is remembered.
struct Tap<'a, S> {
    near: S,
    passage: &'a Passage,
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        let read = Pin::new(&mut this.near).poll_read(cx, into);
        this.passage.remember(into.filled().get(before..).unwrap_or_default());
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().near).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().near).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().near).poll_shutdown(cx)
    }
}
