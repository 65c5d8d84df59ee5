//! One connection of a client, from its first byte to its last.

use std::any::Any;
use std::cell::RefCell;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Limits;
use super::client::Client;
use super::ends::{Ends, Step};
use crate::app;
use crate::gate::head;
use crate::inflow::Body;
use crate::proxy::reject::Error;
use crate::proxy::relay::Outbound;

/// What hyper may hold of a head: more than [`head::HEAD_LIMIT`], so that it never refuses what was let through.
const READ_LIMIT: usize = head::HEAD_LIMIT + 8 * 1024;

/// Clerks that a thread keeps for its next requests.
const SPARE_LIMIT: usize = 64;

thread_local! {
    /// Clerks without work, of any type.
    static SPARE: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Answers one request after the other, by the handler that comes with each. A request at work needs some 8 KiB: an
/// idle connection has no room for that, and a future made anew for each request would be copied to its place. So the
/// future of a clerk stays where it is, and is used for the requests of any connection on its thread.
struct Clerk<H> {
    desk: Arc<Desk<H>>,
    work: Pin<Box<dyn Future<Output = Infallible> + Send>>,
}

/// Where an order lies, and then its answer; only the task of one connection ever looks.
struct Desk<H> {
    order: Mutex<Option<(H, Request<Body>)>>,
    answer: Mutex<Option<Response<Outbound>>>,
}

fn lay<T>(place: &Mutex<Option<T>>, what: T) {
    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
}

fn take<T>(place: &Mutex<Option<T>>) -> Poll<T> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Poll::Pending, Poll::Ready)
}

impl<H, F> Clerk<H>
where
    H: FnOnce(Request<Body>) -> F + Send + 'static,
    F: Future<Output = Response<Outbound>> + Send + 'static,
{
    /// One without work, or a new one.
    fn spare() -> Box<Self> {
        let spare = SPARE.try_with(|spare| spare.try_borrow_mut().ok()?.pop()).ok().flatten();
        spare.and_then(|spare| spare.downcast().ok()).unwrap_or_else(|| Box::new(Self::new()))
    }

    fn new() -> Self {
        let desk = Arc::new(Desk { order: Mutex::new(None), answer: Mutex::new(None) });
        let own = desk.clone();
        let work = Box::pin(async move {
            loop {
                let (handle, request): (H, _) = std::future::poll_fn(|_| take(&own.order)).await;
                let answer = pin!(handle(request)).await;
                lay(&own.answer, answer);
            }
        });
        Self { desk, work }
    }

    /// Keeps it for the next request.
    fn dismiss(self: Box<Self>) {
        let _ = SPARE.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut()
                && spare.len() < SPARE_LIMIT
            {
                spare.push(self);
            }
        });
    }

    /// A panic in one request is that request's end. What it was is never shown: it may hold anything.
    async fn answer(mut self: Box<Self>) -> Response<Outbound> {
        let answer = std::future::poll_fn(|cx| {
            match catch_unwind(AssertUnwindSafe(|| self.work.as_mut().poll(cx))) {
                Ok(Poll::Ready(never)) => match never {},
                Ok(Poll::Pending) => {}
                Err(_) => return Poll::Ready(None),
            }
            take(&self.desk.answer).map(Some)
        });
        let Some(answer) = answer.await else { return failed() };
        self.dismiss();
        answer
    }
}

/// Serves requests until the client leaves, one of them ends the connection, or `ends` does.
pub(super) async fn serve<H, F>(stream: std::net::TcpStream, limits: &Limits, ends: &Ends, handle: H)
where
    H: FnOnce(Request<Body>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Outbound>> + Send + 'static,
{
    // Events are small and must not wait for an acknowledgement.
    let stream = match stream.set_nodelay(true).and_then(|()| TcpStream::from_std(stream)) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "a connection died before it was served");
            return;
        }
    };
    let client = Client::new(stream, limits);
    let inflow = &client.inflow();
    let service = service_fn(|mut request: Request<Incoming>| {
        let answer = inflow.body(request.headers_mut()).map(|body| {
            let clerk = Clerk::spare();
            lay(&clerk.desk.order, (handle.clone(), request.map(|_| body)));
            clerk.answer()
        });
        async move {
            let mut response = match answer {
                Ok(answer) => answer.await,
                Err(fault) => app::turn_away(fault.into()),
            };
            if inflow.wire().answered() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    // Whoever has left, and whoever is silent, is the client's own business: hyper would read for the one while it is
    // busy, and have a timer made for the other with each request.
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .header_read_timeout(None)
            .max_buf_size(READ_LIMIT)
            .serve_connection(TokioIo::new(client), service)
    );
    let mut news = pin!(ends.news());
    let mut seen = None;
    let result = std::future::poll_fn(|cx| {
        while seen != Some(ends.step()) {
            // Whoever asks for the step after it has asked for news misses nothing.
            news.set(ends.news());
            let _ = news.as_mut().poll(cx);
            seen = Some(ends.step());
            match seen {
                Some(Step::Closing) => connection.as_mut().graceful_shutdown(),
                Some(Step::Aborting) => return Poll::Ready(Ok(())),
                _ => {}
            }
        }
        connection.as_mut().poll(cx)
    });
    if let Err(error) = result.await {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended with an error");
    }
}

fn failed() -> Response<Outbound> {
    let message = "the balancer failed inside, which is a bug; its log says where";
    app::turn_away(Error::new(StatusCode::INTERNAL_SERVER_ERROR, message))
}

#[cfg(test)]
mod tests {
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
        let (ends, limits) = (Ends::default(), Limits::default());
        let handle = |request: Request<Body>| async move {
            assert!(request.uri().path() != "/panic", "a secret");
            Response::new(Outbound::text("{}", None))
        };
        let serve = async {
            let accepted = async || listener.accept().await.expect("one").0.into_std().expect("a socket");
            let (first, second) = (accepted().await, accepted().await);
            tokio::join!(super::serve(first, &limits, &ends, handle), super::serve(second, &limits, &ends, handle))
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
}
