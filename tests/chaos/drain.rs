//! F10, drains: the real program gets SIGTERM with requests in flight; all of them must be finished, and the exit be 0.

use std::time::Duration;

use claude_code_balancer::lab::{Gate, Lab, Script};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::process::home;
use super::report::Report;
use super::support::balancer::{JSON, request};
use super::support::{Client, soon};

/// Of each kind, in each run.
const PLAIN: usize = 20;
const STREAMS: usize = 20;
/// The deadline is 30 s and is not reached: everything in flight ends before.
const END: Duration = Duration::from_secs(1);

pub async fn run(runs: u64) -> Report {
    let mut report = Report::new("drain", format!("{runs} drains with {PLAIN} plain requests and {STREAMS} streams"));
    let (mut closed, mut ended) = (Duration::ZERO, Duration::ZERO);
    for number in 0..runs {
        let (closing, ending) = one(number, &mut report).await;
        closed = closed.max(closing);
        ended = ended.max(ending);
    }
    report.figure("listener closed after, ms at most", closed.as_secs_f64() * 1000.0);
    report.figure("process ended after its last answer, ms at most", ended.as_secs_f64() * 1000.0);
    report.done()
}

async fn one(number: u64, report: &mut Report) -> (Duration, Duration) {
    let lab = Lab::start().await.unwrap();
    let (head, middle) = (Gate::new(), Gate::new());
    let plain = Script::message("plain").hold_head(head.clone());
    let stream = Script::stream(&["one", "two", "three"]).gate_before(4, middle.clone());
    let bodies = (plain.body_bytes(), stream.body_bytes());
    let scripts = (plain, stream);
    lab.answer(move |request| if request.json()["stream"] == true { scripts.1.clone() } else { scripts.0.clone() });
    let binary = home(&[lab.url()], "");
    let (mut service, address) = binary.serve(&[]).await;
    let mut clients = JoinSet::new();
    for index in 0..PLAIN + STREAMS {
        let streaming = index >= PLAIN;
        clients.spawn(async move {
            let mut client = Client::connect(address).await.unwrap();
            let host = address.to_string();
            client.send("POST", "/v1/messages", &[("host", &host), JSON], request(streaming)).await.unwrap();
            (streaming, client.read_to_end().await)
        });
    }
    soon("all plain requests have arrived", head.reached(PLAIN)).await;
    soon("all streams are half through", middle.reached(STREAMS)).await;

    let told = Instant::now();
    service.signal("TERM");
    soon("the listener closes", async { while TcpStream::connect(address).await.is_ok() {} }).await;
    let closing = told.elapsed();
    head.open();
    middle.open();
    while let Some(end) = soon("an answer", clients.join_next()).await {
        let (streaming, reply) = end.unwrap();
        let body = if streaming { &bodies.1 } else { &bodies.0 };
        let whole = reply.as_ref().is_ok_and(|reply| (reply.status, &reply.body, reply.clean_end) == (200, body, true));
        report.check("what is in flight is finished, to the byte", whole, || format!("run {number}: {reply:?}"));
        report.requests += 1;
        match reply {
            Ok(_) if whole => report.ends.ok += 1,
            _ => report.ends.upstream_error += 1,
        }
    }
    let last = Instant::now();
    let status = service.end().await;
    let ending = last.elapsed();
    report.check("exit status 0", status == Some(0), || format!("run {number}: {status:?}"));
    report
        .check("the end follows the last answer within a second", ending < END, || format!("run {number}: {ending:?}"));
    let arrived = lab.arrivals();
    report.check("nothing is sent twice", arrived == PLAIN + STREAMS, || format!("run {number}: {arrived}"));
    (closing, ending)
}
