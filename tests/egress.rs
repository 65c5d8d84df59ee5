//! Egress through HTTP proxies: tunnels for plain and secure providers, credentials that the proxy alone gets, and
//! every way in which a proxy can fail.

use claude_code_balancer::lab::{Hole, Lab, Manner, Script, Tunnel, closed_port};
use claude_code_balancer::upstream::tls::roots_with;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::support::binary::{Binary, ask};
use crate::support::egress::{direct, entry};
use crate::support::running::{Running, ask_for, stream_of};
use crate::support::tls::Authority;
use crate::support::{soon, sse};

#[tokio::test]
async fn providers_are_reached_through_a_tunnel_plainly_and_over_tls() {
    let authority = Authority::new();
    let roots = roots_with([CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()]);
    let (plain, secure) = (Lab::start().await.unwrap(), Lab::start_tls(authority.server()).await.unwrap());
    let tunnel = Tunnel::start().await.unwrap();
    let config = format!(
        "providers:\n{}{}model_routes: {{ \"plain*\": [{{ provider: P }}], \"*\": [{{ provider: S }}] }}\n",
        entry("P", &plain.url(), &tunnel.url()),
        entry("S", &secure.url(), &tunnel.url())
    );
    let running = Running::trusting(roots, &config).await;
    for model in ["plain", "secure", "plain", "secure"] {
        let reply = running.message(stream_of(model)).await;
        assert_eq!((reply.status, sse::text(&reply.body).as_str()), (200, "Hello from the lab."), "{model}");
    }
    // Kept alive behind the tunnel, too.
    assert_eq!((tunnel.connections(), plain.connections(), secure.connections()), (2, 1, 1));
    let secure_place = format!("localhost:{}", secure.address().port());
    assert_eq!(tunnel.targets(), [plain.address().to_string(), secure_place]);
    for request in tunnel.requests() {
        let head = String::from_utf8_lossy(&request.head).into_owned();
        let place = &request.target;
        assert_eq!(head, format!("CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n\r\n"), "nothing else is told");
    }
    for request in [plain.requests(), secure.requests()].concat() {
        assert_eq!(request.target, "/v1/messages", "the origin form: no request is read by the proxy");
    }
}

#[tokio::test]
async fn the_proxys_credentials_go_to_the_proxy_and_nowhere_else() {
    let lab = Lab::start().await.unwrap();
    for (written, user, password) in [
        ("user:pass", "user", "pass"),
        ("us%40er:p%3Ass%2Fw%25", "us@er", "p:ss/w%"),
        ("user", "user", ""),
        ("%C3%BC:%E4%B8%AD", "ü", "中"),
    ] {
        let tunnel = Tunnel::start().await.unwrap();
        tunnel.require(user, password);
        let proxy = format!("http://{written}@{}", tunnel.address());
        let running = Running::start(&format!("providers:\n{}", entry("A", &lab.url(), &proxy))).await;
        let reply = running.message(ask_for("m")).await;
        assert_eq!(reply.status, 200, "{written}: {}", reply.text());
        let shown = running.get("/providers").await;
        assert_eq!(shown.json()["providers"][0]["proxy"], tunnel.url(), "{written}");
        assert!(!shown.text().contains("%40er") && !shown.text().contains("user:"), "{}", shown.text());
    }
    for request in lab.requests() {
        assert_eq!(request.header("proxy-authorization"), None);
    }
}

#[tokio::test]
async fn a_proxy_that_fails_is_passed_over_and_named_without_its_credentials() {
    let lab = Lab::start().await.unwrap();
    let good = Lab::start().await.unwrap();
    for (manner, what) in [
        (None, "answered 407 to CONNECT; check the user and password of `proxy`"),
        (Some(Manner::Refuse(403)), "answered 403 to CONNECT"),
        (Some(Manner::Refuse(502)), "answered 502 to CONNECT"),
        (Some(Manner::Refuse(302)), "answered 302 to CONNECT"),
        (Some(Manner::Hang), "no answer in time"),
        (Some(Manner::Close), "closed the connection"),
        (Some(Manner::Raw(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec())), "answered something that is not HTTP"),
        (Some(Manner::Raw(vec![0; 64])), "answered something that is not HTTP"),
        (
            Some(Manner::Raw(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec())),
            "answered something that is not HTTP",
        ),
        (
            Some(Manner::Raw(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1 << 16)).into_bytes())),
            "answered something that is not HTTP",
        ),
        (Some(Manner::Raw(b"HTTP/1.1 200 OK\r\nx: ".to_vec())), "closed the connection"),
    ] {
        let tunnel = Tunnel::start().await.unwrap();
        match &manner {
            Some(manner) => tunnel.manner(manner.clone()),
            None => tunnel.require("other", "word"),
        }
        let proxy = format!("http://canary-user:canary-pass@{}", tunnel.address());
        let config = format!(
            "providers:\n{}{}settings: {{ timeouts: {{ connect: 300ms }} }}\n",
            entry("Bad", &lab.url(), &proxy),
            direct("Good", &good.url())
        );
        let running = Running::start(&config).await;
        let reply = running.message(ask_for("m")).await;
        assert_eq!(
            (reply.status, reply.header("x-provider-used")),
            (200, Some("Good")),
            "{manner:?}: {}",
            reply.text()
        );
        let entry = running.provider("Bad").await;
        assert_eq!(entry["last_error"], format!("egress proxy {}: {what}", tunnel.url()), "{manner:?}");
        assert_eq!(entry["failure_count"], 1, "{manner:?}");

        let pinned = ask_for("m").replacen('{', "{\"provider\":\"Bad\",", 1);
        let alone = running.message(pinned).await;
        assert_eq!(alone.status, 503, "{manner:?}: {}", alone.text());
        let text = alone.text();
        assert!(text.contains(&format!("Bad: egress proxy {}", tunnel.url())) && !text.contains("canary"), "{text}");
    }
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn a_tunnel_that_ends_after_its_200_is_a_failure_of_the_connection() {
    let authority = Authority::new();
    let secure = Lab::start_tls(authority.server()).await.unwrap();
    let (plain, good) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let tunnel = Tunnel::start().await.unwrap();
    tunnel.manner(Manner::CloseAfterOk);
    for url in [plain.url(), secure.url()] {
        let config = format!("providers:\n{}{}", entry("Bad", &url, &tunnel.url()), direct("Good", &good.url()));
        let running = Running::start(&config).await;
        let reply = running.message(ask_for("m")).await;
        assert_eq!((reply.status, reply.header("x-provider-used")), (200, Some("Good")), "{url}: {}", reply.text());
        assert_eq!(running.provider("Bad").await["failure_count"], 1, "{url}");
    }
    assert_eq!(plain.connections() + secure.connections(), 0);
}

#[tokio::test]
async fn a_proxy_that_is_gone_or_swallows_connections_is_passed_over() {
    let good = Lab::start().await.unwrap();
    let hole = Hole::dig().await.unwrap();
    let gone = closed_port().unwrap();
    let config = format!(
        "providers:\n{}{}{}{}settings: {{ timeouts: {{ connect: 200ms }} }}\n",
        entry("Gone", &good.url(), &format!("http://u:p@{gone}")),
        entry("Hole", &good.url(), &format!("http://u:p@{}", hole.address())),
        entry("Nameless", &good.url(), "http://u:p@no-such-proxy.invalid:1"),
        direct("Good", &good.url())
    );
    let running = Running::start(&config).await;
    let reply = running.message(ask_for("m")).await;
    assert_eq!(
        (reply.status, reply.header("x-provider-used"), reply.header("x-balancer-attempts")),
        (200, Some("Good"), Some("4")),
        "{}",
        reply.text()
    );
    for (name, what) in [
        ("Gone", format!("egress proxy http://{gone}: cannot connect: connection refused")),
        ("Hole", format!("egress proxy http://{}: no answer in time", hole.address())),
    ] {
        assert_eq!(running.provider(name).await["last_error"], what);
    }
    let nameless = running.provider("Nameless").await;
    assert!(
        nameless["last_error"].as_str().unwrap().starts_with("egress proxy http://no-such-proxy.invalid:1: "),
        "{nameless}"
    );
}

#[tokio::test]
async fn connections_are_not_shared_between_ways_out() {
    let lab = Lab::start().await.unwrap();
    let (one, two) = (Tunnel::start().await.unwrap(), Tunnel::start().await.unwrap());
    let proxies =
        [one.url(), two.url(), format!("http://a:b@{}", one.address()), format!("http://a:c@{}", one.address())];
    let mut config = format!("providers:\n{}", direct("direct", &lab.url()));
    proxies
        .iter()
        .enumerate()
        .for_each(|(number, proxy)| config.push_str(&entry(&format!("p{number}"), &lab.url(), proxy)));
    config.push_str("model_routes:\n");
    for name in ["direct", "p0", "p1", "p2", "p3"] {
        config.push_str(&format!("  \"{name}\": [{{ provider: {name} }}]\n"));
    }
    let running = Running::start(&config).await;
    for _ in 0..2 {
        for model in ["direct", "p0", "p1", "p2", "p3"] {
            assert_eq!(running.message(ask_for(model)).await.header("x-provider-used"), Some(model));
        }
    }
    let requests = lab.requests();
    let connections: Vec<_> = requests.iter().map(|request| request.connection).collect();
    assert_eq!(connections, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    assert_eq!((one.connections(), two.connections()), (3, 1));
}

#[tokio::test]
async fn accounts_of_one_provider_share_connections_but_never_credentials() {
    let lab = Lab::start().await.unwrap();
    let tunnel = Tunnel::start().await.unwrap();
    let config = format!(
        "providers:\n{}{}model_routes: {{ a: [{{ provider: A }}], b: [{{ provider: B }}] }}\n",
        entry("A", &lab.url(), &tunnel.url()),
        entry("B", &lab.url(), &tunnel.url())
    );
    let running = Running::start(&config).await;
    for model in ["a", "b", "a"] {
        assert_eq!(running.message(ask_for(model)).await.status, 200);
    }
    assert_eq!((tunnel.connections(), lab.connections()), (1, 1));
    let keys: Vec<_> = lab.requests().iter().map(|request| request.headers_named("x-api-key").join(",")).collect();
    assert_eq!(keys, ["key-A", "key-B", "key-A"]);
}

#[tokio::test]
async fn a_name_that_only_the_proxy_resolves_is_reached() {
    let authority = Authority::new();
    let roots = roots_with([CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()]);
    let lab = Lab::start_tls(authority.server_for(&["api.inside.test"])).await.unwrap();
    let tunnel = Tunnel::start().await.unwrap();
    tunnel.map("api.inside.test:443", lab.address());
    let config = format!("providers:\n{}", entry("A", "https://api.inside.test/prefix", &tunnel.url()));
    let running = Running::trusting(roots, &config).await;
    let reply = running.message(ask_for("m")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let request = &lab.requests()[0];
    assert_eq!((request.header("host"), request.target.as_str()), (Some("api.inside.test"), "/prefix/v1/messages"));
    assert_eq!(tunnel.targets(), ["api.inside.test:443"]);
}

#[tokio::test]
async fn other_paths_go_through_the_tunnel_too() {
    let lab = Lab::start().await.unwrap();
    let tunnel = Tunnel::start().await.unwrap();
    let running = Running::start(&format!("providers:\n{}", entry("A", &lab.url(), &tunnel.url()))).await;
    assert_eq!(running.send("POST", "/v1/files", &[], "some bytes").await.status, 200);
    assert_eq!(running.get("/v1/models").await.status, 200);
    let bodies: Vec<_> = lab.requests().iter().map(|request| (request.target.clone(), request.body.clone())).collect();
    assert_eq!(bodies, [("/v1/files".to_owned(), "some bytes".into()), ("/v1/models".to_owned(), "".into())]);
    assert_eq!(tunnel.targets().len(), tunnel.connections());
    assert_eq!(lab.connections(), tunnel.connections());
}

#[tokio::test]
async fn ambient_proxy_variables_are_ignored_and_said_to_be() {
    let lab = Lab::start().await.unwrap();
    let tunnel = Tunnel::start().await.unwrap();
    let secret = format!("http://canary:canary@{}", tunnel.address());
    let mut binary = Binary::new();
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        binary = binary.with(name, secret.clone());
    }
    let file = binary.file("config.yaml", &format!("providers:\n{}", direct("A", &lab.url())));
    let (mut service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    lab.always(Script::message("direct"));
    assert_eq!(ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await.status, 200);
    assert_eq!((tunnel.connections(), lab.connections()), (0, 1));
    soon("the line of the request", service.line("ending=complete")).await;
    let said = service.seen.join("\n");
    assert!(said.contains("HTTP_PROXY") && !said.contains("canary"), "{said}");
}
