//! Sockets towards the client: binding, accepting, HTTP/1.1 by hyper, and the graceful end.

mod client;
mod connection;
mod ends;
mod workers;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::app::{self, App};
use crate::memory;
use crate::proxy::reject::Error;
use ends::{Ends, Step};
pub use workers::Workers;

/// After the drain time, open streams say so and get this long to do it.
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);
/// Pause after an accept that failed for want of descriptors or memory: a retry at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two log lines about it.
const COMPLAIN_AFTER: Duration = Duration::from_secs(10);
/// Most connections over the limit that are told so at once.
const REFUSALS: usize = 64;
/// How long that may take.
const REFUSAL_TIME: Duration = Duration::from_secs(2);
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
    /// Most connections of clients at once.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle_time: Duration::from_secs(60),
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(10),
            write_time: Duration::from_secs(60),
            drain_time: Duration::from_secs(30),
            connections: 16_384,
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

/// Serves with `workers` until `shutdown` is ready; then the listeners close at once, what is in flight finishes within
/// [`Limits::drain_time`], and open streams end with an error that says why.
///
/// # Errors
/// None of its own: a connection's fault is that connection's end.
pub async fn serve(
    listeners: Vec<TcpListener>,
    app: Arc<App>,
    shutdown: impl Future<Output = ()>,
    limits: Limits,
    workers: Arc<Workers>,
) -> io::Result<()> {
    let ends = Arc::new(Ends::default());
    let limits = Arc::new(limits);
    let room = Room::new(&limits, workers);
    let tracker = &app.proxy.tasks;
    let accepting = async {
        let mut loops: Vec<_> = listeners
            .into_iter()
            .map(|listener| Box::pin(accept(listener, &app, &ends, &limits, room.clone())))
            .collect();
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
        () = memory::give_back() => {}
        () = shutdown => {}
    }
    // The listeners are gone with the future above.
    ends.go(Step::Closing);
    tracker.close();
    if tokio::time::timeout(limits.drain_time, tracker.wait()).await.is_err() {
        tracing::warn!(connections = tracker.len(), "the drain time is over; ending open streams");
        ends.go(Step::Drained);
        let _ = tokio::time::timeout(LAST_WORDS_TIME, tracker.wait()).await;
        ends.go(Step::Aborting);
    }
    Ok(())
}

/// How many connections there may be, and who says so beyond.
#[derive(Clone)]
struct Room {
    served: Arc<Semaphore>,
    refused: Arc<Semaphore>,
    complaints: Arc<Complaints>,
    workers: Arc<Workers>,
}

impl Room {
    fn new(limits: &Limits, workers: Arc<Workers>) -> Self {
        Self {
            served: Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS))),
            refused: Arc::new(Semaphore::new((limits.connections / 8).clamp(1, REFUSALS))),
            complaints: Arc::default(),
            workers,
        }
    }
}

/// When something was last complained of: a fault that lasts is one line in a while.
#[derive(Default)]
struct Complaints(Mutex<Option<Instant>>);

impl Complaints {
    fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= COMPLAIN_AFTER);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

async fn accept(listener: TcpListener, app: &Arc<App>, ends: &Arc<Ends>, limits: &Arc<Limits>, room: Room) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => admit(stream, peer, app, ends.clone(), limits, &room),
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                if room.complaints.is_due() {
                    tracing::error!(%error, "cannot accept connections");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection, says that there is no room for it, or drops it where even that is too much.
fn admit(stream: TcpStream, peer: SocketAddr, app: &Arc<App>, ends: Arc<Ends>, limits: &Arc<Limits>, room: &Room) {
    let (tasks, limits) = (app.proxy.tasks.clone(), limits.clone());
    // It becomes the worker's with its first poll there.
    let Ok(stream) = stream.into_std() else { return };
    if let Ok(permit) = room.served.clone().try_acquire_owned() {
        let (handle, place) = room.workers.place();
        let app = app.clone();
        let serving = async move {
            serve_until(stream, peer.ip(), app, &limits, &ends).await;
            drop((permit, place));
            memory::look();
        };
        tasks.spawn_on(serving, &handle);
        return;
    }
    if room.complaints.is_due() {
        tracing::warn!(limit = limits.connections, "too many connections; refusing more");
    }
    if let Ok(permit) = room.refused.clone().try_acquire_owned() {
        tasks.spawn(async move {
            let handle = |_| std::future::ready(app::turn_away(Error::busy("the balancer has too many connections")));
            let serving = connection::serve(stream, &limits, &ends, handle);
            let _ = tokio::time::timeout(REFUSAL_TIME, serving).await;
            drop(permit);
        });
    }
}

/// Serves one connection of a client, until it ends or this is dropped.
pub async fn serve_one(stream: std::net::TcpStream, peer: IpAddr, app: Arc<App>, limits: &Limits) {
    serve_until(stream, peer, app, limits, &Arc::default()).await;
}

async fn serve_until(stream: std::net::TcpStream, peer: IpAddr, app: Arc<App>, limits: &Limits, ends: &Arc<Ends>) {
    let drained = ends.clone();
    let handle = move |request| async move { pin!(app.handle(request, peer, drained.drain())).await };
    connection::serve(stream, limits, ends, handle).await;
}

/// The fault of one connection that died before it was accepted.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
