//! An HTTP/1.1 client on a bare socket: one connection, requests written as given, every chunk seen as it arrives.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// One connection.
pub struct Client {
    stream: Box<dyn Transport>,
    inbox: BytesMut,
    body: Body,
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    pub version: String,
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// Whether the body ended as it should: by its terminator or with its full length.
    pub clean_end: bool,
}

/// What is left of the current body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    None,
    Length(usize),
    Chunked,
    UntilClose,
    Done { clean: bool },
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

impl Client {
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    /// Over any stream: TLS, a tunnel.
    pub fn over(stream: impl Transport + 'static) -> Self {
        Self { stream: Box::new(stream), inbox: BytesMut::new(), body: Body::None }
    }

    /// Connects, sends one request and reads the whole answer.
    pub async fn once(address: SocketAddr, method: &str, target: &str, body: &str) -> io::Result<Reply> {
        let mut client = Self::connect(address).await?;
        client.send(method, target, &[], body).await?;
        client.read_to_end().await
    }

    /// Writes a request; `host` and, with a body, `content-length` are added unless given.
    pub async fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> io::Result<()> {
        let body = body.as_ref();
        let given = |name: &str| headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !given("host") {
            head.push_str("host: localhost\r\n");
        }
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        if !body.is_empty() && !given("content-length") && !given("transfer-encoding") {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.send_raw(&bytes).await
    }

    /// Writes exactly these bytes.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Reads the head of the final answer; interim ones are dropped.
    pub async fn head(&mut self) -> io::Result<Head> {
        loop {
            let head = self.any_head().await?;
            if !(100..200).contains(&head.status) || head.status == 101 {
                return Ok(head);
            }
        }
    }

    /// Reads the next head, be it interim.
    pub async fn any_head(&mut self) -> io::Result<Head> {
        let end = loop {
            if let Some(at) = memchr::memmem::find(&self.inbox, b"\r\n\r\n") {
                break at + 4;
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let bytes = self.inbox.split_to(end);
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let mut first = lines.next().unwrap_or_default().splitn(3, ' ').map(str::to_owned);
        let version = first.next().unwrap_or_default();
        let status = first.next().and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let granted = headers.iter().find(|(name, _)| name.to_ascii_lowercase().starts_with("access-control-"));
        assert!(granted.is_none(), "an answer grants an origin: {granted:?}");
        let head = Head { version, status, reason: first.next().unwrap_or_default(), headers };
        self.body = match (head.header("transfer-encoding"), head.header("content-length")) {
            _ if matches!(status, 100..=199 | 204 | 304) => Body::Done { clean: true },
            (Some(_), _) => Body::Chunked,
            (None, Some(length)) => Body::Length(length.parse().map_err(|_| io::ErrorKind::InvalidData)?),
            (None, None) => Body::UntilClose,
        };
        Ok(head)
    }

    /// The next piece of the body: a whole chunk, or what one read brings. `None` at its end; then
    /// [`clean_end`](Self::clean_end) tells which.
    pub async fn frame(&mut self) -> Option<Bytes> {
        match self.body {
            Body::None | Body::Done { .. } => None,
            Body::Length(0) => self.done(true),
            Body::Length(left) => {
                if self.inbox.is_empty() && !matches!(self.fill().await, Ok(1..)) {
                    return self.done(false);
                }
                let piece = self.inbox.split_to(left.min(self.inbox.len())).freeze();
                self.body = Body::Length(left - piece.len());
                Some(piece)
            }
            Body::UntilClose => {
                if self.inbox.is_empty() {
                    match self.fill().await {
                        Ok(0) => return self.done(true),
                        Ok(_) => {}
                        Err(_) => return self.done(false),
                    }
                }
                Some(self.inbox.split().freeze())
            }
            Body::Chunked => match self.chunk().await {
                Ok(chunk) if chunk.is_empty() => self.done(true),
                Ok(chunk) => Some(chunk),
                Err(partial) if partial.is_empty() => self.done(false),
                Err(partial) => {
                    self.body = Body::Done { clean: false };
                    Some(partial)
                }
            },
        }
    }

    /// How the body ended. (One that ends with the connection is clean after FIN, not after RST.)
    pub fn clean_end(&self) -> bool {
        self.body == Body::Done { clean: true } || self.body == Body::Length(0)
    }

    /// Reads the rest of the body.
    pub async fn rest(&mut self) -> (Bytes, bool) {
        let mut body = BytesMut::new();
        while let Some(frame) = self.frame().await {
            body.extend_from_slice(&frame);
        }
        (body.freeze(), self.clean_end())
    }

    /// Reads a whole answer.
    pub async fn read_to_end(&mut self) -> io::Result<Reply> {
        let head = self.head().await?;
        let (body, clean_end) = self.rest().await;
        Ok(Reply { status: head.status, headers: head.headers, body, clean_end })
    }

    /// Everything up to the end of the connection, as it is on the wire, and the error if it ended by one.
    pub async fn raw_to_end(&mut self) -> (Bytes, Option<io::ErrorKind>) {
        loop {
            match self.fill().await {
                Ok(0) => return (self.inbox.split().freeze(), None),
                Ok(_) => {}
                Err(error) => return (self.inbox.split().freeze(), Some(error.kind())),
            }
        }
    }

    /// What has arrived and has not been asked for.
    pub fn leftover(&self) -> &[u8] {
        &self.inbox
    }

    /// A chunk; empty for the last one. If the connection ends within it, what there was of its data.
    async fn chunk(&mut self) -> Result<Bytes, Bytes> {
        let line = self.line().await.ok_or_else(Bytes::new)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_| Bytes::new())?;
        if size == 0 {
            while !self.line().await.ok_or_else(Bytes::new)?.is_empty() {}
            return Ok(Bytes::new());
        }
        while self.inbox.len() < size + 2 {
            if !matches!(self.fill().await, Ok(1..)) {
                let partial = self.inbox.len().min(size);
                return Err(self.inbox.split_to(partial).freeze());
            }
        }
        let chunk = self.inbox.split_to(size).freeze();
        assert_eq!(&self.inbox.split_to(2)[..], b"\r\n", "a chunk ends with CRLF");
        Ok(chunk)
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.inbox, b"\r\n") {
                let line = self.inbox.split_to(at + 2);
                return Some(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            if !matches!(self.fill().await, Ok(1..)) {
                return None;
            }
        }
    }

    fn done(&mut self, clean: bool) -> Option<Bytes> {
        self.body = Body::Done { clean };
        None
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.inbox).await
    }
}
