//! The account of one request: opened when it arrives, closed by `Drop`, whatever way it ends. Closing writes the one
//! log line and moves the counters. A client that leaves drops the future that serves it: code after an `.await` may
//! never run, a destructor does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use http::HeaderValue;
use tokio::time::Instant;

use crate::metrics::{Metrics, Outcome};

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
    pub id: String,
    /// Method and path, without the query.
    pub what: String,
    /// The name of the key that the client showed.
    pub key: Option<Arc<str>>,
    /// The model that was asked for.
    pub model: Option<Arc<str>>,
    /// The pattern of the route of the target that answered.
    pub route: Option<Arc<str>>,
    /// Who answered.
    pub provider: Option<Arc<str>>,
    /// With which account.
    pub account: Option<String>,
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
            id: request_id(),
            what: format!("{method} {path}"),
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
            id = self.id,
            key = self.key.as_deref(),
            model = self.model.as_deref(),
            route = self.route.as_deref(),
            provider = self.provider.as_deref(),
            account = self.account.as_deref(),
            attempts = self.attempts,
            status = self.status,
            ending = self.ending.word(),
            bytes = self.bytes,
            first_byte_ms = self.first_byte.map(millis),
            duration_ms = millis(Instant::now()),
            "{}",
            self.what
        );
    }
}

/// `req_` and sixteen hexadecimal digits: unlike any other of this process, and in all likelihood of any other process.
pub fn request_id() -> String {
    static FIRST: LazyLock<u64> = LazyLock::new(|| getrandom::u64().unwrap_or_default());
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // Weyl steps from a random start, each mixed by a bijection (Steele, Lea, Flood 2014: SplitMix).
    let mut id = FIRST.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    format!("req_{:016x}", id ^ (id >> 31))
}
