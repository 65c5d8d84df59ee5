//! F9, no descriptors: the real program with 64 of them, and 200 clients that connect and hold on.

use std::time::Duration;

use claude_code_balancer::lab::Lab;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::process::{home, ticks};
use super::report::Report;
use super::support::balancer::{JSON, request};
use super::support::{Client, Reply, soon};

const DESCRIPTORS: u32 = 64;
const CLIENTS: usize = 200;
/// Of these, the ones that ask for something meanwhile.
const ASKING: usize = 3;
/// For how long it is watched without descriptors, in its short form and in full.
const SHORT: u64 = 3;
/// Ticks of 10 ms in a second.
const TICKS: u64 = 100;
const BACK: Duration = Duration::from_millis(1500);

pub async fn run(seconds: Option<u64>) -> Report {
    let seconds = seconds.unwrap_or(SHORT).max(1);
    let form = format!("{DESCRIPTORS} descriptors, {CLIENTS} connections held for {seconds} s");
    let mut report = Report::new("descriptors", form);
    let lab = Lab::start().await.unwrap();
    let binary = home(&[lab.url()], "");
    let (mut service, address) = binary.serve_within(DESCRIPTORS).await;
    let ask = async |limit: Duration| {
        timeout(limit, async {
            let mut client = Client::connect(address).await?;
            let host = address.to_string();
            let headers = [("host", host.as_str()), JSON, ("connection", "close")];
            client.send("POST", "/v1/messages", &headers, request(false)).await?;
            client.read_to_end().await
        })
        .await
    };
    let reply = ask(BACK).await;
    let before = is_answered(&reply, &mut report);
    report.check("it serves before", before, || format!("{reply:?}"));

    let mut asking = Vec::new();
    for _ in 0..ASKING {
        asking.push(soon("a connection", Client::connect(address)).await.unwrap());
    }
    let mut held = Vec::new();
    for _ in ASKING..CLIENTS {
        held.push(soon("a connection", TcpStream::connect(address)).await.unwrap());
    }
    soon("it says that it cannot accept", service.line("cannot accept connections")).await;
    let lines = service.said().len();
    let worked = ticks(&service);
    // The time over which processor time and lines are counted.
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let share = (ticks(&service) - worked) * 100 / (seconds * TICKS);
    let lines = service.said().len() - lines;
    report.check("no spin: < 5 % of a processor", share < 5, || format!("{share} %"));
    report.check("it says so once a second at most", lines as u64 <= seconds + 1, || {
        format!("{lines} lines in {seconds} s")
    });

    let mut meanwhile = 0;
    for client in &mut asking {
        let host = address.to_string();
        client.send("POST", "/v1/messages", &[("host", &host), JSON], request(false)).await.unwrap();
    }
    for client in &mut asking {
        let reply = timeout(BACK, client.read_to_end()).await;
        meanwhile += u64::from(is_answered(&reply, &mut report));
        report
            .check("who is connected gets an answer, good or bad", matches!(reply, Ok(Ok(_))), || format!("{reply:?}"));
    }

    drop((held, asking));
    let released = Instant::now();
    let reply = ask(BACK).await;
    let back = is_answered(&reply, &mut report);
    let took = released.elapsed();
    report.check("it serves again within 1.5 s of their release", back, || format!("{reply:?} after {took:?}"));
    report.figure("processor while there are none, %", share);
    report.figure("lines about it, a second", lines as f64 / seconds as f64);
    report.figure("answered well meanwhile, of 3 at once", meanwhile);
    report.figure("served again after, ms", took.as_secs_f64() * 1000.0);
    service.signal("TERM");
    let status = service.end().await;
    report.check("alive to the end, and exit status 0", status == Some(0), || format!("{status:?}"));
    report.done()
}

/// Counts a request, and tells whether it was answered as it should be.
fn is_answered(reply: &Result<std::io::Result<Reply>, Elapsed>, report: &mut Report) -> bool {
    report.requests += 1;
    let well = matches!(reply, Ok(Ok(Reply { status: 200, .. })));
    match well {
        true => report.ends.ok += 1,
        false => report.ends.upstream_error += 1,
    }
    well
}
