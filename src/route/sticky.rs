//! The choice that a session keeps inside a tier while the target is healthy: prompt caches live at one provider.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Target;
use crate::provider::Identity;

/// Locks are split so that sessions do not wait for each other.
const SHARDS: usize = 16;
/// Sessions kept in one shard; beyond it, what has expired is dropped, then the rest.
const SHARD_LIMIT: usize = 1024;

/// The choices of all sessions.
#[derive(Debug)]
pub struct Sticky {
    hasher: RandomState,
    shards: [Mutex<HashMap<u64, Choice>>; SHARDS],
}

#[derive(Debug)]
struct Choice {
    entry: Arc<Identity>,
    made: Instant,
}

impl Default for Sticky {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: Default::default() }
    }
}

/// One session, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Session<'a> {
    /// Where choices are kept.
    pub sticky: &'a Sticky,
    /// The value of `x-claude-code-session-id`.
    pub id: &'a [u8],
    /// How long a choice lasts after its last use.
    pub lasts: Duration,
    /// Now.
    pub now: Instant,
}

impl Session<'_> {
    /// Whether `target` is this session's choice in its tier of the route `pattern`.
    pub fn keeps(&self, pattern: &str, target: &Target) -> bool {
        let key = self.key(pattern, target.priority);
        let shard = self.sticky.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        shard.get(&key).is_some_and(|choice| self.is_fresh(choice) && choice.entry == target.provider.entry)
    }

    /// Remembers the target that answered.
    pub fn choose(&self, pattern: &str, target: &Target) {
        let key = self.key(pattern, target.priority);
        let mut shard = self.sticky.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= SHARD_LIMIT {
            shard.retain(|_, choice| self.is_fresh(choice));
            if shard.len() >= SHARD_LIMIT {
                shard.clear();
            }
        }
        shard.insert(key, Choice { entry: target.provider.entry.clone(), made: self.now });
    }

    fn is_fresh(&self, choice: &Choice) -> bool {
        self.now.saturating_duration_since(choice.made) < self.lasts
    }

    fn key(&self, pattern: &str, priority: i64) -> u64 {
        self.sticky.hasher.hash_one((self.id, pattern, priority))
    }
}

impl Sticky {
    fn shard(&self, key: u64) -> &Mutex<HashMap<u64, Choice>> {
        let index = usize::try_from(key).unwrap_or_default() % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "the index is a remainder by the number of shards")]
        &self.shards[index]
    }
}
