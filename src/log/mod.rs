//! The log: one event, two forms. On the terminal a readable line, in the file a JSON line with `timestamp`, `level`,
//! `message` and the event's fields. Each has a writer thread behind a bounded queue: a request never waits for a
//! terminal or a disk; what does not fit is dropped, counted, and said.
//!
//! Levels: INFO = normal life; WARN = the system recovered by itself; ERROR = a human must act; DEBUG shows the
//! verdict of each attempt. Bodies, credentials and query strings are never logged.

mod fields;
mod file;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use fields::Form;
pub use fields::printable;
use file::Rolling;
pub use file::Rotation;

/// Lines that may wait for the writer.
const QUEUE: usize = 8192;
/// Bytes of lines that are written at once.
const BATCH: usize = 64 * 1024;
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
    terminal: Option<SyncSender<Line>>,
    file: Option<SyncSender<Line>>,
    reopen: Arc<AtomicBool>,
    level: Arc<AtomicU8>,
}

/// The part that `tracing` talks to.
#[derive(Debug)]
pub struct Lines {
    level: Arc<AtomicU8>,
    libraries: bool,
    /// And whether in colour.
    terminal: Option<(SyncSender<Line>, bool)>,
    file: Option<SyncSender<Line>>,
    dropped: Counter,
}

enum Line {
    Text(String),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
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
                let text = format!("cannot write the log file {}: {error}\n", path.display());
                let _ = complaints.try_send(Line::Text(text));
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
fn writer(
    name: &str,
    out: Box<dyn Write + Send>,
    dropped: Counter,
    complaints: Option<SyncSender<Line>>,
) -> Option<SyncSender<Line>> {
    let (queue, lines) = sync_channel(QUEUE);
    let thread = std::thread::Builder::new().name(name.into());
    thread.spawn(move || write(&lines, out, &dropped, complaints.as_ref())).ok()?;
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
            let _ = terminal.try_send(Line::Text(text));
        }
    }

    /// Opens the file anew: somebody else may have put it aside.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
        if let Some(file) = &self.file {
            // The writer looks before it writes, be it nothing.
            let _ = file.try_send(Line::Text(String::new()));
        }
    }

    /// Whether lines go to a file.
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Waits until everything that was logged so far is written, at most [`END_TIME`].
    pub fn flush(&self) {
        let limit = Instant::now() + END_TIME;
        let asked = [&self.terminal, &self.file].into_iter().flatten().filter_map(|queue| {
            let (done, written) = sync_channel(1);
            let mut line = Line::Flush(done);
            while let Err(TrySendError::Full(back)) = queue.try_send(line) {
                if Instant::now() >= limit {
                    return None;
                }
                line = back;
                std::thread::sleep(Duration::from_millis(5));
            }
            Some(written)
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

fn write(
    lines: &Receiver<Line>,
    mut out: Box<dyn Write + Send>,
    dropped: &Counter,
    complaints: Option<&SyncSender<Line>>,
) {
    let (mut said, mut failing) = (0, false);
    // The first line after a silence is written at once, what comes soon after it together: waking this thread for each
    // would cost whoever logs more than the line does.
    while let Ok(first) = lines.recv() {
        let (mut text, mut count, mut asked) = (String::new(), 0, None);
        let mut next = Some(first);
        while let Some(line) = next.take() {
            match line {
                Line::Text(line) if text.is_empty() => (text, count) = (line, 1),
                Line::Text(line) => {
                    text.push_str(&line);
                    count += 1;
                }
                Line::Flush(done) => asked = Some(done),
            }
            if asked.is_none() && text.len() < BATCH {
                next = lines.try_recv().ok();
            }
        }
        if count > 0 {
            // A closed terminal or a full disk must not end the log; what is lost is counted, and said once.
            // Of an empty text `write_all` would tell nobody.
            let result = if text.is_empty() { out.write(&[]).map(drop) } else { out.write_all(text.as_bytes()) };
            if let (Err(error), Some(complaints)) = (&result, complaints) {
                dropped.inc_by(count);
                if !failing {
                    let _ = complaints.try_send(Line::Text(format!("cannot write to the log file: {error}\n")));
                }
            }
            failing = result.is_err();
            let lost = dropped.get();
            if lost > said && complaints.is_none() {
                let _ = writeln!(out, "{} log lines were dropped: the log was too slow", lost - said);
                said = lost;
            }
        }
        match asked {
            Some(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
            None => std::thread::sleep(GATHER_TIME),
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
        let limit = self.level.load(Ordering::Relaxed);
        let limit = if is_own(metadata) || self.libraries { limit } else { limit.min(rank(Level::WARN)) };
        rank(*metadata.level()) <= limit
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let send = |queue: &SyncSender<Line>, text| {
            if let Err(TrySendError::Full(_)) = queue.try_send(Line::Text(text)) {
                self.dropped.inc();
            }
        };
        if let Some((queue, colour)) = &self.terminal {
            send(queue, fields::line(event, Form::Readable { colour: *colour }));
        }
        if let Some(queue) = &self.file {
            send(queue, fields::line(event, Form::Json));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::sync::Mutex;
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn flush(queue: &SyncSender<Line>) {
        let (done, written) = sync_channel(1);
        queue.send(Line::Flush(done)).expect("the writer lives");
        written.recv().expect("written");
    }

    /// A terminal that was stopped with Ctrl-S.
    struct Stopped;

    impl Write for Stopped {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            loop {
                std::thread::park();
            }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_terminal_that_nobody_reads_holds_up_neither_the_file_nor_the_end() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("logs.jsonl");
        let options =
            Options { terminal: Some((Box::new(Stopped), false)), file: Some(file.clone()), ..Options::default() };
        let dropped = Counter::default();
        let (layer, log) = start(options, dropped.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for number in 0..2 * QUEUE {
                tracing::info!(number, "line");
                // The file's writer keeps up.
                if number % 1000 == 0 {
                    log.file.iter().for_each(flush);
                }
            }
            log.file.iter().for_each(flush);
        });
        assert!(dropped.get() > 0, "what the terminal does not take is counted");
        drop(log);
        assert_eq!(std::fs::read_to_string(file).expect("file").lines().count(), 2 * QUEUE);
    }

    #[test]
    fn an_event_is_one_line_in_both_forms_whatever_its_text() {
        let (buffer, folder) = (Buffer::default(), tempfile::tempdir().expect("folder"));
        let file = folder.path().join("deep/logs.jsonl");
        let options = Options {
            terminal: Some((Box::new(buffer.clone()), false)),
            file: Some(file.clone()),
            ..Options::default()
        };
        let (layer, log) = start(options, Counter::default());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(model = "a\x1b]0;x\n\u{202e}b", status = 200_u64, "oauth done");
            tracing::debug!("not shown");
            log.set_level(Level::DEBUG);
            tracing::debug!(long = "x".repeat(5000), "shown");
        });
        drop(log);
        let text = String::from_utf8(buffer.0.lock().expect("lock").clone()).expect("UTF-8");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("INFO  oauth done model=a\\u{1b}]0;x\\u{a}\\u{202e}b status=200"), "{text}");
        let json = std::fs::read_to_string(file).expect("file");
        let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (&lines[0]["level"], &lines[0]["message"], &lines[0]["status"]),
            (&"INFO".into(), &"oauth done".into(), &200.into())
        );
        assert!(lines[0]["timestamp"].as_str().is_some_and(|stamp| stamp.len() > 20));
        assert!(lines[1]["long"].as_str().is_some_and(|text| text.len() < 2100));
    }
}
