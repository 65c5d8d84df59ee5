//! Clients that do not get on: heads, bodies and readers have a time, and nobody else waits for them.

use std::time::Duration;

use claude_code_balancer::lab::{Lab, Script};
use claude_code_balancer::server::Limits;

use crate::support::balancer::{Balancer, JSON, fleet, limits, request};
use crate::support::running::assert_is_our_error;
use crate::support::{last, soon};

const SHORT: Duration = Duration::from_millis(200);

async fn within(limits: Limits) -> (Lab, Balancer) {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::within(&fleet(&[lab.url()], ""), limits).await;
    (lab, balancer)
}

#[tokio::test]
async fn a_head_that_does_not_get_on_is_answered_and_its_connection_closed() {
    let (lab, balancer) = within(Limits { head_time: SHORT, ..limits() }).await;
    for head in
        ["P", "POST /v1/messages HTTP/1.1\r\nhost: x\r\n", "POST /v1/messages HTTP/1.1\r\nhost: x\r\nx: y\r\n\r"]
    {
        let mut client = balancer.connect().await;
        client.send_raw(head.as_bytes()).await.unwrap();
        assert_is_our_error(&last(&mut client, head).await, 408, "invalid_request_error", head);
    }
    // Also the second one on a connection.
    let mut client = balancer.asking(false).await;
    assert_eq!(soon("the answer", client.read_to_end()).await.unwrap().status, 200);
    client.send_raw(b"GET /").await.unwrap();
    assert_is_our_error(&last(&mut client, "the second").await, 408, "invalid_request_error", "the second");
    assert_eq!(lab.requests().len(), 1);
}

#[tokio::test]
async fn dripping_bytes_do_not_make_a_head_live_longer() {
    let (_lab, balancer) = within(Limits { head_time: SHORT, ..limits() }).await;
    let mut client = balancer.connect().await;
    let started = tokio::time::Instant::now();
    let mut sent = client.send_raw(b"GET / HTTP/1.1\r\n").await;
    while sent.is_ok() && started.elapsed() < 10 * SHORT {
        tokio::time::sleep(SHORT / 10).await;
        sent = client.send_raw(b"x: y\r\n").await;
    }
    assert!(sent.is_err(), "it is still read after {:?}", started.elapsed());
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word_and_has_longer() {
    let (_lab, balancer) = within(Limits { head_time: SHORT, idle_time: 5 * SHORT, ..limits() }).await;
    let started = tokio::time::Instant::now();
    let mut fresh = balancer.connect().await;
    let mut used = balancer.asking(false).await;
    assert_eq!(soon("the answer", used.read_to_end()).await.unwrap().status, 200);
    for client in [&mut fresh, &mut used] {
        let (bytes, error) = soon("the end of an idle connection", client.raw_to_end()).await;
        assert_eq!((bytes.len(), error), (0, None));
    }
    assert!(started.elapsed() >= 5 * SHORT, "closed after {:?}", started.elapsed());
}

#[tokio::test]
async fn a_body_that_does_not_get_on_is_answered_and_its_connection_closed() {
    let (lab, balancer) = within(Limits { body_time: SHORT, ..limits() }).await;
    for (path, framing) in [
        ("/v1/messages", "content-length: 5000"),
        ("/v1/messages", "transfer-encoding: chunked"),
        ("/v1/files", "content-length: 5000"),
        ("/v1/files", "transfer-encoding: chunked"),
        ("/oauth/exchange-code", "content-length: 5000"),
        ("/oauth/exchange-code", "transfer-encoding: chunked"),
    ] {
        let what = format!("{path} {framing}");
        let mut client = balancer.connect().await;
        let host = balancer.address;
        let start = if framing.contains("chunked") { "3e8\r\n{" } else { "{" };
        let json = "content-type: application/json";
        let head = format!("POST {path} HTTP/1.1\r\nhost: {host}\r\n{json}\r\n{framing}\r\n\r\n{start}");
        client.send_raw(head.as_bytes()).await.unwrap();
        let kind = "invalid_request_error";
        assert_is_our_error(&last(&mut client, &what).await, 408, kind, &what);
    }
    assert!(lab.requests().is_empty());
    balancer.inflight(0).await;
    assert_eq!(balancer.failures("A").await, 0, "it is nobody's failure");
}

#[tokio::test]
async fn a_body_that_gets_on_may_take_long() {
    let (lab, balancer) = within(Limits { body_time: SHORT, ..limits() }).await;
    let body = request(false).replace("hi", &"x".repeat(20_000));
    let mut client = balancer.connect().await;
    let host = balancer.address;
    let head = format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n", body.len());
    client.send_raw(head.as_bytes()).await.unwrap();
    for piece in body.as_bytes().chunks(2000) {
        client.send_raw(piece).await.unwrap();
        tokio::time::sleep(SHORT / 2).await;
    }
    assert_eq!(soon("the answer", client.read_to_end()).await.unwrap().status, 200);
    assert_eq!(lab.requests()[0].body, body);
}

#[tokio::test]
async fn a_reader_that_stands_still_is_dropped_and_frees_the_provider() {
    let (lab, balancer) = within(Limits { write_time: SHORT, ..limits() }).await;
    let text = "x".repeat(64 * 1024);
    lab.next(Script::stream(&vec![text.as_str(); 1000]));
    let client = balancer.asking(true).await;
    soon("the provider is free", lab.departed(1)).await;
    balancer.inflight(0).await;
    let metrics = balancer.fetch("GET", "/metrics", &[], "").await.text();
    assert!(metrics.contains("requests_total{kind=\"cancelled\"} 1\n"), "{metrics}");
    assert_eq!(balancer.failures("A").await, 0, "the client left");
    drop(client);
}

#[tokio::test]
async fn a_reader_that_is_slow_but_gets_on_is_served() {
    let (lab, balancer) = within(Limits { write_time: 2 * SHORT, ..limits() }).await;
    let text = "x".repeat(64 * 1024);
    let script = Script::stream(&vec![text.as_str(); 200]);
    lab.next(script.clone());
    let mut client = balancer.send("POST", "/v1/messages", &[JSON], request(true)).await;
    soon("the head", client.head()).await.unwrap();
    let mut read = 0;
    let mut pauses = 0;
    while let Some(frame) = soon("a frame", client.frame()).await {
        read += frame.len();
        if read / 2_000_000 > pauses {
            pauses += 1;
            tokio::time::sleep(SHORT).await;
        }
    }
    assert!(client.clean_end() && pauses > 3, "{pauses}");
    assert_eq!(read, script.body_bytes().len());
}
