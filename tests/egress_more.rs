//! Egress of every kind: HTTP proxies, plain and over TLS, and SOCKS5, with names resolved here or there. What works
//! through them; what does not is in `egress_refused`.

use std::net::SocketAddr;

use claude_code_balancer::lab::{Asked, Gate, Lab, Script, Socks, SocksManner};

use crate::support::egress::{SCHEMES, Way, entry, holds, trust};
use crate::support::running::{Running, ask_for, stream_of};
use crate::support::tls::Authority;
use crate::support::{soon, sse};

#[tokio::test]
async fn every_kind_of_proxy_leads_to_plain_and_secure_providers_and_is_kept_alive() {
    let authority = Authority::new();
    let roots = trust(&authority);
    for scheme in SCHEMES {
        for secure in [false, true] {
            for login in [None, Some("canary-user:canary%3Apass")] {
                let what = format!("{scheme}, secure {secure}, {login:?}");
                let lab = if secure { Lab::start_tls(authority.server()).await } else { Lab::start().await }.unwrap();
                let way = Way::open(scheme, &authority).await;
                let url = login.map_or(way.url(), |login| {
                    way.require("canary-user", "canary:pass");
                    way.url_of(login)
                });
                let config = format!("providers:\n{}", entry("A", &lab.url(), &url));
                let running = Running::trusting(roots.clone(), &config).await;
                for _ in 0..2 {
                    let reply = running.message(ask_for("m")).await;
                    assert_eq!((reply.status, &reply.json()["type"]), (200, &"message".into()), "{what}");
                    let reply = running.message(stream_of("m")).await;
                    assert_eq!((reply.status, sse::text(&reply.body).as_str()), (200, "Hello from the lab."), "{what}");
                }
                assert_eq!((way.connections(), lab.connections()), (1, 1), "{what}: one tunnel for all four");
                let port = lab.address().port();
                let place = if secure && scheme != "socks5" { "localhost" } else { "127.0.0.1" };
                assert_eq!(way.asked(), [format!("{place}:{port}")], "{what}");

                // The provider learns nothing of the proxy; the proxy nothing of the provider's, if that speaks TLS.
                assert!(lab.requests().iter().all(|request| !holds(&request.head, "canary")), "{what}");
                assert!(lab.requests().iter().all(|request| request.header("x-api-key") == Some("key-A")), "{what}");
                assert_eq!(holds(&way.seen(), "key-A"), !secure, "{what}");
                if let Way::Socks(socks, _) = &way {
                    let methods: &[u8] = if login.is_some() { &[0, 2] } else { &[0] };
                    assert_eq!(socks.greetings(), [methods], "{what}");
                    assert_eq!(socks.logins().len(), usize::from(login.is_some()), "{what}");
                }
                let shown = running.get("/providers").await;
                assert_eq!(shown.json()["providers"][0]["proxy"], way.url(), "{what}");
                assert!(!shown.text().contains("canary"), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_login_that_is_not_asked_for_is_not_sent() {
    let authority = Authority::new();
    let lab = Lab::start().await.unwrap();
    for scheme in ["socks5", "socks5h"] {
        let way = Way::open(scheme, &authority).await;
        let config = format!("providers:\n{}", entry("A", &lab.url(), &way.url_of("canary:canary")));
        let running = Running::start(&config).await;
        assert_eq!(running.message(ask_for("m")).await.status, 200);
        let Way::Socks(socks, _) = &way else { unreachable!() };
        assert_eq!((socks.greetings(), socks.logins().len()), (vec![vec![0, 2]], 0));
        assert!(!holds(&way.seen(), "canary"));
    }
}

#[tokio::test]
async fn logins_of_any_bytes_and_length_arrive_as_they_are() {
    let lab = Lab::start().await.unwrap();
    let long = "\u{fc}".repeat(127) + "x";
    for (written, user, password) in [
        ("us%40er:p%3Ass%2Fw%25".to_owned(), "us@er", "p:ss/w%"),
        ("user".to_owned(), "user", ""),
        ("%C3%BC:%E4%B8%AD".to_owned(), "\u{fc}", "\u{4e2d}"),
        (format!("{0}:{0}", "%C3%BC".repeat(127) + "x"), long.as_str(), long.as_str()),
    ] {
        let socks = Socks::start().await.unwrap();
        socks.require(user, password);
        let proxy = format!("socks5h://{written}@{}", socks.address());
        let running = Running::start(&format!("providers:\n{}", entry("A", &lab.url(), &proxy))).await;
        assert_eq!(running.message(ask_for("m")).await.status, 200, "{written}");
        assert_eq!(socks.logins(), [(user.to_owned(), password.to_owned())]);
        assert_eq!(socks.complaints(), [""; 0]);
    }
}

#[tokio::test]
async fn names_are_resolved_where_the_scheme_says() {
    let authority = Authority::new();
    let roots = trust(&authority);
    let lab = Lab::start_tls(authority.server_for(&["api.inside.test"])).await.unwrap();
    for scheme in SCHEMES {
        let way = Way::open(scheme, &authority).await;
        match &way {
            Way::Http(tunnel) => tunnel.map("api.inside.test:443", lab.address()),
            Way::Socks(socks, _) => socks.map("api.inside.test:443", lab.address()),
        }
        let config = format!("providers:\n{}", entry("A", "https://api.inside.test", &way.url()));
        let running = Running::trusting(roots.clone(), &config).await;
        let reply = running.message(ask_for("m")).await;
        if scheme == "socks5" {
            assert_eq!((reply.status, way.connections()), (503, 0), "{}", reply.text());
            assert_eq!(running.provider("A").await["last_error"], "cannot resolve api.inside.test");
            continue;
        }
        assert_eq!(reply.status, 200, "{scheme}: {}", reply.text());
        assert_eq!(way.asked(), ["api.inside.test:443"], "{scheme}");
        if let Way::Socks(socks, _) = &way {
            assert_eq!(socks.asked(), [Asked::Name("api.inside.test".to_owned(), 443)]);
        }
    }
}

#[tokio::test]
async fn addresses_are_asked_for_as_addresses() {
    let lab = Lab::start().await.unwrap();
    let sixth: SocketAddr = "[::1]:4321".parse().unwrap();
    for scheme in ["socks5", "socks5h"] {
        let socks = Socks::start().await.unwrap();
        socks.map("[::1]:4321", lab.address());
        for (url, address) in [(lab.url(), lab.address()), (format!("http://{sixth}"), sixth)] {
            let proxy = format!("{scheme}://{}", socks.address());
            let running = Running::start(&format!("providers:\n{}", entry("A", &url, &proxy))).await;
            assert_eq!(running.message(ask_for("m")).await.status, 200, "{scheme} {url}");
            assert_eq!(socks.asked().pop(), Some(Asked::Address(address)), "{scheme}");
        }
        assert_eq!(socks.complaints(), [""; 0]);
    }
}

#[tokio::test]
async fn replies_with_any_bound_address_are_read_to_their_end() {
    let lab = Lab::start().await.unwrap();
    for bytes in [
        [&[5, 0, 0, 4][..], &[9; 18]].concat(),
        [&[5, 0, 0, 3, 255][..], &[b'x'; 257]].concat(),
        vec![5, 0, 0, 3, 0, 0, 0],
    ] {
        let socks = Socks::start().await.unwrap();
        socks.manner(SocksManner::PipeWith(bytes.clone()));
        let proxy = format!("socks5h://{}", socks.address());
        let running = Running::start(&format!("providers:\n{}", entry("A", &lab.url(), &proxy))).await;
        let reply = running.message(ask_for("m")).await;
        assert_eq!(reply.status, 200, "{bytes:?}: {}", reply.text());
    }
}

#[tokio::test]
async fn large_requests_and_streams_pass_byte_for_byte_and_at_once() {
    let authority = Authority::new();
    let roots = trust(&authority);
    let large = stream_of("m").replace("hi", &"x".repeat(5 << 20));
    for scheme in SCHEMES {
        let lab = Lab::start_tls(authority.server()).await.unwrap();
        let way = Way::open(scheme, &authority).await;
        let config = format!("providers:\n{}", entry("A", &lab.url(), &way.url()));
        let running = Running::trusting(roots.clone(), &config).await;
        for script in [Script::stream(&["a", "b"]).split_writes(1), Script::stream(&["l".repeat(1 << 20)])] {
            lab.next(script.clone());
            let reply = running.message(&large).await;
            assert_eq!((reply.status, reply.clean_end), (200, true), "{scheme}");
            assert!(reply.body == script.body_bytes(), "{scheme}");
        }
        assert!(lab.requests().iter().all(|request| request.body == large), "{scheme}");
        let upload = running.send("POST", "/v1/files", &[], &large).await;
        assert_eq!(upload.status, 200, "{scheme}: a body that is passed on while it arrives");
        assert!(lab.requests().pop().unwrap().body == large, "{scheme}");

        // The first text is here before the second is there.
        let gate = Gate::new();
        lab.next(Script::stream(&["first", "second"]).gate_before(4, gate.clone()));
        let mut client = running.connect().await;
        let headers = [("host", running.host()), ("connection", "close".to_owned())];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        client.send("POST", "/v1/messages", &headers, stream_of("m")).await.unwrap();
        soon("the head", client.head()).await.unwrap();
        let mut seen = Vec::new();
        while !holds(&seen, "first") {
            seen.extend_from_slice(&soon("the first text", client.frame()).await.unwrap());
        }
        assert!(!holds(&seen, "second"), "{scheme}");
        gate.open();
        assert!(soon("the rest", client.rest()).await.1, "{scheme}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_tunnel() {
    let authority = Authority::new();
    let roots = trust(&authority);
    for scheme in SCHEMES {
        for started in [false, true] {
            let lab = Lab::start_tls(authority.server()).await.unwrap();
            let gate = Gate::new();
            let script = Script::stream(&["a", "b"]);
            lab.next(if started { script.gate_before(4, gate.clone()) } else { script.hold_head(gate.clone()) });
            let way = Way::open(scheme, &authority).await;
            let config = format!("providers:\n{}", entry("A", &lab.url(), &way.url()));
            let running = Running::trusting(roots.clone(), &config).await;
            let mut client = running.connect().await;
            client.send("POST", "/v1/messages", &[("host", &running.host())], stream_of("m")).await.unwrap();
            soon("the provider's turn", gate.reached(1)).await;
            if started {
                soon("the head", client.head()).await.unwrap();
            }
            drop(client);
            soon("the provider sees it", lab.departed(1)).await;
            soon("the proxy is left", way.deserted()).await;
            assert_eq!(running.provider("A").await["failure_count"], 0, "{scheme}");
        }
    }
}

#[tokio::test]
async fn connections_are_not_shared_between_kinds_of_proxies_or_logins() {
    let authority = Authority::new();
    let lab = Lab::start().await.unwrap();
    let socks = Socks::start().await.unwrap();
    let (plain, secure) = (Way::open("http", &authority).await, Way::open("https", &authority).await);
    let place = socks.address();
    let proxies = [
        plain.url(),
        secure.url(),
        format!("socks5://{place}"),
        format!("socks5h://{place}"),
        format!("socks5://a:b@{place}"),
        format!("socks5://a:c@{place}"),
    ];
    let names: Vec<_> = (0..proxies.len()).map(|number| format!("p{number}")).collect();
    let entries = names.iter().zip(&proxies).map(|(name, proxy)| entry(name, &lab.url(), proxy)).collect::<String>();
    let routes = names.iter().map(|name| format!("  \"{name}\": [{{ provider: {name} }}]\n")).collect::<String>();
    let running = Running::trusting(trust(&authority), &format!("providers:\n{entries}model_routes:\n{routes}")).await;
    for _ in 0..2 {
        for name in &names {
            assert_eq!(running.message(ask_for(name)).await.header("x-provider-used"), Some(name.as_str()));
        }
    }
    let connections: Vec<_> = lab.requests().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]);
    assert_eq!((plain.connections(), secure.connections(), socks.connections()), (1, 1, 4));
}
