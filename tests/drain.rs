//! The graceful end: no new connections, what is in flight finishes, and what cannot finish in time is told so.

use std::time::Duration;

use claude_code_balancer::lab::{Gate, Lab, Script};

use crate::support::balancer::{Balancer, fleet};
use crate::support::{Client, soon, sse};

async fn draining(time: Duration) -> (Lab, Balancer) {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::start_with(&fleet(&[lab.url()], ""), time).await;
    (lab, balancer)
}

async fn refuses(balancer: &Balancer) {
    let refused = async { while Client::connect(balancer.address).await.is_ok() {} };
    soon("new connections are refused", refused).await;
}

#[tokio::test]
async fn the_listener_closes_at_once_and_what_is_in_flight_finishes() {
    let (lab, mut balancer) = draining(Duration::from_secs(30)).await;
    let (head, body) = (Gate::new(), Gate::new());
    lab.next(Script::message("plain").hold_head(head.clone()));
    let mut plain = balancer.asking(false).await;
    soon("the plain one is asked", lab.received(1)).await;
    let script = Script::stream(&["one", "two"]).gate_before(4, body.clone());
    lab.next(script.clone());
    let mut stream = balancer.asking(true).await;
    soon("the stream's head", stream.head()).await.unwrap();
    let mut idle = balancer.connect().await;
    balancer.send_on(&mut idle, "GET", "/health", &[], "").await;
    assert_eq!(idle.read_to_end().await.unwrap().status, 200);

    balancer.begin_stop();
    refuses(&balancer).await;
    let (bytes, error) = soon("idle connections close", idle.raw_to_end()).await;
    assert_eq!((bytes.len(), error), (0, None));
    assert!(balancer.is_serving(), "it waits for what is in flight");

    head.open();
    let reply = soon("the plain answer", plain.read_to_end()).await.unwrap();
    assert_eq!((reply.status, reply.clean_end), (200, true));
    assert_eq!(reply.json()["content"][0]["text"], "plain");
    assert!(balancer.is_serving(), "it waits for the stream");
    body.open();
    assert_eq!(soon("the rest of the stream", stream.rest()).await, (script.body_bytes(), true));
    balancer.stopped().await;
}

#[tokio::test]
async fn a_stream_that_is_open_when_the_time_is_over_ends_with_an_error_event() {
    let (lab, balancer) = draining(Duration::from_millis(100)).await;
    let script = Script::stream(&["one", "two"]).stall_at_byte(600);
    lab.next(script.clone());
    let mut stream = balancer.asking(true).await;
    soon("the stream's head", stream.head()).await.unwrap();
    balancer.begin_stop();
    let (body, clean) = soon("the end of the stream", stream.rest()).await;
    assert!(clean && body.starts_with(&script.body_bytes()));
    let events = sse::events(&body);
    let last = events.last().unwrap();
    assert_eq!((last.event.as_str(), last.json()["error"]["type"].as_str()), ("error", Some("api_error")));
    assert_eq!(events.iter().filter(|event| event.event == "error").count(), 1);
    soon("the provider is let go", lab.departed(1)).await;
    assert_eq!(lab.requests().len(), 1);
    balancer.stopped().await;
}

#[tokio::test]
async fn a_stream_that_never_pauses_ends_with_an_error_event_too() {
    let (lab, balancer) = draining(Duration::from_millis(100)).await;
    lab.next(Script::stream(&vec!["a"; 60_000]).one_write());
    let mut stream = balancer.asking(true).await;
    soon("the stream's head", stream.head()).await.unwrap();
    let body = soon("the end of the stream", async {
        let mut body = Vec::new();
        // Slower than the provider, so that there is always more to read.
        while let Some(frame) = stream.frame().await {
            if body.is_empty() {
                balancer.begin_stop();
            }
            body.extend_from_slice(&frame);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        body
    })
    .await;
    assert!(stream.clean_end());
    assert_eq!(sse::names(&body).last().map(String::as_str), Some("error"));
    balancer.stopped().await;
}

#[tokio::test]
async fn a_request_without_an_answer_when_the_time_is_over_gets_an_error() {
    for (stream, script) in
        [(false, Script::stall()), (true, Script::stall()), (false, Script::message("x").stall_at_byte(10))]
    {
        let (lab, balancer) = draining(Duration::from_millis(100)).await;
        lab.next(script);
        let mut client = balancer.asking(stream).await;
        soon("the provider is asked", lab.received(1)).await;
        balancer.begin_stop();
        let reply = soon("an answer", client.read_to_end()).await.unwrap();
        assert_eq!((reply.status, reply.clean_end), (503, true));
        assert_eq!(reply.json()["error"]["type"], "api_error");
        soon("the provider is let go", lab.departed(1)).await;
        balancer.stopped().await;
    }
}

#[tokio::test]
async fn so_does_an_upload_that_is_not_complete_when_the_time_is_over() {
    for target in ["/v1/messages", "/v1/files"] {
        let (lab, balancer) = draining(Duration::from_millis(100)).await;
        lab.next(Script::stall().early());
        let mut client = balancer.send("POST", target, &[("content-length", "1000000")], "{ ").await;
        balancer.inflight(1).await;
        balancer.begin_stop();
        let head = soon("an answer", client.head()).await.unwrap();
        assert_eq!(head.status, 503, "{target}");
        balancer.stopped().await;
    }
}

#[tokio::test]
async fn with_nothing_in_flight_it_ends_at_once() {
    let (_lab, balancer) = draining(Duration::from_secs(3600)).await;
    assert_eq!(balancer.ask(true).await.status, 200);
    let _silent = balancer.connect().await;
    balancer.stopped().await;
}
