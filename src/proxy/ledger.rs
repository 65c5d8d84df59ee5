//! The account of one request: opened when it arrives, closed by `Drop`, whatever way it ends. Closing writes the one
//! log line and moves the counters. A client that leaves drops the future that serves it: code after an `.await` may
//! never run, a destructor does.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use http::HeaderValue;
use tokio::time::Instant;

use crate::metrics::{Metrics, Outcome};
use crate::provider::Email;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything was delivered.
    Complete,
    /// The client left before everything was delivered.
    ClientLeft,
    /// The provider ended a stream with an error of its own, which was delivered.
    UpstreamError,
    /// The provider broke off after the commit point.
    UpstreamBroke,
    /// The provider fell silent after the commit point.
    Idle,
    /// The balancer was shut down and the drain time was over.
    Drained,
    /// The balancer failed inside.
    Failed,
}

impl Ending {
    fn word(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientLeft => "client left",
            Self::UpstreamError => "upstream error",
            Self::UpstreamBroke => "upstream broke",
            Self::Idle => "upstream silent",
            Self::Drained => "drained",
            Self::Failed => "failed",
        }
    }
}

/// One request's account.
#[derive(Debug)]
pub struct Entry {
    metrics: Arc<Metrics>,
    /// Ours; the log and our own errors name it.
    pub id: RequestId,
    /// Method and path, without the query.
    pub what: Cow<'static, str>,
    /// The name of the key that the client showed.
    pub key: Option<Arc<str>>,
    /// The model that was asked for.
    pub model: Option<Arc<str>>,
    /// The pattern of the route of the target that answered.
    pub route: Option<Arc<str>>,
    /// Who answered.
    pub provider: Option<Arc<str>>,
    /// With which account.
    pub account: Option<Email>,
    /// Both, as `x-provider-used` says it.
    pub used: Option<HeaderValue>,
    /// Targets tried.
    pub attempts: usize,
    /// The status that the client got.
    pub status: Option<u16>,
    /// How it ended; the client has left unless somebody says otherwise.
    pub ending: Ending,
    /// Body bytes handed to the client's connection.
    pub bytes: u64,
    started: Instant,
    first_byte: Option<Instant>,
    streaming: bool,
}

impl Entry {
    /// Opens an account.
    pub fn open(metrics: Arc<Metrics>, method: &http::Method, path: &str) -> Self {
        metrics.inflight.inc();
        Self {
            metrics,
            id: RequestId::next(),
            what: match path {
                // What nearly all ask for.
                "/v1/messages" if method == http::Method::POST => "POST /v1/messages".into(),
                _ => format!("{method} {path}").into(),
            },
            key: None,
            model: None,
            route: None,
            provider: None,
            account: None,
            used: None,
            attempts: 0,
            status: None,
            ending: Ending::ClientLeft,
            bytes: 0,
            started: Instant::now(),
            first_byte: None,
            streaming: false,
        }
    }

    /// The counters, for what happens on the way.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The head goes to the client.
    pub fn committed(&mut self, status: u16, streaming: bool) {
        self.status = Some(status);
        let now = Instant::now();
        self.first_byte = Some(now);
        self.metrics.time_to_first_byte.observe(now - self.started);
        if streaming {
            self.streaming = true;
            self.metrics.open_streams.inc();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.metrics.inflight.dec();
        if self.streaming {
            self.metrics.open_streams.dec();
        }
        if std::thread::panicking() {
            self.ending = Ending::Failed;
        }
        let outcome = match (self.ending, self.status) {
            (Ending::ClientLeft, _) => Outcome::Cancelled,
            (Ending::Complete, Some(..=399)) => Outcome::Ok,
            (Ending::Complete, Some(400..=499)) => Outcome::ClientError,
            _ => Outcome::UpstreamError,
        };
        self.metrics.request(outcome);
        let millis = |instant: Instant| u64::try_from((instant - self.started).as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            // A text, for which the log needs no formatter.
            message = &*self.what,
            id = &*self.id,
            key = self.key.as_deref(),
            model = self.model.as_deref(),
            route = self.route.as_deref(),
            provider = self.provider.as_deref(),
            account = self.account.as_ref().map(Email::as_str),
            attempts = self.attempts,
            status = self.status,
            ending = self.ending.word(),
            bytes = self.bytes,
            first_byte_ms = self.first_byte.map(millis),
            duration_ms = millis(Instant::now()),
        );
    }
}

/// `req_` and sixteen hexadecimal digits: unlike any other of this process, and in all likelihood of any other process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId([u8; 20]);

impl RequestId {
    /// The next one.
    pub fn next() -> Self {
        static FIRST: LazyLock<u64> = LazyLock::new(|| getrandom::u64().unwrap_or_default());
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Weyl steps from a random start, each mixed by a bijection (Steele, Lea, Flood 2014: SplitMix).
        let mut id = FIRST.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        id ^= id >> 31;
        let mut text = *b"req_0000000000000000";
        for place in text.iter_mut().skip(4).rev() {
            *place = match (id % 16) as u8 {
                digit @ ..10 => b'0' + digit,
                digit => b'a' + digit - 10,
            };
            id >>= 4;
        }
        Self(text)
    }
}

impl Deref for RequestId {
    type Target = str;

    fn deref(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Mutex;
    use std::time::Duration;

    use prometheus_client::metrics::counter::Counter;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::log;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What the log says of the requests that `finish` ends, in both forms.
    fn lines(colour: bool, finish: impl FnOnce()) -> (String, String) {
        let (buffer, folder) = (Buffer::default(), tempfile::tempdir().expect("folder"));
        let file = folder.path().join("logs.jsonl");
        let terminal: Box<dyn Write + Send> = Box::new(buffer.clone());
        let options =
            log::Options { terminal: Some((terminal, colour)), file: Some(file.clone()), ..log::Options::default() };
        let (layer, log) = log::start(options, Counter::default());
        // While there is only one, `tracing` asks the thread that comes first to an event whether anybody wants it;
        // that may be one of another test, where nobody does. With two, all are asked.
        let _second = tracing::Dispatch::new(tracing_subscriber::registry());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), finish);
        drop(log);
        let readable = String::from_utf8(buffer.0.lock().expect("lock").clone()).expect("UTF-8");
        (readable, std::fs::read_to_string(file).expect("file"))
    }

    /// The digits of what is unlike in each run: the time, which comes first in both forms.
    fn masked(line: &str, length: usize) -> String {
        let mask = |(index, c): (usize, char)| if index < length && c.is_ascii_digit() { '0' } else { c };
        line.chars().enumerate().map(mask).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_finished_request_is_this_line_in_both_forms() {
        let metrics = Arc::new(Metrics::default());
        let mut entry = Entry::open(metrics.clone(), &http::Method::POST, "/v1/messages");
        let id = entry.id.to_string();
        entry.key = Some("the \"desk\"".into());
        entry.model = Some("claude-sonnet-4-5".into());
        entry.route = Some("*".into());
        entry.provider = Some("Anthropic".into());
        entry.account = Email::parse("a@example.com");
        (entry.attempts, entry.bytes, entry.ending) = (2, 18_446_744_073_709_551_615, Ending::ClientLeft);
        tokio::time::advance(Duration::from_millis(70)).await;
        entry.committed(200, true);
        tokio::time::advance(Duration::from_millis(1000)).await;
        let ready = Entry::open(metrics, &http::Method::GET, "/v1/m\u{1b}\u{202e}\u{e9}=");
        let other = ready.id.to_string();
        let zone = jiff::Zoned::now().strftime("%:z").to_string();
        let (readable, json) = lines(false, || drop((entry, ready)));
        let expected = format!(
            "00:00:00.000 INFO  POST /v1/messages id={id} key=\"the \\\"desk\\\"\" model=claude-sonnet-4-5 route=* \
             provider=Anthropic account=a@example.com attempts=2 status=200 ending=\"client left\" \
             bytes=18446744073709551615 first_byte_ms=70 duration_ms=1070\n\
             00:00:00.000 INFO  GET /v1/m\\u{{1b}}\\u{{202e}}\u{e9}= id={other} attempts=0 ending=\"client left\" \
             bytes=0 duration_ms=0\n"
        );
        assert_eq!(readable.lines().map(|line| masked(line, 12) + "\n").collect::<String>(), expected);
        let expected = format!(
            "{{\"timestamp\":\"0000-00-00T00:00:00.000{zone}\",\"level\":\"INFO\",\"message\":\"POST /v1/messages\",\
             \"target\":\"claude_code_balancer::proxy::ledger\",\"id\":\"{id}\",\"key\":\"the \\\"desk\\\"\",\
             \"model\":\"claude-sonnet-4-5\",\"route\":\"*\",\"provider\":\"Anthropic\",\"account\":\"a@example.com\",\
             \"attempts\":2,\"status\":200,\"ending\":\"client left\",\"bytes\":18446744073709551615,\
             \"first_byte_ms\":70,\"duration_ms\":1070}}\n\
             {{\"timestamp\":\"0000-00-00T00:00:00.000{zone}\",\"level\":\"INFO\",\"message\":\"GET /v1/m\\u001b\u{202e}\u{e9}=\",\
             \"target\":\"claude_code_balancer::proxy::ledger\",\"id\":\"{other}\",\"attempts\":0,\
             \"ending\":\"client left\",\"bytes\":0,\"duration_ms\":0}}\n"
        );
        assert_eq!(json.lines().map(|line| masked(line, 37) + "\n").collect::<String>(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_terminal_in_colour_names_are_dim() {
        let entry = Entry::open(Arc::default(), &http::Method::POST, "/v1/messages");
        let id = entry.id.to_string();
        let (readable, _) = lines(true, || drop(entry));
        let fields = [
            ("id", id.as_str()),
            ("attempts", "0"),
            ("ending", "\"client left\""),
            ("bytes", "0"),
            ("duration_ms", "0"),
        ];
        let fields = fields.map(|(name, value)| format!(" \x1b[2m{name}=\x1b[0m{value}"));
        assert_eq!(
            masked(&readable, 12),
            format!("00:00:00.000 \x1b[32mINFO \x1b[0m POST /v1/messages{}\n", fields.concat())
        );
    }

    #[test]
    fn an_id_is_sixteen_digits_and_unlike_the_next() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| RequestId::next().to_string()).collect();
        assert_eq!(ids.len(), 1000);
        let digits = |id: &str| id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        assert!(ids.iter().all(|id| id.strip_prefix("req_").is_some_and(|id| id.len() == 16 && digits(id))), "{ids:?}");
        let used = ids.iter().flat_map(|id| id.bytes().skip(4)).collect::<std::collections::HashSet<_>>();
        assert_eq!(used.len(), 16, "all digits are in use");
    }
}
