//! Kept-alive connections, by peer. A pool has a lock of its own that is held for a push or a pop; the map of pools
//! is read without one.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use tokio::time::Instant;

use super::http1::Connection;
use super::tls;
use crate::provider::{Peer, Provider};

/// Idle connections kept for one peer.
const IDLE_LIMIT: usize = 32;
/// How long one is kept: below what providers and middleboxes allow.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Pools {
    tls: Arc<ClientConfig>,
    peers: ArcSwap<HashMap<Arc<Peer>, Arc<Pool>>>,
}

#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<Vec<Idle>>,
    /// With session tickets of its own: resumed through another egress, one would tell the provider that both are us.
    pub(super) tls: Arc<ClientConfig>,
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
        let new = Arc::new(Pool { idle: Mutex::default(), tls: tls::with_own_sessions(&self.tls) });
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
            pool.lock().retain(|idle| now.saturating_duration_since(idle.since) < limit);
        }
    }
}

impl Pool {
    /// The connection that was used last and still seems to live.
    pub(super) fn take(&self) -> Option<Connection> {
        let now = Instant::now();
        loop {
            let Idle { mut connection, since } = self.lock().pop()?;
            if now.saturating_duration_since(since) < IDLE_TIME && connection.seems_alive() {
                return Some(connection);
            }
        }
    }

    pub(super) fn put(&self, connection: Connection) {
        let mut idle = self.lock();
        if idle.len() < IDLE_LIMIT {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
