//! F9, no descriptors: the real program with 64 of them and 200 clients that hold on; and one that has fewer than it
//! holds, so that it cannot accept anybody.

use std::net::SocketAddr;
use std::time::Duration;

use claude_code_balancer::lab::{Gate, Lab, Script};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::process::{descriptors, held_within, home, message, status_of, ticks};
use super::report::Report;
use super::support::balancer::{JSON, request};
use super::support::binary::Service;
use super::support::{Client, soon};

const DESCRIPTORS: u32 = 64;
const CLIENTS: usize = 200;
/// Ticks of 10 ms in a second.
const TICKS: u64 = 100;
const BACK: Duration = Duration::from_millis(1500);

/// For how long each case is watched, in seconds.
pub async fn run(seconds: u64) -> Report {
    let seconds = seconds.max(1);
    let form = format!("{DESCRIPTORS} descriptors, {CLIENTS} connections held for {seconds} s");
    let mut report = Report::new("descriptors", form);
    crowd(seconds, &mut report).await;
    too_few(seconds, &mut report).await;
    report.done()
}

/// More clients than there is room for: those who have a place are served, the others are turned away.
async fn crowd(seconds: u64, report: &mut Report) {
    let labs = [Lab::start().await.unwrap(), Lab::start().await.unwrap()];
    let binary = home(&[labs[0].url(), labs[1].url()], "  failure_cooldown: 0\n");
    let (mut service, address) = binary.serve_within(DESCRIPTORS).await;
    let few = descriptors(&service);
    one(address, "it serves before", report).await;
    // But for one to each provider: that client's place is free again.
    held_within(BACK, || descriptors(&service) <= few + labs.len()).await;

    let mut held = Vec::new();
    for _ in 0..CLIENTS {
        held.push(soon("a connection", Client::connect(address)).await.unwrap());
    }
    let line = soon("it says that there are too many", service.line("too many connections")).await;
    let places: usize = line.rsplit("limit=").next().unwrap().trim().parse().unwrap();
    report.figure("clients with a place", places);

    // All that have a place ask at once, first a provider that fails all of them: its connections stay open beside
    // those to the one that answers.
    let gate = Gate::new();
    labs[0].always(Script::error(500, "api_error", "no"));
    let slow = gate.clone();
    labs[1].answer(move |request| Script::as_asked(request).hold_head(slow.clone()));
    let host = address.to_string();
    for client in &mut held[..places] {
        client.send("POST", "/v1/messages", &[("host", &host), JSON], request(true)).await.unwrap();
    }
    let all = timeout(Duration::from_secs(5), gate.reached(places)).await.is_ok();
    gate.open();
    let mut well = 0;
    for client in &mut held[..places] {
        let reply = soon("an answer", client.read_to_end()).await;
        let status = status_of(&reply);
        report.count(status);
        well += u64::from(status == Some(200));
    }
    report.check("all that have a place reach a provider at once", all && well == places as u64, || {
        format!("{well} of {places}, together {all}")
    });
    report.figure("served at once in the crowd", well);

    watch(&mut service, seconds, "while they hold on", report).await;
    drop(held);
    back(address, report).await;
    service.signal("TERM");
    let status = service.end().await;
    report.check("alive to the end, and exit status 0", status == Some(0), || format!("{status:?}"));
}

/// The limit of a running program falls below what it holds: it cannot accept.
async fn too_few(seconds: u64, report: &mut Report) {
    let lab = Lab::start().await.unwrap();
    let binary = home(&[lab.url()], "");
    let (mut service, address) = binary.serve(&[]).await;
    one(address, "it serves before", report).await;
    let mut known = soon("a connection", Client::connect(address)).await.unwrap();
    let host = address.to_string();
    known.send("GET", "/health", &[("host", &host)], "").await.unwrap();
    let reply = soon("an answer", known.read_to_end()).await;
    report.count(status_of(&reply));

    let before = limit(&service, 4);
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(soon("a connection", TcpStream::connect(address)).await.unwrap());
    }
    soon("it says that it cannot accept", service.line("cannot accept connections")).await;
    watch(&mut service, seconds, "while it cannot accept", report).await;
    known.send("GET", "/health", &[("host", &host)], "").await.unwrap();
    let reply = soon("an answer", known.read_to_end()).await;
    report.count(status_of(&reply));
    report.check("who is connected is answered", status_of(&reply) == Some(200), || format!("{reply:?}"));
    limit(&service, before);
    drop(held);
    back(address, report).await;
    service.signal("TERM");
    let status = service.end().await;
    report.check("alive to the end, and exit status 0", status == Some(0), || format!("{status:?}"));
}

/// Sets how many descriptors a running program may have; answers how many it might.
fn limit(service: &Service, most: u64) -> u64 {
    let pid = Pid::from_raw(i32::try_from(service.id()).unwrap());
    let now = std::fs::read_to_string(format!("/proc/{}/limits", service.id())).unwrap();
    let line = now.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let maximum = line.split_whitespace().nth(1).unwrap().parse().ok();
    let old = prlimit(pid, Resource::Nofile, Rlimit { current: Some(most), maximum }).unwrap();
    old.current.unwrap_or(1024)
}

/// Neither its processor time nor its lines may grow fast.
async fn watch(service: &mut Service, seconds: u64, when: &'static str, report: &mut Report) {
    // Lines of requests may still be on their way.
    let about = |service: &mut Service| service.said().iter().filter(|line| line.contains("connections")).count();
    let (worked, lines) = (ticks(service), about(service));
    // The time over which both are counted.
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let share = (ticks(service) - worked) as f64 * 100.0 / (seconds * TICKS) as f64;
    let lines = about(service) - lines;
    report.check("no spin: < 5 % of a processor", share < 5.0, || format!("{share:.1} % {when}"));
    report.check("it says so once a second at most", lines as u64 <= seconds + 1, || {
        format!("{lines} lines in {seconds} s {when}")
    });
    let most = report.number("processor meanwhile at most, %").max(share);
    report.figure("processor meanwhile at most, %", most);
    let most = report.number("lines about it in a second at most").max(lines as f64 / seconds as f64);
    report.figure("lines about it in a second at most", most);
}

async fn one(address: SocketAddr, what: &'static str, report: &mut Report) {
    let reply = timeout(BACK, message(address, false)).await;
    let status = reply.as_ref().ok().and_then(status_of);
    report.count(status);
    report.check(what, status == Some(200), || format!("{reply:?}"));
}

async fn back(address: SocketAddr, report: &mut Report) {
    let released = Instant::now();
    one(address, "it serves again within 1.5 s of their release", report).await;
    let took = released.elapsed().as_secs_f64() * 1000.0;
    let most = report.number("served again after, ms at most").max(took);
    report.figure("served again after, ms at most", most);
}
