//! Kept-alive connections, by peer, and within a peer by the thread whose runtime knows their sockets: a connection that
//! is used on another wakes two threads for each read. Each such lane has a lock of its own that is held for a push or a
//! pop, and that others seek only when their own lane is empty; the map of pools is read without one.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use tokio::time::Instant;

use super::http1::Connection;
use super::http2::{Lines, Way};
use super::tls;
use crate::provider::{Peer, Provider};

/// Idle connections kept for one peer in one lane.
const IDLE_LIMIT: usize = 32;
/// How long one is kept: below what providers and middleboxes allow.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(20);

/// Lanes of a pool; where there are more threads, some share one.
const LANES: usize = 16;

/// The number of this thread, counted from the first that asked.
pub(super) fn lane() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static LANE: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    LANE.with(|lane| *lane)
}

#[derive(Debug)]
pub(super) struct Pools {
    tls: Arc<ClientConfig>,
    peers: ArcSwap<HashMap<Arc<Peer>, Arc<Pool>>>,
}

#[derive(Debug)]
pub(super) struct Pool {
    idle: [Mutex<Vec<Idle>>; LANES],
    /// With session tickets of its own: resumed through another egress, one would tell the provider that both are us.
    pub(super) tls: Arc<ClientConfig>,
    /// Where HTTP/2 is offered.
    pub(super) http2: Option<Http2>,
}

/// What a peer has to which HTTP/2 is offered.
#[derive(Debug)]
pub(super) struct Http2 {
    /// Offers it.
    pub(super) tls: Arc<ClientConfig>,
    /// The connections that came of it.
    pub(super) lines: Lines,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pools {
    pub(super) fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls, peers: ArcSwap::default() }
    }

    pub(super) fn of(&self, peer: &Arc<Peer>) -> Arc<Pool> {
        if let Some(pool) = self.peers.load().get(peer) {
            return pool.clone();
        }
        let tls = tls::with_own_sessions(&self.tls);
        let http2 = peer.http2.then(|| Http2 { tls: tls::offering_http2(&tls), lines: Lines::default() });
        let new = Arc::new(Pool { idle: Default::default(), tls, http2 });
        self.peers.rcu(|map| {
            let mut map = HashMap::clone(map);
            map.entry(peer.clone()).or_insert_with(|| new.clone());
            map
        });
        self.peers.load().get(peer).cloned().unwrap_or(new)
    }

    /// Drops the pools of peers that no provider uses any longer.
    pub(super) fn retain(&self, providers: &[Arc<Provider>]) {
        let used: HashSet<&Peer> = providers.iter().map(|provider| &*provider.peer).collect();
        self.peers.rcu(|map| {
            map.iter()
                .filter(|(peer, _)| used.contains(&***peer))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect::<HashMap<_, _>>()
        });
    }

    /// Closes what has been idle for longer than `limit`, or for too long anyway.
    pub(super) fn expire(&self, limit: Duration) {
        let (now, limit) = (Instant::now(), limit.min(IDLE_TIME));
        for pool in self.peers.load().values() {
            for lane in 0..LANES {
                pool.lane(lane).retain(|idle| now.saturating_duration_since(idle.since) < limit);
            }
            if let Some(http2) = &pool.http2 {
                http2.lines.expire(now, limit);
            }
        }
    }
}

impl Pool {
    /// A way for a request that is open already or, the second time, only what cannot be an idle connection's death.
    pub(super) fn way(&self, again: bool) -> Option<Way> {
        let slot = self.http2.as_ref().and_then(|http2| http2.lines.take());
        slot.map(Way::Stream).or_else(|| if again { None } else { self.take().map(Way::Idle) })
    }

    /// The connection that was used last and still seems to live: of this thread, or else of another.
    fn take(&self) -> Option<Connection> {
        let (now, own) = (Instant::now(), lane());
        (own..own + LANES).find_map(|lane| self.take_from(lane, now))
    }

    fn take_from(&self, lane: usize, now: Instant) -> Option<Connection> {
        loop {
            let Idle { connection, since } = self.lane(lane).pop()?;
            if now.saturating_duration_since(since) < IDLE_TIME
                && let Some(mut connection) = connection.on_this_thread()
                && connection.seems_alive()
            {
                return Some(connection);
            }
        }
    }

    /// Whether HTTP/1.1 is what is spoken here: nothing else is offered, or the peer chose it.
    pub(super) fn speaks_http1(&self) -> bool {
        self.http2.as_ref().is_none_or(|http2| http2.lines.chose_http1())
    }

    pub(super) fn put(&self, connection: Connection) {
        let mut idle = self.lane(connection.lane);
        if idle.len() < IDLE_LIMIT {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    fn lane(&self, lane: usize) -> MutexGuard<'_, Vec<Idle>> {
        let [first, ..] = &self.idle;
        self.idle.get(lane % LANES).unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
    }
}
