//! The lab over TLS, and behind its egress proxy.

use std::io::ErrorKind;

use claude_code_balancer::lab::{Lab, Manner, Script, Tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::tls::Authority;
use crate::support::{Client, soon, sse};

/// A connection to the proxy that has asked for a target.
async fn connect(tunnel: &Tunnel, target: &str, headers: &[(&str, &str)]) -> Client {
    let mut client = Client::connect(tunnel.address()).await.unwrap();
    client.send("CONNECT", target, &[&[("host", target)], headers].concat(), "").await.unwrap();
    client
}

#[tokio::test]
async fn a_stream_comes_over_tls() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server()).await.unwrap();
    assert!(lab.url().starts_with("https://localhost:"), "{}", lab.url());
    let script = Script::stream(&["a", "b"]);
    lab.always(script.clone());
    let mut client = Client::over(authority.connect(lab.address()).await.unwrap());
    for _ in 0..2 {
        client.send("POST", "/v1/messages", &[], "{}").await.unwrap();
        let reply = soon("the reply", client.read_to_end()).await.unwrap();
        assert_eq!((reply.body.clone(), reply.clean_end), (script.body_bytes(), true));
        assert_eq!(sse::text(&reply.body), "ab");
    }
}

#[tokio::test]
async fn over_tls_a_cut_is_no_goodbye_and_a_departure_is_noticed() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server()).await.unwrap();
    for (script, end) in [
        (Script::stream(&["a"]).cut_after(2), Some(ErrorKind::UnexpectedEof)),
        (Script::stream(&["a"]).reset_after(2), Some(ErrorKind::ConnectionReset)),
        (Script::stream(&["a"]).connection_close(), None),
    ] {
        lab.next(script);
        let mut client = Client::over(authority.connect(lab.address()).await.unwrap());
        client.send("POST", "/", &[], "{}").await.unwrap();
        assert_eq!(soon("the end", client.raw_to_end()).await.1, end);
    }
    lab.next(Script::stall());
    let mut client = Client::over(authority.connect(lab.address()).await.unwrap());
    client.send("POST", "/", &[], "{}").await.unwrap();
    lab.received(4).await;
    drop(client);
    soon("the departure", lab.departed(1)).await;
}

#[tokio::test]
async fn bad_certificates_are_bad() {
    let authority = Authority::new();
    for (name, config) in
        [("expired", authority.expired()), ("wrong host", authority.wrong_host()), ("unknown", Authority::unknown())]
    {
        let lab = Lab::start_tls(config).await.unwrap();
        let error = authority.connect(lab.address()).await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{name}: {error}");
        soon("the handshake's end", lab.deserted()).await;
        assert_eq!((lab.requests().len(), lab.complaints().len()), (0, 1), "{name}");
    }
}

#[tokio::test]
async fn a_name_that_only_the_proxy_knows_is_reached_through_it() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server_for(&["api.example.test"])).await.unwrap();
    let tunnel = Tunnel::start().await.unwrap();
    tunnel.map("api.example.test:443", lab.address());

    // By hand, for TLS begins on the same socket after the proxy's head.
    let mut tcp = TcpStream::connect(tunnel.address()).await.unwrap();
    let connect = b"CONNECT api.example.test:443 HTTP/1.1\r\nHost: api.example.test:443\r\n\r\n";
    tcp.write_all(connect).await.unwrap();
    let expected = b"HTTP/1.1 200 Connection established\r\n\r\n";
    let mut head = vec![0; expected.len()];
    tcp.read_exact(&mut head).await.unwrap();
    assert_eq!(head, expected);

    let mut client = Client::over(authority.secure("api.example.test", tcp).await.unwrap());
    client.send("POST", "/v1/messages", &[], "{}").await.unwrap();
    assert_eq!(soon("the reply", client.read_to_end()).await.unwrap().status, 200);
    assert_eq!(tunnel.targets(), ["api.example.test:443"]);
    assert_eq!(tunnel.requests()[0].head, &connect[..]);
}

#[tokio::test]
async fn a_proxy_with_credentials_lets_nobody_else_pass() {
    let lab = Lab::start().await.unwrap();
    let tunnel = Tunnel::start().await.unwrap();
    tunnel.require("user", "p:ss");
    let target = lab.address().to_string();

    let reply = connect(&tunnel, &target, &[]).await.read_to_end().await.unwrap();
    assert_eq!((reply.status, reply.header("proxy-authenticate")), (407, Some("Basic realm=\"lab\"")));
    let wrong = connect(&tunnel, &target, &[("proxy-authorization", "Basic dXNlcjp4")]).await.read_to_end().await;
    assert_eq!(wrong.unwrap().status, 407);
    assert_eq!(lab.connections(), 0);

    let mut client = connect(&tunnel, &target, &[("proxy-authorization", "Basic dXNlcjpwOnNz")]).await;
    assert_eq!(client.head().await.unwrap().status, 200);
    client.send("POST", "/v1/messages", &[], "{}").await.unwrap();
    assert_eq!(client.read_to_end().await.unwrap().json()["type"], "message");
    assert_eq!((tunnel.connections(), lab.connections()), (3, 1));
}

#[tokio::test]
async fn a_proxy_has_its_manners() {
    let lab = Lab::start().await.unwrap();
    let target = lab.address().to_string();
    let tunnel = Tunnel::start().await.unwrap();
    let ok = "HTTP/1.1 200 Connection established\r\n\r\n";
    let refused = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    for (manner, expected) in [
        (Manner::Refuse(503), refused),
        (Manner::Close, ""),
        (Manner::CloseAfterOk, ok),
        (Manner::Raw(b"SSH-2.0-lab\r\n".to_vec()), "SSH-2.0-lab\r\n"),
    ] {
        tunnel.manner(manner.clone());
        let (bytes, error) = soon("the end", connect(&tunnel, &target, &[]).await.raw_to_end()).await;
        assert_eq!((&bytes[..], error), (expected.as_bytes(), None), "{manner:?}");
    }
    tunnel.manner(Manner::PipeWith(vec![("transfer-encoding".to_owned(), "chunked".to_owned())]));
    let head = connect(&tunnel, &target, &[]).await.head().await.unwrap();
    assert_eq!((head.status, head.header("transfer-encoding")), (200, Some("chunked")));
    assert_eq!(lab.requests().len(), 0);

    tunnel.manner(Manner::Pipe);
    let reply = connect(&tunnel, "nobody.example.test:443", &[]).await.read_to_end().await.unwrap();
    assert_eq!(reply.status, 502);
    tunnel.manner(Manner::Hang);
    let hanging = connect(&tunnel, &target, &[]).await;
    soon("seven requests", tunnel.received(7)).await;
    assert_eq!(hanging.leftover(), b"");
}
