//! A canary in every place where a secret can stand, and the faults and edits that might let one out.
#![allow(clippy::wildcard_imports, reason = "a list of names that belong together")]

use base64::Engine;
use claude_code_balancer::lab::{Authority, Lab, Script, Tunnel};

pub const KEY_A: &str = "sk-ant-api03-canary-key-of-a";
pub const KEY_B: &str = "canary-key-of-b-from-the-environment";
pub const KEY_C: &str = "canary-key-of-c-from-a-file";
pub const PROXY_USER: &str = "canary-proxy-user";
pub const PROXY_PASSWORD: &str = "canary-proxy-password";
pub const OWN_KEY: &str = "canary-key-that-opens-this-proxy";
pub const OTHER_OWN_KEY: &str = "canary-other-key-that-opens-this-proxy";
pub const CLIENT_TOKEN: &str = "sk-ant-oat01-canary-client-token";
pub const CLIENT_KEY: &str = "sk-ant-api03-canary-client-key";
pub const WRONG_KEY: &str = "canary-wrong-key";
pub const COOKIE: &str = "canary-cookie";
pub const CLIENT_PROXY: &str = "canary-client-proxy-authorization";
pub const GOOGLE: &str = "canary-x-goog-api-key";
pub const AZURE: &str = "canary-api-key";
pub const QUERY: &str = "canary-query-string";
pub const BODY: &str = "canary-request-body";
pub const ANSWER: &str = "canary-answer-body";
pub const SET_COOKIE: &str = "canary-set-cookie";
pub const BAD_FILE: &str = "canary-on-a-bad-line";
pub const NEW_KEY: &str = "canary-key-after-the-reload";

pub const ALL: [&str; 20] = [
    KEY_A,
    KEY_B,
    KEY_C,
    PROXY_USER,
    PROXY_PASSWORD,
    OWN_KEY,
    OTHER_OWN_KEY,
    CLIENT_TOKEN,
    CLIENT_KEY,
    WRONG_KEY,
    COOKIE,
    CLIENT_PROXY,
    GOOGLE,
    AZURE,
    QUERY,
    BODY,
    ANSWER,
    SET_COOKIE,
    BAD_FILE,
    NEW_KEY,
];

/// Secrets in the forms in which they might come out.
pub fn forms(secret: &str) -> Vec<String> {
    let engine = base64::engine::general_purpose::STANDARD;
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let decimal = format!("{:?}", secret.as_bytes());
    vec![secret.to_owned(), engine.encode(secret), hex, decimal.trim_matches(['[', ']']).to_owned()]
}

/// The first secret, in any form, that a text holds, and what stands before it.
pub fn found<'a>(text: &str, secrets: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let all = secrets.into_iter().flat_map(forms);
    all.into_iter().find_map(|secret| {
        let at = text.find(&secret)?;
        let from = text[..at].char_indices().rev().nth(200).map_or(0, |(at, _)| at);
        Some(format!("{secret}: …{}", &text[from..at + secret.len()]))
    })
}

/// What an egress proxy is sent.
pub fn basic() -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("{PROXY_USER}:{PROXY_PASSWORD}"))
}

pub fn config(a: &Lab, b: &Lab, c: &Lab, tunnel: &Tunnel) -> String {
    format!(
        r#"providers:
  - {{ name: A, base_url: "{a}", auth_value: "{KEY_A}" }}
  - {{ name: B, base_url: "{b}", auth_type: auth_token, auth_value: "${{KEY_B}}" }}
  - {{ name: C, base_url: "{c}", auth_value: "file:key-c" }}
  - {{ name: Tunnelled, base_url: "{b}", auth_value: "{KEY_A}", proxy: "http://{PROXY_USER}:{PROXY_PASSWORD}@{tunnel}" }}
  - {{ name: Secure, base_url: "https://{plain}", auth_value: "{KEY_A}" }}
  - {{ name: Pass, base_url: "{c}", auth_value: passthrough }}
model_routes:
  "a-*": [{{ provider: A, priority: 1 }}, {{ provider: B, priority: 2 }}]
  "alone-*": [{{ provider: A }}]
  "c-*": [{{ provider: C }}]
  "out-*": [{{ provider: Tunnelled, priority: 1 }}, {{ provider: Secure, priority: 2 }}]
  "own-*": [{{ provider: Pass }}]
settings:
  auth: {{ enabled: true, api_key: ["{OWN_KEY}", "{OTHER_OWN_KEY}"] }}
  timeouts: {{ tls: 100ms, connect: 300ms }}
  unhealthy_threshold: 3
"#,
        a = a.url(),
        b = b.url(),
        c = c.url(),
        tunnel = tunnel.address(),
        plain = c.address(),
    )
}

/// Credentials in every place where a client can put one, with the key of this proxy in `x-api-key`.
pub fn burdened() -> Vec<(&'static str, String)> {
    vec![
        ("x-api-key", OWN_KEY.into()),
        ("authorization", format!("Bearer {CLIENT_TOKEN}")),
        ("cookie", format!("session={COOKIE}")),
        ("proxy-authorization", format!("Basic {CLIENT_PROXY}")),
        ("x-goog-api-key", GOOGLE.into()),
        ("api-key", AZURE.into()),
        ("content-type", "application/json".into()),
    ]
}

/// An error that repeats a key.
pub fn echo(status: u16, key: &str) -> Script {
    Script::error(status, "authentication_error", &format!("Incorrect API key provided: {key}"))
}

/// What A may do to a request that B then answers, and whether that wants a stream.
pub fn faults(b: &Lab) -> Vec<(Script, bool)> {
    let garbage = format!("HTTP/1.1 200 OK\r\n{KEY_A}\r\n\r\n");
    let odd_type = Script::error(500, &format!("{KEY_A}_error"), KEY_A);
    let first_event = format!(
        "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"api_error\",\"message\":\"{KEY_A}\"}}}}\n\n"
    );
    vec![
        (echo(500, KEY_A), false),
        (odd_type, false),
        (Script::raw(garbage), false),
        (Script::html(502), false),
        (Script::redirect(302, &format!("http://{}/?{KEY_A}", b.address())), false),
        (Script::body(200, "application/json", format!("{{\"broken\": \"{KEY_A}\"")), false),
        (Script::events(vec![first_event.into()]), true),
        (Script::stream(&[ANSWER]).cut_after(0), true),
    ]
}

/// Files with a secret on every line that is wrong.
pub fn bad_edits(good: &str) -> Vec<String> {
    vec![
        good.replace("auth_value: \"sk", &format!("auth_valeu: \"{BAD_FILE}")),
        good.replace("api_key: [", &format!("api_key: [[{BAD_FILE}], ")),
        good.replace("\"http://canary", &format!("\"ftp://{BAD_FILE}:{BAD_FILE}@x/canary")),
        good.replace("name: A, base_url: \"http://", &format!("name: A, base_url: \"http://{BAD_FILE}@")),
        good.replace("auth_value: \"sk", &format!("auth_value: {{ {BAD_FILE}: 1 }}, x: \"")),
        good.replace("auth_value: \"sk", &format!("auth_value: \"{BAD_FILE}\u{1}")),
        good.replace("auth_value: \"sk", &format!("auth_value: \"{BAD_FILE}\n  - : [ \"")),
        format!("{good}\nauth_value: {BAD_FILE}\n{BAD_FILE}"),
        good.replace("${KEY_B}", &format!("${{KEY_B}}{BAD_FILE}")),
    ]
}

/// The secrets that an authorization server was sent so far.
pub fn asked_of(authority: &Authority) -> Vec<String> {
    let bodies = authority.lab().requests().into_iter().map(|request| request.json());
    let names = ["code", "code_verifier", "state", "refresh_token"];
    let secrets = bodies.flat_map(|body| names.map(|name| body.get(name)?.as_str().map(str::to_owned)));
    secrets.flatten().collect()
}
