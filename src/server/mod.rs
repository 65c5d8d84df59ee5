//! Sockets towards the client: binding, accepting, HTTP/1.1 by hyper, and the graceful end.

mod client;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use client::Client;

/// Longest wait for what is in flight when the service ends.
pub const DRAIN_TIME: Duration = Duration::from_secs(30);
/// After it, open streams say so and get this long to do it.
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);
/// Longest wait for a request head, and so for the next request on an idle connection.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// Largest request head, in bytes.
const HEAD_LIMIT: usize = 64 * 1024;
/// Most header fields of a request.
const HEADER_LIMIT: usize = 100;
/// Pause after an accept that failed for want of descriptors or memory: a retry at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: i32 = 1024;
/// Free ports that are tried until one is free on both loopback addresses.
const PORT_TRIES: u32 = 16;

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
/// [`DRAIN_TIME`], and open streams end with an error that says why.
///
/// # Errors
/// None of its own: a connection's fault is that connection's end.
pub async fn serve(
    listeners: Vec<TcpListener>,
    app: Arc<App>,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
) -> io::Result<()> {
    let ends = Ends::default();
    let tracker = &app.proxy.tasks;
    let accepting = async {
        let mut loops: Vec<_> = listeners.into_iter().map(|listener| Box::pin(accept(listener, &app, &ends))).collect();
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
    if tokio::time::timeout(drain, tracker.wait()).await.is_err() {
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

async fn accept(listener: TcpListener, app: &Arc<App>, ends: &Ends) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (app, ends) = (app.clone(), ends.of_connection());
                app.proxy.tasks.clone().spawn(async move {
                    tokio::select! {
                        () = connection(stream, peer, app, &ends) => {}
                        () = ends.aborting.cancelled() => {}
                    }
                });
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The fault of one connection that died before it was accepted.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

async fn connection(stream: TcpStream, peer: SocketAddr, app: Arc<App>, ends: &Ends) {
    // Events are small and must not wait for an acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection died before it was served");
        return;
    }
    let service = service_fn(move |request| {
        let (app, drained) = (app.clone(), ends.drained.clone());
        async move { Ok::<_, std::convert::Infallible>(app.handle(request, peer.ip(), &drained).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_LIMIT).max_headers(HEADER_LIMIT);
    let mut connection = std::pin::pin!(http.serve_connection(Client::new(stream), service));
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
