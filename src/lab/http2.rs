//! A connection in HTTP/2, for a lab whose TLS offers it: the same scripts, each on a stream of its own.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::server::{Builder, SendResponse};
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;

use super::acts::bodiless;
use super::connection::pass;
use super::record::{Record, locked};
use super::request::Received;
use super::script::{After, Ending, Framing, Limit, Opening, Script, Wait};
use super::wire::{Departed, Wire};

/// How it is spoken in HTTP/2.
pub(super) const NAME: &[u8] = b"h2";

/// What a provider allows in HTTP/2; what is not said is as the `h2` crate has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance {
    /// Streams at a time.
    pub streams: Option<u32>,
    /// Bytes of one request that are on their way unread.
    pub window: Option<u32>,
}

/// What a script wants done to the whole connection.
enum Order {
    /// No further streams; those that run may end.
    GoAway,
    /// What has been sent so far leaves; then this is told.
    Flush(oneshot::Sender<()>),
    /// FIN, over TLS without `close_notify`, after what has been sent so far.
    Cut,
}

/// Serves a connection to its end.
pub(super) async fn serve(record: Arc<Record>, stream: TlsStream<TcpStream>, number: usize) {
    let stream = Arc::new(Mutex::new(stream));
    let allowance = record.allowance();
    let mut builder = Builder::new();
    if let Some(streams) = allowance.streams {
        builder.max_concurrent_streams(streams);
    }
    if let Some(window) = allowance.window {
        builder.initial_window_size(window);
    }
    let mut connection = match builder.handshake::<_, Bytes>(Shared(stream.clone())).await {
        Ok(connection) => connection,
        Err(error) => return record.complain(format!("HTTP/2 handshake: {error}")),
    };
    let (order, mut orders) = unbounded_channel();
    let mut streams = JoinSet::new();
    let is_cut = loop {
        tokio::select! {
            // Whatever was sent before an order leaves before it is carried out.
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    streams.spawn(one(record.clone(), request, respond, order.clone(), number));
                }
                Some(Err(_)) | None => break false,
            },
            Some(order) = orders.recv() => match order {
                Order::GoAway => connection.graceful_shutdown(),
                Order::Flush(done) => drop(done),
                Order::Cut => break true,
            },
            Some(_) = streams.join_next() => {}
        }
    };
    // A peer that left took its streams along: their scripts are to notice.
    if !is_cut {
        drop(connection);
        while streams.join_next().await.is_some() {}
        return;
    }
    streams.shutdown().await;
    drop(connection);
    // With something unread, the end of the socket would be a reset, which takes back what the peer has not read.
    if let Some(stream) = Arc::into_inner(stream).and_then(|stream| stream.into_inner().ok()) {
        let mut wire = Wire::tls(stream);
        wire.cut().await;
        wire.drain().await;
    }
}

/// One request, and its script.
async fn one(
    record: Arc<Record>,
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    order: UnboundedSender<Order>,
    number: usize,
) {
    let (mut received, mut inflow) = received(request, number);
    let script = match record.early_script() {
        Some(script) => script,
        None => {
            let mut body = BytesMut::new();
            while let Some(data) = inflow.data().await {
                let Ok(data) = data else { return record.depart() };
                let _ = inflow.flow_control().release_capacity(data.len());
                body.extend_from_slice(&data);
            }
            received.body = body.freeze();
            record.script_for(&received)
        }
    };
    record.receive(&received);
    if play(&script, received.method == "HEAD", &mut respond, &order).await.is_err() {
        record.depart();
    }
}

fn received(request: Request<h2::RecvStream>, connection: usize) -> (Received, h2::RecvStream) {
    let (head, inflow) = request.into_parts();
    let authority = head.uri.authority().map(|authority| ("host".to_owned(), authority.to_string()));
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let fields = head.headers.iter().map(|(name, value)| (name.to_string(), text(value)));
    let received = Received {
        method: head.method.to_string(),
        target: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: authority.into_iter().chain(fields).collect(),
        head: Bytes::new(),
        body: Bytes::new(),
        connection,
        version: 2,
    };
    (received, inflow)
}

async fn play(
    script: &Script,
    to_head_request: bool,
    respond: &mut SendResponse<Bytes>,
    order: &UnboundedSender<Order>,
) -> Result<(), Departed> {
    for wait in &script.before_head {
        tokio::select! {
            biased;
            () = pass(wait.clone()) => {}
            _ = poll_fn(|cx| respond.poll_reset(cx)) => return Err(Departed),
        }
    }
    match &script.opening {
        Opening::Answer => {}
        Opening::Refusal(code) => {
            respond.send_reset(Reason::from(*code));
            return Ok(());
        }
        Opening::Silence => match script.ending {
            Ending::Cut => {
                let _ = order.send(Order::Cut);
                return std::future::pending().await;
            }
            Ending::Reset => {
                respond.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            Ending::Stall => {
                let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
                return Err(Departed);
            }
        },
        // Bytes are no frames.
        Opening::Raw(_) => {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return Ok(());
        }
    }
    for interim in &script.interims {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut head = httparse::Response::new(&mut fields);
        let _ = head.parse(interim);
        let status = StatusCode::from_u16(head.code.unwrap_or(100)).unwrap_or(StatusCode::CONTINUE);
        let mut response = Response::new(());
        *response.status_mut() = status;
        respond.send_informational(response).map_err(|_| Departed)?;
    }
    let bodiless = to_head_request || (bodiless(script.status) && script.frames.is_empty());
    let mut stream = respond.send_response(head(script), bodiless).map_err(|_| Departed)?;
    if !bodiless {
        body(script, &mut stream, order).await?;
    }
    if matches!(script.after, After::SayClose | After::Close | After::Reset) {
        let _ = order.send(Order::GoAway);
    }
    Ok(())
}

fn head(script: &Script) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(script.status).unwrap_or_default();
    let length = script.whole_body().len().to_string();
    let framing = (script.framing == Framing::Length && !script.omitted.iter().any(|name| name == "content-length"))
        .then(|| ("content-length".to_owned(), length));
    for (name, value) in script.headers.iter().chain(&framing) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

async fn body(script: &Script, stream: &mut SendStream<Bytes>, order: &UnboundedSender<Order>) -> Result<(), Departed> {
    let (events, mut bytes) = match script.limit {
        Limit::None | Limit::WireBytes(_) => (usize::MAX, usize::MAX),
        Limit::Events(events) => (events, usize::MAX),
        Limit::BodyBytes(bytes) => (usize::MAX, bytes),
    };
    for (index, frame) in script.frames.iter().take(events).enumerate() {
        let between = if index > 0 { script.between.as_slice() } else { &[] };
        wait(between, stream).await?;
        wait(&frame.waits, stream).await?;
        let data = frame.bytes.slice(..bytes.min(frame.bytes.len()));
        bytes -= data.len();
        send(data, stream).await?;
    }
    wait(&script.before_end, stream).await?;
    if matches!(script.limit, Limit::None) {
        let mut trailers = HeaderMap::new();
        for (name, value) in &script.trailers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                trailers.append(name, value);
            }
        }
        let end = match trailers.is_empty() {
            true => stream.send_data(Bytes::new(), true),
            false => stream.send_trailers(trailers),
        };
        return end.map_err(|_| Departed);
    }
    match script.ending {
        Ending::Cut => {
            let _ = order.send(Order::Cut);
            // To let go of the stream here would reset it; the order ends this as well.
            std::future::pending().await
        }
        Ending::Reset => {
            // A reset takes back what has not left yet.
            let (done, flushed) = oneshot::channel();
            let _ = order.send(Order::Flush(done));
            let _ = flushed.await;
            stream.send_reset(Reason::INTERNAL_ERROR);
            Ok(())
        }
        Ending::Stall => {
            let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
            Err(Departed)
        }
    }
}

/// Sends all of it, as the peer makes room.
async fn send(mut data: Bytes, stream: &mut SendStream<Bytes>) -> Result<(), Departed> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| match stream.capacity() {
            0 => stream.poll_capacity(cx),
            room => Poll::Ready(Some(Ok(room))),
        });
        let Some(Ok(room)) = room.await else { return Err(Departed) };
        let piece = data.split_to(room.min(data.len()));
        stream.send_data(piece, false).map_err(|_| Departed)?;
    }
    Ok(())
}

async fn wait(waits: &[Wait], stream: &mut SendStream<Bytes>) -> Result<(), Departed> {
    for wait in waits {
        tokio::select! {
            biased;
            () = pass(wait.clone()) => {}
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return Err(Departed),
        }
    }
    Ok(())
}

/// A stream that can be had back after its connection was dropped.
struct Shared(Arc<Mutex<TlsStream<TcpStream>>>);

impl AsyncRead for Shared {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *locked(&self.0)).poll_read(cx, into)
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *locked(&self.0)).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *locked(&self.0)).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *locked(&self.0)).poll_shutdown(cx)
    }
}
