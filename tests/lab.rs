//! The scripted provider does on the wire what its script says: the ground all other tests stand on.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use claude_code_balancer::lab::{Gate, Lab, Script, event};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Client, soon, sse};

/// What one script puts on the wire up to the end of the connection, and the error if that was one.
async fn wire(script: Script) -> (String, Option<ErrorKind>) {
    let lab = Lab::start().await.unwrap();
    lab.always(script);
    let mut client = Client::connect(lab.address()).await.unwrap();
    client.send("POST", "/v1/messages", &[("connection", "close")], "{}").await.unwrap();
    let (bytes, error) = soon("the end of the connection", client.raw_to_end()).await;
    (String::from_utf8(bytes.to_vec()).unwrap(), error)
}

/// A connection that has sent one request.
async fn asked(lab: &Lab) -> Client {
    let mut client = Client::connect(lab.address()).await.unwrap();
    client.send("POST", "/v1/messages", &[], "{}").await.unwrap();
    client
}

fn three() -> Script {
    Script::events(vec!["one\n".into(), "two\n".into(), "three\n".into()])
}

#[tokio::test]
async fn every_script_is_on_the_wire_to_the_byte() {
    let sse = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nrequest-id: req_lab\r\n";
    let chunked = format!("{sse}transfer-encoding: chunked\r\n\r\n");
    let sized = format!("{sse}content-length: 14\r\n\r\n");
    let bare = || Script::body(200, "t", "0123456789");
    let head = "HTTP/1.1 200 OK\r\ncontent-type: t\r\n";
    let rows: Vec<(&str, Script, String)> = vec![
        ("chunks", three(), format!("{chunked}4\r\none\n\r\n4\r\ntwo\n\r\n6\r\nthree\n\r\n0\r\n\r\n")),
        ("one write", three().one_write(), format!("{chunked}4\r\none\n\r\n4\r\ntwo\n\r\n6\r\nthree\n\r\n0\r\n\r\n")),
        ("cut_after", three().cut_after(2), format!("{chunked}4\r\none\n\r\n4\r\ntwo\n\r\n")),
        ("cut_after 0", three().cut_after(0), chunked.clone()),
        ("end_after", three().end_after(1), format!("{chunked}4\r\none\n\r\n0\r\n\r\n")),
        ("cut_at_byte", three().cut_at_byte(6), format!("{chunked}4\r\none\n\r\n4\r\ntw")),
        ("cut_at_byte, at a border", three().cut_at_byte(4), format!("{chunked}4\r\none\n\r\n")),
        ("cut_at_wire_byte", three().cut_at_wire_byte(12), "HTTP/1.1 200".to_owned()),
        ("close_delimited", three().close_delimited(), format!("{sse}connection: close\r\n\r\none\ntwo\nthree\n")),
        ("with_length", three().with_length(), format!("{sized}one\ntwo\nthree\n")),
        ("length, cut", three().with_length().cut_at_byte(5), format!("{sized}one\nt")),
        ("rechunk", three().rechunk(9), format!("{chunked}9\r\none\ntwo\nt\r\n5\r\nhree\n\r\n0\r\n\r\n")),
        (
            "trailer and extension",
            three().end_after(1).chunk_extension("a=b").trailer("x-sum", "1"),
            format!("{chunked}4;a=b\r\none\n\r\n0\r\nx-sum: 1\r\n\r\n"),
        ),
        (
            "connection_close",
            bare().connection_close(),
            format!("{head}content-length: 10\r\nconnection: close\r\n\r\n0123456789"),
        ),
        ("header", bare().header("A", "b"), format!("{head}A: b\r\ncontent-length: 10\r\n\r\n0123456789")),
        ("without_header", bare().without_header("Content-Length"), format!("{head}\r\n0123456789")),
        (
            "with_header",
            bare().with_header("content-length", "3"),
            format!("{head}content-length: 3\r\n\r\n0123456789"),
        ),
        ("split_writes", bare().split_writes(1), format!("{head}content-length: 10\r\n\r\n0123456789")),
        ("surplus", bare().surplus("?!"), format!("{head}content-length: 10\r\n\r\n0123456789?!")),
        (
            "interim",
            Script::empty(204).interim(103, &[("link", "x")]).interim(100, &[]),
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
                .to_owned(),
        ),
        ("101", Script::empty(101), "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned()),
        (
            "redirect",
            Script::redirect(307, "/x"),
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n".to_owned(),
        ),
        (
            "206, HTTP/1.0",
            bare().status(206).http10(),
            "HTTP/1.0 206 Partial Content\r\ncontent-type: t\r\ncontent-length: 10\r\n\r\n0123456789".to_owned(),
        ),
        ("raw", Script::raw("HTTP/1.1 2x0\n\0"), "HTTP/1.1 2x0\n\0".to_owned()),
        ("close", Script::close(), String::new()),
    ];
    for (name, script, expected) in rows {
        assert_eq!(wire(script).await, (expected, None), "{name}");
    }
}

#[tokio::test]
async fn a_reset_is_a_reset_and_not_an_end() {
    let reset = Some(ErrorKind::ConnectionReset);
    assert_eq!(wire(Script::reset()).await, (String::new(), reset));
    for script in [three().reset_after(1), three().reset_at_byte(5), three().reset_after_reply()] {
        assert_eq!(wire(script.clone()).await.1, reset, "{script:?}");
    }
}

#[tokio::test]
async fn a_message_and_a_stream_look_like_the_real_ones() {
    let lab = Lab::start().await.unwrap();
    let reply = Client::once(lab.address(), "POST", "/v1/messages", r#"{"model":"m"}"#).await.unwrap();
    assert_eq!((reply.status, reply.clean_end), (200, true));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!((&reply.json()["type"], &reply.json()["model"]), (&json!("message"), &json!("m")));

    let reply = Client::once(lab.address(), "POST", "/v1/messages", r#"{"stream":true}"#).await.unwrap();
    assert_eq!(sse::text(&reply.body), "Hello from the lab.");
    let start = ["message_start", "content_block_start", "ping"];
    let end = ["content_block_stop", "message_delta", "message_stop"];
    assert_eq!(sse::names(&reply.body), [&start[..], &["content_block_delta"; 4], &end].concat());

    let script = Script::error(529, "overloaded_error", "Overloaded").header("retry-after", "7");
    lab.next(script.clone());
    let reply = Client::once(lab.address(), "POST", "/v1/messages", "{}").await.unwrap();
    assert_eq!((reply.status, reply.header("retry-after")), (529, Some("7")));
    assert_eq!(reply.json()["error"]["type"], "overloaded_error");
    assert_eq!(reply.body, script.body_bytes());
}

#[tokio::test]
async fn body_bytes_are_the_bytes_that_a_client_receives() {
    let stream = Script::stream(&["é", "ü"]);
    let scripts = [
        stream.clone(),
        stream.clone().cut_after(3),
        stream.clone().cut_at_byte(77),
        stream.clone().rechunk(5).split_writes(3),
        stream.clone().end_after(2),
        stream.clone().close_delimited(),
        stream.clone().first_event_error("api_error"),
        stream.clone().error_after(2, "api_error"),
        stream.behind(vec![event::comment("hi"), event::ping()]),
        Script::html(502),
    ];
    for script in scripts {
        let lab = Lab::start().await.unwrap();
        lab.always(script.clone());
        let reply = Client::once(lab.address(), "POST", "/", "{}").await.unwrap();
        assert_eq!(reply.body, script.body_bytes(), "{script:?}");
    }
}

#[tokio::test]
async fn a_client_can_tell_a_clean_end_from_a_cut() {
    let bare = || Script::body(200, "t", "0123456789");
    let rows = [
        (three(), true),
        (three().cut_after(3), false),
        (three().reset_after(3), false),
        (three().cut_at_byte(5), false),
        (bare(), true),
        (bare().cut_at_byte(9), false),
        (bare().cut_at_byte(10), true),
        (three().close_delimited(), true),
        (three().close_delimited().reset_after(2), false),
    ];
    for (script, clean) in rows {
        let lab = Lab::start().await.unwrap();
        lab.always(script.clone());
        let reply = Client::once(lab.address(), "POST", "/", "{}").await.unwrap();
        assert_eq!(reply.clean_end, clean, "{script:?}");
    }
}

#[tokio::test]
async fn requests_are_recorded_as_they_were_on_the_wire() {
    let lab = Lab::start().await.unwrap();
    let mut client = Client::connect(lab.address()).await.unwrap();
    let head = "POST /v1/messages?beta=true HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 4\r\n\r\n";
    client.send_raw(format!("{head}null").as_bytes()).await.unwrap();
    client.read_to_end().await.unwrap();
    let chunked = [("transfer-encoding", "chunked"), ("expect", "100-continue")];
    client.send("PUT", "/b", &chunked, "2\r\nab\r\n3;x\r\ncde\r\n0\r\nt: u\r\n\r\n").await.unwrap();
    assert_eq!(client.any_head().await.unwrap().status, 100);
    assert_eq!(client.read_to_end().await.unwrap().status, 200);
    Client::once(lab.address(), "GET", "/c", "").await.unwrap();

    soon("three requests", lab.received(3)).await;
    let [first, second, third] = lab.requests().try_into().unwrap();
    assert_eq!((first.method.as_str(), first.target.as_str()), ("POST", "/v1/messages?beta=true"));
    assert_eq!((&first.head[..], &first.body[..]), (head.as_bytes(), &b"null"[..]));
    assert_eq!(first.headers[1], ("X-A".to_owned(), "1".to_owned()));
    assert_eq!((first.header("X-a"), first.headers_named("x-a")), (Some("1"), vec!["1", "2"]));
    assert_eq!(second.body, "abcde");
    assert_eq!([first.connection, second.connection, third.connection], [0, 0, 1]);
    assert_eq!((lab.connections(), lab.complaints()), (2, Vec::new()));
}

#[tokio::test]
async fn requests_that_are_none_get_400_and_are_complained_about() {
    let rows = [
        "GET / HTTP/1.1\nhost: h\n\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx",
        "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\nx",
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ];
    let lab = Lab::start().await.unwrap();
    for row in rows {
        let mut client = Client::connect(lab.address()).await.unwrap();
        client.send_raw(row.as_bytes()).await.unwrap();
        assert_eq!(client.head().await.unwrap().status, 400, "{row:?}");
    }
    soon("the last connection's end", lab.deserted()).await;
    assert_eq!((lab.complaints().len(), lab.requests().len()), (rows.len(), 0));
}

#[tokio::test]
async fn queue_goes_before_the_standing_answer() {
    let lab = Lab::start().await.unwrap();
    lab.answer(|request| Script::body(200, "t", format!("{} {}", request.target, request.json()["n"])));
    lab.next(Script::html(503));
    let mut client = Client::connect(lab.address()).await.unwrap();
    let mut seen = Vec::new();
    for target in ["/a", "/b", "/c"] {
        client.send("POST", target, &[], r#"{"n":1}"#).await.unwrap();
        let reply = client.read_to_end().await.unwrap();
        seen.push((reply.status, if reply.status == 200 { reply.text() } else { String::new() }));
    }
    assert_eq!(seen, [(503, String::new()), (200, "/b 1".to_owned()), (200, "/c 1".to_owned())]);
    assert_eq!(lab.connections(), 1);
}

#[tokio::test]
async fn a_reply_may_say_keep_alive_and_close() {
    let lab = Lab::start().await.unwrap();
    lab.always(three().header("connection", "keep-alive").close_after_reply());
    let mut client = asked(&lab).await;
    let reply = client.read_to_end().await.unwrap();
    assert_eq!((reply.header("connection"), reply.clean_end), (Some("keep-alive"), true));
    assert_eq!(soon("the end", client.raw_to_end()).await, (Bytes::new(), None));
    soon("no connection", lab.deserted()).await;
    assert_eq!(lab.departures(), 0);
}

#[tokio::test]
async fn gates_hold_the_head_each_event_and_the_end() {
    let (head, each, end) = (Gate::new(), Gate::new(), Gate::new());
    let lab = Lab::start().await.unwrap();
    lab.always(three().hold_head(head.clone()).gate(each.clone()).gate_end(end.clone()));
    let mut client = asked(&lab).await;
    soon("the script at its first gate", head.reached(1)).await;
    assert_eq!(client.leftover(), b"");
    head.open();
    client.head().await.unwrap();
    for (index, frame) in ["one\n", "two\n", "three\n"].into_iter().enumerate() {
        assert_eq!(soon(frame, client.frame()).await.unwrap(), frame);
        if index < 2 {
            soon("the next gate", each.reached(index + 1)).await;
            each.let_one();
        }
    }
    soon("the last gate", end.reached(1)).await;
    assert_eq!(client.leftover(), b"");
    end.open();
    assert_eq!(client.frame().await, None);
    assert!(client.clean_end());
}

#[tokio::test]
async fn a_pause_takes_its_time() {
    let lab = Lab::start().await.unwrap();
    lab.always(three().pause(Duration::from_millis(20)));
    let begun = Instant::now();
    assert!(asked(&lab).await.read_to_end().await.unwrap().clean_end);
    assert!(begun.elapsed() >= Duration::from_millis(40));
}
