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

    fn flush(queue: &Queue) {
        let (done, written) = sync_channel(1);
        queue.order(Order::Flush(done));
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
        // More than has room in memory.
        let (count, long) = (10_000, "x".repeat(300));
        let (layer, log) = start(options, dropped.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for number in 0..count {
                tracing::info!(number, long, "line");
                // The file's writer keeps up.
                if number % 1000 == 0 {
                    log.file.iter().for_each(flush);
                }
            }
            log.file.iter().for_each(flush);
        });
        assert!(dropped.get() > 0, "what the terminal does not take is counted");
        drop(log);
        assert_eq!(std::fs::read_to_string(file).expect("file").lines().count(), count);
    }

    /// A terminal that was stopped with Ctrl-S until the other end of the channel has gone.
    struct Resumed(std::sync::mpsc::Receiver<()>, Buffer);

    impl Write for Resumed {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_dropped_is_said_when_the_terminal_goes_on() {
        let (stop, stopped) = sync_channel(0);
        let (buffer, dropped, count) = (Buffer::default(), Counter::default(), 10_000);
        let terminal = Some((Box::new(Resumed(stopped, buffer.clone())) as Box<dyn Write + Send>, false));
        let (layer, log) = start(Options { terminal, ..Options::default() }, dropped.clone());
        let long = "x".repeat(300);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            (0..count).for_each(|number| tracing::info!(number, long, "line"));
        });
        drop(stop);
        log.flush();
        let text = String::from_utf8(buffer.0.lock().expect("lock").clone()).expect("UTF-8");
        let said = text.lines().filter_map(|line| line.strip_suffix(" log lines were dropped: the log was too slow"));
        let said: u64 = said.map(|number| number.parse::<u64>().expect("a number")).sum();
        assert!(said > 0 && said == dropped.get(), "{said} of {}", dropped.get());
        assert_eq!(text.lines().filter(|line| line.ends_with(&long)).count() as u64, count - said);
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

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_message_comes_first_and_each_kind_of_value_has_its_form() {
        let (buffer, folder) = (Buffer::default(), tempfile::tempdir().expect("folder"));
        let file = folder.path().join("logs.jsonl");
        let options = Options {
            level: Some(Level::TRACE),
            terminal: Some((Box::new(buffer.clone()), false)),
            file: Some(file.clone()),
            ..Options::default()
        };
        let (layer, log) = start(options, Counter::default());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let error = Outer(std::io::Error::other("inner"));
            tracing::trace!(a = -1, b = true, c = 0.5, d = f64::NAN, e = ?Some("x"), f = %"y z", "kinds");
            tracing::warn!(error = &error as &dyn std::error::Error, log.line = 1, empty = "", message = "la\"te");
            tracing::debug!(target: "claude_code_balancer::\"odd\"", none = None::<&str>, number = 7);
            tracing::error!(number = 7, message = "é".repeat(2000));
        });
        drop(log);
        let text = String::from_utf8(buffer.0.lock().expect("lock").clone()).expect("UTF-8");
        let error = "outer: inner";
        let long = "é".repeat(1024);
        let shown: Vec<_> = text.lines().map(|line| line.split_at("00:00:00.000 ".len()).1).collect();
        assert_eq!(
            shown,
            [
                "TRACE kinds a=-1 b=true c=0.5 d=NaN e=\"Some(\\\"x\\\")\" f=\"y z\"",
                &format!("WARN  la\"te error=\"{error}\" empty=\"\""),
                "DEBUG  number=7",
                &format!("ERROR {long}… number=7"),
            ]
        );
        let json = std::fs::read_to_string(file).expect("file");
        let own = "claude_code_balancer::log::tests";
        let written: Vec<_> = json.lines().map(|line| line.split_once(",\"level\":").expect("a level").1).collect();
        assert_eq!(
            written,
            [
                &format!(
                    "\"TRACE\",\"message\":\"kinds\",\"target\":\"{own}\",\"a\":-1,\"b\":true,\"c\":0.5,\"d\":\"NaN\",\
                     \"e\":\"Some(\\\"x\\\")\",\"f\":\"y z\"}}"
                ),
                &format!(
                    "\"WARNING\",\"message\":\"la\\\"te\",\"target\":\"{own}\",\"error\":\"{error}\",\"empty\":\"\"}}"
                ),
                "\"DEBUG\",\"message\":\"\",\"target\":\"claude_code_balancer::\\\"odd\\\"\",\"number\":7}",
                &format!("\"ERROR\",\"message\":\"{long}…\",\"target\":\"{own}\",\"number\":7}}"),
            ]
        );
    }
}
