//! A client on a bare socket: one connection, requests written as given, answers read as they come.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Boxed;
use super::ask::Ask;

/// The longest silence that is waited for, in any read.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a peer may take to close a connection that it must not keep.
const CLOSING: Duration = Duration::from_secs(2);
/// The longest head or line, in bytes.
const LINE: usize = 1024 * 1024;
/// What is remembered of each connection, in bytes.
const REMEMBERED: usize = 256 * 1024;

/// Everything that was received, up to a limit for each connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<Mutex<Vec<Bytes>>>);

impl Heard {
    pub(super) fn all(&self) -> Vec<Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One connection to the gateway.
pub struct Wire {
    stream: TcpStream,
    inbox: BytesMut,
    body: Body,
    /// The answer to a HEAD request is on its way.
    headless: bool,
    remembered: Vec<u8>,
    heard: Heard,
}

/// What is left of the current body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Length(usize),
    /// Bytes left of this chunk.
    Chunk(usize),
    /// A size comes, behind the end of another chunk or not.
    Size {
        first: bool,
    },
    UntilClose,
    Done {
        clean: bool,
    },
}

/// A head, or a whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Names and values in wire order.
    pub fields: Vec<(String, String)>,
    /// The body without its framing.
    pub body: Bytes,
    /// Whether the body ended as it should: by its terminator or with its full length.
    pub clean: bool,
}

impl Reply {
    /// The first field with this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Status and the beginning of the body, for a report.
    pub(super) fn brief(&self) -> String {
        let text: String = self.text().chars().take(160).collect();
        format!("{} {text:?}", self.status)
    }

    /// Whether the body is an error in Anthropic's shape.
    pub(super) fn is_api_error(&self) -> bool {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body.get("type").and_then(serde_json::Value::as_str) == Some("error")
            && body.pointer("/error/type").is_some_and(serde_json::Value::is_string)
            && body.pointer("/error/message").is_some_and(serde_json::Value::is_string)
    }
}

impl Wire {
    /// Connects.
    pub(super) async fn open(address: SocketAddr, heard: Heard) -> io::Result<Self> {
        let stream = timeout(PATIENCE, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        let body = Body::Done { clean: true };
        Ok(Self { stream, inbox: BytesMut::new(), body, headless: false, remembered: Vec::new(), heard })
    }

    /// Writes exactly these bytes.
    pub(super) fn send<'a>(&'a mut self, bytes: &'a [u8]) -> Boxed<'a, io::Result<()>> {
        Box::pin(self.write(bytes))
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(PATIENCE, self.stream.write_all(bytes)).await??;
        self.stream.flush().await
    }

    /// Writes a request.
    pub(super) fn ask<'a>(&'a mut self, ask: &Ask, host: &str, prefix: &str) -> Boxed<'a, io::Result<()>> {
        self.headless = ask.method == "HEAD";
        // In one write, as clients do.
        let mut bytes = ask.head(host, prefix);
        bytes.extend_from_slice(&ask.framed_body());
        Box::pin(async move { self.send(&bytes).await })
    }

    /// Whether the gateway answers before everything has been written; used for bodies that it may refuse.
    pub(super) async fn ask_and_listen(&mut self, ask: &Ask, host: &str, prefix: &str) -> io::Result<Reply> {
        self.headless = false;
        let mut bytes = ask.head(host, prefix);
        bytes.extend_from_slice(&ask.framed_body());
        let mut rest: &[u8] = &bytes;
        let mut space = [0; 16 * 1024];
        let (mut reader, mut writer) = self.stream.split();
        // Written until it answers or breaks; what was read is kept.
        while !rest.is_empty() {
            let moved = timeout(PATIENCE, async {
                tokio::select! {
                    biased;
                    read = reader.read(&mut space) => read.map(|count| (count, None)),
                    written = writer.write(rest) => match written {
                        Ok(count) => Ok((0, Some(count))),
                        // It has closed: its answer may be there all the same.
                        Err(_) => Ok((0, None)),
                    },
                }
            });
            match moved.await?? {
                (_, Some(count)) => rest = rest.get(count..).unwrap_or_default(),
                (count, None) => {
                    self.inbox.extend_from_slice(space.get(..count).unwrap_or_default());
                    break;
                }
            }
        }
        self.reply().await
    }

    /// Reads the head of the final answer; interim ones are dropped.
    pub(super) fn head(&mut self) -> Boxed<'_, io::Result<Reply>> {
        Box::pin(self.read_head())
    }

    async fn read_head(&mut self) -> io::Result<Reply> {
        loop {
            let head = self.any_head().await?;
            if !(100..200).contains(&head.status) || head.status == 101 {
                return Ok(head);
            }
        }
    }

    /// Reads the next head, be it interim.
    pub(super) fn any_head(&mut self) -> Boxed<'_, io::Result<Reply>> {
        Box::pin(self.read_any_head())
    }

    async fn read_any_head(&mut self) -> io::Result<Reply> {
        let end = loop {
            if let Some(at) = memchr::memmem::find(&self.inbox, b"\r\n\r\n") {
                break at + 4;
            }
            if self.inbox.len() > LINE || self.fill().await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"));
            }
        };
        let bytes = self.inbox.split_to(end);
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let no_status = || io::Error::new(io::ErrorKind::InvalidData, "an answer without a status");
        let status = lines.next().unwrap_or_default().split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(no_status)?;
        let fields: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let head = Reply { status, fields, body: Bytes::new(), clean: true };
        self.body = match (head.field("transfer-encoding"), head.field("content-length")) {
            _ if self.headless || matches!(status, 100..=199 | 204 | 304) => Body::Done { clean: true },
            (Some(_), _) => Body::Size { first: true },
            (None, Some(length)) => Body::Length(length.parse().map_err(|_| no_status())?),
            (None, None) => Body::UntilClose,
        };
        Ok(head)
    }

    /// The next piece of the body, as it comes; `None` at its end.
    pub(super) fn frame(&mut self) -> Boxed<'_, Option<Bytes>> {
        Box::pin(self.read_frame())
    }

    async fn read_frame(&mut self) -> Option<Bytes> {
        loop {
            match self.body {
                Body::Done { .. } => return None,
                Body::Length(0) => self.body = Body::Done { clean: true },
                Body::Chunk(0) => self.body = Body::Size { first: false },
                Body::Length(left) | Body::Chunk(left) => {
                    if self.inbox.is_empty() && !matches!(self.fill().await, Ok(1..)) {
                        self.body = Body::Done { clean: false };
                        return None;
                    }
                    let piece = self.inbox.split_to(left.min(self.inbox.len())).freeze();
                    let left = left - piece.len();
                    self.body =
                        if matches!(self.body, Body::Chunk(_)) { Body::Chunk(left) } else { Body::Length(left) };
                    return Some(piece);
                }
                Body::Size { first } => self.body = self.next_chunk(first).await.unwrap_or(Body::Done { clean: false }),
                Body::UntilClose => {
                    if self.inbox.is_empty() {
                        match self.fill().await {
                            Ok(1..) => {}
                            ended => {
                                self.body = Body::Done { clean: ended.is_ok() };
                                return None;
                            }
                        }
                    }
                    return Some(self.inbox.split().freeze());
                }
            }
        }
    }

    /// Reads the rest of the body.
    pub(super) async fn rest(&mut self, mut head: Reply) -> Reply {
        let mut body = BytesMut::new();
        while let Some(frame) = self.frame().await {
            body.extend_from_slice(&frame);
        }
        head.body = body.freeze();
        head.clean = self.body == Body::Done { clean: true };
        head
    }

    /// Reads a whole answer.
    pub(super) fn reply(&mut self) -> Boxed<'_, io::Result<Reply>> {
        Box::pin(self.read_reply())
    }

    async fn read_reply(&mut self) -> io::Result<Reply> {
        let head = self.head().await?;
        Ok(self.rest(head).await)
    }

    /// Whether the peer closes, or resets, soon.
    pub(super) fn closes(&mut self) -> Boxed<'_, bool> {
        Box::pin(self.wait_for_close())
    }

    async fn wait_for_close(&mut self) -> bool {
        let end = async { while matches!(self.fill().await, Ok(1..)) {} };
        timeout(CLOSING, end).await.is_ok()
    }

    /// `None` where the framing is broken or the connection has ended.
    async fn next_chunk(&mut self, first: bool) -> Option<Body> {
        if !first && !self.line().await?.is_empty() {
            return None;
        }
        let line = self.line().await?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16).ok()?;
        if size > 0 {
            return Some(Body::Chunk(size));
        }
        // Trailers, up to an empty line.
        while !self.line().await?.is_empty() {}
        Some(Body::Done { clean: true })
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.inbox, b"\r\n") {
                let line = self.inbox.split_to(at);
                let _crlf = self.inbox.split_to(2);
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            if self.inbox.len() > LINE || !matches!(self.fill().await, Ok(1..)) {
                return None;
            }
        }
    }

    /// Reads once; an error after a silence that is too long.
    async fn fill(&mut self) -> io::Result<usize> {
        let before = self.inbox.len();
        let count = timeout(PATIENCE, self.stream.read_buf(&mut self.inbox)).await??;
        let new = self.inbox.get(before..).unwrap_or_default();
        let room = REMEMBERED.saturating_sub(self.remembered.len());
        self.remembered.extend_from_slice(new.get(..room).unwrap_or(new));
        Ok(count)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let remembered = Bytes::from(std::mem::take(&mut self.remembered));
        self.heard.0.lock().unwrap_or_else(PoisonError::into_inner).push(remembered);
    }
}
