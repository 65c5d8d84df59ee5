//! F23, abuse of HTTP: 75 payloads as the first bytes of a connection, behind a valid request, and in one piece with
//! it. Each has its verdict, reaches no provider, and costs nobody else anything.

use claude_code_balancer::lab::Lab;

use super::report::Report;
use super::support::balancer::{Balancer, JSON, request};
use super::support::payloads::{broken_chunks, misplaced, not_http, rows};
use super::support::{Client, soon};

/// Where a payload stands on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    First,
    Behind,
    Pipelined,
}

/// What it is, its bytes, the status of the refusal, and whether nothing may follow on the connection.
struct Payload {
    what: &'static str,
    bytes: String,
    status: u16,
    last: bool,
}

fn payloads(host: &str) -> Vec<Payload> {
    let post = |fields: &str, rest: &str| format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n{rest}");
    let unclear = rows().into_iter().map(|(what, fields, rest, status)| (what, post(&fields, &rest), status));
    let foreign = not_http(host).into_iter().map(|(what, bytes)| (what, bytes, 400));
    let chunks = broken_chunks().into_iter();
    let chunks = chunks.map(|(what, rest)| (what, post("transfer-encoding: chunked\r\n", &rest), 400));
    let all = unclear.chain(foreign).chain(chunks);
    let all = all.map(|(what, bytes, status)| Payload { what, bytes, status, last: true });
    let misplaced = misplaced(host).into_iter();
    all.chain(misplaced.map(|(what, bytes, status)| Payload { what, bytes, status, last: false })).collect()
}

pub async fn run() -> Report {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::before(&[&lab], "").await;
    let host = balancer.address.to_string();
    let payloads = payloads(&host);
    let mut report = Report::new("abuse", format!("{} payloads in 3 places", payloads.len()));
    let body = request(false);
    let good = format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut neighbour = balancer.connect().await;
    let mut asked = 0;
    for Payload { what, bytes, status, last } in &payloads {
        for place in [Place::First, Place::Behind, Place::Pipelined] {
            let mut client = balancer.connect().await;
            // It may close while we are still sending.
            match place {
                Place::First => {}
                Place::Behind => client.send_raw(good.as_bytes()).await.unwrap(),
                Place::Pipelined => drop(client.send_raw(format!("{good}{bytes}").as_bytes()).await),
            }
            if place != Place::First {
                asked += 1;
                answered(&mut client, 200, "the request before it is answered", what, &mut report).await;
            }
            if place != Place::Pipelined {
                let _ = client.send_raw(bytes.as_bytes()).await;
            }
            let closes = answered(&mut client, *status, "each has its verdict", what, &mut report).await;
            if *last || closes {
                let rest = soon(what, client.raw_to_end()).await;
                report.check("the connection is closed behind a refusal", rest.0.is_empty() && closes, || {
                    format!("{what}, {place:?}: {rest:?}")
                });
            } else {
                asked += 1;
                let _ = client.send_raw(good.as_bytes()).await;
                answered(&mut client, 200, "a connection that stays serves on", what, &mut report).await;
            }
            asked += 1;
            balancer.send_on(&mut neighbour, "POST", "/v1/messages", &[JSON], &body).await;
            answered(&mut neighbour, 200, "the neighbour is served", what, &mut report).await;
            report.check("no provider is asked", lab.arrivals() == asked, || {
                format!("{what}, {place:?}: {} arrived of {asked}", lab.arrivals())
            });
        }
    }
    let complaints = lab.complaints();
    report.check("providers get nothing malformed", complaints.is_empty(), || complaints[0].clone());
    report.figure("payloads", payloads.len());
    report.figure("requests that reached the provider", lab.arrivals());
    report.done()
}

/// Reads an answer; tells whether it is the last one on its connection.
async fn answered(client: &mut Client, status: u16, name: &'static str, what: &str, report: &mut Report) -> bool {
    let reply = soon(what, client.read_to_end()).await;
    let got = reply.as_ref().ok().map(|reply| reply.status);
    report.count(got);
    report.check(name, got == Some(status), || format!("{what}: {reply:?}"));
    reply.is_ok_and(|reply| reply.header("connection") == Some("close"))
}
