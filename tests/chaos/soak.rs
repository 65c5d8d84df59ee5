//! F12, the soak: an even load of all kinds for a long time, with edits of the file and tokens that last for a minute;
//! memory, descriptors and threads must stay as they are, and every request must be accounted for.

use std::net::SocketAddr;
use std::time::Duration;

use claude_code_balancer::lab::{Received, Script};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::loris::settled;
use super::process::{descriptors, status};
use super::report::{Ends, Report, number};
use super::support::balancer::{JSON, request_for};
use super::support::binary::{Service, ask};
use super::support::ordeal::{Kept, Ordeal};
use super::support::{Client, soon, sse};

/// Requests in a second.
const RATE: u64 = 20;
/// Seconds that a token lasts, and between two edits of the file.
const LIFE: u64 = 60;
/// KiB of resident memory in an hour.
const SLOPE: f64 = 8.0 * 1024.0;
/// A slope that was measured for less time says nothing.
const LONG: u64 = 300;

/// What comes of a request, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Well,
    /// 529 before anything, so that another provider answers.
    Fails,
    /// Cut off after some content.
    Breaks,
    /// The client leaves in the middle.
    Leaves,
}

impl Kind {
    fn of(number: u64) -> Self {
        match number % 100 {
            7 => Self::Leaves,
            33 => Self::Fails,
            66 => Self::Breaks,
            _ => Self::Well,
        }
    }

    fn streams(self, number: u64) -> bool {
        number % 10 < 7 || matches!(self, Self::Breaks | Self::Leaves)
    }
}

fn answer(request: &Received, first: bool) -> Script {
    let body = request.json();
    let number = body["model"].as_str().and_then(|model| model.rsplit('-').next()?.parse().ok()).unwrap_or(0);
    let text = vec!["x".repeat(500); 8];
    match Kind::of(number) {
        Kind::Fails if first => Script::error(529, "overloaded_error", "Overloaded"),
        Kind::Breaks => Script::stream(&text).cut_after(6),
        Kind::Leaves => Script::stream(&text).stall_after(6),
        _ if body["stream"] == true => Script::stream(&text),
        _ => Script::message(&text.concat()),
    }
}

pub async fn run(seconds: u64) -> Report {
    let mut report = Report::new("soak", format!("{seconds} s of {RATE} requests a second, tokens of {LIFE} s"));
    let ordeal = Ordeal::new(2, Kept::Plain, LIFE, "").await;
    ordeal.authority.grace(Duration::from_secs(60));
    for (lab, first) in [(&ordeal.provider, true), (&ordeal.other, false)] {
        lab.remember(false);
        lab.answer(move |request| answer(request, first));
    }
    let text = std::fs::read_to_string(ordeal.binary.home().join("config.yaml")).unwrap();
    let text = text.replace(
        "model_routes:\n",
        "model_routes:\n  \"soak-*\":\n    - { provider: P, account_email: 0@example.com, priority: 1 }\n    \
         - { provider: P, account_email: 1@example.com, priority: 1 }\n    - { provider: K, priority: 2 }\n",
    );
    let edit = |number: u64| {
        ordeal.binary.file(
            "config.yaml",
            &format!("{text}  selection_strategy: round_robin\n  unhealthy_threshold: {}\n", 3 + number % 2),
        );
    };
    edit(0);
    let (mut service, address) = ordeal.serve().await;
    let mut samples = Vec::new();
    let (ends, edits) = load(address, seconds, &service, &mut samples, edit, &mut report).await;
    let metrics = settled(address).await;
    report.agree(ends, &metrics);
    let started = RATE * seconds;
    report.check("every request has exactly one end", ends.sum() == started, || format!("{ends:?} of {started}"));
    let arrived = (ordeal.provider.arrivals() + ordeal.other.arrivals()) as u64;
    let sent = started + number(&metrics, "balancer_failovers_total");
    report.check("providers count the same", arrived == sent, || format!("{arrived} arrived, {sent} were sent"));
    report.requests += started;
    report.ends.add(ends);

    let config = ask(address, "GET", "/providers", &[], "").await.json()["config"].clone();
    report.check("every edit is in force", config["generation"] == edits + 1, || format!("{edits} edits: {config}"));
    let reuses = ordeal.authority.reuses();
    report.check("no refresh token is used twice", reuses == 0, || format!("{reuses}"));
    figures(&samples, seconds, &mut report);
    report.figure("edits", edits);
    report.figure("tokens renewed", ordeal.authority.redeemed());
    report.figure("failovers", number(&metrics, "balancer_failovers_total"));
    let panics = service.said().iter().filter(|line| line.contains("a panic at")).count();
    report.check("no panic", panics == 0, || format!("{panics}"));
    service.signal("TERM");
    let end = service.end().await;
    report.check("exit status 0", end == Some(0), || format!("{end:?}"));
    report.done()
}

/// The memory in KiB, the descriptors and the threads of a moment, in seconds from the beginning.
struct Sample {
    at: f64,
    numbers: [f64; 3],
}

async fn load(
    address: SocketAddr,
    seconds: u64,
    service: &Service,
    samples: &mut Vec<Sample>,
    edit: impl Fn(u64),
    report: &mut Report,
) -> (Ends, u64) {
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(RATE).unwrap());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let begun = Instant::now();
    let (mut ends, mut edits, mut asking) = (Ends::default(), 0, JoinSet::new());
    let every = LIFE.min(seconds / 3).max(1) * RATE;
    for number in 0..RATE * seconds {
        ticks.tick().await;
        asking.spawn(one(address, number));
        while let Some(done) = asking.try_join_next() {
            count(done.unwrap(), &mut ends, report);
        }
        if number % (RATE * 5) == 0 {
            let numbers =
                [status(service, "VmRSS") as f64, descriptors(service) as f64, status(service, "Threads") as f64];
            samples.push(Sample { at: begun.elapsed().as_secs_f64(), numbers });
        }
        if number % every == every / 2 {
            edits += 1;
            edit(edits);
        }
    }
    while let Some(done) = soon("the end of a request", asking.join_next()).await {
        count(done.unwrap(), &mut ends, report);
    }
    (ends, edits)
}

fn count((number, end): (u64, std::io::Result<Option<u16>>), ends: &mut Ends, report: &mut Report) {
    let kind = Kind::of(number);
    let right = match (kind, &end) {
        (Kind::Leaves, Ok(None)) => true,
        // The provider's cut becomes an error event.
        (Kind::Breaks, Ok(Some(0))) => true,
        (Kind::Well | Kind::Fails, Ok(Some(200))) => true,
        _ => false,
    };
    report.check("every request ends as it should", right, || format!("{number}, {kind:?}: {end:?}"));
    match end {
        Ok(None) => ends.cancelled += 1,
        Ok(Some(status)) => ends.count(Some(status).filter(|status| *status > 0)),
        Err(_) => {}
    }
}

/// The status of its answer, 0 for a stream that ended in an error, `None` where the client left.
async fn one(address: SocketAddr, number: u64) -> (u64, std::io::Result<Option<u16>>) {
    let asking = async {
        let kind = Kind::of(number);
        let mut client = Client::connect(address).await?;
        let host = address.to_string();
        let headers = [("host", host.as_str()), JSON, ("connection", "close")];
        let body = request_for(&format!("soak-{number}"), kind.streams(number));
        client.send("POST", "/v1/messages", &headers, body).await?;
        if kind == Kind::Leaves {
            client.head().await?;
            client.frame().await;
            return Ok(None);
        }
        let reply = client.read_to_end().await?;
        let broken = sse::names(&reply.body).iter().any(|name| name == "error");
        Ok(Some(if broken { 0 } else { reply.status }))
    };
    let end = tokio::time::timeout(Duration::from_secs(20), asking).await;
    (number, end.unwrap_or(Err(std::io::ErrorKind::TimedOut.into())))
}

/// Slopes over the later part: nothing may grow.
fn figures(samples: &[Sample], seconds: u64, report: &mut Report) {
    let later = &samples[samples.len() / 4..];
    let slope = |which: usize| theil_sen(later.iter().map(|sample| (sample.at, sample.numbers[which])).collect());
    let memory = slope(0) * 3600.0;
    let grown = |which: usize| slope(which) * seconds as f64;
    if seconds >= LONG {
        report.check("memory grows by ≤ 8 MiB in an hour", memory <= SLOPE, || format!("{memory:.0} KiB/h"));
    }
    for (which, name) in [(1, "descriptors stay as many (±4 over all)"), (2, "threads stay as many (±4 over all)")] {
        let grown = grown(which);
        report.check(name, seconds < LONG || grown.abs() <= 4.0, || format!("{grown:.1}"));
    }
    if seconds >= LONG {
        report.figure("memory grows by, KiB an hour", memory);
    }
    report.figure("memory at the end, KiB", samples.last().map_or(0.0, |sample| sample.numbers[0]));
    report.figure("descriptors at the end", samples.last().map_or(0.0, |sample| sample.numbers[1]));
}

/// The median of the slopes between all pairs (Theil 1950, Sen 1968): a few odd samples do not move it.
fn theil_sen(points: Vec<(f64, f64)>) -> f64 {
    let mut slopes = Vec::new();
    for (at, a) in points.iter().enumerate() {
        slopes.extend(points[at + 1..].iter().map(|b| (b.1 - a.1) / (b.0 - a.0)));
    }
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0)
}
