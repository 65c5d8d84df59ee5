//! Saving the file is enough: whatever an editor does to it, what it holds in the end is judged once.
//!
//! The folders in which something can change what the path leads to are watched, and names are ignored: an editor that
//! renames over the file ends a watch of the file itself, and the symlink swap of a ConfigMap names only `..data`. The
//! file is also looked at every two seconds, for what has no events (network folders). Only content counts: a touch,
//! or a save without a change, is nothing.

mod folders;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::time::Instant;

use self::folders::{Folder, folders};
use super::live::Live;
use super::reading::{Fingerprint, Reading};

/// Nothing happens for so long after the last event of a save …
const QUIET: Duration = Duration::from_millis(80);
/// … but no longer than this after the first.
const QUIET_LIMIT: Duration = Duration::from_millis(500);
/// For so long a file must stay as it is that has become empty, or has lost half of its providers: it may be half
/// written.
const SETTLED: Duration = Duration::from_millis(400);
/// For so long it must be gone, or unreadable, to be reported: it may be on its way back.
const GONE: Duration = Duration::from_secs(2);
/// How often the file is looked at without an event.
const POLL: Duration = Duration::from_secs(2);

/// Watches the configuration file, on a thread of its own, until it is dropped.
pub struct Watch {
    ring: Sender<Ring>,
}

/// What wakes the thread.
enum Ring {
    /// Something happened in a watched folder.
    Changed,
    End,
}

impl Watch {
    /// Begins to watch; nothing where there is no file. `apply` gets what the file holds, on the watcher's own thread,
    /// whenever it is something else than what [`Live`] judged last; it is to hand it to [`Live::apply`].
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(live: Arc<Live>, apply: impl Fn(Reading) + Send + 'static) -> std::io::Result<Option<Self>> {
        let Some(path) = live.path().map(Path::to_owned) else { return Ok(None) };
        let (ring, rung) = channel();
        let events = Events { ring: ring.clone(), path, watcher: None, watched: BTreeSet::new(), complained: false };
        let watching = Watching { live, apply: Box::new(apply), rung, events };
        std::thread::Builder::new().name("config-watch".into()).spawn(move || watching.run())?;
        Ok(Some(Self { ring }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The thread is not waited for: it may hang on a network folder, and what it does is complete at any time.
        let _ = self.ring.send(Ring::End);
    }
}

struct Watching {
    live: Arc<Live>,
    apply: Box<dyn Fn(Reading) + Send>,
    rung: Receiver<Ring>,
    events: Events,
}

/// What is waited for before a reading is believed.
struct Doubt {
    about: Fingerprint,
    until: Instant,
}

impl Watching {
    fn run(mut self) {
        let mut doubt: Option<Doubt> = None;
        // What was saved between the first reading and the first watch rings on its own.
        self.events.follow(false);
        let mut wake = Wake::Event;
        loop {
            let reading = match self.settled(wake) {
                Ok(reading) => reading,
                Err(Ended) => return,
            };
            doubt = reading.and_then(|reading| self.judge(reading, doubt));
            let wait = doubt.as_ref().map_or(POLL, |doubt| doubt.until.saturating_duration_since(Instant::now()));
            wake = match self.rung.recv_timeout(wait) {
                Ok(Ring::Changed) => Wake::Event,
                Err(RecvTimeoutError::Timeout) if doubt.is_some() => Wake::Doubt,
                Err(RecvTimeoutError::Timeout) => Wake::Poll,
                Ok(Ring::End) | Err(RecvTimeoutError::Disconnected) => return,
            };
        }
    }

    /// Reads the file when nobody seems to write it; nothing where it holds what was judged last.
    fn settled(&mut self, wake: Wake) -> Result<Option<Reading>, Ended> {
        let begin = Instant::now();
        let mut last = None;
        if matches!(wake, Wake::Doubt) {
            // It was quiet for long enough; whatever else is written to this folder is nobody's business.
            let reading = self.live.read();
            return Ok(Some(reading).filter(|reading| !self.live.has_judged(reading)));
        }
        if matches!(wake, Wake::Poll) {
            let reading = self.live.read();
            let news = !self.live.has_judged(&reading);
            // A change that no event told of: perhaps the watch has died with its folder.
            self.events.follow(news);
            if !news {
                return Ok(None);
            }
            last = Some(reading.fingerprint);
        }
        loop {
            self.quiet(begin)?;
            let reading = self.live.read();
            self.events.follow(false);
            if self.live.has_judged(&reading) {
                return Ok(None);
            }
            // Where there are no events, two readings must agree.
            let same = last.is_none_or(|last| last == reading.fingerprint);
            last = last.map(|_| reading.fingerprint);
            if begin.elapsed() >= QUIET_LIMIT || (same && !self.rang_meanwhile()?) {
                return Ok(Some(reading));
            }
        }
    }

    /// Waits until there was no event for a moment, but not for ever.
    fn quiet(&self, begin: Instant) -> Result<(), Ended> {
        loop {
            let left = QUIET_LIMIT.saturating_sub(begin.elapsed());
            match self.rung.recv_timeout(QUIET.min(left)) {
                Ok(Ring::Changed) if begin.elapsed() < QUIET_LIMIT => {}
                Ok(Ring::Changed) | Err(RecvTimeoutError::Timeout) => return Ok(()),
                Ok(Ring::End) | Err(RecvTimeoutError::Disconnected) => return Err(Ended),
            }
        }
    }

    fn rang_meanwhile(&self) -> Result<bool, Ended> {
        let mut rang = false;
        for ring in self.rung.try_iter() {
            match ring {
                Ring::Changed => rang = true,
                Ring::End => return Err(Ended),
            }
        }
        Ok(rang)
    }

    /// Hands a reading on, or answers why it is too early for that.
    fn judge(&mut self, reading: Reading, doubt: Option<Doubt>) -> Option<Doubt> {
        let patience = self.patience(&reading);
        if !patience.is_zero() {
            let now = Instant::now();
            let doubt = doubt
                .filter(|doubt| doubt.about == reading.fingerprint)
                .unwrap_or(Doubt { about: reading.fingerprint, until: now + patience });
            if now < doubt.until {
                return Some(doubt);
            }
        }
        (self.apply)(reading);
        None
    }

    /// For how long a content must stay before it is believed.
    fn patience(&self, reading: &Reading) -> Duration {
        if reading.is_missing() {
            return GONE;
        }
        // Perhaps somebody is still writing what is missing.
        let fewer = |left: usize| left < self.live.load().providers.len();
        if reading.says_nothing() || self.live.providers_in(reading).is_some_and(fewer) {
            SETTLED
        } else {
            Duration::ZERO
        }
    }
}

/// Why the thread looks at the file.
#[derive(Clone, Copy, Debug)]
enum Wake {
    Event,
    Doubt,
    Poll,
}

/// The watch was dropped.
struct Ended;

/// The source of events.
struct Events {
    ring: Sender<Ring>,
    path: PathBuf,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<Folder>,
    /// Said once: polling goes on, so nothing is lost but time.
    complained: bool,
}

impl Events {
    /// Watches the folders that matter now; `anew` even if they are those that are watched already.
    fn follow(&mut self, anew: bool) {
        let wanted = folders(&self.path);
        if wanted == self.watched && self.watcher.is_some() && !anew {
            return;
        }
        let ring = self.ring.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // A reading is no change: our own would go round in a circle.
            if event.is_ok_and(|event| !is_reading(event.kind)) {
                let _ = ring.send(Ring::Changed);
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            for folder in &wanted {
                watcher.watch(&folder.path, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.watched = wanted;
                // What happened before the new watch began has told nobody.
                let _ = self.ring.send(Ring::Changed);
            }
            Err(error) => {
                self.watcher = None;
                if !self.complained {
                    tracing::warn!("edits are noticed by looking every 2 s, for there are no events: {error}");
                }
                self.complained = true;
            }
        }
    }
}

fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}
