//! Providers over TLS, with an authority of their own: what may be trusted is used, what may not gets no byte of a
//! credential, and the next provider answers.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use claude_code_balancer::lab::{Lab, Script, Welcome};
use claude_code_balancer::upstream::tls::roots_with;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::binary::{Binary, ask};
use crate::support::running::{Running, ask_for, providers, stream_of};
use crate::support::tls::Authority;
use crate::support::{soon, sse};

fn trust(authority: &Authority) -> RootCertStore {
    roots_with([CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()])
}

/// A listener that answers every handshake with the same bytes, or not at all, and keeps every byte that it gets.
struct Deaf {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    _tasks: JoinSet<()>,
}

impl Deaf {
    async fn saying(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let all = heard.clone();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    all.lock().unwrap().extend(&buffer[..length]);
                    stream.write_all(answer).await.unwrap();
                }
            }
        });
        Self { address, heard, _tasks: tasks }
    }
}

#[tokio::test]
async fn a_provider_over_tls_answers_plainly_and_in_a_stream_on_one_connection() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server()).await.unwrap();
    let running = Running::trusting(trust(&authority), &providers(&[("A", &lab)])).await;
    for _ in 0..3 {
        let reply = running.message(ask_for("m")).await;
        assert_eq!((reply.status, reply.json()["type"].as_str()), (200, Some("message")));
        let script = Script::stream(&["a", "b", "c"]);
        lab.next(script.clone());
        let reply = running.message(stream_of("m")).await;
        assert_eq!((reply.body.clone(), reply.clean_end), (script.body_bytes(), true));
        assert_eq!(sse::text(&reply.body), "abc");
    }
    assert_eq!((lab.connections(), lab.requests().len()), (1, 6), "kept alive over TLS");
    for request in lab.requests() {
        assert_eq!(request.header("host"), Some(format!("localhost:{}", lab.address().port()).as_str()));
        assert_eq!(request.header("x-api-key"), Some("key-A"));
    }
    assert!(lab.complaints().is_empty(), "{:?}", lab.complaints());
}

#[tokio::test]
async fn a_connection_that_died_over_tls_is_replaced_for_free() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server()).await.unwrap();
    let running = Running::trusting(trust(&authority), &providers(&[("A", &lab)])).await;
    lab.next(Script::message("one").close_after_reply());
    assert_eq!(running.message(ask_for("m")).await.status, 200);
    soon("the connection's end", lab.deserted()).await;
    let reply = running.message(ask_for("m")).await;
    assert_eq!((reply.status, reply.header("x-balancer-attempts")), (200, Some("1")));
    assert_eq!(running.provider("A").await["failure_count"], 0);
}

#[tokio::test]
async fn a_stream_that_is_cut_over_tls_is_not_taken_for_a_complete_one() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server()).await.unwrap();
    let running = Running::trusting(trust(&authority), &providers(&[("A", &lab)])).await;
    for script in [Script::stream(&["a"]).cut_after(4), Script::stream(&["a"]).reset_after(4)] {
        lab.next(script);
        let reply = running.message(stream_of("m")).await;
        assert_eq!((reply.status, reply.clean_end), (200, true));
        assert_eq!(sse::names(&reply.body).last().map(String::as_str), Some("error"));
    }
}

#[tokio::test]
async fn a_certificate_that_proves_nothing_gets_no_credential_and_the_next_provider_answers() {
    let authority = Authority::new();
    for (what, config) in [
        ("expired", authority.expired()),
        ("wrong host", authority.wrong_host()),
        ("unknown authority", Authority::unknown()),
    ] {
        let bad = Lab::start_tls(config).await.unwrap();
        let good = Lab::start_tls(authority.server()).await.unwrap();
        let running = Running::trusting(trust(&authority), &providers(&[("Bad", &bad), ("Good", &good)])).await;
        for body in [ask_for("m"), stream_of("m")] {
            let reply = running.message(body).await;
            assert_eq!(
                (reply.status, reply.header("x-provider-used")),
                (200, Some("Good")),
                "{what}: {}",
                reply.text()
            );
        }
        assert_eq!(bad.requests().len(), 0, "{what}");
        soon("the handshake's end", bad.deserted()).await;
        assert_eq!(bad.complaints().len(), bad.connections(), "{what}: every connection ended in its handshake");
        let entry = running.provider("Bad").await;
        let error = entry["last_error"].as_str().unwrap_or_default();
        assert!(error.starts_with("TLS with localhost failed: "), "{what}: {entry}");
        assert!(!error.contains("key-Bad"), "{what}: {entry}");
    }
}

#[tokio::test]
async fn no_trusted_root_means_no_request() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server()).await.unwrap();
    let running = Running::start(&providers(&[("A", &lab)])).await;
    let reply = running.message(ask_for("m")).await;
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.text().contains("A: TLS with localhost failed"), "{}", reply.text());
    assert_eq!(lab.requests().len(), 0);
}

#[tokio::test]
async fn plain_http_on_a_tls_port_and_a_mute_one_are_passed_over_without_a_credential() {
    let authority = Authority::new();
    let plain = Deaf::saying(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let mute = Deaf::saying(b"").await;
    let good = Lab::start_tls(authority.server()).await.unwrap();
    let closing = Lab::start_tls(authority.server()).await.unwrap();
    closing.welcome(Welcome::Close);
    let config = format!(
        "providers:\n  - {{ name: Plain, base_url: \"https://localhost:{}\", auth_value: canary }}\n  \
         - {{ name: Mute, base_url: \"https://localhost:{}\", auth_value: canary }}\n  \
         - {{ name: Closing, base_url: \"{}\", auth_value: canary }}\n  \
         - {{ name: Good, base_url: \"{}\", auth_value: k }}\nsettings: {{ timeouts: {{ tls: 200ms }} }}\n",
        plain.address.port(),
        mute.address.port(),
        closing.url(),
        good.url()
    );
    let running = Running::trusting(trust(&authority), &config).await;
    let reply = running.message(ask_for("m")).await;
    assert_eq!(
        (reply.status, reply.header("x-provider-used"), reply.header("x-balancer-attempts")),
        (200, Some("Good"), Some("4")),
        "{}",
        reply.text()
    );
    assert_eq!(running.provider("Mute").await["last_error"], "no TLS handshake with localhost within 200ms");
    for name in ["Plain", "Closing"] {
        let entry = running.provider(name).await;
        assert!(
            entry["last_error"].as_str().is_some_and(|error| error.starts_with("TLS with localhost failed")),
            "{entry}"
        );
    }
    for deaf in [&plain, &mute] {
        let heard = deaf.heard.lock().unwrap().clone();
        assert_eq!(heard.first(), Some(&22), "a handshake record");
        assert!(!heard.windows(6).any(|window| window == b"canary"));
    }
}

#[tokio::test]
async fn a_provider_that_speaks_tls_on_a_plain_port_is_a_failure() {
    let authority = Authority::new();
    let secure = Lab::start_tls(authority.server()).await.unwrap();
    let good = Lab::start().await.unwrap();
    let config = format!(
        "providers:\n  - {{ name: Secure, base_url: \"http://localhost:{}\", auth_value: k }}\n  \
         - {{ name: Good, base_url: \"{}\", auth_value: k }}\n",
        secure.address().port(),
        good.url()
    );
    let running = Running::start(&config).await;
    let reply = running.message(ask_for("m")).await;
    assert_eq!((reply.status, reply.header("x-provider-used")), (200, Some("Good")), "{}", reply.text());
    assert_eq!(running.provider("Secure").await["failure_count"], 1);
}

#[tokio::test]
async fn concurrent_requests_over_tls_do_not_mix() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server()).await.unwrap();
    lab.answer(|request| Script::message(request.json()["model"].as_str().unwrap_or_default()));
    let running = Arc::new(Running::trusting(trust(&authority), &providers(&[("A", &lab)])).await);
    let mut tasks = JoinSet::new();
    for number in 0..20 {
        let running = running.clone();
        tasks.spawn(async move {
            let model = format!("model-{number}");
            let reply = running.message(ask_for(&model)).await;
            assert_eq!(reply.json()["content"][0]["text"], model);
            model
        });
    }
    let answered: HashSet<String> = soon("all", tasks.join_all()).await.into_iter().collect();
    assert_eq!(answered.len(), 20);
}

#[tokio::test]
async fn the_program_trusts_the_authority_that_ssl_cert_file_names_and_no_key_log_is_written() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server()).await.unwrap();
    let binary = Binary::new();
    let file = binary.file("config.yaml", &providers(&[("A", &lab)]));
    let pem = binary.file("ca.pem", &authority.pem());
    let keys = binary.home().join("keys.log");
    let file = file.to_str().unwrap();
    for (trusted, status) in [(false, 503), (true, 200)] {
        let binary = Binary::new().with("SSLKEYLOGFILE", keys.to_str().unwrap());
        let binary = if trusted { binary.with("SSL_CERT_FILE", pem.to_str().unwrap()) } else { binary };
        let (_service, address) = binary.serve(&["--config", file]).await;
        let reply = ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await;
        assert_eq!(reply.status, status, "{}", reply.text());
    }
    assert_eq!(lab.requests().len(), 1);
    assert!(!keys.exists());
}
