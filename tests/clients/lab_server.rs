//! Scripted providers for clients that are not written in Rust.
//!
//! `lab_server --serve NAME...` starts a provider for each name on a free port of 127.0.0.1, prints one line of JSON
//! (`{"NAME": "http://127.0.0.1:PORT", …, "closed": "http://…"}`, where `closed` refuses connections), and serves until
//! its input ends or a signal comes. Run without that, as `cargo test` does, it does nothing.
//!
//! `authority` is no provider but an authorization server: its address takes `POST /sign-in` with `{"url", "email"}`,
//! does what a human does with that link, and answers `{"code"}`; `GET` tells where else it is, and what it has seen.
//!
//! A provider answers as the real API would, unless the request's body or its `x-lab` header says otherwise:
//! `LAB[NAME order order=value]`, in which the orders are those of [`obey`]. With `times=N` among them they hold for the
//! first N requests only; with `tool` or `agent` it plays a model that uses a tool and then finishes. `GET /lab/seen`
//! tells what has come since the last time it was asked, and begins anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "it fails by panicking, like a test")]
#![allow(clippy::print_stdout, reason = "whoever starts it reads the addresses there")]
#![allow(missing_docs, reason = "a program")]

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use claude_code_balancer::lab::{Authority, Lab, Received, Script, closed_port, event};
use serde_json::{Value, json};

mod turns;

const TEXTS: [&str; 4] = ["Hello", ", wörld: ", "你好 🔐", " and goodbye."];

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some("--serve") {
        return;
    }
    let names: Vec<String> = arguments.collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(serve(names));
}

async fn serve(names: Vec<String>) {
    let mut labs = Vec::new();
    let mut urls = serde_json::Map::new();
    for name in names {
        let lab = Lab::start().await.expect("a free port");
        if name == "authority" {
            urls.insert(name, lab.url().into());
            let authority = Authority::start().await.expect("a free port");
            lab.answer(move |request| desk(&authority, request));
            labs.push(lab);
            continue;
        }
        urls.insert(name.clone(), lab.url().into());
        lab.remember(false);
        let memory = Arc::new(Mutex::new(Memory::default()));
        lab.answer(move |request| {
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            if request.target == "/lab/seen" {
                let Memory { seen, .. } = std::mem::take(&mut *memory);
                return Script::json(200, &Value::from(seen));
            }
            memory.seen.push(summary(request));
            script(&name, request, &mut memory)
        });
        labs.push(lab);
    }
    urls.insert("closed".into(), format!("http://{}", closed_port().expect("a free port")).into());
    println!("{}", Value::from(urls));
    std::io::stdout().flush().expect("output");
    let input_ends = || std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    let _ = tokio::task::spawn_blocking(input_ends).await;
}

/// Where the authorization server is spoken with by tests.
fn desk(authority: &Authority, request: &Received) -> Script {
    if request.method == "GET" {
        let (authorize, token) = (authority.authorize_url(), authority.token_url());
        let facts = json!({ "authorize_url": authorize, "token_url": token, "reuses": authority.reuses() });
        return Script::json(200, &facts);
    }
    let body = request.json();
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    Script::json(200, &json!({ "code": authority.sign_in(text("url"), text("email")) }))
}

/// What a provider knows of the requests since it was last asked.
#[derive(Default)]
struct Memory {
    seen: Vec<Value>,
    /// How often each set of orders was obeyed.
    obeyed: HashMap<String, usize>,
}

/// A request in a few words, without a credential's value.
fn summary(request: &Received) -> Value {
    let body = request.json();
    let headers: Vec<_> = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    json!({
        "method": request.method, "target": request.target, "stream": body.get("stream"), "headers": headers,
        "connection": request.connection, "agent": request.header("x-claude-code-agent-id").is_some(),
        "user_agent": request.header("user-agent"), "size": request.body.len(),
    })
}

fn script(name: &str, request: &Received, memory: &mut Memory) -> Script {
    let body = String::from_utf8_lossy(&request.body).into_owned();
    let said = request.header("x-lab").unwrap_or(&body);
    let orders = turns::orders(name, said);
    let usual = match () {
        () if orders.contains(&"tool") => turns::tool(request, said),
        () if orders.contains(&"agent") => turns::agent(name, request, said),
        () => usual(name, request),
    };
    let most = orders.iter().find_map(|order| order.strip_prefix("times=")).and_then(|times| times.parse().ok());
    let obeyed = memory.obeyed.entry(orders.join(" ")).or_default();
    *obeyed += 1;
    if most.is_some_and(|most: usize| *obeyed > most) {
        return usual;
    }
    orders.into_iter().fold(usual, |script, order| {
        let (order, value) = order.split_once('=').unwrap_or((order, ""));
        obey(script, order, value, request)
    })
}

/// What the real API would answer.
fn usual(name: &str, request: &Received) -> Script {
    let path = request.target.split('?').next().unwrap_or_default();
    let model =
        |id: &str| json!({ "type": "model", "id": id, "display_name": name, "created_at": "2026-01-01T00:00:00Z" });
    if let Some(id) = path.strip_prefix("/v1/models/") {
        return Script::json(200, &model(id));
    }
    match path {
        "/v1/models" => {
            let data = [model("claude-lab-1"), model("claude-lab-2")];
            Script::json(
                200,
                &json!({ "data": data, "has_more": false, "first_id": "claude-lab-1", "last_id": "claude-lab-2" }),
            )
        }
        "/v1/messages/count_tokens" => Script::json(200, &json!({ "input_tokens": request.body.len() })),
        "/v1/messages" => {
            let body = request.json();
            let model = body.get("model").and_then(Value::as_str).unwrap_or_default();
            match body.get("stream") {
                Some(Value::Bool(true)) => Script::stream_of(model, &TEXTS),
                _ => Script::message_of(model, &TEXTS.concat()),
            }
        }
        "/v1/messages/batches" => {
            Script::json(200, &json!({ "data": [], "has_more": false, "first_id": null, "last_id": null }))
        }
        _ => Script::error(404, "not_found_error", "Not found"),
    }
}

fn obey(script: Script, order: &str, value: &str, request: &Received) -> Script {
    let number = || value.parse::<usize>().expect("a number");
    let status = || value.parse::<u16>().expect("a status");
    match order {
        "status" => Script::error(status(), kind(status()), &format!("Scripted {value}")),
        "html" => Script::html(status()),
        "retry_after" => script.with_header("retry-after", value),
        "close" => Script::close(),
        "reset" => Script::reset(),
        "first_error" => script.first_event_error(value),
        "error_after" => script.error_after(number(), "overloaded_error"),
        "end_after" => script.end_after(number()),
        "cut_after" => script.cut_after(number()),
        "cut_at" => script.cut_at_byte(number()),
        "reset_at" => script.reset_at_byte(number()),
        "split" => script.rechunk(number()),
        "pings" => script.behind(vec![event::comment("hello"), event::ping(), event::ping()]),
        "no_retry" => script.with_header("x-should-retry", "false"),
        "retry" => script.with_header("x-should-retry", "true"),
        "gzip" => script.gzipped(),
        "hint" => script.interim(103, &[("link", "</x>; rel=preload")]),
        "trailer" => script.trailer("x-trailer", "1"),
        "eof" => script.close_delimited(),
        "closing" => script.close_after_reply(),
        "writes" => script.split_writes(number()),
        "late" => script.delay_head(Duration::from_millis(value.parse().expect("milliseconds"))),
        "slow" => script.pause(Duration::from_millis(20)),
        // The answer is the request's own head.
        "echo" => {
            let headers: Vec<_> = request.headers.iter().map(|(name, value)| json!([name, value])).collect();
            let seen = json!({ "method": request.method, "target": request.target, "headers": headers });
            Script::message(&seen.to_string())
        }
        "times" | "tool" | "agent" => script,
        other => panic!("no such order: {other}"),
    }
}

fn kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        529 => "overloaded_error",
        _ => "api_error",
    }
}
