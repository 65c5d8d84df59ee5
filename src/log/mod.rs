//! The log: one event, two forms. On the terminal a readable line, in the file a JSON line with `timestamp`, `level`,
//! `message` and the event's fields. Each has a writer thread behind a bounded queue: a request never waits for a
//! terminal or a disk; what does not fit is dropped, counted, and said.
//!
//! Levels: INFO = normal life; WARN = the system recovered by itself; ERROR = a human must act; DEBUG shows the
//! verdict of each attempt. Bodies, credentials and query strings are never logged.

mod fields;
mod file;
mod queue;
mod text;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use file::Rolling;
pub use file::Rotation;
use queue::{Order, Queue, Receiver};
pub use text::printable;

/// How long lines gather before the next are written.
const GATHER_TIME: Duration = Duration::from_millis(5);
/// Longest wait for writers that do not get on, at the end.
pub const END_TIME: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Default)]
pub struct Options {
    /// The least severe level that is written.
    pub level: Option<Level>,
    /// Also what libraries say, at the same level (they are held to WARN otherwise).
    pub libraries: bool,
    /// The readable form: where to, and whether in colour.
    pub terminal: Option<(Box<dyn Write + Send>, bool)>,
    /// The JSON-lines file.
    pub file: Option<PathBuf>,
    /// When it is put aside.
    pub rotation: Rotation,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("level", &self.level).field("file", &self.file).finish_non_exhaustive()
    }
}

/// The writers' end. Dropping it writes what is left, as far as that goes within [`END_TIME`].
#[derive(Debug)]
pub struct Log {
    terminal: Option<Queue>,
    file: Option<Queue>,
    reopen: Arc<AtomicBool>,
    level: Arc<AtomicU8>,
}

/// The part that `tracing` talks to.
#[derive(Debug)]
pub struct Lines {
    level: Arc<AtomicU8>,
    libraries: bool,
    /// And whether in colour.
    terminal: Option<(Queue, bool)>,
    file: Option<Queue>,
    dropped: Counter,
}

/// Starts the writers, one for each form: a terminal that nobody reads must not hold up the file. `dropped` counts
/// lines that found a queue full. A file that cannot be opened or written is said on the terminal.
pub fn start(options: Options, dropped: Counter) -> (Lines, Log) {
    let level = Arc::new(AtomicU8::new(rank(options.level.unwrap_or(Level::INFO))));
    let terminal =
        options.terminal.and_then(|(out, colour)| Some((writer("log", out, dropped.clone(), None)?, colour)));
    let complaints = terminal.as_ref().map(|(queue, _)| queue.clone());
    let reopen = Arc::new(AtomicBool::new(false));
    let rolling = |path: &PathBuf| Rolling::open(path.clone(), options.rotation, reopen.clone());
    let file = options.file.and_then(|path| match rolling(&path) {
        Ok(file) => writer("log file", Box::new(file), dropped.clone(), complaints.clone()),
        Err(error) => {
            if let Some(complaints) = &complaints {
                complaints.push(format!("cannot write the log file {}: {error}\n", path.display()).as_bytes());
            }
            None
        }
    });
    let log = Log {
        terminal: terminal.as_ref().map(|(queue, _)| queue.clone()),
        file: file.clone(),
        reopen,
        level: level.clone(),
    };
    (Lines { level, libraries: options.libraries, terminal, file, dropped }, log)
}

/// A thread that writes lines for as long as somebody can send them.
fn writer(name: &str, out: Box<dyn Write + Send>, dropped: Counter, complaints: Option<Queue>) -> Option<Queue> {
    let (queue, lines) = queue::queue();
    let thread = std::thread::Builder::new().name(name.into());
    thread.spawn(move || write(lines, out, &dropped, complaints.as_ref())).ok()?;
    Some(queue)
}

impl Log {
    /// Changes the level of a running log.
    pub fn set_level(&self, level: Level) {
        self.level.store(rank(level), Ordering::Relaxed);
    }

    /// Puts a text of several lines on the terminal as it is.
    pub fn show(&self, text: String) {
        if let Some(terminal) = &self.terminal {
            // A terminal that nobody reads has more to say already than this.
            terminal.push(text.as_bytes());
        }
    }

    /// Opens the file anew: somebody else may have put it aside.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
        if let Some(file) = &self.file {
            // The writer looks before it writes, be it nothing.
            file.order(Order::Touch);
        }
    }

    /// Whether lines go to a file.
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Waits until everything that was logged so far is written, at most [`END_TIME`].
    pub fn flush(&self) {
        let limit = Instant::now() + END_TIME;
        let asked = [&self.terminal, &self.file].into_iter().flatten().map(|queue| {
            let (done, written) = sync_channel(1);
            queue.order(Order::Flush(done));
            written
        });
        let asked = asked.collect::<Vec<_>>();
        for written in asked {
            let _ = written.recv_timeout(limit.saturating_duration_since(Instant::now()));
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.flush();
    }
}

fn write(mut lines: Receiver, mut out: Box<dyn Write + Send>, dropped: &Counter, complaints: Option<&Queue>) {
    let (mut said, mut failing, mut order) = (0, false, None);
    loop {
        if matches!(order, Some(Order::Touch)) {
            // Of an empty text `write_all` would tell nobody.
            failing &= out.write(&[]).is_err();
        }
        let silent = !lines.take(|batch| {
            // A closed terminal or a full disk must not end the log; what is lost is counted, and said once.
            let result = out.write_all(batch);
            if let (Err(error), Some(complaints)) = (&result, complaints) {
                dropped.inc_by(memchr::memchr_iter(b'\n', batch).count() as u64);
                if !failing {
                    complaints.push(format!("cannot write to the log file: {error}\n").as_bytes());
                }
            }
            failing = result.is_err();
        });
        let lost = dropped.get();
        if !silent && lost > said && complaints.is_none() {
            let _ = writeln!(out, "{} log lines were dropped: the log was too slow", lost - said);
            said = lost;
        }
        if let Some(Order::Flush(done)) = order {
            let _ = out.flush();
            let _ = done.send(());
        }
        // The first line after a silence is written at once, what comes soon after it together: waking this thread for
        // each would cost whoever logs more than the line does.
        order = if silent { lines.next() } else { lines.next_within(GATHER_TIME) };
        if silent && order.is_none() {
            return;
        }
    }
}

fn rank(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

fn is_own(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("claude_code_balancer")
}

impl<S: Subscriber> Layer<S> for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Libraries that follow each of their steps are not asked at each of them.
        if !self.libraries && !is_own(metadata) && rank(*metadata.level()) > rank(Level::WARN) {
            return Interest::never();
        }
        // The level may change at any time.
        Interest::sometimes()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let level = rank(*metadata.level());
        // Most are of a level that nobody wants, which is seen sooner than whose they are.
        level <= self.level.load(Ordering::Relaxed)
            && (level <= rank(Level::WARN) || self.libraries || is_own(metadata))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let add = |queue: &Queue, line: &[u8]| {
            if !queue.push(line) {
                self.dropped.inc();
            }
        };
        let colour = matches!(self.terminal, Some((_, true)));
        fields::lines(event, colour, |readable, json| {
            if let Some((queue, _)) = &self.terminal {
                add(queue, readable);
            }
            if let Some(queue) = &self.file {
                add(queue, json);
            }
        });
    }
}

#[cfg(test)]
mod tests;
