//! Kept-alive connections, by peer. A pool has a lock of its own that is held for a push or a pop; the map of pools
//! is read without one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::http1::Connection;
use crate::provider::{Peer, Provider};

/// Idle connections kept for one peer.
const IDLE_LIMIT: usize = 32;
/// How long one is kept: below what providers and middleboxes allow.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
pub(super) struct Pools(ArcSwap<HashMap<Arc<Peer>, Arc<Pool>>>);

#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Idle>>);

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pools {
    pub(super) fn of(&self, peer: &Arc<Peer>) -> Arc<Pool> {
        if let Some(pool) = self.0.load().get(peer) {
            return pool.clone();
        }
        self.0.rcu(|map| {
            let mut map = HashMap::clone(map);
            map.entry(peer.clone()).or_default();
            map
        });
        self.0.load().get(peer).cloned().unwrap_or_default()
    }

    /// Drops the pools of peers that no provider uses any longer.
    pub(super) fn retain(&self, providers: &[Arc<Provider>]) {
        self.0.rcu(|map| {
            let used = |peer: &Peer| providers.iter().any(|provider| *provider.peer == *peer);
            map.iter().filter(|(peer, _)| used(peer)).map(|(k, v)| (k.clone(), v.clone())).collect::<HashMap<_, _>>()
        });
    }

    /// Closes what has been idle for too long.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        for pool in self.0.load().values() {
            pool.lock().retain(|idle| now.saturating_duration_since(idle.since) < IDLE_TIME);
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
