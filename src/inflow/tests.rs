use super::wire::BODY_ROOM;
use super::*;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};

const LONG: Duration = Duration::from_secs(60);
const TIMES: Times = Times { idle: LONG, head: LONG, body: LONG };

/// A client, and its inflow with the other half of the socket.
async fn pair() -> (TcpStream, Inflow, OwnedWriteHalf) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
    let (read, write) = listener.accept().await.expect("a connection").0.into_split();
    (client, Inflow::new(read, TIMES), write)
}

/// What hyper gets at once; nothing at the end.
async fn head(inflow: &Inflow) -> String {
    let mut room = [0; 2000];
    let mut buf = ReadBuf::new(&mut room);
    std::future::poll_fn(|cx| inflow.wire().poll_head(cx, &mut buf)).await.expect("no fault of the socket");
    String::from_utf8(buf.filled().to_vec()).expect("text")
}

fn body(inflow: &Inflow) -> Body {
    inflow.body(&mut HeaderMap::new()).expect("a head that is let through")
}

/// The same behind this, of which hyper has got the head.
async fn asked(text: &str) -> (TcpStream, Inflow, OwnedWriteHalf) {
    let (mut client, inflow, outflow) = pair().await;
    client.write_all(text.as_bytes()).await.expect("sent");
    head(&inflow).await;
    (client, inflow, outflow)
}

fn announced(length: usize) -> String {
    format!("POST / HTTP/1.1\r\ncontent-length: {length}\r\n\r\n")
}

async fn whole(body: &mut Body) -> Result<String, BodyFault> {
    let mut all = Vec::new();
    while let Some(piece) = body.frame().await {
        all.extend_from_slice(&piece?);
    }
    Ok(String::from_utf8(all).expect("text"))
}

fn chunked(body: &str) -> String {
    format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nhost: x\r\n\r\n{body}")
}

#[tokio::test]
async fn a_body_is_none_of_hypers_business() {
    let (mut client, inflow, _outflow) = pair().await;
    let cases = [
        ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", "", vec![]),
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", "", vec![]),
        ("POST / HTTP/1.1\r\nContent-Length:  5 \r\nhost: x\r\n\r\n", "hello", vec![("content-length", "5")]),
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n", "hello", vec![("content-length", "5")]),
        (&chunked("")[..], "5\r\nhello\r\n0\r\n\r\n", vec![("transfer-encoding", "chunked")]),
    ];
    for (sent, rest, told) in cases {
        client.write_all(format!("{sent}{rest}").as_bytes()).await.expect("sent");
        let seen = head(&inflow).await;
        let wanted: String = sent.split_inclusive("\r\n").filter(|line| told.is_empty() || !is_framing(line)).collect();
        assert_eq!(seen, wanted);
        let mut fields = HeaderMap::new();
        let mut body = inflow.body(&mut fields).expect("let through");
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
        assert_eq!(fields, told);
        assert_eq!(body.is_end(), rest.is_empty());
        assert_eq!(body.length(), if rest == "hello" { Some(5) } else { None });
        assert_eq!(whole(&mut body).await.expect("whole"), if rest.is_empty() { "" } else { "hello" });
        assert!(body.is_end());
        assert_eq!(inflow.wire().room(), 0, "nothing is held behind a request");
    }
}

fn is_framing(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    line.starts_with("content-length") || line.starts_with("transfer-encoding")
}

#[tokio::test]
async fn a_chunked_body_ends_where_it_ends_however_it_is_cut() {
    let (mut client, inflow, _outflow) = pair().await;
    client.set_nodelay(true).expect("a socket");
    for (chunks, wanted) in [
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("005;x=\"y\"\r\nhello\r\n1 \r\n\n\r\n0\r\n\r\n", "hello\n"),
        ("A\r\n0\r\n\r\nGET /\r\n0\r\nx: y\r\nz: \r\n\r\n", "0\r\n\r\nGET /"),
    ] {
        let bytes = chunked(chunks) + "GET /next HTTP/1.1\r\n\r\n";
        for cut in 0..=bytes.len() {
            let (first, second) = bytes.split_at(cut);
            let reading = async {
                head(&inflow).await;
                let read = whole(&mut body(&inflow)).await.expect("whole");
                (read, head(&inflow).await)
            };
            let sending = async {
                client.write_all(first.as_bytes()).await.expect("sent");
                tokio::task::yield_now().await;
                client.write_all(second.as_bytes()).await.expect("sent");
            };
            let ((read, next), ()) = tokio::join!(reading, sending);
            assert_eq!((read.as_str(), next.as_str()), (wanted, "GET /next HTTP/1.1\r\n\r\n"), "{cut}");
        }
    }
}

#[tokio::test]
async fn what_two_readers_might_understand_differently_is_broken() {
    for chunks in [
        "\r\n",
        " 5\r\n",
        "+5\r\n",
        "0x5\r\n",
        "5\n",
        "5_\r\n",
        "5;x\n",
        "5\r\rhello",
        "1\r\nab\r\n",
        "1\r\na\n",
        "1\r\na\rb",
        "0\n",
        "0\r\nx: y\n",
        "0\r\n\n",
        "0\r\n\rx",
        "g\r\n",
        "11111111111111111\r\n",
    ] {
        let (_client, inflow, _outflow) = asked(&chunked(chunks)).await;
        assert_eq!(whole(&mut body(&inflow)).await, Err(BodyFault::Interrupted), "{chunks:?}");
        assert!(inflow.wire().answered() && inflow.wire().last_wait().is_some());
        assert_eq!(head(&inflow).await, "", "{chunks:?}");
    }
}

#[tokio::test]
async fn a_large_body_comes_in_large_frames() {
    for length in [1, 100, 70_000, 120_000, 1 << 20] {
        let (mut client, inflow, _outflow) = asked(&announced(length)).await;
        let sending = async {
            client.write_all(&vec![b'x'; length]).await.expect("sent");
            client
        };
        let reading = async {
            let (mut body, mut lengths, mut most) = (body(&inflow), Vec::new(), 0);
            while let Some(frame) = body.frame().await {
                lengths.push(frame.expect("sound").len());
                most = most.max(inflow.wire().room());
            }
            (lengths, most)
        };
        let ((frames, most), _client) = tokio::join!(reading, sending);
        assert_eq!(frames.iter().sum::<usize>(), length);
        let least = length.div_ceil(BODY_ROOM);
        assert!(frames.len() <= 4 * least, "{} frames of {length} bytes: {frames:?}", frames.len());
        assert!(most <= 2 * BODY_ROOM && inflow.wire().room() == 0);
    }
}

#[tokio::test]
async fn a_frame_is_there_as_soon_as_its_bytes_are() {
    let (mut client, inflow, _outflow) = asked(&announced(100_000)).await;
    let mut body = body(&inflow);
    for word in ["one", "two", "three"] {
        client.write_all(word.as_bytes()).await.expect("sent");
        assert_eq!(body.frame().await, Some(Ok(Bytes::from_static(word.as_bytes()))));
    }
}

#[tokio::test]
async fn who_waits_holds_no_room() {
    let (mut client, inflow, _outflow) = pair().await;
    let mut buf = [0; 100];
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(inflow.wire().poll_head(&mut cx, &mut ReadBuf::new(&mut buf)).is_pending());
    assert_eq!(inflow.wire().room(), 0);
    client.write_all(b"POST / HTTP/1.1\r\ncontent-length: 100000\r\n\r\n").await.expect("sent");
    head(&inflow).await;
    let mut body = body(&inflow);
    assert!(body.poll_frame(&mut cx).is_pending());
    assert_eq!(inflow.wire().room(), 0);
}

#[tokio::test]
async fn only_a_read_that_still_waits_hears_of_who_leaves() {
    let (mut client, inflow, _outflow) = pair().await;
    let (mut buf, mut cx) = ([0; 100], Context::from_waker(std::task::Waker::noop()));
    assert!(inflow.wire().poll_head(&mut cx, &mut ReadBuf::new(&mut buf)).is_pending());
    assert!(inflow.wire().take_awaited() && !inflow.wire().take_awaited());
    assert!(inflow.wire().poll_head(&mut cx, &mut ReadBuf::new(&mut buf)).is_pending());
    client.write_all(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab").await.expect("sent");
    head(&inflow).await;
    assert!(!inflow.wire().take_awaited());
    assert_eq!(whole(&mut body(&inflow)).await.as_deref(), Ok("ab"));
    assert!(!inflow.wire().take_awaited());
}

#[tokio::test]
async fn a_head_that_is_larger_than_the_room_for_it_comes_in_parts() {
    let (mut client, inflow, _outflow) = pair().await;
    let long = format!("POST / HTTP/1.1\r\nx: {}\r\nhost: x\r\n\r\n", "y".repeat(20_000));
    let sent = long.replace("host", "content-length: 2\r\nhost") + "ab";
    client.write_all(sent.as_bytes()).await.expect("sent");
    let mut seen = String::new();
    while seen.len() < long.len() {
        seen += &head(&inflow).await;
    }
    assert_eq!(seen, long);
    assert_eq!(whole(&mut body(&inflow)).await.as_deref(), Ok("ab"));
}

#[tokio::test]
async fn instead_of_what_is_refused_there_is_a_stand_in_and_nothing_behind_it() {
    let (mut client, inflow, _outflow) = pair().await;
    client.write_all(b"GET / HTTP/1.1\nhost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n").await.expect("sent");
    assert_eq!(head(&inflow).await, "GET / HTTP/1.1\r\nhost: refused\r\n\r\n");
    assert_eq!(inflow.body(&mut HeaderMap::new()).map(|_| ()), Err(head::Fault::LineEnd));
    assert!(inflow.wire().answered());
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(inflow.wire().poll_head(&mut cx, &mut ReadBuf::new(&mut [0; 100])).is_pending());
}

#[tokio::test]
async fn what_nobody_reads_is_forgotten_before_the_next_request() {
    let (mut client, inflow, _outflow) = pair().await;
    let text = "x".repeat(300_000);
    let requests = [
        format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{text}", text.len()),
        chunked(&format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len())),
        "GET /last HTTP/1.1\r\n\r\n".to_owned(),
    ];
    let sending = async { client.write_all(requests.concat().as_bytes()).await.expect("sent") };
    let reading = async {
        head(&inflow).await;
        assert!(body(&inflow).frame().await.expect("a frame").is_ok(), "and then it is dropped");
        assert!(inflow.wire().last_wait().is_some() && !inflow.wire().answered());
        head(&inflow).await;
        drop(body(&inflow));
        head(&inflow).await
    };
    assert_eq!(tokio::join!(reading, sending).0, "GET /last HTTP/1.1\r\n\r\n");
}

#[tokio::test]
async fn but_not_without_end() {
    let (mut client, inflow, _outflow) = pair().await;
    let sending = async {
        client.write_all(b"POST / HTTP/1.1\r\ncontent-length: 1000000000\r\n\r\n").await.expect("sent");
        while client.write_all(&[b'x'; 100_000]).await.is_ok() {}
    };
    let reading = async {
        head(&inflow).await;
        drop(body(&inflow));
        assert_eq!(head(&inflow).await, "", "no further request");
    };
    tokio::select! {
        () = reading => {}
        () = sending => panic!("it is not read any further, and not closed"),
    }
    assert!(inflow.wire().last_wait().is_some());
}

#[tokio::test(start_paused = true)]
async fn nor_for_ever() {
    let (mut client, inflow, _outflow) = pair().await;
    client.write_all(b"POST / HTTP/1.1\r\ncontent-length: 100\r\n\r\nx").await.expect("sent");
    head(&inflow).await;
    drop(body(&inflow));
    assert_eq!(head(&inflow).await, "");
}

const ASK: &str = "POST / HTTP/1.1\r\nexpect: 100-Continue\r\ncontent-length: 5\r\n\r\n";

#[tokio::test]
async fn a_permission_is_given_to_who_waits_for_it_once_the_body_is_wanted() {
    let (mut client, inflow, mut outflow) = pair().await;
    client.write_all(ASK.as_bytes()).await.expect("sent");
    head(&inflow).await;
    let mut wanted = body(&inflow);
    assert!(!inflow.wire().take_permission());
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(wanted.poll_frame(&mut cx).is_pending());
    assert!(inflow.wire().take_permission() && !inflow.wire().take_permission());
    outflow.write_all(b"go").await.expect("sent");
    client.read_exact(&mut [0; 2]).await.expect("permitted");
    client.write_all(b"hello").await.expect("sent");
    assert_eq!(whole(&mut wanted).await.as_deref(), Ok("hello"));
    assert!(!inflow.wire().answered());
    // Who does not wait gets none, and neither does HTTP/1.0.
    for (ask, rest) in [(ASK, "hello"), (&ASK.replace("1.1", "1.0"), "")] {
        client.write_all(format!("{ask}{rest}").as_bytes()).await.expect("sent");
        head(&inflow).await;
        let _ = body(&inflow).poll_frame(&mut cx);
        assert!(!inflow.wire().take_permission(), "{rest}");
    }
}

#[tokio::test]
async fn a_permission_never_comes_behind_the_answer() {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    // Wanted, but answered before anybody has fetched the permission; with the body there by then, or not.
    for sends in [true, false] {
        let (mut client, inflow, _outflow) = asked(ASK).await;
        let mut body = body(&inflow);
        assert!(body.poll_frame(&mut cx).is_pending());
        if sends {
            client.write_all(b"hello").await.expect("sent");
            assert_eq!(whole(&mut body).await.as_deref(), Ok("hello"));
        }
        assert_eq!(inflow.wire().answered(), !sends, "the body may come or not");
        assert!(!inflow.wire().take_permission());
    }
    // Wanted only behind the answer, by an upload that goes on.
    let (_client, inflow, _outflow) = asked(ASK).await;
    assert!(inflow.wire().answered());
    assert!(body(&inflow).poll_frame(&mut cx).is_pending());
    assert!(!inflow.wire().take_permission());
}

#[tokio::test]
async fn without_a_permission_no_further_request_is_awaited() {
    let (_client, inflow, _outflow) = asked(ASK).await;
    drop(body(&inflow));
    assert!(inflow.wire().answered());
    assert_eq!(head(&inflow).await, "");
    assert!(inflow.wire().last_wait().is_some(), "it may be sending all the same");
}

#[tokio::test]
async fn a_rest_that_is_too_large_to_be_forgotten_ends_the_connection() {
    for (length, ends) in [(64 << 20, false), ((64 << 20) + 1, true)] {
        let (_client, inflow, _outflow) = asked(&announced(length)).await;
        assert_eq!(inflow.wire().answered(), ends);
    }
}

#[tokio::test]
async fn chunks_may_not_consist_of_what_is_beside_their_data() {
    let extension = format!("1;{}\r\nx\r\n", "y".repeat(10_000));
    for (chunk, count, fits) in [("1\r\nx\r\n", 50_000, true), (&extension, 6, true), (&extension, 7, false)] {
        let (mut client, inflow, _outflow) = pair().await;
        let text = chunked(&(chunk.repeat(count) + "0\r\n\r\n"));
        let sending = async { client.write_all(text.as_bytes()).await };
        let reading = async {
            head(&inflow).await;
            whole(&mut body(&inflow)).await.map(|body| body.len())
        };
        let (read, _) = tokio::join!(reading, sending);
        assert_eq!(read, if fits { Ok(count) } else { Err(BodyFault::Interrupted) });
    }
}

#[tokio::test]
async fn chunks_of_several_reads_share_their_room() {
    let (mut client, inflow, _outflow) = asked(&chunked("")).await;
    let (mut body, mut frames) = (body(&inflow), Vec::new());
    for number in 0..20 {
        client.write_all(format!("4\r\n{number:04}\r\n").as_bytes()).await.expect("sent");
        frames.push(body.frame().await.expect("a frame").expect("sound"));
    }
    let places = frames.iter().map(|frame| frame.as_ptr().addr()).collect::<Vec<_>>();
    assert!(places.windows(2).all(|pair| pair[1] - pair[0] == 9), "{places:?}");
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_body_interrupts_it() {
    for text in ["POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhell".to_owned(), chunked("5\r\nhell")] {
        let (mut client, inflow, _outflow) = pair().await;
        client.write_all(text.as_bytes()).await.expect("sent");
        client.shutdown().await.expect("ended");
        head(&inflow).await;
        assert_eq!(whole(&mut body(&inflow)).await, Err(BodyFault::Interrupted));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn requests_come_one_by_one_however_they_arrive(
        asks in prop::collection::vec((0_usize..3000, any::<bool>(), any::<bool>()), 1..6),
        step in 1_usize..3000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let text = |length: usize| "y".repeat(length);
        let mut bytes = String::new();
        for (length, in_chunks, _) in &asks {
            bytes += &match in_chunks {
                true if *length > 0 => chunked(&format!("{length:x}\r\n{}\r\n0\r\n\r\n", text(*length))),
                true => chunked("0\r\n\r\n"),
                false => format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{}", text(*length)),
            };
        }
        runtime.block_on(async {
            let (mut client, inflow, _outflow) = pair().await;
            client.set_nodelay(true).expect("a socket");
            let sending = async {
                for piece in bytes.as_bytes().chunks(step) {
                    client.write_all(piece).await.expect("sent");
                    tokio::task::yield_now().await;
                }
            };
            let reading = async {
                for (length, _, wanted) in &asks {
                    assert!(head(&inflow).await.starts_with("POST / HTTP/1.1\r\nhost: x\r\n"));
                    let mut body = body(&inflow);
                    if *wanted {
                        assert_eq!(whole(&mut body).await, Ok(text(*length)));
                    }
                }
            };
            tokio::join!(reading, sending);
        });
    }
}
