//! F10, drains: the real program gets SIGTERM with requests in flight; all of them must be finished, and the exit be 0.

use std::time::Duration;

use claude_code_balancer::lab::{Gate, Lab, Script, Whim};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::process::{home, status_of};
use super::report::Report;
use super::support::balancer::{JSON, request};
use super::support::ordeal::{self, Kept, Ordeal, number_of};
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
    for number in 0..(runs / 5).max(1) {
        refresh(number, &mut report).await;
        twice(number, &mut report).await;
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

/// A refresh is in flight: its request is answered, and the new token is stored before the exit.
async fn refresh(number: u64, report: &mut Report) {
    let ordeal = Ordeal::new(1, Kept::Plain, 28_800, "").await;
    let (mut service, address) = ordeal.serve().await;
    let gate = Gate::new();
    ordeal.authority.next(Whim::Hold(gate.clone()));
    ordeal.refuse(0);
    let mut asking = JoinSet::new();
    asking.spawn(ordeal::request(address, "0"));
    soon("a refresh", gate.reached(1)).await;
    service.signal("TERM");
    soon("the listener closes", async { while TcpStream::connect(address).await.is_ok() {} }).await;
    gate.open();
    let reply = soon("the answer", asking.join_next()).await.unwrap().unwrap();
    report.count(status_of(&reply));
    let status = service.end().await;
    report.check("exit status 0", status == Some(0), || format!("refresh {number}: {status:?}"));
    let stored = ordeal.stored(&ordeal.vault().await).await;
    let kept = number_of(stored[0].refresh.as_ref().unwrap().expose());
    let newest = ordeal.newest(0);
    report.check("a refresh in flight is stored before the exit", kept == newest && newest == 2, || {
        format!("{kept} is stored, {newest} was given")
    });
    let reply = reply.as_ref().ok().map(|reply| reply.status);
    report.check("its request is answered", reply == Some(200), || format!("{reply:?}"));
}

/// A second SIGTERM ends it at once, whatever is in flight.
async fn twice(number: u64, report: &mut Report) {
    let lab = Lab::start().await.unwrap();
    lab.always(Script::stall());
    let binary = home(&[lab.url()], "");
    let (mut service, address) = binary.serve(&[]).await;
    let mut client = Client::connect(address).await.unwrap();
    client.send("POST", "/v1/messages", &[("host", &address.to_string()), JSON], request(false)).await.unwrap();
    soon("the request", lab.received(1)).await;
    service.signal("TERM");
    service.line("SIGTERM: closing the listeners").await;
    let told = Instant::now();
    service.signal("TERM");
    let status = service.end().await;
    let took = told.elapsed();
    report.check("a second SIGTERM ends it at once, with status 143", status == Some(143) && took < END, || {
        format!("{number}: {status:?} after {took:?}")
    });
    report.requests += 1;
    report.ends.cancelled += 1;
}
