//! Egress proxies that fail, each in its way: the next provider answers, the error names the proxy and what to do, and
//! no credential goes where it should not.

use std::net::SocketAddr;

use claude_code_balancer::lab::{Hole, Lab, Manner, Socks, SocksManner, Step, Tunnel, Welcome, closed_port};

use crate::support::egress::{SCHEMES, Way, direct, entry, holds, trust};
use crate::support::running::{Running, ask_for};
use crate::support::tls::Authority;

/// Providers of both kinds, never to be reached, and one that answers.
struct Stage {
    authority: Authority,
    plain: Lab,
    secure: Lab,
    good: Lab,
}

impl Stage {
    async fn new() -> Self {
        let authority = Authority::new();
        let (plain, good) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
        let secure = Lab::start_tls(authority.server()).await.unwrap();
        Self { authority, plain, secure, good }
    }

    /// Through this proxy nobody is reached, and that is told in these words.
    async fn fails(&self, proxy: &str, shown: &str, told: &str, limit: &str) {
        for url in [self.plain.url(), self.secure.url()] {
            let config = format!(
                "providers:\n{}{}settings: {{ timeouts: {{ connect: {limit}, tls: {limit} }} }}\n",
                entry("Bad", &url, proxy),
                direct("Good", &self.good.url())
            );
            let running = Running::trusting(trust(&self.authority), &config).await;
            let reply = running.message(ask_for("m")).await;
            let used = reply.header("x-provider-used");
            assert_eq!((reply.status, used), (200, Some("Good")), "{told} {url}: {}", reply.text());
            let bad = running.provider("Bad").await;
            assert_eq!(bad["last_error"], format!("egress proxy {shown}: {told}"), "{url}");
            assert_eq!(bad["failure_count"], 1, "{told}");

            let pinned = ask_for("m").replacen('{', "{\"provider\":\"Bad\",", 1);
            let alone = running.message(pinned).await;
            assert_eq!(alone.status, 503, "{told}: {}", alone.text());
            let text = alone.text();
            assert!(text.contains(&format!("Bad: egress proxy {shown}: ")), "{text}");
            let metrics = running.get("/metrics").await.text();
            assert!(!text.contains("canary") && !metrics.contains("canary"), "{told}");
        }
        assert_eq!(self.plain.connections() + self.secure.connections(), 0, "{told}");
        assert!(self.good.requests().iter().all(|request| !holds(&request.head, "canary")), "{told}");
    }
}

const LOGIN: &str = "canary-user:canary-pass";
const LONG: &str = "10s";
const SHORT: &str = "200ms";

#[tokio::test]
async fn http_proxies_over_tls_fail_as_plain_ones_do() {
    let stage = Stage::new().await;
    for (manner, told) in [
        (None, "answered 407 to CONNECT; check the user and password of `proxy`"),
        (Some(Manner::Refuse(403)), "answered 403 to CONNECT"),
        (Some(Manner::Refuse(502)), "answered 502 to CONNECT"),
        (Some(Manner::Hang), "no answer in time"),
        (Some(Manner::Close), "closed the connection"),
        (Some(Manner::Raw(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec())), "answered something that is not HTTP"),
        (
            Some(Manner::Raw(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec())),
            "answered something that is not HTTP",
        ),
    ] {
        let tunnel = Tunnel::start_tls(stage.authority.server()).await.unwrap();
        let limit = if matches!(manner, Some(Manner::Hang)) { SHORT } else { LONG };
        match manner {
            Some(manner) => tunnel.manner(manner),
            None => tunnel.require("other", "word"),
        }
        let proxy = tunnel.url().replacen("://", &format!("://{LOGIN}@"), 1);
        stage.fails(&proxy, &tunnel.url(), told, limit).await;
        assert!(!holds(&tunnel.seen(), "key-Bad"), "{told}");
    }
}

#[tokio::test]
async fn a_proxy_whose_certificate_is_bad_is_told_nothing() {
    let stage = Stage::new().await;
    for (config, told) in [
        (Authority::unknown(), "invalid peer certificate: "),
        (stage.authority.expired(), "invalid peer certificate: certificate expired"),
        (stage.authority.wrong_host(), "invalid peer certificate: certificate not valid for name"),
    ] {
        let tunnel = Tunnel::start_tls(config).await.unwrap();
        for url in [stage.plain.url(), stage.secure.url()] {
            let proxy = tunnel.url().replacen("://", &format!("://{LOGIN}@"), 1);
            let config = format!("providers:\n{}{}", entry("Bad", &url, &proxy), direct("Good", &stage.good.url()));
            let running = Running::trusting(trust(&stage.authority), &config).await;
            let reply = running.message(ask_for("m")).await;
            assert_eq!((reply.status, reply.header("x-provider-used")), (200, Some("Good")), "{}", reply.text());
            let error = running.provider("Bad").await["last_error"].as_str().unwrap().to_owned();
            let begin = format!("egress proxy {}: TLS with it failed: {told}", tunnel.url());
            assert!(error.starts_with(&begin) && !error.contains("canary"), "{error}");
        }
        assert_eq!(tunnel.seen(), b"", "{told}");
    }
    assert_eq!(stage.plain.connections() + stage.secure.connections(), 0);
}

#[tokio::test]
async fn a_proxy_that_does_not_speak_tls_is_told_nothing() {
    let stage = Stage::new().await;
    let mute = Lab::start().await.unwrap();
    mute.welcome(Welcome::Mute);
    let place = format!("localhost:{}", mute.address().port());
    let told = "no TLS handshake in time";
    stage.fails(&format!("https://{LOGIN}@{place}"), &format!("https://{place}"), told, SHORT).await;

    // An HTTP server answers the handshake with a 400.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = format!("localhost:{}", listener.local_addr().unwrap().port());
    let server = tokio::task::JoinSet::from_iter([async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            let read = tokio::io::AsyncReadExt::read(&mut tcp, &mut bytes).await.unwrap();
            assert!(!holds(&bytes[..read], "canary"));
            let answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
            tokio::io::AsyncWriteExt::write_all(&mut tcp, answer).await.unwrap();
        }
    }]);
    let told = "TLS with it failed: received corrupt message of type InvalidContentType; if it speaks plain HTTP, \
                write http:// in `proxy`";
    stage.fails(&format!("https://{LOGIN}@{plain}"), &format!("https://{plain}"), told, LONG).await;
    drop(server);
}

#[tokio::test]
async fn socks_proxies_that_refuse_say_why() {
    let stage = Stage::new().await;
    let codes = [
        (1, "a general failure"),
        (2, "its rules do not allow it"),
        (3, "the network is unreachable"),
        (4, "the host is unreachable"),
        (5, "the connection was refused"),
        (6, "the time to live expired"),
        (7, "it does not know CONNECT"),
        (8, "it does not know this type of address; where it is a name, write socks5:// instead of socks5h://"),
        (9, "unknown reply code 9"),
        (255, "unknown reply code 255"),
    ];
    for (number, (code, why)) in codes.into_iter().enumerate() {
        let socks = Socks::start().await.unwrap();
        socks.manner(SocksManner::Refuse(code));
        let scheme = ["socks5", "socks5h"][number % 2];
        let proxy = format!("{scheme}://{LOGIN}@{}", socks.address());
        let told = format!("cannot connect to the provider: {why}");
        stage.fails(&proxy, &format!("{scheme}://{}", socks.address()), &told, LONG).await;
        assert_eq!(socks.complaints(), [""; 0]);
    }
}

#[tokio::test]
async fn socks_logins_that_are_wrong_missing_or_of_no_use_say_what_to_do() {
    let stage = Stage::new().await;
    for scheme in ["socks5", "socks5h"] {
        let socks = Socks::start().await.unwrap();
        socks.require("canary-user", "another");
        let shown = format!("{scheme}://{}", socks.address());
        let refused = "refused the login; check the user and password of `proxy`";
        stage.fails(&format!("{scheme}://{LOGIN}@{}", socks.address()), &shown, refused, LONG).await;
        let missing = "wants a login; add a user and password to `proxy`";
        stage.fails(&shown, &shown, missing, LONG).await;
        assert_eq!((socks.asked().len(), socks.complaints()), (0, Vec::new()));

        socks.manner(SocksManner::Raw(Step::Greeting, vec![5, 0xff]));
        let neither = "accepts neither a login by user and password nor none";
        stage.fails(&format!("{scheme}://{LOGIN}@{}", socks.address()), &shown, neither, LONG).await;
    }
}

#[tokio::test]
async fn socks_proxies_that_hang_close_or_talk_nonsense_are_passed_over() {
    const CLOSED: &str = "closed the connection";
    const NONSENSE: &str = "answered something that is not SOCKS5; check the scheme and port of `proxy`";
    let ok = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let extra = |bytes: &[u8]| [bytes, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"].concat();
    let raw = SocksManner::Raw;
    let stage = Stage::new().await;
    for (manner, told) in [
        (SocksManner::Hang(Step::Greeting), "no answer in time"),
        (SocksManner::Hang(Step::Login), "no answer in time"),
        (SocksManner::Hang(Step::Request), "no answer in time"),
        (SocksManner::Close(Step::Greeting), CLOSED),
        (SocksManner::Close(Step::Login), CLOSED),
        (SocksManner::Close(Step::Request), CLOSED),
        // In the middle of an answer.
        (raw(Step::Greeting, vec![5]), CLOSED),
        (raw(Step::Login, vec![1]), CLOSED),
        (raw(Step::Request, ok[..9].to_vec()), CLOSED),
        (raw(Step::Request, vec![5, 0, 0, 3, 255, b'x']), CLOSED),
        // Another protocol, another version.
        (raw(Step::Greeting, b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), NONSENSE),
        (raw(Step::Greeting, vec![0, 90]), NONSENSE),
        (raw(Step::Greeting, vec![4, 0]), NONSENSE),
        (raw(Step::Login, vec![5, 0]), NONSENSE),
        (raw(Step::Request, vec![4, 0, 0, 1, 0, 0, 0, 0, 0, 0]), NONSENSE),
        // A method that was not offered, an address of no type, a reserved byte that is none.
        (raw(Step::Greeting, vec![5, 1]), NONSENSE),
        (raw(Step::Request, vec![5, 0, 0, 2, 0, 0, 0, 0, 0, 0]), NONSENSE),
        (raw(Step::Request, vec![5, 0, 1, 1, 0, 0, 0, 0, 0, 0]), NONSENSE),
        // More than an answer.
        (raw(Step::Greeting, vec![5, 2, 1, 0]), NONSENSE),
        (raw(Step::Login, extra(&[1, 0])), NONSENSE),
        (raw(Step::Request, extra(&ok)), NONSENSE),
        (raw(Step::Request, [&ok[..], &[0; 4096]].concat()), NONSENSE),
    ] {
        let socks = Socks::start().await.unwrap();
        socks.require("canary-user", "canary-pass");
        let limit = if matches!(manner, SocksManner::Hang(_)) { SHORT } else { LONG };
        socks.manner(manner);
        let proxy = format!("socks5h://{LOGIN}@{}", socks.address());
        stage.fails(&proxy, &format!("socks5h://{}", socks.address()), told, limit).await;
        assert!(socks.seen().is_empty(), "{told}");
        assert_eq!(socks.complaints(), [""; 0]);
    }
}

#[tokio::test]
async fn proxies_that_are_gone_or_swallow_connections_are_passed_over() {
    let stage = Stage::new().await;
    let hole = Hole::dig().await.unwrap();
    let gone = closed_port().unwrap();
    for scheme in SCHEMES {
        let url = |login: &str, place: SocketAddr| format!("{scheme}://{login}{place}");
        let refused = "cannot connect: connection refused";
        stage.fails(&url("canary:canary@", gone), &url("", gone), refused, LONG).await;
        let hole = hole.address();
        stage.fails(&url("canary:canary@", hole), &url("", hole), "no answer in time", SHORT).await;
    }
}

#[tokio::test]
async fn tls_with_a_provider_that_fails_inside_a_tunnel_names_both() {
    let authority = Authority::new();
    let good = Lab::start().await.unwrap();
    let impostor = Lab::start_tls(Authority::unknown()).await.unwrap();
    for scheme in SCHEMES {
        for closes in [false, true] {
            let way = Way::open(scheme, &authority).await;
            let told = match &way {
                _ if !closes => "invalid peer certificate: ",
                Way::Http(tunnel) => {
                    tunnel.manner(Manner::CloseAfterOk);
                    "tls handshake eof"
                }
                Way::Socks(socks, _) => {
                    socks.manner(SocksManner::CloseAfterOk);
                    "tls handshake eof"
                }
            };
            let proxy = way.url_of(LOGIN);
            let config =
                format!("providers:\n{}{}", entry("Bad", &impostor.url(), &proxy), direct("Good", &good.url()));
            let running = Running::trusting(trust(&authority), &config).await;
            let reply = running.message(ask_for("m")).await;
            assert_eq!((reply.status, reply.header("x-provider-used")), (200, Some("Good")), "{}", reply.text());
            let error = running.provider("Bad").await["last_error"].as_str().unwrap().to_owned();
            let expected = format!("TLS with localhost through {} failed: {told}", way.url());
            assert!(error.starts_with(&expected) && !error.contains("canary"), "{error}");
            assert!(!holds(&way.seen(), "key-Bad"), "{scheme}");
        }
    }
    assert_eq!(impostor.requests().len(), 0);
}
