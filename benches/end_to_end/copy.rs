//! The baseline: what nobody who stands between two sockets can do without. Bytes are copied, and nothing is known of
//! them. It has as many runtimes as the balancer, and runs as a process of its own: this program, started once more.

use std::future::pending;
use std::io;
use std::net::{SocketAddr, TcpListener};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};

/// The argument that makes this program the copy; the address of the provider follows.
pub(crate) const ORDER: &str = "copy";

/// Serves until it is killed. Where it listens is said as the balancer says it.
pub(crate) fn run(upstream: &str) -> ! {
    let upstream: SocketAddr = upstream.parse().expect("an address");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    eprintln!("listening on http://{}", listener.local_addr().expect("an address"));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let workers: Vec<_> = (0..threads).map(|_| worker()).collect();
    for worker in workers.iter().cycle() {
        let (client, _) = listener.accept().expect("a connection");
        worker.spawn(pass(client, upstream));
    }
    unreachable!("there is a worker")
}

/// A thread with a runtime of its own.
fn worker() -> Handle {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(pending::<()>()));
    handle
}

async fn pass(client: std::net::TcpStream, upstream: SocketAddr) -> io::Result<()> {
    client.set_nonblocking(true)?;
    client.set_nodelay(true)?;
    let mut client = TcpStream::from_std(client)?;
    let mut provider = TcpStream::connect(upstream).await?;
    provider.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut provider).await?;
    Ok(())
}
