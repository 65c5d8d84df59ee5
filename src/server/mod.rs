//! Sockets towards the client: binding, accepting, HTTP/1.1 by hyper, and the graceful end.

mod client;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::app::{self, App};
use crate::gate::head;
use client::{Client, Notes};

/// After the drain time, open streams say so and get this long to do it.
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);
/// What hyper may hold of a head: more than [`head::HEAD_LIMIT`], so that it never refuses what was let through.
const READ_LIMIT: usize = head::HEAD_LIMIT + 8 * 1024;
/// Pause after an accept that failed for want of descriptors or memory: a retry at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two lines that say so.
const ACCEPT_SILENCE: Duration = Duration::from_secs(1);
const BACKLOG: i32 = 1024;
/// Free ports that are tried until one is free on both loopback addresses.
const PORT_TRIES: u32 = 16;

/// How long clients may take; see the README.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the next request on an idle connection.
    pub idle_time: Duration,
    /// For a request head, from its first byte.
    pub head_time: Duration,
    /// For 1 KiB of a request body, while somebody waits for it.
    pub body_time: Duration,
    /// To take any byte of an answer.
    pub write_time: Duration,
    /// For what is in flight, when the service ends.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle_time: Duration::from_secs(60),
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(10),
            write_time: Duration::from_secs(60),
            drain_time: Duration::from_secs(30),
        }
    }
}

/// Binds the addresses that a host stands for. `127.0.0.1` and `localhost` are both loopback addresses, ::1 only
/// where it exists. Port 0 takes any free one, the same for both.
///
/// # Errors
/// The first address cannot be bound, or another program has the second.
pub fn bind(host: &str, port: u16) -> io::Result<Vec<TcpListener>> {
    let both = matches!(host, "127.0.0.1") || host.eq_ignore_ascii_case("localhost");
    let address: IpAddr = match host.trim_matches(['[', ']']).parse() {
        Ok(address) => address,
        Err(_) if both => Ipv4Addr::LOCALHOST.into(),
        Err(_) => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the host is neither an address nor localhost"));
        }
    };
    // A port that is free for one of the two addresses may be another program's on the other.
    let mut tries = if port == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let first = listen(SocketAddr::new(address, port))?;
        if !both {
            return Ok(vec![first]);
        }
        match listen(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), first.local_addr()?.port())) {
            Ok(second) => return Ok(vec![first, second]),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            // Half of those who say `localhost` would reach the other program, with their credentials.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "not listening on [::1]");
                return Ok(vec![first]);
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves until `shutdown` is ready; then the listeners close at once, what is in flight finishes within
/// [`Limits::drain_time`], and open streams end with an error that says why.
///
/// # Errors
/// None of its own: a connection's fault is that connection's end.
pub async fn serve(
    listeners: Vec<TcpListener>,
    app: Arc<App>,
    shutdown: impl Future<Output = ()>,
    limits: Limits,
) -> io::Result<()> {
    let ends = Ends::default();
    let tracker = &app.proxy.tasks;
    let accepting = async {
        let mut loops: Vec<_> =
            listeners.into_iter().map(|listener| Box::pin(accept(listener, &app, &ends, limits))).collect();
        std::future::poll_fn(|cx| {
            loops.iter_mut().for_each(|accept| {
                let _ = accept.as_mut().poll(cx);
            });
            std::task::Poll::<()>::Pending
        })
        .await;
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown => {}
    }
    // The listeners are gone with the future above.
    ends.closing.cancel();
    tracker.close();
    if tokio::time::timeout(limits.drain_time, tracker.wait()).await.is_err() {
        tracing::warn!(connections = tracker.len(), "the drain time is over; ending open streams");
        ends.drained.cancel();
        let _ = tokio::time::timeout(LAST_WORDS_TIME, tracker.wait()).await;
        ends.aborting.cancel();
    }
    Ok(())
}

/// The three steps of an end.
#[derive(Clone, Default)]
struct Ends {
    /// No further request on any connection.
    closing: CancellationToken,
    /// What still waits or streams ends with an error that says why.
    drained: CancellationToken,
    /// Connections are dropped.
    aborting: CancellationToken,
}

impl Ends {
    /// For one connection, whose requests then do not meet those of others at a lock.
    fn of_connection(&self) -> Self {
        Self {
            closing: self.closing.child_token(),
            drained: self.drained.child_token(),
            aborting: self.aborting.child_token(),
        }
    }
}

async fn accept(listener: TcpListener, app: &Arc<App>, ends: &Ends, limits: Limits) {
    let mut said = None;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (app, ends) = (app.clone(), ends.of_connection());
                app.proxy.tasks.clone().spawn(async move {
                    tokio::select! {
                        () = connection(stream, peer, app, &ends, limits) => {}
                        () = ends.aborting.cancelled() => {}
                    }
                });
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                if is_due(&mut said, Instant::now()) {
                    tracing::error!(%error, "cannot accept connections");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether a thing that goes on is to be said again.
fn is_due(said: &mut Option<Instant>, now: Instant) -> bool {
    let due = said.is_none_or(|said| now.saturating_duration_since(said) >= ACCEPT_SILENCE);
    if due {
        *said = Some(now);
    }
    due
}

/// The fault of one connection that died before it was accepted.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

async fn connection(stream: TcpStream, peer: SocketAddr, app: Arc<App>, ends: &Ends, limits: Limits) {
    // Events are small and must not wait for an acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection died before it was served");
        return;
    }
    let notes = Arc::new(Notes::default());
    let client = Client::new(stream, notes.clone(), limits);
    let service = service_fn(move |request| {
        let (app, drained, notes, fault) = (app.clone(), ends.drained.clone(), notes.clone(), notes.next());
        async move {
            let mut response = match fault {
                Some(fault) => app::turn_away(fault.into()),
                // hyper keeps room for this future as long as a connection lives: an idle one need not pay for it.
                None => Box::pin(app.handle(request, peer.ip(), &drained)).await,
            };
            if notes.is_broken() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.idle_time);
    http.max_buf_size(READ_LIMIT).max_headers(head::FIELD_LIMIT);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(client), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = ends.closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended with an error");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_errors_that_go_on_are_said_once_a_second() {
        let (mut said, start) = (None, Instant::now());
        let lines = (0..50).filter(|tries| is_due(&mut said, start + ACCEPT_PAUSE * *tries)).count();
        assert_eq!(lines, 5);
    }
}
