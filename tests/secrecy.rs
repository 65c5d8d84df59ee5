//! A whole life with a canary in every place where a secret can stand, logged at TRACE with all libraries: none of
//! them is found anywhere but where it belongs.

use std::cell::RefCell;

use claude_code_balancer::config::{Live, Overrides};
use claude_code_balancer::lab::{Lab, Manner, Script, Tunnel};
use claude_code_balancer::log;
use prometheus_client::metrics::counter::Counter;
use rustls::RootCertStore;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt;

use crate::support::Buffer;
use crate::support::canaries::*;
use crate::support::running::{Running, ask_for};
use crate::support::{Reply, soon};

fn assert_silent(what: &str, text: &str) {
    let basic = basic();
    if let Some(found) = found(text, ALL.into_iter().chain([basic.as_str()])) {
        panic!("{what} holds {found}");
    }
}

fn assert_reply_silent(what: &str, reply: &Reply) {
    assert_silent(what, &format!("{:?}\n{}", reply.headers, reply.text()));
}

async fn post(running: &Running, path: &str, model: &str, stream: bool, headers: &[(&str, String)]) -> Reply {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let body =
        ask_for(model).replace("\"hi\"", &format!("\"{BODY}\"")).replacen('{', &format!("{{\"stream\":{stream},"), 1);
    running.send("POST", &format!("{path}?beta=true&q={QUERY}"), &headers, body).await
}

async fn live_a_whole_life(running: &Running, labs: [&Lab; 3], tunnel: &Tunnel) {
    let [a, b, c] = labs;
    let headers = burdened();
    let mut ours = Vec::new();

    // Success, in both ways, on every kind of path.
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        for stream in [false, true] {
            a.next(
                if stream && path == "/v1/messages" { Script::stream(&[ANSWER]) } else { Script::message(ANSWER) }
                    .header("set-cookie", SET_COOKIE),
            );
            let reply = post(running, path, "a-model", stream, &headers).await;
            assert_eq!((reply.status, reply.header("set-cookie")), (200, None), "{}", reply.text());
        }
    }
    post(running, "/v1/files", "a-model", false, &headers).await;
    post(running, "/v1/messages", "c-model", true, &headers).await;

    // Failover, past errors that repeat the key; a stream that breaks; a head that is garbage.
    for (script, stream) in faults(b) {
        a.next(script);
        let reply = post(running, "/v1/messages", "a-model", stream, &headers).await;
        assert_eq!((reply.status, reply.header("x-provider-used")), (200, Some("B")), "{}", reply.text());
        // The failures in a row are forgotten.
        post(running, "/v1/messages", "alone-model", false, &headers).await;
    }
    a.next(Script::stream(&[ANSWER]).cut_after(4));
    post(running, "/v1/messages", "a-model", true, &headers).await;

    // Nothing worked: an egress proxy that fails in every way, TLS that is none.
    tunnel.require("other", "word");
    ours.push(post(running, "/v1/messages", "out-model", false, &headers).await);
    tunnel.require(PROXY_USER, PROXY_PASSWORD);
    for manner in
        [Manner::Close, Manner::Raw(format!("HTTP/1.1 200 {PROXY_PASSWORD}").into_bytes()), Manner::Refuse(502)]
    {
        tunnel.manner(manner);
        ours.push(post(running, "/v1/messages", "out-model", false, &headers).await);
    }
    // A refused key, alone: the provider's own words go to the client, and to nobody else.
    c.next(echo(401, KEY_A));
    let told = post(running, "/v1/messages", "c-model", false, &headers).await;
    assert_eq!(told.status, 401);
    ours.push(post(running, "/v1/messages", "c-model", false, &headers).await);

    // The client's own credentials.
    let own = [headers.clone(), vec![("x-api-key", CLIENT_KEY.into())]].concat();
    assert_eq!(post(running, "/v1/messages", "own-model", true, &own).await.status, 200);
    c.next(Script::error(401, "authentication_error", &format!("invalid bearer token {CLIENT_TOKEN}")));
    assert_eq!(post(running, "/v1/messages", "own-model", false, &own).await.status, 401);
    let only_ours = [("authorization", format!("Bearer {OTHER_OWN_KEY}")), ("x-api-key", OWN_KEY.into())];
    ours.push(post(running, "/v1/messages", "own-model", false, &only_ours).await);

    // Refusals of ours.
    let wrong = [("x-api-key", WRONG_KEY.to_owned()), ("cookie", COOKIE.into())];
    for path in ["/v1/messages", "/providers/reload", "/nowhere", "/oauth/exchange-code"] {
        ours.push(post(running, path, "a-model", false, &wrong).await);
    }
    for more in [("origin", QUERY), ("content-encoding", BODY), ("x-forwarded-for", COOKIE), ("host", QUERY)] {
        let with = [headers.clone(), vec![(more.0, more.1.to_owned())]].concat();
        ours.push(post(running, "/providers/reload", "a-model", false, &with).await);
    }
    let key = [("x-api-key", OWN_KEY)];
    for body in [
        format!("{{\"model\":\"a\",\"{BODY}\""),
        BODY.into(),
        format!("{{\"model\":[\"{BODY}\"]}}"),
        format!("{{\"m\":\"{BODY}\"}}"),
    ] {
        ours.push(running.send("POST", "/v1/messages", &key, body).await);
    }
    for (method, path) in
        [("PUT", "/v1/messages"), ("GET", "/nowhere"), ("GET", "/oauth/status"), ("DELETE", "/health")]
    {
        ours.push(running.send(method, &format!("{path}?{QUERY}"), &key, "").await);
    }

    // A client that leaves.
    c.next(Script::stall());
    let before = c.requests().len();
    let mut client = running.connect().await;
    let host = running.host();
    let fields = [("host", host.as_str()), ("x-api-key", OWN_KEY), ("authorization", CLIENT_TOKEN)];
    client.send("POST", "/v1/messages", &fields, ask_for("own-model")).await.unwrap();
    soon("the request", c.received(before + 1)).await;
    drop(client);
    soon("its departure", c.departed(1)).await;

    // Reloads, of files with a secret on every line that is wrong.
    let good = std::fs::read_to_string(running.file()).unwrap();
    for bad in bad_edits(&good) {
        assert_ne!(bad, good);
        running.write(&bad);
        let reply = running.send("POST", "/providers/reload", &key, "").await;
        assert_eq!(reply.status, 400, "{bad}: {}", reply.text());
        ours.push(reply);
        ours.push(running.send("GET", "/providers", &key, "").await);
        let live = &running.app.admin.live;
        assert_silent("the rejected edit", &format!("{:?} {}", live.rejected(), live.rejected().unwrap().report));
    }
    running.write(&good.replace(KEY_A, NEW_KEY).replace(OTHER_OWN_KEY, &format!("{OTHER_OWN_KEY}-2")));
    ours.push(running.send("POST", "/providers/reload?dry_run=1", &key, "").await);
    ours.push(running.send("POST", "/providers/reload", &key, "").await);
    assert_eq!(ours.last().unwrap().status, 200, "{}", ours.last().unwrap().text());
    post(running, "/v1/messages", "alone-model", false, &headers).await;
    for path in ["/", "/health", "/providers", "/metrics"] {
        ours.push(running.send("GET", path, &key, "").await);
    }
    for (number, reply) in ours.iter().enumerate() {
        assert_reply_silent(&format!("answer {number} of our own"), reply);
    }
}

thread_local! {
    static SUBSCRIBED: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
}

#[test]
fn no_secret_is_found_anywhere_but_where_it_belongs() {
    let (buffer, folder) = (Buffer::default(), tempfile::tempdir().unwrap());
    let file = folder.path().join("logs.jsonl");
    let options = log::Options {
        level: Some(tracing::Level::TRACE),
        libraries: true,
        terminal: Some((Box::new(buffer.clone()), false)),
        file: Some(file.clone()),
        ..log::Options::default()
    };
    let dropped = Counter::default();
    let (layer, log) = log::start(options, dropped.clone());
    let dispatch = tracing::Dispatch::new(tracing_subscriber::registry().with(layer));
    // While there is only one, `tracing` asks the thread that comes first to an event whether anybody wants it; that
    // may be one of another test, where nobody does. With two, all are asked.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _here = tracing::dispatcher::set_default(&dispatch);
    // Blocking work, a reload for one, has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(move || {
            let guard = tracing::dispatcher::set_default(&dispatch);
            SUBSCRIBED.with(|subscribed| *subscribed.borrow_mut() = Some(guard));
        })
        .build()
        .unwrap();
    runtime.block_on(async {
        let (a, b, c) = (Lab::start().await.unwrap(), Lab::start().await.unwrap(), Lab::start().await.unwrap());
        let tunnel = Tunnel::start().await.unwrap();
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("key-c"), format!("{KEY_C}\n")).unwrap();
        std::fs::write(home.path().join("config.yaml"), config(&a, &b, &c, &tunnel)).unwrap();
        let environment = Box::new(|name: &str| (name == "KEY_B").then(|| KEY_B.to_owned()));
        let overrides = Overrides { host: None, port: Some(0) };
        let live = Live::open_in(Some(&home.path().join("config.yaml")), overrides, environment).unwrap();
        assert_silent("warnings", &format!("{:?}", live.warnings()));
        let running = Running::over(live, home, RootCertStore::empty());
        live_a_whole_life(&running, [&a, &b, &c], &tunnel).await;

        let snapshot = running.app.admin.live.load();
        let parts = format!("{snapshot:?} {snapshot:#?} {:?} {:?}", running.app.proxy, snapshot.providers);
        assert_silent("Debug of what the balancer holds", &parts);
        assert_each_secret_went_to_its_own_place(&a, &b, &c, &tunnel);
        running.stop().await;
    });
    drop(runtime);
    drop(log);
    assert_eq!(dropped.get(), 0, "every line was written");
    let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    let json = std::fs::read_to_string(file).unwrap();
    for (name, text) in [("the log", &text), ("the log file", &json)] {
        assert_silent(name, text);
        for event in ["attempt failed", "was not accepted", "configuration reloaded", "upstream broke", "client left"] {
            assert!(text.contains(event), "{name} has seen no {event:?}: it proves nothing");
        }
        assert!(text.contains("Next("), "{name} has no DEBUG lines");
    }
}

fn assert_each_secret_went_to_its_own_place(a: &Lab, b: &Lab, c: &Lab, tunnel: &Tunnel) {
    let bytes = |lab: &Lab| -> String {
        let requests = lab.requests();
        let raw = requests.iter().flat_map(|request| [&request.head[..], b"\n", &request.body[..], b"\n"].concat());
        let raw: Vec<u8> = raw.collect();
        format!("{}\n{}", String::from_utf8_lossy(&raw), lab.complaints().join("\n"))
    };
    let always = [QUERY, BODY];
    for (name, lab, expected) in [
        ("A", a, vec![KEY_A, NEW_KEY]),
        ("B", b, vec![KEY_B]),
        // C itself, and the provider behind the same address that gets the client's own.
        ("C", c, vec![KEY_C, CLIENT_TOKEN, CLIENT_KEY]),
    ] {
        let seen = bytes(lab);
        for secret in ALL {
            let wanted = expected.contains(&secret) || always.contains(&secret);
            assert_eq!(seen.contains(secret), wanted, "{secret} at {name}");
        }
        for request in lab.requests() {
            let count = ["x-api-key", "authorization"].map(|header| request.headers_named(header).len());
            let own = request.json()["model"] == "own-model";
            assert!(count.iter().sum::<usize>() == 1 || own, "{name}: exactly one credential: {count:?}");
        }
    }
    for request in c.requests() {
        let own = request.json()["model"] == "own-model";
        let head = String::from_utf8_lossy(&request.head).into_owned();
        assert_eq!(head.contains(CLIENT_TOKEN), own, "{head}");
        assert_eq!(head.contains(KEY_C), !own, "{head}");
    }
    let basic = basic();
    for request in tunnel.requests() {
        let head = String::from_utf8_lossy(&request.head).into_owned();
        assert!(head.contains(&basic), "{head}");
        assert!(!head.contains("canary"), "the egress proxy learns nothing else: {head}");
    }
}
