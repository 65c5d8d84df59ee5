//! The counters behind `/metrics`: one struct, made once and handed down. Labels are bounded sets of words; none
//! carries a name from the configuration, an e-mail or a secret. Counting is one atomic addition.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

/// A bounded label whose counters are made beforehand, so that counting asks no map.
#[derive(Debug)]
struct Labelled<const N: usize>([Counter; N]);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    kind: &'static str,
}

impl<const N: usize> Labelled<N> {
    fn register(registry: &mut Registry, name: &str, help: &str, words: [&'static str; N]) -> Self {
        let family = Family::<Label, Counter>::default();
        let counters = words.map(|kind| family.get_or_create_owned(&Label { kind }));
        registry.register(name, help, family);
        Self(counters)
    }

    fn add(&self, index: usize) {
        if let Some(counter) = self.0.get(index) {
            counter.inc();
        }
    }
}

/// How a request ended, as the service sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered in full with 2xx or 3xx.
    Ok,
    /// Answered with 4xx.
    ClientError,
    /// Answered with 5xx, or broken after the commit point, also by an error event of the provider's own.
    UpstreamError,
    /// The client left.
    Cancelled,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptKind {
    /// Its answer went to the client.
    Commit,
    /// Its error answer went to the client.
    Forward,
    /// A failure of the provider.
    Failure,
    /// No answer in time.
    Timeout,
    /// Overloaded.
    Overload,
    /// A rate or spend limit.
    RateLimit,
    /// The credential was refused, or none is there.
    Refused,
    /// The model is not known there.
    NotFound,
}

/// What became of the refresh of an account's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshKind {
    /// A new token.
    Renewed,
    /// Somebody else had renewed it already.
    Adopted,
    /// Did not work now; is tried again.
    Failed,
    /// Will not work again: the account must sign in.
    Rejected,
}

/// Ends of the buckets of a [`Times`], in seconds: from 5 ms to 5 minutes, and what is longer.
const BUCKETS: [f64; 14] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, f64::INFINITY];

/// A histogram of times. That of the library has a lock, which every request would take.
#[derive(Clone, Debug, Default)]
pub struct Times(Arc<Sums>);

#[derive(Debug, Default)]
struct Sums {
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS.len()],
}

impl Times {
    /// Counts one.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let fitting = self.0.buckets.iter().zip(BUCKETS).find(|(_, end)| seconds <= *end);
        if let Some((bucket, _)) = fitting {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.0.nanoseconds.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl EncodeMetric for Times {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut buckets = BUCKETS.map(|end| (end, 0));
        for (bucket, (_, count)) in self.0.buckets.iter().zip(&mut buckets) {
            *count = bucket.load(Ordering::Relaxed);
        }
        let count = buckets.iter().map(|(_, count)| count).sum();
        let seconds = Duration::from_nanos(self.0.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Times {
    const TYPE: MetricType = MetricType::Histogram;
}

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Labelled<4>,
    attempts: Labelled<8>,
    refreshes: Labelled<4>,
    /// Attempts after the first of a request.
    pub failovers: Counter,
    /// Requests that went to another target although the first may have billed them.
    pub replays_after_send: Counter,
    /// Cooldowns and limits that began.
    pub cooldowns: Counter,
    /// Seconds to the committed head.
    pub time_to_first_byte: Times,
    /// Bodies that are being relayed.
    pub open_streams: Gauge,
    /// Requests under way.
    pub inflight: Gauge,
    /// The configuration in force.
    pub config_generation: Gauge,
    /// Edits that were rejected.
    pub config_rejections: Counter,
    /// Log lines that found the writer's queue full.
    pub dropped_log_lines: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("balancer");
        let requests = Labelled::register(
            &mut registry,
            "requests",
            "Finished requests by outcome",
            ["ok", "client_error", "upstream_error", "cancelled"],
        );
        let attempts = Labelled::register(
            &mut registry,
            "attempts",
            "Attempts at targets by verdict",
            ["commit", "forward", "failure", "timeout", "overload", "rate_limit", "refused", "not_found"],
        );
        let refreshes = Labelled::register(
            &mut registry,
            "refreshes",
            "Refreshes of accounts' tokens by outcome",
            ["renewed", "adopted", "failed", "rejected"],
        );
        let metrics = Self {
            registry: Registry::default(),
            requests,
            attempts,
            refreshes,
            failovers: Counter::default(),
            replays_after_send: Counter::default(),
            cooldowns: Counter::default(),
            time_to_first_byte: Times::default(),
            open_streams: Gauge::default(),
            inflight: Gauge::default(),
            config_generation: Gauge::default(),
            config_rejections: Counter::default(),
            dropped_log_lines: Counter::default(),
        };
        registry.register("failovers", "Attempts after the first of a request", metrics.failovers.clone());
        registry.register(
            "replays_after_send",
            "Requests sent to another target although the first may have processed them",
            metrics.replays_after_send.clone(),
        );
        registry.register("cooldowns", "Cooldowns and limits that began", metrics.cooldowns.clone());
        registry.register(
            "time_to_first_byte_seconds",
            "From the request to the committed response head",
            metrics.time_to_first_byte.clone(),
        );
        registry.register("open_streams", "Bodies being relayed", metrics.open_streams.clone());
        registry.register("inflight_requests", "Requests under way", metrics.inflight.clone());
        registry.register("config_generation", "The configuration in force", metrics.config_generation.clone());
        registry.register("config_rejections", "Edits that were rejected", metrics.config_rejections.clone());
        registry.register("dropped_log_lines", "Log lines dropped", metrics.dropped_log_lines.clone());
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// Counts a finished request.
    pub fn request(&self, outcome: Outcome) {
        self.requests.add(outcome as usize);
    }

    /// Counts an attempt.
    pub fn attempt(&self, kind: AttemptKind) {
        self.attempts.add(kind as usize);
    }

    /// Counts the refresh of a token.
    pub fn refresh(&self, kind: RefreshKind) {
        self.refreshes.add(kind as usize);
    }

    /// The exposition text (OpenMetrics 1.0).
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_exposed_from_the_start() {
        let metrics = Metrics::default();
        metrics.request(Outcome::Cancelled);
        metrics.attempt(AttemptKind::NotFound);
        let text = metrics.render();
        for line in [
            "balancer_requests_total{kind=\"ok\"} 0",
            "balancer_requests_total{kind=\"cancelled\"} 1",
            "balancer_attempts_total{kind=\"not_found\"} 1",
            "balancer_refreshes_total{kind=\"renewed\"} 0",
            "balancer_failovers_total 0",
            "balancer_replays_after_send_total 0",
            "balancer_config_generation 0",
            "balancer_dropped_log_lines_total 0",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn times_are_counted_in_buckets_that_add_up() {
        let metrics = Metrics::default();
        for millis in [0, 5, 6, 3000, 400_000] {
            metrics.time_to_first_byte.observe(Duration::from_millis(millis));
        }
        let text = metrics.render();
        for (what, said) in [
            ("sum", "403.011"),
            ("count", "5"),
            ("bucket{le=\"0.005\"}", "2"),
            ("bucket{le=\"0.025\"}", "3"),
            ("bucket{le=\"2.5\"}", "3"),
            ("bucket{le=\"5.0\"}", "4"),
            ("bucket{le=\"300.0\"}", "4"),
            ("bucket{le=\"+Inf\"}", "5"),
        ] {
            let line = format!("balancer_time_to_first_byte_seconds_{what} {said}\n");
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }
}
