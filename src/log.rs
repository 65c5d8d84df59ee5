//! The log: one event, two forms. On the terminal a readable line, in the file a JSON line with `timestamp`, `level`,
//! `message` and the event's fields. Lines go to one writer thread through a bounded queue: a request never waits
//! for a disk; what does not fit is dropped, counted, and said.
//!
//! Levels: INFO = normal life; WARN = the system recovered by itself; ERROR = a human must act; DEBUG shows the
//! verdict of each attempt. Bodies, credentials and query strings are never logged.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use prometheus_client::metrics::counter::Counter;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines that may wait for the writer.
const QUEUE: usize = 8192;
/// Longest text of one field, in bytes; the rest is cut off.
const FIELD_LIMIT: usize = 2048;

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
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("level", &self.level).field("file", &self.file).finish_non_exhaustive()
    }
}

/// The writer's end. Dropping it writes what is left and ends the thread.
#[derive(Debug)]
pub struct Log {
    queue: SyncSender<Line>,
    level: Arc<AtomicU8>,
    writer: Option<JoinHandle<()>>,
}

/// The part that `tracing` talks to.
#[derive(Debug)]
pub struct Lines {
    queue: SyncSender<Line>,
    level: Arc<AtomicU8>,
    libraries: bool,
    terminal: Option<bool>,
    file: bool,
    dropped: Counter,
}

enum Line {
    Text { terminal: Option<String>, file: Option<String> },
    Flush(SyncSender<()>),
    End,
}

/// Starts the writer. `dropped` counts lines that found the queue full. A file that cannot be opened is said on the
/// terminal and left out.
pub fn start(options: Options, dropped: Counter) -> (Lines, Log) {
    let (queue, lines) = sync_channel(QUEUE);
    let level = Arc::new(AtomicU8::new(rank(options.level.unwrap_or(Level::INFO))));
    let mut terminal = options.terminal;
    let colour = terminal.as_ref().map(|(_, colour)| *colour);
    let file = options.file.and_then(|path| match open(&path) {
        Ok(file) => Some(file),
        Err(error) => {
            if let Some((out, _)) = &mut terminal {
                let _ = writeln!(out, "cannot write the log file {}: {error}", path.display());
            }
            None
        }
    });
    let layer = Lines {
        queue: queue.clone(),
        level: level.clone(),
        libraries: options.libraries,
        terminal: colour,
        file: file.is_some(),
        dropped: dropped.clone(),
    };
    let out = terminal.map(|(out, _)| out);
    let writer = std::thread::Builder::new().name("log".into()).spawn(move || write(&lines, out, file, &dropped)).ok();
    (layer, Log { queue, level, writer })
}

impl Log {
    /// Changes the level of a running log.
    pub fn set_level(&self, level: Level) {
        self.level.store(rank(level), Ordering::Relaxed);
    }

    /// Waits until everything that was logged so far is written.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.queue.send(Line::Flush(done)).is_ok() {
            let _ = written.recv();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = self.queue.send(Line::End);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn write(lines: &Receiver<Line>, mut out: Option<Box<dyn Write + Send>>, mut file: Option<File>, dropped: &Counter) {
    let mut said = 0;
    while let Ok(line) = lines.recv() {
        match line {
            Line::Text { terminal, file: json } => {
                // A closed terminal or a full disk must not end the log.
                if let (Some(out), Some(text)) = (&mut out, terminal) {
                    let _ = out.write_all(text.as_bytes());
                }
                if let (Some(file), Some(text)) = (&mut file, json) {
                    let _ = file.write_all(text.as_bytes());
                }
                let lost = dropped.get();
                if lost > said
                    && let Some(out) = &mut out
                {
                    let _ = writeln!(out, "{} log lines were dropped: the log was too slow", lost - said);
                    said = lost;
                }
            }
            Line::Flush(done) => {
                if let Some(out) = &mut out {
                    let _ = out.flush();
                }
                let _ = done.send(());
            }
            Line::End => break,
        }
    }
    if let Some(out) = &mut out {
        let _ = out.flush();
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

impl<S: Subscriber> Layer<S> for Lines {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // The level may change at any time.
        Interest::sometimes()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let own = metadata.target().starts_with("claude_code_balancer");
        let limit = self.level.load(Ordering::Relaxed);
        let limit = if own || self.libraries { limit } else { limit.min(rank(Level::WARN)) };
        rank(*metadata.level()) <= limit
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = *event.metadata().level();
        let now = jiff::Zoned::now();
        let line = Line::Text {
            terminal: self.terminal.map(|colour| fields.readable(level, &now, colour)),
            file: self.file.then(|| fields.json(level, &now, event.metadata().target())),
        };
        if let Err(TrySendError::Full(_)) = self.queue.try_send(line) {
            self.dropped.inc();
        }
    }
}

/// The fields of one event, in order.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

impl Fields {
    fn readable(&self, level: Level, now: &jiff::Zoned, colour: bool) -> String {
        let (word, code) = match level {
            Level::ERROR => ("ERROR", "31"),
            Level::WARN => ("WARN ", "33"),
            Level::INFO => ("INFO ", "32"),
            Level::DEBUG => ("DEBUG", "34"),
            Level::TRACE => ("TRACE", "35"),
        };
        let mut line = now.strftime("%H:%M:%S%.3f ").to_string();
        let _ = if colour { write!(line, "\x1b[{code}m{word}\x1b[0m ") } else { write!(line, "{word} ") };
        line.push_str(&printable(&self.message));
        for (name, value) in &self.rest {
            let text = match value {
                Value::String(text) if text.is_empty() || text.contains([' ', '"', '=']) => {
                    format!("\"{}\"", printable(text).replace('"', "\\\""))
                }
                Value::String(text) => printable(text),
                other => other.to_string(),
            };
            let _ = if colour { write!(line, " \x1b[2m{name}=\x1b[0m{text}") } else { write!(line, " {name}={text}") };
        }
        line.push('\n');
        line
    }

    fn json(&self, level: Level, now: &jiff::Zoned, target: &str) -> String {
        let mut object = Map::new();
        object.insert("timestamp".into(), now.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string().into());
        let level = if level == Level::WARN { "WARNING" } else { level.as_str() };
        object.insert("level".into(), level.into());
        object.insert("message".into(), self.message.as_str().into());
        object.insert("target".into(), target.into());
        for (name, value) in &self.rest {
            object.insert((*name).into(), value.clone());
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        line
    }

    fn put(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            name if name.starts_with("log.") => {}
            name => self.rest.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, cut(format!("{value:?}")).into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, cut(value.to_owned()).into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.put(field, cut(text).into());
    }
}

fn cut(mut text: String) -> String {
    if text.len() > FIELD_LIMIT {
        let mut end = FIELD_LIMIT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Text from outside as it may be shown on a terminal: controls, escapes and direction marks are spelt out.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        let hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if character.is_control() || hidden {
            let _ = write!(out, "{}", character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
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
