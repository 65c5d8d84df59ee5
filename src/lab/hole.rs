//! Addresses where nobody answers: one that refuses, one that swallows.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::free_port;

/// A connection that takes longer than this on loopback is not coming.
const PATIENCE: Duration = Duration::from_millis(150);

/// The most connections that are tried to fill the queue.
const TRIES: usize = 16;

/// A listener whose queue is full, so that further connections hang without an answer, as behind a firewall that
/// drops. For as long as it lives.
pub struct Hole {
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
    address: SocketAddr,
}

impl Hole {
    /// On a free port of 127.0.0.1.
    pub async fn dig() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(free_port())?;
        let listener = socket.listen(1)?;
        let address = listener.local_addr()?;
        let mut queued = Vec::new();
        for _ in 0..TRIES {
            match timeout(PATIENCE, TcpStream::connect(address)).await {
                Ok(connected) => queued.push(connected?),
                Err(_) => return Ok(Self { _listener: listener, _queued: queued, address }),
            }
        }
        Err(io::Error::other("the listener's queue does not fill up"))
    }

    /// Where connections hang.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// An address on 127.0.0.1 that refuses connections, and that nobody else gets: its socket stays bound, without ever
/// listening, until the process ends.
pub fn closed_port() -> io::Result<SocketAddr> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(free_port())?;
    let address = socket.local_addr()?;
    std::mem::forget(socket);
    Ok(address)
}

/// A port of 127.0.0.1 that is free at this moment, for a program that binds it by itself.
pub fn unused_port() -> io::Result<u16> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(free_port())?;
    Ok(socket.local_addr()?.port())
}
