//! How often and when each account was used. Counters only, kept apart from tokens: who counts cannot write a stale
//! token. Written by a thread of its own, a moment after the first change, so that a busy minute costs a few writes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::error::VaultError;
use super::private::Folder;
use crate::provider::Email;

const NAME: &str = "usage.json";
const LIMIT: usize = 1024 * 1024;
/// From a change to its write; further changes in between go along.
const DELAY: Duration = Duration::from_secs(2);

/// What is counted for one account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Requests that it served.
    pub count: u64,
    /// When it served the last one.
    pub last_used: Option<SystemTime>,
}

/// See [`Vault::save_usage`](super::Vault::save_usage).
pub type UsageMap = HashMap<Email, Usage>;

#[derive(Serialize, Deserialize)]
struct Stored {
    accounts: BTreeMap<String, Counts>,
}

#[derive(Serialize, Deserialize)]
struct Counts {
    count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_used: Option<u64>,
}

/// The writer's end.
#[derive(Debug)]
pub(super) struct Usages {
    folder: Folder,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What is to be written.
    waiting: Option<UsageMap>,
    /// The thread has been started.
    started: bool,
    /// It need not wait for more.
    hurry: bool,
    /// It is to end when nothing is left.
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Usages {
    pub(super) fn new(folder: Folder) -> Self {
        Self { folder, shared: Arc::default() }
    }

    /// Hands over the counters as they are now; returns at once.
    pub(super) fn save(&self, usage: UsageMap) {
        let mut state = self.shared.lock();
        state.waiting = Some(usage);
        if !state.started {
            let (folder, shared) = (self.folder.clone(), self.shared.clone());
            let body = move || write_all(&folder, &shared);
            state.started = std::thread::Builder::new().name("usage".into()).spawn(body).is_ok();
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Takes what is not written yet, to be written by the caller.
    pub(super) fn take(&self) -> Option<UsageMap> {
        self.shared.lock().waiting.take()
    }
}

impl Drop for Usages {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        (state.over, state.hurry) = (true, true);
        drop(state);
        self.shared.changed.notify_one();
    }
}

/// The thread.
fn write_all(folder: &Folder, shared: &Shared) {
    loop {
        let state = shared.changed.wait_while(shared.lock(), |state| state.waiting.is_none() && !state.over);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let wait = shared.changed.wait_timeout_while(state, DELAY, |state| !state.hurry);
        let (mut state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        let (waiting, over) = (state.waiting.take(), state.over);
        drop(state);
        if let Some(usage) = waiting
            && let Err(error) = write(folder, &usage)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot write the usage of accounts");
        }
        if over {
            return;
        }
    }
}

pub(super) fn write(folder: &Folder, usage: &UsageMap) -> Result<(), VaultError> {
    let seconds = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let counts = |usage: &Usage| Counts { count: usage.count, last_used: usage.last_used.map(seconds) };
    let accounts = usage.iter().map(|(email, usage)| (email.as_str().to_owned(), counts(usage))).collect();
    let text = serde_json::to_string(&Stored { accounts }).unwrap_or_default();
    folder.replace(NAME, text.as_bytes())
}

/// What was counted; nothing where there is no file, or none that can be understood (they are only counters).
pub(super) fn read(folder: &Folder) -> Result<UsageMap, VaultError> {
    let Some(bytes) = folder.read(NAME, LIMIT)? else { return Ok(UsageMap::new()) };
    let Ok(stored) = serde_json::from_slice::<Stored>(&bytes) else {
        tracing::warn!(file = %folder.path(NAME).display(), "the usage of accounts is damaged; counting starts anew");
        return Ok(UsageMap::new());
    };
    let time = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799));
    let usage = |counts: Counts| Usage { count: counts.count, last_used: counts.last_used.map(time) };
    let accounts = stored.accounts.into_iter();
    Ok(accounts.filter_map(|(email, counts)| Some((Email::parse(&email)?, usage(counts)))).collect())
}
