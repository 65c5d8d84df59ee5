//! A SOCKS5 egress proxy (RFC 1928, RFC 1929): logins, names that only it can resolve, and bad manners at each step.
//! It is strict: a client that does not say what the standard says is shown the door, with a complaint.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::passage::{Passage, accept};
use super::record::{add, locked, until};
use super::{bind, free_port};

/// What the proxy does.
#[derive(Clone, Debug)]
pub enum SocksManner {
    /// Connects and passes bytes both ways.
    Pipe,
    /// The same, with these bytes for a reply.
    PipeWith(Vec<u8>),
    /// Answers every request with this code.
    Refuse(u8),
    /// Never answers at this step.
    Hang(Step),
    /// Closes at this step.
    Close(Step),
    /// Answers this step with these bytes and closes.
    Raw(Step, Vec<u8>),
    /// Grants the request and closes.
    CloseAfterOk,
}

/// Where a conversation stands: what has just been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The methods.
    Greeting,
    /// User and password.
    Login,
    /// Where to.
    Request,
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A name, for the proxy to resolve.
    Name(String, u16),
    /// An address.
    Address(SocketAddr),
}

/// A SOCKS5 proxy on loopback, which reaches loopback only. Dropping it ends it and its connections.
pub struct Socks {
    shared: Arc<Shared>,
    passage: Arc<Passage>,
    address: SocketAddr,
    tasks: JoinSet<()>,
}

struct Shared {
    manner: Mutex<SocksManner>,
    login: Mutex<Option<(String, String)>>,
    greetings: Mutex<Vec<Vec<u8>>>,
    logins: Mutex<Vec<(String, String)>>,
    asked: Mutex<Vec<Asked>>,
    complaints: Mutex<Vec<String>>,
    received: watch::Sender<usize>,
}

impl Socks {
    /// On a free port of 127.0.0.1, open to everybody, piping.
    pub async fn start() -> io::Result<Self> {
        let listener = bind(free_port()).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            manner: Mutex::new(SocksManner::Pipe),
            login: Mutex::default(),
            greetings: Mutex::default(),
            logins: Mutex::default(),
            asked: Mutex::default(),
            complaints: Mutex::default(),
            received: watch::Sender::new(0),
        });
        let passage = Arc::new(Passage::new());
        let (ours, through) = (Arc::clone(&shared), Arc::clone(&passage));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&passage), move |tcp, _| {
            serve(Arc::clone(&ours), Arc::clone(&through), tcp)
        }));
        Ok(Self { shared, passage, address, tasks })
    }

    /// Ends the listener and all connections, and returns when that is done.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it behaves from now on.
    pub fn manner(&self, manner: SocksManner) {
        *locked(&self.shared.manner) = manner;
    }

    /// Requires this login; who does not offer one, or has another, is turned away.
    pub fn require(&self, user: &str, password: &str) {
        *locked(&self.shared.login) = Some((user.to_owned(), password.to_owned()));
    }

    /// Resolves `name:port` to an address.
    pub fn map(&self, name: &str, address: SocketAddr) {
        self.passage.map(name, address);
    }

    /// The methods that each client offered.
    pub fn greetings(&self) -> Vec<Vec<u8>> {
        locked(&self.shared.greetings).clone()
    }

    /// All users and passwords so far, right or wrong.
    pub fn logins(&self) -> Vec<(String, String)> {
        locked(&self.shared.logins).clone()
    }

    /// Where to, of all requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        locked(&self.shared.asked).clone()
    }

    /// Waits until `count` requests have arrived in all.
    pub async fn received(&self, count: usize) {
        until(&self.shared.received, |received| *received >= count).await;
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        *self.passage.connections.borrow()
    }

    /// Waits until no connection is open.
    pub async fn deserted(&self) {
        until(&self.passage.open, |open| *open == 0).await;
    }

    /// What clients have sent through the tunnels.
    pub fn seen(&self) -> Vec<u8> {
        self.passage.seen()
    }

    /// What was wrong with clients: one under test should leave this empty.
    pub fn complaints(&self) -> Vec<String> {
        locked(&self.shared.complaints).clone()
    }
}

/// The bytes of a reply with an empty address of version 4.
fn reply(code: u8) -> [u8; 10] {
    [5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

async fn serve(shared: Arc<Shared>, passage: Arc<Passage>, mut tcp: TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let manner = locked(&shared.manner).clone();

    let [version, count] = read(&mut tcp).await?;
    let mut methods = vec![0; usize::from(count)];
    tcp.read_exact(&mut methods).await?;
    if version != 5 || methods.is_empty() {
        return complain(&shared, format!("a greeting of version {version} with {count} methods"));
    }
    locked(&shared.greetings).push(methods.clone());
    if misbehaves(&manner, Step::Greeting, &mut tcp).await? {
        return Ok(());
    }
    let required = locked(&shared.login).clone();
    let method = if required.is_some() { 2 } else { 0 };
    if !methods.contains(&method) {
        tcp.write_all(&[5, 0xff]).await?;
        return tcp.shutdown().await;
    }
    tcp.write_all(&[5, method]).await?;

    if let Some(required) = required {
        let [version] = read(&mut tcp).await?;
        let login = (read_text(&mut tcp).await?, read_text(&mut tcp).await?);
        if version != 1 {
            return complain(&shared, format!("a login of version {version}"));
        }
        locked(&shared.logins).push(login.clone());
        if misbehaves(&manner, Step::Login, &mut tcp).await? {
            return Ok(());
        }
        let right = login == required;
        tcp.write_all(&[1, u8::from(!right)]).await?;
        if !right {
            return tcp.shutdown().await;
        }
    }

    let [version, command, reserved, kind] = read(&mut tcp).await?;
    if (version, command, reserved) != (5, 1, 0) {
        return complain(&shared, format!("a request of {version} {command} {reserved}"));
    }
    let address = match kind {
        1 => Ok(IpAddr::V4(Ipv4Addr::from(read::<4>(&mut tcp).await?))),
        4 => Ok(IpAddr::V6(Ipv6Addr::from(read::<16>(&mut tcp).await?))),
        3 => Err(read_text(&mut tcp).await?),
        _ => return complain(&shared, format!("an address of type {kind}")),
    };
    let port = u16::from_be_bytes(read(&mut tcp).await?);
    let (asked, target) = match address {
        Ok(address) => {
            let address = SocketAddr::new(address, port);
            (Asked::Address(address), address.to_string())
        }
        Err(name) => {
            let target = format!("{name}:{port}");
            (Asked::Name(name, port), target)
        }
    };
    locked(&shared.asked).push(asked);
    add(&shared.received);
    if misbehaves(&manner, Step::Request, &mut tcp).await? {
        return Ok(());
    }
    let granted = match &manner {
        SocksManner::Refuse(code) => return refuse(tcp, *code).await,
        SocksManner::CloseAfterOk => return refuse(tcp, 0).await,
        SocksManner::PipeWith(bytes) => bytes.clone(),
        _ => reply(0).to_vec(),
    };
    let Ok(beyond) = passage.connect(&target).await else { return refuse(tcp, 5).await };
    tcp.write_all(&granted).await?;
    passage.pipe(tcp, &[], beyond).await
}

/// Does at this step what the manner wants; true where that was the end.
async fn misbehaves(manner: &SocksManner, step: Step, tcp: &mut TcpStream) -> io::Result<bool> {
    match manner {
        SocksManner::Hang(at) if *at == step => {
            tcp.read_to_end(&mut Vec::new()).await?;
            Ok(true)
        }
        SocksManner::Close(at) if *at == step => Ok(true),
        SocksManner::Raw(at, bytes) if *at == step => {
            tcp.write_all(bytes).await?;
            tcp.shutdown().await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

async fn refuse(mut tcp: TcpStream, code: u8) -> io::Result<()> {
    tcp.write_all(&reply(code)).await?;
    tcp.shutdown().await
}

fn complain(shared: &Shared, what: String) -> io::Result<()> {
    locked(&shared.complaints).push(what);
    Ok(())
}

async fn read<const N: usize>(tcp: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    tcp.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// A text behind its length.
async fn read_text(tcp: &mut TcpStream) -> io::Result<String> {
    let [length] = read(tcp).await?;
    let mut bytes = vec![0; usize::from(length)];
    tcp.read_exact(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
