//! What is measured, and what it was when it was measured last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::client::{Ask, Client};
use crate::process::Subject;
use crate::upstream::{HURRY, Upstream};

/// One line of the table.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Of both figures.
    pub(crate) unit: &'static str,
    /// The ratio of the two, see [`SCENARIOS`].
    pub(crate) recorded: f64,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Processor time of a request, of this many clients and so many requests in a round.
    Request(Ask, usize, usize),
    /// Processor time of an event of streams in a hurry; so many streams in a round.
    Hurry(usize),
    /// Processor time of an event of so many paced streams.
    Paced(usize),
    /// Processor time of a request that is answered at the second provider, beside one that is at the first: both
    /// through the balancer.
    Failover(usize),
    /// The same, of the time that a client waits.
    FailoverLatency(usize),
    /// Time to the first event of a stream.
    FirstEvent(usize),
    /// Memory of an open stream, of so many, in a fresh process.
    Memory(usize),
}

/// The recorded ratios are those of builds as they are shipped, on two shared cores of a virtual machine.
pub(crate) const SCENARIOS: [Scenario; 9] = [
    Scenario { name: "a request, 1 connection", unit: "µs", recorded: 1.5, kind: Kind::Request(Ask::Plain, 1, 300) },
    Scenario {
        name: "a request, 64 connections",
        unit: "µs",
        recorded: 1.7,
        kind: Kind::Request(Ask::Plain, 64, 1280),
    },
    Scenario { name: "a request of 100 KB", unit: "µs", recorded: 1.5, kind: Kind::Request(Ask::Large, 1, 300) },
    Scenario { name: "an event of a stream in a hurry", unit: "µs", recorded: 1.3, kind: Kind::Hurry(60) },
    Scenario { name: "an event of 250 paced streams", unit: "µs", recorded: 1.4, kind: Kind::Paced(250) },
    Scenario { name: "a failover, beside a request", unit: "µs", recorded: 1.6, kind: Kind::Failover(300) },
    Scenario { name: "a failover, time of a client", unit: "µs", recorded: 1.6, kind: Kind::FailoverLatency(200) },
    Scenario {
        name: "the first event of a stream, time of a client",
        unit: "µs",
        recorded: 1.5,
        kind: Kind::FirstEvent(200),
    },
    Scenario { name: "memory of an open stream", unit: "KiB", recorded: 1.6, kind: Kind::Memory(1000) },
];

/// How long paced streams are watched in a round.
const WATCH: Duration = Duration::from_millis(300);

/// What came of a scenario: medians of its rounds. The ratio is the median of ratios, for what disturbs a round
/// disturbs both of its halves.
pub(crate) struct Figure {
    pub(crate) balancer: f64,
    pub(crate) baseline: f64,
    pub(crate) ratio: f64,
}

/// The provider, and what stands before it.
pub(crate) struct Stage {
    upstream: Upstream,
    balancer: Subject,
    copy: Subject,
    quick: bool,
}

impl Stage {
    pub(crate) fn set(quick: bool) -> Self {
        let upstream = Upstream::start();
        Self { balancer: Subject::balancer(&upstream), copy: Subject::copy(&upstream), upstream, quick }
    }

    pub(crate) async fn measure(&self, scenario: &Scenario) -> Figure {
        let rounds = match (scenario.kind, self.quick) {
            (Kind::Memory(_), true) => 1,
            (Kind::Paced(_), true) => 7,
            (Kind::Memory(_), false) => 3,
            (_, true) => 15,
            (_, false) => 45,
        };
        let (mut balancer, mut baseline, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (one, other) = self.round(scenario.kind).await;
            balancer.push(one);
            baseline.push(other);
            ratio.push(one / other);
        }
        Figure { balancer: median(balancer), baseline: median(baseline), ratio: median(ratio) }
    }

    /// The balancer's figure and the baseline's.
    async fn round(&self, kind: Kind) -> (f64, f64) {
        let Self { balancer, copy, .. } = self;
        match kind {
            Kind::Request(ask, clients, count) => {
                (request(balancer, ask, clients, count).await, request(copy, ask, clients, count).await)
            }
            Kind::Hurry(count) => {
                let event = |time: f64| time / HURRY as f64;
                (event(request(balancer, Ask::Hurry, 1, count).await), event(request(copy, Ask::Hurry, 1, count).await))
            }
            Kind::Paced(streams) => (paced(balancer, streams).await, paced(copy, streams).await),
            Kind::Failover(count) => {
                (request(balancer, Ask::Faulty, 1, count).await, request(balancer, Ask::Plain, 1, count).await)
            }
            Kind::FailoverLatency(count) => latency((balancer, Ask::Faulty), (balancer, Ask::Plain), count).await,
            Kind::FirstEvent(count) => latency((balancer, Ask::Brief), (copy, Ask::Brief), count).await,
            Kind::Memory(streams) => {
                let balancer = memory(&Subject::balancer(&self.upstream), streams).await;
                (balancer, memory(&Subject::copy(&self.upstream), streams).await)
            }
        }
    }
}

/// Processor time of a request in µs.
async fn request(subject: &Subject, ask: Ask, clients: usize, count: usize) -> f64 {
    let mut idle = Vec::new();
    for _ in 0..clients {
        let mut client = Client::connect(subject.address, ask).await;
        client.ask().await;
        idle.push(client);
    }
    let before = subject.processor_time_at_rest().await;
    let mut busy = JoinSet::new();
    for mut client in idle {
        busy.spawn(async move {
            for _ in 0..count / clients {
                client.ask().await;
            }
            client
        });
    }
    // They hang up when this is over.
    let idle = busy.join_all().await;
    let used = subject.processor_time_at_rest().await - before;
    drop(idle);
    microseconds(used) / count as f64
}

/// Processor time of an event in µs.
async fn paced(subject: &Subject, streams: usize) -> f64 {
    let events = Arc::new(AtomicU64::new(0));
    let mut open = JoinSet::new();
    for _ in 0..streams {
        let mut client = Client::connect(subject.address, Ask::Paced).await;
        client.begin().await;
        let events = events.clone();
        open.spawn(async move { client.follow(&events).await });
    }
    let before = (subject.processor_time(), events.load(Ordering::Relaxed));
    tokio::time::sleep(WATCH).await;
    let used = subject.processor_time() - before.0;
    let passed = events.load(Ordering::Relaxed) - before.1;
    open.shutdown().await;
    // What it does for their end is not the next round's.
    subject.processor_time_at_rest().await;
    microseconds(used) / passed as f64
}

/// What clients wait, by turns, in µs: for the first event of a stream, or for the whole of another answer.
async fn latency(one: (&Subject, Ask), other: (&Subject, Ask), count: usize) -> (f64, f64) {
    let mut clients = [Client::connect(one.0.address, one.1).await, Client::connect(other.0.address, other.1).await];
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..count {
        for (client, times) in clients.iter_mut().zip(&mut times) {
            let time = if one.1 == Ask::Brief {
                let time = client.begin().await;
                client.finish().await;
                time
            } else {
                client.ask().await
            };
            times.push(microseconds(time));
        }
    }
    let [one, other] = times.map(median);
    (one, other)
}

/// Memory of an open stream in KiB, whose first events have passed.
async fn memory(subject: &Subject, streams: usize) -> f64 {
    Client::connect(subject.address, Ask::Brief).await.ask().await;
    subject.processor_time_at_rest().await;
    let before = subject.memory();
    let mut open = Vec::new();
    for _ in 0..streams {
        let mut client = Client::connect(subject.address, Ask::Quiet).await;
        client.begin().await;
        open.push(client);
    }
    subject.processor_time_at_rest().await;
    (subject.memory() - before) / streams as f64
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}
