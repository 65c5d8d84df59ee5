//! A client that leaves frees the provider at once, wherever the request stands, and is nobody's failure.

use std::time::Duration;

use claude_code_balancer::lab::{Gate, Lab, Script, event};
use serde_json::json;

use crate::support::balancer::{Balancer, JSON, request};
use crate::support::{Client, soon};

async fn two() -> (Lab, Lab, Balancer) {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let balancer = Balancer::before(&[&a, &b], "").await;
    (a, b, balancer)
}

/// The provider notices, nobody else is asked, and the account is closed.
async fn leaves(client: Client, a: &Lab, b: &Lab, balancer: &Balancer) {
    drop(client);
    soon("the provider sees the client leave", a.departed(1)).await;
    soon("its connection is closed", a.deserted()).await;
    balancer.inflight(0).await;
    let told = balancer.provider("A").await;
    assert_eq!((&told["failure_count"], &told["healthy"]), (&json!(0), &json!(true)), "{told}");
    assert_eq!(b.connections(), 0);
    assert_eq!(balancer.ask(true).await.status, 200, "and the next one is served");
}

#[tokio::test]
async fn while_it_waits_for_the_head() {
    for stream in [true, false] {
        let (a, b, balancer) = two().await;
        a.next(Script::stall());
        let client = balancer.asking(stream).await;
        soon("the provider is asked", a.received(1)).await;
        leaves(client, &a, &b, &balancer).await;
    }
}

#[tokio::test]
async fn while_a_plain_answer_is_on_its_way() {
    let (a, b, balancer) = two().await;
    let gate = Gate::new();
    a.next(Script::message("x").rechunk(10).gate_before(2, gate.clone()));
    let client = balancer.asking(false).await;
    soon("half the answer is out", gate.reached(1)).await;
    leaves(client, &a, &b, &balancer).await;
}

#[tokio::test]
async fn while_the_first_event_is_waited_for() {
    let (a, b, balancer) = two().await;
    let gate = Gate::new();
    a.next(Script::stream(&["x"]).behind(vec![event::ping()]).gate_before(1, gate.clone()));
    let client = balancer.asking(true).await;
    soon("the ping is out", gate.reached(1)).await;
    leaves(client, &a, &b, &balancer).await;
}

#[tokio::test]
async fn in_an_active_stream() {
    let (a, b, balancer) = two().await;
    a.next(Script::stream(&vec!["text"; 20_000]).pause(Duration::from_millis(1)));
    let mut client = balancer.asking(true).await;
    soon("the head", client.head()).await.unwrap();
    for _ in 0..10 {
        soon("an event", client.frame()).await.unwrap();
    }
    leaves(client, &a, &b, &balancer).await;
}

#[tokio::test]
async fn in_a_silent_stream() {
    let (a, b, balancer) = two().await;
    a.next(Script::stream(&["x"]).stall_after(4));
    let mut client = balancer.asking(true).await;
    soon("the head", client.head()).await.unwrap();
    let mut seen = 0;
    while seen < Script::stream(&["x"]).cut_after(4).body_bytes().len() {
        seen += soon("an event", client.frame()).await.unwrap().len();
    }
    leaves(client, &a, &b, &balancer).await;
}

#[tokio::test]
async fn in_a_stream_that_it_does_not_read() {
    let (a, b, balancer) = two().await;
    let large = "l".repeat(1 << 20);
    let gate = Gate::new();
    a.next(Script::stream(&vec![large; 32]).gate_before(3, gate.clone()));
    let mut client = balancer.asking(true).await;
    soon("the head", client.head()).await.unwrap();
    gate.open();
    soon("something of the flood", client.frame()).await.unwrap();
    leaves(client, &a, &b, &balancer).await;
}

#[tokio::test]
async fn during_an_upload_and_while_it_waits_for_the_answer_to_one() {
    let (a, b, balancer) = two().await;
    a.next(Script::stall());
    let client = balancer.send("POST", "/v1/files", &[JSON], request(false)).await;
    soon("the provider has it", a.received(1)).await;
    leaves(client, &a, &b, &balancer).await;

    let (a, b, balancer) = two().await;
    a.next(Script::stall().early());
    let client = balancer.send("POST", "/v1/files", &[("content-length", "1000000")], "the beginning").await;
    soon("the provider has the head", a.received(1)).await;
    leaves(client, &a, &b, &balancer).await;
}

#[tokio::test]
async fn before_its_own_body_is_complete() {
    let (a, b, balancer) = two().await;
    let client = balancer.send("POST", "/v1/messages", &[JSON, ("content-length", "1000")], "{\"model\":").await;
    balancer.inflight(1).await;
    drop(client);
    balancer.inflight(0).await;
    assert_eq!((a.connections(), b.connections()), (0, 0));
}

#[tokio::test]
async fn also_where_bytes_stand_behind_its_request() {
    for extra in ["\r\n".to_owned(), "GET /health HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "x".repeat(9000)] {
        for script in [Script::stall(), Script::stream(&["x"]).stall_after(4)] {
            let (a, b, balancer) = two().await;
            a.next(script);
            let mut client = balancer.connect().await;
            let body = request(true);
            let head = format!(
                "POST /v1/messages HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n",
                balancer.address,
                body.len()
            );
            client.send_raw(format!("{head}{body}{extra}").as_bytes()).await.unwrap();
            soon("the provider has it", a.received(1)).await;
            leaves(client, &a, &b, &balancer).await;
        }
    }
}
