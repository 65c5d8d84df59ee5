//! F16, the scan for leaks: the real program with a canary in every place where a secret can stand, through successes,
//! faults, logins, refreshes and bad edits; afterwards everything that it has said or written is searched for them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use claude_code_balancer::lab::{Authority, Lab, Received, Script, Tunnel, Whim};
use serde_json::json;

use super::report::{Ends, Report};
use super::support::balancer::{JSON, request_for};
use super::support::binary::{Binary, ask};
use super::support::canaries::{
    ALL, ANSWER, BODY, CLIENT_KEY, CLIENT_TOKEN, COOKIE, KEY_A, KEY_B, KEY_C, NEW_KEY, OTHER_OWN_KEY, OWN_KEY,
    PROXY_PASSWORD, PROXY_USER, QUERY, SET_COOKIE, WRONG_KEY, bad_edits, basic, burdened, config, echo, faults, found,
};
use super::support::{Client, Reply, soon, sse};

/// Two logins and a refresh for each of these.
const ACCOUNTS: [&str; 3] = ["canary-local-part-one", "canary-local-part-two", "canary-local-part-three"];
/// Fewer distinct secrets would prove little.
const LEAST: usize = 40;

struct Life {
    address: SocketAddr,
    /// Answers of the balancer itself.
    ours: Vec<(String, Reply)>,
    ends: Ends,
}

impl Life {
    async fn post(&mut self, path: &str, model: &str, stream: bool) -> Reply {
        let headers = burdened();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let body = request_for(model, stream).replace("\"hi\"", &format!("\"{BODY}\""));
        let reply = ask(self.address, "POST", &format!("{path}?beta=true&q={QUERY}"), &headers, &body).await;
        let broken = sse::names(&reply.body).iter().any(|name| name == "error");
        self.ends.count(Some(reply.status).filter(|_| !broken));
        reply
    }

    /// Asks the balancer itself.
    async fn own(&mut self, method: &str, path: &str, key: &str, body: &str) -> Reply {
        let headers = [("x-api-key", key), JSON];
        let reply = ask(self.address, method, path, &headers, body).await;
        self.ours.push((format!("{method} {path}"), reply.clone()));
        reply
    }
}

pub async fn run() -> Report {
    let mut report = Report::new("leakscan", "a whole life of the real program at DEBUG".to_owned());
    let labs = [Lab::start().await.unwrap(), Lab::start().await.unwrap(), Lab::start().await.unwrap()];
    let official = Lab::start().await.unwrap();
    let tunnel = Tunnel::start().await.unwrap();
    let authority = Authority::start().await.unwrap();
    authority.prefix("canary-of-the-authority");
    let state = tempfile::tempdir().unwrap();
    let binary = Binary::new().with("KEY_B", KEY_B).with("XDG_STATE_HOME", state.path().to_str().unwrap());
    binary.file("key-c", &format!("{KEY_C}\n"));
    let text = config(&labs[0], &labs[1], &labs[2], &tunnel).replace(
        "model_routes:\n",
        &format!(
            "  - {{ name: O, base_url: \"{}\", auth_value: oauth }}\nmodel_routes:\n  \"o-*\": [{{ provider: O }}]\n",
            official.url()
        ),
    );
    let text = format!(
        "{text}  log_level: DEBUG\n  oauth:\n    storage: file\n    authorize_url: \"{}\"\n    token_url: \"{}\"\n",
        authority.authorize_url(),
        authority.token_url()
    );
    let file = binary.file("config.yaml", &text);
    let (mut service, address) = binary.serve(&[]).await;
    let mut life = Life { address, ours: Vec::new(), ends: Ends::default() };
    requests(&mut life, &labs, &tunnel).await;
    let states = logins(&mut life, &authority).await;
    edits(&mut life, &file, &text).await;
    let children = children(service.id());
    service.signal("TERM");
    let end = service.end().await;
    report.check("exit status 0", end == Some(0), || format!("{end:?}"));

    // Everything that must be nowhere.
    let mut secrets: Vec<String> = ALL.iter().map(|secret| (*secret).to_owned()).chain([basic()]).collect();
    secrets.extend(states);
    secrets.extend(of_authority(&authority));
    secrets.extend(bearers(&official));
    secrets.sort();
    secrets.dedup();
    report.check("40 distinct canaries", secrets.len() + ACCOUNTS.len() >= LEAST, || format!("{}", secrets.len()));
    let mut bytes = 0;
    let mut scan = |what: String, text: &str, more: &[&str]| {
        bytes += text.len();
        let found = found(text, secrets.iter().map(String::as_str).chain(more.iter().copied()));
        report.check("no canary is anywhere but where it belongs", found.is_none(), || {
            format!("{what} holds {}", found.unwrap_or_default())
        });
    };
    scan("the terminal".to_owned(), &service.seen.join("\n"), &[]);
    for (what, reply) in &life.ours {
        // The link to the authorization page holds its state, for the one who asked for it.
        let mut text = format!("{:?}\n{}", reply.headers, reply.text());
        if what.contains("generate-url") {
            text = text.split("&state=").next().unwrap_or_default().to_owned();
        }
        let people: &[&str] = if what.contains("/metrics") { &ACCOUNTS } else { &[] };
        scan(what.clone(), &text, people);
    }
    for path in files(binary.home()).into_iter().filter(|path| *path != file && !path.ends_with("key-c")) {
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        scan(path.display().to_string(), &text, &[]);
    }
    scan("the arguments and environment of children".to_owned(), &children, &[]);
    report.figure("canaries", secrets.len() + ACCOUNTS.len());
    report.figure("bytes searched", bytes);
    places(&labs, &official, &tunnel, &mut report);
    let metrics = life.ours.iter().rev().find(|(what, _)| what.ends_with("/metrics")).unwrap().1.text();
    // The one that left.
    life.ends.cancelled += 1;
    report.agree(life.ends, &metrics);
    report.requests += life.ends.sum();
    report.ends.add(life.ends);
    report.done()
}

/// Successes, and every fault that repeats a secret.
async fn requests(life: &mut Life, labs: &[Lab; 3], tunnel: &Tunnel) {
    let [a, b, c] = labs;
    for stream in [false, true] {
        let script = if stream { Script::stream(&[ANSWER]) } else { Script::message(ANSWER) };
        a.next(script.header("set-cookie", SET_COOKIE));
        assert_eq!(life.post("/v1/messages", "a-model", stream).await.status, 200);
    }
    life.post("/v1/files", "a-model", false).await;
    life.post("/v1/messages", "c-model", true).await;
    for (script, stream) in faults(b) {
        a.next(script);
        assert_eq!(life.post("/v1/messages", "a-model", stream).await.header("x-provider-used"), Some("B"));
        // The failures in a row are forgotten.
        life.post("/v1/messages", "alone-model", false).await;
    }
    a.next(Script::stream(&[ANSWER]).cut_after(4));
    life.post("/v1/messages", "a-model", true).await;
    tunnel.require(PROXY_USER, PROXY_PASSWORD);
    life.post("/v1/messages", "out-model", false).await;
    tunnel.require("other", "word");
    let refused = life.post("/v1/messages", "out-model", false).await;
    life.ours.push(("a proxy that refuses".to_owned(), refused));
    c.next(echo(401, KEY_A));
    life.post("/v1/messages", "c-model", false).await;
    let spent = life.post("/v1/messages", "c-model", false).await;
    life.ours.push(("a key that was refused".to_owned(), spent));
    for path in ["/v1/messages", "/providers/reload", "/oauth/exchange-code", "/nowhere"] {
        life.own("POST", path, WRONG_KEY, BODY).await;
    }
    // A client that leaves, with credentials of its own.
    c.next(Script::stall());
    let before = c.requests().len();
    let mut client = Client::connect(life.address).await.unwrap();
    let (host, bearer) = (life.address.to_string(), format!("Bearer {CLIENT_TOKEN}"));
    let headers =
        [("host", host.as_str()), ("x-api-key", OWN_KEY), ("authorization", &bearer), ("cookie", COOKIE), JSON];
    client.send("POST", "/v1/messages", &headers, request_for("own-model", false)).await.unwrap();
    soon("the request", c.received(before + 1)).await;
    drop(client);
    soon("its departure", c.departed(1)).await;
}

/// Logins, and refreshes that go well, are lost, are refused; answers the states of the logins.
async fn logins(life: &mut Life, authority: &Authority) -> Vec<String> {
    let mut states = Vec::new();
    authority.grace(std::time::Duration::from_secs(60));
    for name in ACCOUNTS {
        let email = format!("{name}@example.com");
        for _ in 0..2 {
            let begun = life.own("GET", &format!("/oauth/generate-url?account_email={email}"), OWN_KEY, "").await;
            let link = begun.json()["authorization_url"].as_str().unwrap().to_owned();
            states.push(link.split_once("&state=").unwrap().1.split('&').next().unwrap().to_owned());
            let code = authority.sign_in(&link, &email);
            let body = json!({ "code": "canary-of-the-authority-wrong#wrong", "account_email": email });
            life.own("POST", "/oauth/exchange-code", OWN_KEY, &body.to_string()).await;
            let body = json!({ "code": code, "account_email": email }).to_string();
            assert_eq!(life.own("POST", "/oauth/exchange-code", OWN_KEY, &body).await.status, 200);
            assert_eq!(life.post("/v1/messages", "o-model", true).await.status, 200);
        }
        authority.next(Whim::LoseReply);
        life.own("POST", &format!("/oauth/refresh/{email}"), OWN_KEY, "").await;
        assert_eq!(life.post("/v1/messages", "o-model", true).await.status, 200);
    }
    life.own("GET", "/oauth/status", OWN_KEY, "").await;
    let gone = format!("/oauth/tokens/{}@example.com", ACCOUNTS[1]);
    life.own("DELETE", &gone, OWN_KEY, "").await;
    states
}

/// Edits that are refused, and one that is not.
async fn edits(life: &mut Life, file: &Path, good: &str) {
    for bad in bad_edits(good) {
        std::fs::write(file, bad).unwrap();
        life.own("POST", "/providers/reload", OWN_KEY, "").await;
        life.own("GET", "/providers", OWN_KEY, "").await;
    }
    std::fs::write(file, good.replace(KEY_A, NEW_KEY).replace(OTHER_OWN_KEY, &format!("{OTHER_OWN_KEY}-2"))).unwrap();
    assert_eq!(life.own("POST", "/providers/reload", OWN_KEY, "").await.status, 200);
    life.post("/v1/messages", "alone-model", false).await;
    for path in ["/", "/health", "/providers", "/metrics", "/oauth/status"] {
        life.own("GET", path, OWN_KEY, "").await;
    }
}

/// Codes, verifiers and refresh tokens that went to the authorization server.
fn of_authority(authority: &Authority) -> Vec<String> {
    let mut secrets = Vec::new();
    for request in authority.lab().requests() {
        let body = request.json();
        for name in ["code", "code_verifier", "refresh_token"] {
            secrets.extend(body.get(name).and_then(|value| value.as_str()).map(str::to_owned));
        }
    }
    secrets
}

/// Access tokens that went to the provider of the accounts.
fn bearers(official: &Lab) -> Vec<String> {
    let bearer = |request: &Received| request.header("authorization")?.strip_prefix("Bearer ").map(str::to_owned);
    official.requests().iter().filter_map(bearer).collect()
}

/// The arguments and the environment of a process's children.
fn children(id: u32) -> String {
    let mut text = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    for child in children.split_whitespace() {
        for part in ["cmdline", "environ"] {
            text += &String::from_utf8_lossy(&std::fs::read(format!("/proc/{child}/{part}")).unwrap_or_default());
        }
    }
    text
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Every provider has got its own credential, and nobody else's.
fn places(labs: &[Lab; 3], official: &Lab, tunnel: &Tunnel, report: &mut Report) {
    let raw = |requests: Vec<Received>| -> String {
        let bytes = requests.iter().flat_map(|request| [&request.head[..], b"\n", &request.body[..], b"\n"].concat());
        String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
    };
    for (name, seen, own) in [
        ("A", raw(labs[0].requests()), vec![KEY_A, NEW_KEY]),
        ("B", raw(labs[1].requests()), vec![KEY_B, KEY_A]),
        ("C", raw(labs[2].requests()), vec![KEY_C, CLIENT_TOKEN, CLIENT_KEY]),
        ("the one with accounts", raw(official.requests()), vec![]),
        ("the egress proxy", raw(tunnel.requests()), vec![PROXY_USER, PROXY_PASSWORD]),
    ] {
        let foreign =
            ALL.into_iter().chain(ACCOUNTS).filter(|secret| !own.contains(secret) && ![QUERY, BODY].contains(secret));
        let found = found(&seen, foreign);
        report.check("nothing is at a provider that is not its own", found.is_none(), || {
            format!("{name} was sent {}", found.unwrap_or_default())
        });
    }
}
