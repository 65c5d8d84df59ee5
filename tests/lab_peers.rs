//! The scripted provider and its peers: who leaves, who is turned away, who is not answered.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use claude_code_balancer::lab::{Gate, Hole, IdleClose, Lab, Script, Welcome, closed_port};

use crate::support::{Client, soon};

/// A connection that has sent one request.
async fn asked(lab: &Lab) -> Client {
    let mut client = Client::connect(lab.address()).await.unwrap();
    client.send("POST", "/v1/messages", &[], "{}").await.unwrap();
    client
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_wherever_the_script_is() {
    let big = Bytes::from(vec![b'x'; 64 << 20]);
    let rows = [
        ("before the head", Script::stall()),
        ("at a gate", Script::stream(&["a"]).hold_head(Gate::new())),
        ("in a pause", Script::stream(&["a"]).pause(Duration::from_secs(3600))),
        ("in a stall", Script::stream(&["a"]).stall_after(1)),
        ("in a stall within an event", Script::stream(&["a"]).stall_at_byte(5)),
        ("in a write that nobody reads", Script::body(200, "t", big)),
    ];
    let lab = Lab::start().await.unwrap();
    for (index, (place, script)) in rows.into_iter().enumerate() {
        lab.next(script);
        let client = asked(&lab).await;
        soon("the request", lab.received(index + 1)).await;
        assert_eq!(lab.departures(), index, "{place}");
        drop(client);
        soon(place, lab.departed(index + 1)).await;
    }
    soon("no connection", lab.deserted()).await;
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    let lab = Lab::start().await.unwrap();
    lab.next(Script::error(413, "request_too_large", "Too large").early());
    let mut client = Client::connect(lab.address()).await.unwrap();
    client.send("POST", "/", &[("content-length", "1000000")], "the beginning").await.unwrap();
    let reply = soon("the answer", client.read_to_end()).await.unwrap();
    assert_eq!((reply.status, reply.header("connection")), (413, Some("close")));
    // The rest is taken without an error, and dropped.
    client.send_raw(&vec![b'x'; 900_000]).await.unwrap();
    assert_eq!(lab.requests()[0].body, "");
}

#[tokio::test]
async fn head_requests_get_no_body() {
    let lab = Lab::start().await.unwrap();
    let mut client = Client::connect(lab.address()).await.unwrap();
    for _ in 0..2 {
        client.send("HEAD", "/", &[], "").await.unwrap();
        assert_ne!(client.head().await.unwrap().header("content-length"), Some("0"));
        assert_eq!(client.leftover(), b"");
    }
}

#[tokio::test]
async fn idle_connections_die_in_every_way_and_never_before_their_first_reply() {
    let lab = Lab::start().await.unwrap();
    lab.idle_close(IdleClose::Random { seed: 7 });
    let mut client = None;
    let mut stale = 0;
    for number in 0..200 {
        let (mut connection, reused) = match client.take() {
            Some(connection) => (connection, true),
            None => (Client::connect(lab.address()).await.unwrap(), false),
        };
        let sent = connection.send("POST", "/", &[], "{}").await;
        let reply = if sent.is_ok() { soon("an end", connection.read_to_end()).await.ok() } else { None };
        match reply {
            Some(reply) => {
                assert!(reply.clean_end, "request {number}");
                client = Some(connection);
            }
            None => {
                assert!(reused, "request {number} died on a fresh connection");
                stale += 1;
            }
        }
    }
    assert!(stale > 20, "{stale}");
    assert_eq!(lab.requests().len(), 200 - stale);
}

#[tokio::test]
async fn a_connection_may_be_unwelcome() {
    let lab = Lab::start().await.unwrap();
    for (welcome, end) in [(Welcome::Close, None), (Welcome::Reset, Some(ErrorKind::ConnectionReset))] {
        lab.welcome(welcome);
        let mut client = Client::connect(lab.address()).await.unwrap();
        assert_eq!(soon("the end", client.raw_to_end()).await, (Bytes::new(), end));
    }
    lab.welcome(Welcome::Mute);
    let mute = asked(&lab).await;
    soon("the connection", lab.connected(3)).await;
    assert_eq!((lab.requests().len(), mute.leftover()), (0, &b""[..]));
}

#[tokio::test]
async fn a_lab_that_has_stopped_refuses_and_ends_its_connections() {
    let lab = Lab::start().await.unwrap();
    lab.always(Script::stall());
    let address = lab.address();
    let mut client = asked(&lab).await;
    lab.received(1).await;
    lab.stop().await;
    soon("the end", client.raw_to_end()).await;
    let refused = Client::connect(address).await.err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
    assert!(Lab::start_on("0.0.0.0:0".parse().unwrap(), None).await.is_err());
}

#[tokio::test]
async fn a_hole_swallows_connections_and_a_closed_port_refuses_them() {
    let hole = Hole::dig().await.unwrap();
    let swallowed = tokio::time::timeout(Duration::from_millis(50), Client::connect(hole.address())).await;
    assert!(swallowed.is_err());
    let refused = Client::connect(closed_port().unwrap()).await.err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn a_lab_that_does_not_remember_still_counts() {
    let lab = Lab::start().await.unwrap();
    lab.remember(false);
    asked(&lab).await.read_to_end().await.unwrap();
    soon("the count", lab.received(1)).await;
    assert_eq!(lab.requests().len(), 0);
}
