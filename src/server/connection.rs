//! One connection of a client, from its first byte to its last.

use std::any::Any;
use std::cell::RefCell;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, ReusableBoxFuture};

use super::Limits;
use super::client::{Client, Notes};
use crate::app;
use crate::gate::head;
use crate::proxy::reject::Error;
use crate::proxy::relay::Outbound;

/// What hyper may hold of a head: more than [`head::HEAD_LIMIT`], so that it never refuses what was let through.
const READ_LIMIT: usize = head::HEAD_LIMIT + 8 * 1024;

/// Boxes that a thread keeps for its next requests.
const SPARE_LIMIT: usize = 64;

/// A request at work.
type Work = ReusableBoxFuture<'static, Response<Outbound>>;

thread_local! {
    /// Boxes of requests that are over. A request needs some 5 KiB for a moment; taken between the buffers that a
    /// connection keeps, this would leave holes that fit no other, and pages that idle connections do not need.
    static SPARE: RefCell<Vec<Work>> = const { RefCell::new(Vec::new()) };
}

/// Puts a request to work, in a box of its own: an idle connection has no room for one.
fn work(request: impl Future<Output = Response<Outbound>> + Send + 'static) -> Work {
    let spare = SPARE.try_with(|spare| spare.try_borrow_mut().ok()?.pop()).ok().flatten();
    let Some(mut work) = spare else { return Work::new(request) };
    work.set(request);
    work
}

/// Keeps the box of a request that is over.
fn spare(work: Work) {
    let _ = SPARE.try_with(|spare| {
        if let Ok(mut spare) = spare.try_borrow_mut()
            && spare.len() < SPARE_LIMIT
        {
            spare.push(work);
        }
    });
}

/// Serves requests until the client leaves, one of them ends the connection, or `closing` does between two.
pub(super) async fn serve<F: Future<Output = Response<Outbound>> + Send + 'static>(
    stream: std::net::TcpStream,
    limits: Limits,
    closing: &CancellationToken,
    handle: impl Fn(Request<Incoming>) -> F,
) {
    // Events are small and must not wait for an acknowledgement.
    let stream = match stream.set_nodelay(true).and_then(|()| TcpStream::from_std(stream)) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "a connection died before it was served");
            return;
        }
    };
    let notes = Arc::new(Notes::default());
    let client = Client::new(stream, notes.clone(), limits);
    let service = service_fn(|request| {
        let (notes, fault) = (notes.clone(), notes.next());
        let answer = fault.is_none().then(|| work(handle(request)));
        async move {
            let mut response = match (answer, fault) {
                (Some(answer), _) => guarded(answer).await.unwrap_or_else(|_| failed()),
                (None, fault) => app::turn_away(fault.unwrap_or(head::Fault::Malformed).into()),
            };
            if notes.is_broken() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.idle_time);
    http.max_buf_size(READ_LIMIT).max_headers(head::FIELD_LIMIT);
    let mut connection = pin!(http.serve_connection(TokioIo::new(client), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended with an error");
    }
}

/// A panic in one request is that request's end. What it was is never shown: it may hold anything.
async fn guarded(mut work: Work) -> Result<Response<Outbound>, Box<dyn Any + Send>> {
    let response = std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| work.poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await?;
    spare(work);
    Ok(response)
}

fn failed() -> Response<Outbound> {
    let message = "the balancer failed inside, which is a bug; its log says where";
    app::turn_away(Error::new(StatusCode::INTERNAL_SERVER_ERROR, message))
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn ask(client: &mut TcpStream, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        client.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let read = client.read_buf(&mut answer).await.expect("an answer");
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        }
        String::from_utf8(answer).expect("text")
    }

    #[tokio::test]
    async fn a_panic_in_one_request_answers_500_and_harms_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let closing = CancellationToken::new();
        let handle = |request: Request<Incoming>| async move {
            assert!(request.uri().path() != "/panic", "a secret");
            Response::new(Outbound::text("{}", None))
        };
        let serve = async {
            let accepted = async || listener.accept().await.expect("one").0.into_std().expect("a socket");
            let (first, second) = (accepted().await, accepted().await);
            tokio::join!(
                super::serve(first, Limits::default(), &closing, handle),
                super::serve(second, Limits::default(), &closing, handle)
            )
        };
        let play = async {
            let mut unlucky = TcpStream::connect(address).await.expect("a connection");
            let mut neighbour = TcpStream::connect(address).await.expect("a connection");
            assert!(ask(&mut unlucky, "/fine").await.starts_with("HTTP/1.1 200"));
            let answer = ask(&mut unlucky, "/panic").await;
            assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
            assert!(answer.contains("\"type\":\"api_error\"") && answer.contains("connection: close"), "{answer}");
            assert!(!answer.contains("secret"), "{answer}");
            assert_eq!(unlucky.read(&mut [0; 8]).await.expect("a clean end"), 0);
            assert!(ask(&mut neighbour, "/fine").await.starts_with("HTTP/1.1 200"));
        };
        tokio::join!(serve, play);
    }

    /// The lengths of the frames in which hyper hands on a body of so many bytes.
    async fn frames(length: usize) -> Vec<usize> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let closing = CancellationToken::new();
        let (seen, mut frames) = tokio::sync::mpsc::unbounded_channel();
        let handle = |request: Request<Incoming>| {
            let seen = seen.clone();
            async move {
                let mut body = request.into_body();
                while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
                    let frame = frame.expect("a frame");
                    seen.send(frame.data_ref().map_or(0, bytes::Bytes::len)).expect("somebody listens");
                }
                Response::new(Outbound::text("{}", None))
            }
        };
        let serve = async {
            let socket = listener.accept().await.expect("one").0.into_std().expect("a socket");
            super::serve(socket, Limits::default(), &closing, handle).await;
        };
        let play = async {
            let mut client = TcpStream::connect(address).await.expect("a connection");
            let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            client.write_all(head.as_bytes()).await.expect("sent");
            client.write_all(&vec![b'x'; length]).await.expect("sent");
            client.read_to_end(&mut Vec::new()).await.expect("an answer");
        };
        tokio::join!(serve, play);
        drop(seen);
        std::iter::from_fn(|| frames.try_recv().ok()).collect()
    }

    #[tokio::test]
    async fn a_large_body_comes_in_large_reads_and_ends_in_small_ones() {
        let large = frames(1 << 20).await;
        assert_eq!(large.iter().sum::<usize>(), 1 << 20);
        assert!(large.iter().all(|length| *length < 32 * 1024), "hyper would make more room: {large:?}");
        assert!(large.iter().any(|length| *length > 16 * 1024), "they are too small: {large:?}");
        let mut left = 1 << 20;
        for length in &large {
            let most = if left <= 32 << 10 {
                8 << 10
            } else if left <= 64 << 10 {
                16 << 10
            } else {
                32 << 10
            };
            assert!(*length < most, "{length} of the last {left}: {large:?}");
            left -= length;
        }
        assert!(frames(128 << 10).await.iter().any(|length| *length > 8 << 10), "a smaller one needs no such end");
    }
}
