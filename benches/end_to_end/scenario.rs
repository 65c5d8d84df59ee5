//! What is measured, and what it was when it was recorded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::client::{Ask, Client};
use crate::process::Subject;
use crate::upstream::Upstream;

/// One line of the table.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Of both figures.
    pub(crate) unit: &'static str,
    /// The ratio of the two; see [`SCENARIOS`].
    pub(crate) recorded: f64,
    kind: Kind,
}

/// In each, the balancer is compared with the copy; where a provider is overloaded, with itself where none is.
#[derive(Clone, Copy)]
enum Kind {
    /// Processor time of a request, or of an event of its answer: how many clients, and how many requests in a round.
    Processor(Ask, usize, usize),
    /// Processor time of an event of so many paced streams.
    Paced(usize),
    /// What a client waits for an answer, or for the first event of a stream: how many requests in a round.
    Wait(Ask, usize),
    /// Memory of an open stream, of so many.
    Memory(usize),
}

/// The recorded ratios are the medians of several short runs, rounded up, on a virtual machine of November 2026 (Linux
/// 6.18) that was busy with other things, of the build that is shipped: without link-time optimisation they are higher. A
/// change that moves one on purpose records it anew, and says so. A large request and a first event cost more where
/// somebody else wants the core, and are recorded so that this passes too. A failover is compared with a request without:
/// where that becomes cheaper, its ratio rises.
pub(crate) const SCENARIOS: [Scenario; 9] = [
    line("a request, 1 connection", 2.3, Kind::Processor(Ask::Plain, 1, 300)),
    line("a request, 64 connections", 5.5, Kind::Processor(Ask::Plain, 64, 1280)),
    line("a request of 100 KB", 1.0, Kind::Processor(Ask::Large, 1, 300)),
    line("an event of a stream in a hurry", 1.7, Kind::Processor(Ask::Hurry, 1, 60)),
    line("an event of 250 paced streams", 1.4, Kind::Paced(250)),
    line("a failover, beside a request without", 1.7, Kind::Processor(Ask::Faulty, 1, 300)),
    line("time to a failover's answer, beside the same", 1.6, Kind::Wait(Ask::Faulty, 200)),
    line("time to the first event of a stream", 1.7, Kind::Wait(Ask::Brief, 200)),
    line("memory of an open stream", 0.78, Kind::Memory(1000)),
];

const fn line(name: &'static str, recorded: f64, kind: Kind) -> Scenario {
    let unit = match kind {
        Kind::Memory(_) => "KiB",
        _ => "µs",
    };
    Scenario { name, unit, recorded, kind }
}

/// How long paced streams are watched in a round.
const WATCH: Duration = Duration::from_millis(300);

/// What came of a scenario: medians of its rounds. The ratio is the median of their ratios, for what disturbs a round
/// disturbs both of its halves.
pub(crate) struct Figure {
    pub(crate) balancer: f64,
    pub(crate) baseline: f64,
    pub(crate) ratio: f64,
}

/// Measures one scenario. Both programs are fresh: what an earlier one left in their memory would take part in it.
pub(crate) async fn measure(upstream: &Upstream, scenario: &Scenario, quick: bool) -> Figure {
    let (subject, copy) = (Subject::balancer(upstream), Subject::copy(upstream));
    let rounds = match (scenario.kind, quick) {
        // What one has left is there for the next.
        (Kind::Memory(_), _) => 1,
        (Kind::Paced(_), true) => 5,
        (_, true) => 9,
        (_, false) => 45,
    };
    let (mut balancer, mut baseline, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let [one, other] = round(scenario.kind, &subject, &copy).await;
        balancer.push(one);
        baseline.push(other);
        ratio.push(one / other);
    }
    let figure = Figure { balancer: median(balancer), baseline: median(baseline), ratio: median(ratio) };
    // A system that tells no times would pass any check.
    assert!(figure.ratio.is_finite() && figure.ratio > 0.0, "{}: nothing was measured", scenario.name);
    figure
}

/// The balancer's figure and the baseline's.
async fn round(kind: Kind, balancer: &Subject, copy: &Subject) -> [f64; 2] {
    let pair = |ask| match ask {
        Ask::Faulty => [(balancer, Ask::Faulty), (balancer, Ask::Plain)],
        ask => [(balancer, ask), (copy, ask)],
    };
    match kind {
        Kind::Processor(ask, clients, count) => {
            let [one, other] = pair(ask);
            [processor(one, clients, count).await, processor(other, clients, count).await]
        }
        Kind::Paced(streams) => [paced(balancer, streams).await, paced(copy, streams).await],
        Kind::Wait(ask, count) => wait(pair(ask), count).await,
        Kind::Memory(streams) => [memory(balancer, streams).await, memory(copy, streams).await],
    }
}

/// Processor time in µs of a request, or of an event where many are asked for.
async fn processor((subject, ask): (&Subject, Ask), clients: usize, count: usize) -> f64 {
    let mut warm = Vec::new();
    for _ in 0..clients {
        let mut client = Client::connect(subject.address, ask).await;
        client.ask().await;
        warm.push(client);
    }
    let before = subject.processor_time_at_rest().await;
    let mut busy = JoinSet::new();
    for mut client in warm {
        busy.spawn(async move {
            for _ in 0..count / clients {
                client.ask().await;
            }
            client
        });
    }
    // Nobody hangs up before the time is taken.
    let _connected = busy.join_all().await;
    microseconds(subject.processor_time_at_rest().await - before) / (count * ask.events()) as f64
}

/// Processor time in µs of an event.
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
    assert!(open.try_join_next().is_none(), "a stream broke");
    open.shutdown().await;
    // What their end costs is not the next round's.
    subject.processor_time_at_rest().await;
    microseconds(used) / passed as f64
}

/// What a client of each waits, in µs: the medians of requests by turns.
async fn wait(pair: [(&Subject, Ask); 2], count: usize) -> [f64; 2] {
    let mut times = [Vec::new(), Vec::new()];
    let [one, other] = pair.map(|(subject, ask)| Client::connect(subject.address, ask));
    let mut clients = [one.await, other.await];
    for _ in 0..count {
        for (client, times) in clients.iter_mut().zip(&mut times) {
            let time = client.begin().await;
            client.finish().await;
            times.push(microseconds(time));
        }
    }
    times.map(median)
}

/// Memory in KiB of a stream whose first events have passed.
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
