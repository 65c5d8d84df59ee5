//! F7, slow clients: heads and bodies that do not get on, and readers that stand still, in numbers; beside them requests
//! must be answered as if they were alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use claude_code_balancer::lab::{Lab, Script};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::process::{home, message, status, status_of};
use super::report::{Ends, Report, number};
use super::support::balancer::{JSON, request_for};
use super::support::binary::ask;
use super::support::edits::percentile;
use super::support::{Client, soon};

/// Requests in a second beside the slow ones.
const RATE: u64 = 50;
/// Seconds from which on few slow answers are no accident.
const LONG: u64 = 60;
/// What the memory may grow by, in KiB.
const MEMORY: u64 = 64 * 1024;
/// A reader that stands still is sent so many events of 64 KiB.
const EVENTS: usize = 200;
const STUCK: &str = "stuck";
/// The limits of the program, and two seconds for a busy machine.
const HEAD: Duration = Duration::from_secs(12);
const BODY: Duration = Duration::from_secs(25);

/// So many of each, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    pub heads: u64,
    pub bodies: u64,
    pub readers: u64,
    pub seconds: u64,
}

/// What became of the slow ones.
#[derive(Default)]
struct Slow {
    /// How long each was borne.
    heads: Vec<Duration>,
    bodies: Vec<Duration>,
    /// Heads and bodies that were answered with 408.
    told: [u64; 2],
}

pub async fn run(crowd: Crowd) -> Report {
    let Crowd { heads, bodies, readers, seconds } = crowd;
    let form =
        format!("{heads} heads, {bodies} bodies, {readers} readers beside {RATE} requests a second, {seconds} s");
    let mut report = Report::new("loris", form);
    let lab = Lab::start().await.unwrap();
    lab.remember(false);
    let large = Script::stream(&vec!["x".repeat(64 * 1024); EVENTS]);
    lab.answer(move |request| if request.json()["model"] == STUCK { large.clone() } else { Script::as_asked(request) });
    let binary = home(&[lab.url()], "");
    let (mut service, address) = binary.serve(&[]).await;

    let alone = load(address, (seconds / 4).clamp(2, 10), &mut report, "before").await;
    let base = status(&service, "VmRSS");

    let over = Arc::new(AtomicBool::new(false));
    let mut slow = JoinSet::new();
    for _ in 0..heads {
        slow.spawn(drip(address, Kind::Head, over.clone()));
    }
    for _ in 0..bodies {
        slow.spawn(drip(address, Kind::Body, over.clone()));
    }
    let mut stuck = Vec::new();
    for _ in 0..readers {
        let mut client = soon("a connection", Client::connect(address)).await.unwrap();
        let host = address.to_string();
        client.send("POST", "/v1/messages", &[("host", &host), JSON], request_for(STUCK, true)).await.unwrap();
        soon("the head of an answer that nobody takes", client.head()).await.unwrap();
        stuck.push(client);
    }
    let mut most = 0;
    let beside = {
        let sampling = async {
            let mut ticks = interval(Duration::from_millis(500));
            loop {
                ticks.tick().await;
                most = most.max(status(&service, "VmRSS"));
            }
        };
        let mut sampling = std::pin::pin!(sampling);
        tokio::select! {
            beside = load(address, seconds, &mut report, "beside") => beside,
            () = sampling.as_mut() => unreachable!("it samples for ever"),
        }
    };
    over.store(true, Ordering::Relaxed);
    let mut borne = Slow::default();
    while let Some(end) = slow.join_next().await {
        let (kind, time, told) = end.unwrap();
        borne.told[kind as usize] += u64::from(told);
        match kind {
            Kind::Head => borne.heads.push(time),
            Kind::Body => borne.bodies.push(time),
        }
    }
    drop(stuck);
    // A machine that others use, too, is not equally busy all the time.
    let afterwards = load(address, (seconds / 4).clamp(2, 10), &mut report, "after").await;
    let alone = percentile(&alone, 99).max(percentile(&afterwards, 99));
    let beside = percentile(&beside, 99);
    let limit = 2 * alone + Duration::from_millis(if seconds < LONG { 100 } else { 5 });
    report.check("p99 ≤ 2 × that without them + 5 ms (in the short form 100 ms)", beside <= limit, || {
        format!("{beside:?}, alone {alone:?}")
    });
    let grown = most.saturating_sub(base);
    report.check("memory ≤ that without them + 64 MiB", grown <= MEMORY, || format!("{base} KiB, then {most} KiB"));
    let longest = |times: &[Duration]| times.iter().max().copied().unwrap_or_default();
    let (head, body) = (longest(&borne.heads), longest(&borne.bodies));
    report.check("slow heads are closed within 12 s", head <= HEAD, || format!("{head:?}"));
    report.check("slow bodies are closed within 25 s", body <= BODY, || format!("{body:?}"));
    report.figure("p99 alone, ms", alone.as_secs_f64() * 1000.0);
    report.figure("p99 beside them, ms", beside.as_secs_f64() * 1000.0);
    report.figure("memory grew by, KiB", grown);
    report.figure("a slow head borne for, s at most", head.as_secs_f64());
    report.figure("a slow body borne for, s at most", body.as_secs_f64());
    report.figure("slow ones told 408", borne.told.iter().sum::<u64>());

    // Bodies that were given up are requests too, and so are readers that left.
    let asked = Ends { client_error: borne.told[1], cancelled: readers + bodies - borne.told[1], ..report.ends };
    report.agree(asked, &settled(address).await);
    report.requests += bodies + readers;
    report.ends = asked;
    service.signal("TERM");
    let end = service.end().await;
    report.check("exit status 0", end == Some(0), || format!("{end:?}"));
    report.done()
}

/// Waits until nothing is under way; answers the text of `/metrics`.
pub async fn settled(address: SocketAddr) -> String {
    let waiting = async {
        loop {
            let text = ask(address, "GET", "/metrics", &[], "").await.text();
            if number(&text, "balancer_inflight_requests") == 0 {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the end of all requests", waiting).await
}

/// Requests at an even rate, each on a connection of its own; how long each took, sorted.
async fn load(address: SocketAddr, seconds: u64, report: &mut Report, when: &str) -> Vec<Duration> {
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(RATE).unwrap());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut asking = JoinSet::new();
    for number in 0..RATE * seconds {
        ticks.tick().await;
        asking.spawn(async move {
            let begun = Instant::now();
            (message(address, number % 2 == 0).await, begun.elapsed())
        });
    }
    let mut took = Vec::new();
    while let Some(done) = asking.join_next().await {
        let (reply, time) = done.unwrap();
        let status = status_of(&reply);
        report.count(status);
        report.check("no other request fails", status == Some(200), || format!("{when}: {reply:?}"));
        took.push(time);
    }
    took.sort();
    took
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Head,
    Body,
}

/// Sends a byte a second until it is told to stop: for how long it was borne, if it was not to the end, and whether it
/// was told why not.
async fn drip(address: SocketAddr, kind: Kind, over: Arc<AtomicBool>) -> (Kind, Duration, bool) {
    let mut client = soon("a connection", Client::connect(address)).await.unwrap();
    let begun = Instant::now();
    let start = match kind {
        Kind::Head => format!("POST /v1/messages HTTP/1.1\r\nhost: {address}\r\nx: "),
        Kind::Body => format!("POST /v1/messages HTTP/1.1\r\nhost: {address}\r\ncontent-length: 5000\r\n\r\n{{"),
    };
    client.send_raw(start.as_bytes()).await.unwrap();
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            reply = client.read_to_end() => {
                return (kind, begun.elapsed(), matches!(reply, Ok(reply) if reply.status == 408));
            }
            _ = ticks.tick() => {}
        }
        if over.load(Ordering::Relaxed) {
            return (kind, begun.elapsed(), false);
        }
        let _ = client.send_raw(b" ").await;
    }
}
