//! A provider that speaks HTTP/2 in frames of a test's own making: what no library would send.

use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::tls::Authority;

/// Types of frames (RFC 9113 §6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A listener for connections in HTTP/2, each of which says the same.
pub struct Peer {
    address: SocketAddr,
    connections: watch::Sender<usize>,
    _tasks: JoinSet<()>,
}

/// One connection; its settings and the peer's preface are done.
pub struct Wire {
    stream: TlsStream<TcpStream>,
    /// Which of the peer's connections it is, from 0.
    pub number: usize,
}

/// A frame that arrived.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Peer {
    /// Connections are handed to this, and dropped after it.
    pub async fn start<F>(authority: &Authority, says: impl Fn(Wire) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(authority.server_http2());
        let connections = watch::Sender::new(0);
        let (mut tasks, count) = (JoinSet::new(), connections.clone());
        tasks.spawn(async move {
            let mut running = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let number = *count.borrow();
                count.send_modify(|count| *count += 1);
                let (acceptor, says) = (acceptor.clone(), says.clone());
                running.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                    let mut preface = [0; 24];
                    if stream.read_exact(&mut preface).await.is_ok() {
                        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
                        says(Wire { stream, number }).await;
                    }
                });
            }
        });
        Self { address, connections, _tasks: tasks }
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    pub fn connections(&self) -> usize {
        *self.connections.borrow()
    }
}

impl Wire {
    /// Sends one frame; that the peer is gone is no matter.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.send_all(&frame(kind, flags, stream, payload)).await
    }

    /// Sends frames made with [`frame`]; whether the peer takes them.
    pub async fn send_all(&mut self, frames: &[u8]) -> bool {
        self.stream.write_all(frames).await.is_ok() && self.stream.flush().await.is_ok()
    }

    /// The next frame; `None` at the end.
    pub async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Sends settings, and waits for the end of a request; its stream.
    pub async fn greet(&mut self) -> Option<u32> {
        self.send(SETTINGS, 0, 0, &[]).await;
        self.request().await
    }

    /// The stream of the next request, after its end.
    pub async fn request(&mut self) -> Option<u32> {
        loop {
            let frame = self.frame().await?;
            if matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
                return Some(frame.stream);
            }
        }
    }

    /// Reads until the peer has left.
    pub async fn drain(&mut self) {
        while self.frame().await.is_some() {}
    }
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = BytesMut::new();
    frame.put_uint(payload.len() as u64, 3);
    frame.put_u8(kind);
    frame.put_u8(flags);
    frame.put_u32(stream);
    frame.put_slice(payload);
    frame.to_vec()
}

/// A block of fields (RFC 7541 §6.2.2: literals, not indexed), pseudo ones first.
pub fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in list {
        block.push(0);
        for text in [name, value] {
            // A length of seven bits, or 127 and the rest in groups of seven (§5.1).
            let mut length = text.len();
            block.push(length.min(127) as u8);
            if length >= 127 {
                length -= 127;
                while length >= 128 {
                    block.push((length % 128 + 128) as u8);
                    length /= 128;
                }
                block.push(length as u8);
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}
