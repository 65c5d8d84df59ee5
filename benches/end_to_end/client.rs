//! The client: one connection that is kept alive, one request at a time, written once and sent as it is.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::upstream::HURRY;

/// What a client asks for; the provider does as the name of the model says.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Ask {
    /// A message, with a prompt of 1 KB.
    Plain,
    /// The same with 100 KB.
    Large,
    /// The same as `Plain`, which meets an overloaded provider first.
    Faulty,
    /// A stream of [`HURRY`] events, all at once.
    Hurry,
    /// A stream of four events.
    Brief,
    /// A stream that falls silent after two.
    Quiet,
    /// A stream with an event at each beat.
    Paced,
}

impl Ask {
    /// In how many parts an answer comes that share its cost.
    pub(crate) fn events(self) -> usize {
        if self == Self::Hurry { HURRY } else { 1 }
    }
}

/// A number in the name of a model: an overloaded provider is not asked again for the same one, for a while.
const DIGITS: usize = 8;

/// See the module.
pub(crate) struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    /// Where the number is, if each request has its own.
    number: Option<usize>,
    inbox: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, ask: Ask) -> Self {
        let (name, prompt) = match ask {
            Ask::Plain => ("plain", 1000),
            Ask::Large => ("plain", 100_000),
            Ask::Faulty => ("faulty", 1000),
            Ask::Hurry => ("hurry", 1000),
            Ask::Brief => ("brief", 1000),
            Ask::Quiet => ("quiet", 1000),
            Ask::Paced => ("paced", 1000),
        };
        let streaming = matches!(ask, Ask::Hurry | Ask::Brief | Ask::Quiet | Ask::Paced);
        let model = format!("{name}-{:0DIGITS$}", 0);
        let prompt = "say something new ".repeat(prompt / 18);
        let body = format!(
            "{{\"model\":\"{model}\",\"max_tokens\":64,\"stream\":{streaming},\
             \"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}]}}"
        );
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             anthropic-version: 2023-06-01\r\nuser-agent: bench\r\nx-api-key: dummy\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let number = head.len() + "{\"model\":\"".len() + name.len() + 1;
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        Self {
            stream,
            request: (head + &body).into_bytes(),
            number: (ask == Ask::Faulty).then_some(number),
            inbox: Vec::new(),
        }
    }

    async fn send(&mut self) {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if let Some(at) = self.number {
            let number = format!("{:0DIGITS$}", NUMBER.fetch_add(1, Ordering::Relaxed));
            self.request.splice(at..at + DIGITS, number.bytes());
        }
        self.inbox.clear();
        self.stream.write_all(&self.request).await.expect("sent");
    }

    async fn read(&mut self) {
        let read = self.stream.read_buf(&mut self.inbox).await.expect("an answer");
        assert!(read > 0, "closed after {}", String::from_utf8_lossy(&self.inbox));
    }

    /// Sends the request and reads until the body of the answer begins, for a stream with its first event; the answer
    /// is how long that took.
    pub(crate) async fn begin(&mut self) -> Duration {
        let start = Instant::now();
        self.send().await;
        while memchr::memmem::find(&self.inbox, b"\r\n\r\n").is_none_or(|end| self.inbox.len() <= end + 4) {
            self.read().await;
        }
        start.elapsed()
    }

    /// Reads the rest of an answer.
    pub(crate) async fn finish(&mut self) {
        let mut whole = None;
        loop {
            if whole.is_none() {
                whole = announced(&self.inbox);
            }
            match whole {
                Some(Some(length)) if self.inbox.len() >= length => break,
                Some(None) if self.inbox.ends_with(b"\r\n0\r\n\r\n") => break,
                _ => self.read().await,
            }
        }
        // Where the first provider was left out, no failover was measured.
        let failed_over = || memchr::memmem::find(&self.inbox, b"x-balancer-attempts: 2").is_some();
        assert!(self.number.is_none() || failed_over(), "{}", String::from_utf8_lossy(&self.inbox));
    }

    /// A request and its whole answer.
    pub(crate) async fn ask(&mut self) {
        self.send().await;
        self.finish().await;
    }

    /// Reads a stream without end and counts its events.
    pub(crate) async fn follow(mut self, events: &AtomicU64) {
        loop {
            self.inbox.clear();
            self.read().await;
            let found = memchr::memmem::find_iter(&self.inbox, b"\n\n").count();
            events.fetch_add(found as u64, Ordering::Relaxed);
        }
    }
}

/// Once the head is there: the length of head and body, or none where the body comes in chunks.
fn announced(inbox: &[u8]) -> Option<Option<usize>> {
    let end = memchr::memmem::find(inbox, b"\r\n\r\n")? + 4;
    let head = inbox.get(..end)?;
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(inbox));
    Some(content_length(head).map(|length| end + length))
}

/// The length that a head announces.
pub(crate) fn content_length(head: &[u8]) -> Option<usize> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
}
