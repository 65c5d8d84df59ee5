//! Scripted providers: real sockets on loopback that behave exactly as told, well or badly.
//!
//! `demo`, tests and benches put the balancer in front of them. It is written on bare TCP, for a server that can
//! only tell the truth is of no use here. It stands beside the other rooms and uses none of them.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use claude_code_balancer::lab::{Gate, Lab, Script};
//!
//! let lab = Lab::start().await?;
//! let gate = Gate::new();
//! lab.next(Script::error(529, "overloaded_error", "Overloaded"));
//! lab.always(Script::stream(&["Hel", "lo"]).gate_before(3, gate.clone()).cut_after(5));
//! println!("{}", lab.url());
//! lab.received(2).await; // two requests have arrived
//! gate.open(); // let the text go
//! assert_eq!(lab.requests()[0].header("x-api-key"), Some("key"));
//! # Ok(())
//! # }
//! ```
//!
//! * [`Script`]: what one request gets. * [`Gate`]: an event between test and script. * [`event`]: frames of a
//!   stream. * [`IdleClose`], [`Welcome`]: what becomes of connections. * [`Tunnel`], [`Socks`]: egress
//!   proxies. * [`Hole`], [`closed_port`]: where nobody answers. * [`Authority`]: an authorization server.

mod acts;
mod authority;
mod body;
mod connection;
mod ending;
pub mod event;
mod gate;
mod hole;
mod http2;
mod passage;
mod proxy;
mod record;
mod replies;
mod request;
mod script;
mod socks;
mod temper;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use authority::{Authority, Entry, Whim};
pub use gate::Gate;
pub use hole::{Hole, closed_port, unused_port};
pub use http2::Allowance;
pub use proxy::{Manner, Tunnel};
pub use request::Received;
pub use script::Script;
pub use socks::{Asked, Socks, SocksManner, Step};
pub use temper::{IdleClose, Welcome};

use record::{Record, until};

/// One scripted provider. Dropping it ends its listener and all its connections.
///
/// A fresh one answers [as asked](Script::as_asked): a stream to who wants a stream, else a message.
pub struct Lab {
    record: Arc<Record>,
    address: SocketAddr,
    secure: bool,
    /// The acceptor, which owns the connections.
    tasks: JoinSet<()>,
}

/// Beginning and end.
impl Lab {
    /// On a free port of 127.0.0.1, without TLS.
    pub async fn start() -> io::Result<Self> {
        Self::start_on(free_port(), None).await
    }

    /// On a free port of 127.0.0.1, with TLS; where that offers HTTP/2 and the peer does, it is what is spoken.
    pub async fn start_tls(config: Arc<ServerConfig>) -> io::Result<Self> {
        Self::start_on(free_port(), Some(config)).await
    }

    /// On a given address, which must be a loopback one.
    pub async fn start_on(address: SocketAddr, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        let listener = bind(address).await?;
        let address = listener.local_addr()?;
        let record = Arc::new(Record::new());
        let secure = tls.is_some();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, tls.map(TlsAcceptor::from), Arc::clone(&record)));
        Ok(Self { record, address, secure, tasks })
    }

    /// Ends the listener and all connections, and returns when that is done: the port refuses from then on.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL; `https` names `localhost`, `http` the address.
    pub fn url(&self) -> String {
        if self.secure {
            format!("https://localhost:{}", self.address.port())
        } else {
            format!("http://{}", self.address)
        }
    }
}

/// Orders.
impl Lab {
    /// What every request gets for which nothing is queued.
    pub fn always(&self, script: Script) {
        self.record.always(script);
    }

    /// Queues a script for one request, before the standing one.
    pub fn next(&self, script: Script) {
        self.record.next(script);
    }

    /// Like [`always`](Self::always), with a script made for each request.
    pub fn answer(&self, answer: impl Fn(&Received) -> Script + Send + Sync + 'static) {
        self.record.answer(Arc::new(answer));
    }

    /// What becomes of idle connections from now on.
    pub fn idle_close(&self, policy: IdleClose) {
        self.record.set_temper(policy);
    }

    /// What awaits new connections from now on.
    pub fn welcome(&self, welcome: Welcome) {
        self.record.set_welcome(welcome);
    }

    /// What new connections in HTTP/2 allow from now on.
    pub fn allow(&self, allowance: Allowance) {
        self.record.set_allowance(allowance);
    }

    /// Whether requests are kept for [`requests`](Self::requests) (they are, at first) or only counted: for benches
    /// and long runs.
    pub fn remember(&self, remember: bool) {
        self.record.set_remember(remember);
    }
}

/// What it has seen.
impl Lab {
    /// All requests so far, in order of arrival. Those that [`IdleClose`] turned away are not among them.
    pub fn requests(&self) -> Vec<Received> {
        self.record.requests()
    }

    /// How many requests have arrived so far, remembered or not.
    pub fn arrivals(&self) -> usize {
        *self.record.received.borrow()
    }

    /// Waits until `count` requests have arrived in all.
    pub async fn received(&self, count: usize) {
        until(&self.record.received, |received| *received >= count).await;
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        *self.record.connections.borrow()
    }

    /// Waits until `count` connections have been accepted in all.
    pub async fn connected(&self, count: usize) {
        until(&self.record.connections, |connections| *connections >= count).await;
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        *self.record.open.borrow()
    }

    /// Waits until no connection is open.
    pub async fn deserted(&self) {
        until(&self.record.open, |open| *open == 0).await;
    }

    /// How often the peer closed or reset while a script was still running (waiting, stalling, sending).
    pub fn departures(&self) -> usize {
        *self.record.departures.borrow()
    }

    /// Waits until there have been `count` departures in all.
    pub async fn departed(&self, count: usize) {
        until(&self.record.departures, |departures| *departures >= count).await;
    }

    /// How many answers the peer did not read to their end: on a connection that was to be closed after the answer, it
    /// reset instead of closing, as a kernel does for a process that ends with something unread.
    pub fn unread(&self) -> usize {
        *self.record.unread.borrow()
    }

    /// How many idle connections [`IdleClose`] has closed.
    pub fn turned_away(&self) -> usize {
        *self.record.turned_away.borrow()
    }

    /// What was wrong with requests and handshakes that were none: a client under test should leave this empty.
    pub fn complaints(&self) -> Vec<String> {
        self.record.complaints()
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, record: Arc<Record>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An error here is the peer's (it left the queue) or lasts until descriptors are free.
                let Ok((tcp, _)) = accepted else { tokio::task::yield_now().await; continue };
                let number = *record.connections.borrow();
                record::add(&record.connections);
                connections.spawn(connection::serve(Arc::clone(&record), tcp, tls.clone(), number));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A listener that the outside cannot reach.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_loopback() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a lab listens on loopback only"));
    }
    TcpListener::bind(address).await
}

fn free_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}
