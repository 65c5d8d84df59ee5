//! Kept-alive connections to providers: reused while they are sound, never the client's problem when they are not,
//! and no answer ever reaches another request.

use claude_code_balancer::lab::{IdleClose, Lab, Received, Script};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::balancer::{Balancer, JSON, request_for};
use crate::support::{Client, soon, sse};

async fn one() -> (Lab, Balancer) {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::before(&[&lab], "").await;
    (lab, balancer)
}

/// Says the model's name back.
fn echo(request: &Received) -> Script {
    let body = request.json();
    let model = body["model"].as_str().unwrap_or_default();
    if body["stream"] == true { Script::stream(&[model]) } else { Script::message(model) }
}

/// One request on a kept connection; its answer must be its own.
async fn ask(balancer: &Balancer, client: &mut Client, nonce: &str, stream: bool) {
    balancer.send_on(client, "POST", "/v1/messages", &[JSON], request_for(nonce, stream)).await;
    let reply = soon("the answer", client.read_to_end()).await.unwrap();
    assert_eq!((reply.status, reply.clean_end), (200, true), "{nonce}: {}", reply.text());
    assert_eq!(reply.header("x-balancer-attempts"), Some("1"), "{nonce}");
    let text =
        if stream { sse::text(&reply.body) } else { reply.json()["content"][0]["text"].as_str().unwrap().to_owned() };
    assert_eq!(text, nonce);
}

#[tokio::test]
async fn a_provider_that_closes_idle_connections_costs_no_request() {
    let policies = [
        IdleClose::AtOnce,
        IdleClose::OnNextRequest,
        IdleClose::Random { seed: 1 },
        IdleClose::Random { seed: 2 },
        IdleClose::Random { seed: 3 },
    ];
    for policy in policies {
        let (lab, balancer) = one().await;
        lab.answer(echo);
        lab.idle_close(policy);
        let mut client = balancer.connect().await;
        for number in 0..200 {
            ask(&balancer, &mut client, &format!("{policy:?} {number}").replace('"', ""), number % 2 == 0).await;
        }
        assert_eq!(lab.requests().len(), 200, "{policy:?}");
        assert!(lab.turned_away() > 50, "{policy:?}");
        assert_eq!(balancer.failures("A").await, 0, "{policy:?}");
        assert!(lab.complaints().is_empty(), "{policy:?}: {:?}", lab.complaints());
    }
}

#[tokio::test]
async fn the_second_try_on_a_new_connection_is_free_even_without_replay() {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::before(&[&lab], "replay_after_send: false").await;
    lab.answer(echo);
    lab.idle_close(IdleClose::OnNextRequest);
    let mut client = balancer.connect().await;
    for number in 0..10 {
        ask(&balancer, &mut client, &number.to_string(), number % 2 == 0).await;
    }
    assert_eq!((lab.requests().len(), lab.turned_away(), balancer.failures("A").await), (10, 9, 0));
}

#[tokio::test]
async fn nor_does_it_cost_a_request_that_is_too_large_for_one_write() {
    let (lab, balancer) = one().await;
    lab.idle_close(IdleClose::OnNextRequest);
    let large = request_for("m", true).replace("hi", &"x".repeat(3 << 20));
    for _ in 0..6 {
        let reply = balancer.post(&large).await;
        assert_eq!((reply.status, reply.header("x-balancer-attempts")), (200, Some("1")));
    }
    assert_eq!((lab.requests().len(), lab.turned_away()), (6, 5));
    assert!(lab.requests().iter().all(|request| request.body == large));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_at_once_get_their_own_answers_from_a_provider_that_closes_at_random() {
    let (lab, balancer) = one().await;
    lab.answer(echo);
    lab.idle_close(IdleClose::Random { seed: 4 });
    let balancer = std::sync::Arc::new(balancer);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..16 {
        let balancer = balancer.clone();
        clients.spawn(async move {
            let mut client = balancer.connect().await;
            for turn in 0..25 {
                ask(&balancer, &mut client, &format!("{number}-{turn}"), (number + turn) % 2 == 0).await;
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_eq!(lab.requests().len(), 16 * 25);
    assert_eq!(balancer.failures("A").await, 0);
}

#[tokio::test]
async fn a_sound_connection_is_used_again() {
    let (lab, balancer) = one().await;
    lab.answer(echo);
    for number in 0..50 {
        ask(&balancer, &mut balancer.connect().await, &number.to_string(), number % 2 == 0).await;
    }
    assert_eq!((lab.requests().len(), lab.connections()), (50, 1));
    // Errors, too, leave it sound, whether they are passed on or not.
    for script in [Script::error(400, "x", "x"), Script::error(400, "x", "x").chunked(), Script::empty(422)] {
        lab.next(script);
        assert_ne!(balancer.ask(true).await.status, 200);
    }
    ask(&balancer, &mut balancer.connect().await, "still", true).await;
    assert_eq!(lab.connections(), 1);
}

#[tokio::test]
async fn accounts_of_one_origin_share_connections() {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::before(&[&lab, &lab], "selection_strategy: round_robin").await;
    for _ in 0..10 {
        assert_eq!(balancer.ask(true).await.status, 200);
    }
    assert_eq!(lab.connections(), 1);
    let keys: Vec<_> = lab.requests().iter().map(|request| request.header("x-api-key").unwrap().to_owned()).collect();
    assert_eq!(keys.iter().filter(|key| *key == "key-a").count(), 5);
}

#[tokio::test]
async fn a_connection_that_is_not_sound_is_not_used_again() {
    let forged = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n{\"forged\":true}";
    type Dress = fn(Script) -> Script;
    let rows: [(&str, Dress); 6] = [
        ("surplus bytes", |script| script.surplus("?")),
        ("connection: close", Script::connection_close),
        ("no length", Script::close_delimited),
        ("HTTP/1.0", |script| script.with_length().http10()),
        ("closed after the reply", Script::close_after_reply),
        ("reset after the reply", Script::reset_after_reply),
    ];
    for (name, dress) in rows {
        let (lab, balancer) = one().await;
        lab.answer(move |request| dress(echo(request)));
        let mut client = balancer.connect().await;
        for number in 0..10 {
            ask(&balancer, &mut client, &format!("{name} {number}"), number % 2 == 0).await;
        }
        assert_eq!((lab.requests().len(), lab.connections()), (10, 10), "{name}");
    }
    let (lab, balancer) = one().await;
    lab.answer(move |request| echo(request).surplus(forged).one_write());
    let mut client = balancer.connect().await;
    for number in 0..20 {
        ask(&balancer, &mut client, &format!("nonce {number}"), number % 2 == 0).await;
    }
    assert_eq!(lab.connections(), 20);
}

#[tokio::test]
async fn an_unfinished_answer_closes_its_connection() {
    let (lab, balancer) = one().await;
    lab.next(Script::stream(&["x"]).stall_after(4));
    let mut client = balancer.asking(true).await;
    soon("the head", client.head()).await.unwrap();
    drop(client);
    soon("the provider sees it", lab.departed(1)).await;
    lab.answer(echo);
    ask(&balancer, &mut balancer.connect().await, "next", true).await;
    assert_eq!(lab.connections(), 2);
}

#[tokio::test]
async fn an_answer_to_half_a_request_is_delivered_and_its_connection_closed() {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::before(&[&lab], "").await;
    let refusal = Script::error(413, "request_too_large", "Too large").early();
    let large = request_for("m", true).replace("hi", &"x".repeat(8 << 20));
    for number in 1..=5 {
        lab.next(refusal.clone());
        let reply = balancer.post(&large).await;
        assert_eq!((reply.status, &reply.body), (413, &refusal.body_bytes()));
        assert_eq!(lab.connections(), number);
    }
    assert_eq!(balancer.failures("A").await, 0);
}

/// What comes back while chunks are sent after this head for as long as anybody takes them.
async fn flooded(balancer: &Balancer, head: &str) -> String {
    let stream = tokio::net::TcpStream::connect(balancer.address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let piece = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let sending = async {
        write.write_all(head.as_bytes()).await.unwrap();
        while write.write_all(piece.as_bytes()).await.is_ok() {}
    };
    let mut answer = Vec::new();
    // It may end with a reset: the rest of the upload was not wanted.
    let reading = async { drop(read.read_to_end(&mut answer).await) };
    soon("the end of both directions", async { tokio::join!(sending, reading) }).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn an_answer_to_half_an_upload_reaches_the_client_that_is_still_sending() {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::before(&[&lab], "").await;
    let refusal = Script::error(413, "request_too_large", "Too large").early();
    for chunked in [false, true] {
        lab.next(refusal.clone());
        let framing = if chunked { "transfer-encoding: chunked" } else { "content-length: 1000000000" };
        let head = format!("POST /v1/files HTTP/1.1\r\nhost: {}\r\n{framing}\r\n\r\n", balancer.address);
        let answer = flooded(&balancer, &head).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.ends_with(std::str::from_utf8(&refusal.body_bytes()).unwrap()), "{answer}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_while_the_client_is_still_sending() {
    let (lab, balancer) = one().await;
    let head = format!("POST /v1/messages HTTP/1.1\r\nhost: {}\r\ncontent-length: 40000000\r\n\r\n", balancer.address);
    let answer = flooded(&balancer, &head).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("request_too_large"), "{answer}");
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (lab, balancer) = one().await;
    lab.answer(echo);
    let mut bytes = Vec::new();
    for number in 0..5 {
        let body = request_for(&number.to_string(), false);
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n",
            balancer.address,
            body.len()
        );
        bytes.extend_from_slice(format!("{head}{body}").as_bytes());
    }
    let mut client = balancer.connect().await;
    client.send_raw(&bytes).await.unwrap();
    for number in 0..5 {
        let reply = soon("an answer", client.read_to_end()).await.unwrap();
        assert_eq!(reply.json()["content"][0]["text"], number.to_string());
    }
}

#[tokio::test]
async fn a_408_by_which_a_server_ends_an_idle_connection_is_no_answer() {
    let a = Lab::start().await.unwrap();
    let balancer = Balancer::before(&[&a], "").await;
    let farewell = || Script::error(408, "timeout_error", "Request Timeout").connection_close();
    a.next(Script::message("first"));
    a.next(farewell());
    a.next(Script::message("second"));
    for text in ["first", "second"] {
        let reply = balancer.ask(false).await;
        assert_eq!((reply.status, &reply.body), (200, &Script::message(text).body_bytes()), "{}", reply.text());
        assert_eq!(reply.header("x-balancer-attempts"), Some("1"));
    }
    assert_eq!((a.connections(), balancer.failures("A").await), (2, 0));
    // On a connection of its own it is what it says.
    let b = Lab::start().await.unwrap();
    b.next(farewell());
    let balancer = Balancer::before(&[&b], "").await;
    assert_eq!((balancer.ask(false).await.status, b.requests().len()), (408, 1));
}
