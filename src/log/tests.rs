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
    let options =
        Options { terminal: Some((Box::new(buffer.clone()), false)), file: Some(file.clone()), ..Options::default() };
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
fn kinds_of_lines_in_turn_keep_apart() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("log.jsonl");
    let (lines, log) = start(Options { file: Some(file.clone()), ..Options::default() }, Counter::default());
    let subscriber = tracing_subscriber::registry().with(lines);
    tracing::subscriber::with_default(subscriber, || {
        // Of more kinds than a thread remembers, with some that come again at once.
        for turn in 0..4 {
            tracing::info!(a = turn, "first");
            tracing::warn!(b = turn, "second");
            tracing::info!(a = turn, c = 1, "third");
            if turn % 2 == 0 {
                tracing::error!("fourth");
                tracing::info!(d = turn, "fifth");
                tracing::warn!(e = turn, "sixth");
            }
        }
    });
    drop(log);
    let mut wanted = Vec::new();
    for turn in 0..4 {
        wanted.push(format!("INFO first a {turn}"));
        wanted.push(format!("WARNING second b {turn}"));
        wanted.push(format!("INFO third a {turn} c 1"));
        if turn % 2 == 0 {
            wanted.extend(["ERROR fourth".into(), format!("INFO fifth d {turn}"), format!("WARNING sixth e {turn}")]);
        }
    }
    let text = std::fs::read_to_string(file).expect("file");
    let said = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let mut said =
            format!("{} {}", line["level"].as_str().expect("a level"), line["message"].as_str().expect("text"));
        for name in ["a", "b", "c", "d", "e"].iter().filter(|name| !line[**name].is_null()) {
            said += &format!(" {name} {}", line[*name]);
        }
        said
    });
    assert_eq!(said.collect::<Vec<_>>(), wanted);
}

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
