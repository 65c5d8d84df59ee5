//! On the way to a provider: TLS and egress proxies that fail are a failure of that target, and nothing secret is
//! said on a connection that is not what it should be.

use std::sync::Arc;

use claude_code_balancer::lab::{Lab, Manner, Script, Tunnel, Welcome, closed_port};

use crate::support::balancer::{Balancer, fleet, request};
use crate::support::tls::Authority;

const TIMES: &str = "timeouts: { connect: \"300ms\", tls: \"300ms\" }";

/// A fails; B, over good TLS, answers.
async fn failed_over(name: &str, a: &Lab, place: &str, authority: &Authority) {
    let b = Lab::start_tls(authority.server()).await.unwrap();
    let script = Script::stream(&["from the second"]);
    b.always(script.clone());
    let balancer = Balancer::start_trusting(&fleet(&[place.to_owned(), b.url()], TIMES), authority).await;
    let reply = balancer.ask(true).await;
    assert_eq!((reply.status, reply.header("x-balancer-attempts")), (200, Some("2")), "{name}: {}", reply.text());
    assert_eq!(reply.body, script.body_bytes(), "{name}");
    assert_eq!((a.requests().len(), balancer.failures("A").await), (0, 1), "{name}");
    let error = balancer.provider("A").await["last_error"].as_str().unwrap().to_owned();
    assert!(!error.contains("key-a"), "{name}: {error}");
}

#[tokio::test]
async fn a_provider_whose_tls_fails_is_passed_over_and_never_sees_the_credential() {
    let authority = Authority::new();
    for (name, config) in [
        ("expired", authority.expired()),
        ("somebody else's", authority.wrong_host()),
        ("signed by nobody", Authority::unknown()),
    ] {
        let a = Lab::start_tls(config).await.unwrap();
        failed_over(name, &a, &a.url(), &authority).await;
    }
    let plain = Lab::start().await.unwrap();
    failed_over("no TLS at all", &plain, &format!("https://localhost:{}", plain.address().port()), &authority).await;
    assert!(plain.complaints().iter().all(|what| !what.contains("key-a")), "{:?}", plain.complaints());
    for welcome in [Welcome::Mute, Welcome::Close, Welcome::Reset] {
        let a = Lab::start_tls(authority.server()).await.unwrap();
        a.welcome(welcome);
        failed_over("no handshake", &a, &a.url(), &authority).await;
    }
}

#[tokio::test]
async fn over_tls_everything_is_as_without() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server()).await.unwrap();
    let balancer = Balancer::start_trusting(&fleet(&[lab.url()], ""), &authority).await;
    let large = request(true).replace("hi", &"x".repeat(5 << 20));
    for script in [Script::stream(&["a", "b"]).split_writes(1), Script::stream(&["l".repeat(1 << 20)])] {
        lab.next(script.clone());
        let reply = balancer.post(&large).await;
        assert_eq!((reply.status, reply.clean_end), (200, true));
        assert!(reply.body == script.body_bytes());
    }
    assert!(lab.requests().iter().all(|request| request.body == large));
    assert_eq!(lab.requests()[0].header("host"), Some(format!("localhost:{}", lab.address().port()).as_str()));
    assert_eq!(lab.connections(), 1);
}

#[tokio::test]
async fn a_body_that_ends_with_its_tls_connection_is_complete_only_after_close_notify() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server()).await.unwrap();
    let balancer = Balancer::start_trusting(&fleet(&[lab.url()], ""), &authority).await;
    let whole = Script::body(200, "application/pdf", "%PDF and more").close_delimited();
    for (script, clean) in [(whole.clone(), true), (whole.cut_at_byte(6), false)] {
        lab.next(script.clone());
        let reply = balancer.fetch("GET", "/v1/files/f/content", &[], "").await;
        assert_eq!((reply.status, reply.clean_end), (200, clean));
        assert_eq!(reply.body, script.body_bytes());
    }
}

/// A goes out through a proxy, B does not.
fn through(proxy: &str, a: &Lab, b: &Lab) -> String {
    format!(
        r#"providers:
  - {{ name: A, base_url: "{}", auth_value: key-a, proxy: "{proxy}" }}
  - {{ name: B, base_url: "{}", auth_value: key-b }}
settings:
  log_file_path: ""
  {TIMES}
"#,
        a.url(),
        b.url()
    )
}

#[tokio::test]
async fn an_egress_proxy_that_fails_is_a_failure_of_the_target_behind_it() {
    let manners = [
        Manner::Refuse(502),
        Manner::Refuse(407),
        Manner::Refuse(302),
        Manner::Hang,
        Manner::Close,
        Manner::CloseAfterOk,
        Manner::Raw(b"SSH-2.0-x\r\n\r\n".to_vec()),
        Manner::Raw(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec()),
    ];
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    for manner in manners {
        let tunnel = Tunnel::start().await.unwrap();
        tunnel.manner(manner.clone());
        let proxy = format!("http://user:canary@{}", tunnel.address());
        let balancer = Balancer::start(&through(&proxy, &a, &b)).await;
        let reply = balancer.ask(true).await;
        assert_eq!((reply.status, reply.header("x-balancer-attempts")), (200, Some("2")), "{manner:?}");
        let told = balancer.provider("A").await;
        assert_eq!(told["failure_count"], 1, "{manner:?}: {told}");
        assert!(!told.to_string().contains("canary"), "{manner:?}: {told}");
        assert!(tunnel.requests().iter().all(|request| request.header("x-api-key").is_none()), "{manner:?}");
    }
    let gone = format!("http://{}", closed_port().unwrap());
    let balancer = Balancer::start(&through(&gone, &a, &b)).await;
    assert_eq!(balancer.ask(true).await.header("x-provider-used"), Some("B"));
    assert!(balancer.provider("A").await["last_error"].as_str().unwrap().starts_with("egress proxy "));
    assert_eq!(a.connections(), 0, "what should go through a proxy never goes around it");
}

#[tokio::test]
async fn connections_are_kept_but_never_shared_across_egress_proxies() {
    let lab = Lab::start().await.unwrap();
    let tunnels = [Tunnel::start().await.unwrap(), Tunnel::start().await.unwrap()];
    let entry = |name: &str, proxy: String| {
        format!("  - {{ name: {name}, base_url: \"{}\", auth_value: key-{name}{proxy} }}\n", lab.url())
    };
    let yaml = format!(
        "providers:\n{}{}{}settings:\n  log_file_path: \"\"\n  selection_strategy: round_robin\n",
        entry("A", String::new()),
        entry("B", format!(", proxy: \"{}\"", tunnels[0].url())),
        entry("C", format!(", proxy: \"{}\"", tunnels[1].url())),
    );
    let balancer = Arc::new(Balancer::start(&yaml).await);
    for _ in 0..9 {
        assert_eq!(balancer.ask(true).await.status, 200);
    }
    let mut used: Vec<_> =
        lab.requests().iter().map(|r| (r.header("x-api-key").unwrap().to_owned(), r.connection)).collect();
    used.sort();
    used.dedup();
    assert_eq!((used.len(), lab.connections()), (3, 3), "{used:?}");
    assert!(tunnels.iter().all(|tunnel| tunnel.targets() == [lab.address().to_string()]));
}
