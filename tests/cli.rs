//! The program as a user runs it: exit statuses, what it prints, which file it takes, how it ends.
#![cfg(unix)]

use std::net::TcpListener;

use claude_code_balancer::lab::{Gate, Lab, Script, unused_port};
use serde_json::Value;

use crate::support::binary::{Binary, Said, ask};
use crate::support::running::{ask_for, providers, stream_of};
use crate::support::{Client, soon};

const GOOD: &str = "providers:\n  - { name: A, base_url: \"https://a.test\", auth_value: \"${KEY}\" }\n";

/// The values of all fields of this name in a log file, in order; every line must be JSON.
fn logged(file: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert!(text.ends_with('\n'), "the last line is whole");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    for line in &lines {
        let stamp = line["timestamp"].as_str().unwrap_or_default();
        assert!(stamp.len() >= 20 && stamp.contains('T'), "{line}");
        assert!(
            ["ERROR", "WARN", "WARNING", "INFO", "DEBUG"].contains(&line["level"].as_str().unwrap_or_default()),
            "{line}"
        );
        assert!(line["message"].is_string(), "{line}");
    }
    lines
}

#[tokio::test]
async fn check_accepts_a_good_file_and_one_with_warnings() {
    let binary = Binary::new().with("KEY", "k");
    let good = binary.file("good.yaml", GOOD);
    let Said { status, out, err } = binary.run(&["check", good.to_str().unwrap()]).await;
    assert_eq!((status, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("good.yaml: ok") && !out.contains("warning"), "{out}");

    let odd = "providers:\n  - { name: A, base_url: \"https://a.test\", auth_value: sk-your-api-key }\n\
               model_routes:\n  \"*\": [{ provider: A }]\n  \"claude-*\": [{ provider: A }]\n";
    let odd = binary.file("odd.yaml", odd);
    let Said { status, out, .. } = binary.run(&["check", odd.to_str().unwrap()]).await;
    assert_eq!(status, Some(0), "{out}");
    assert!(out.contains("placeholder") && out.contains("odd.yaml:5:"), "{out}");
    assert!(out.contains("odd.yaml: ok"), "{out}");

    let Said { status, out, .. } = Binary::new().run(&["check"]).await;
    assert_eq!(status, Some(0), "{out}");
    assert!(out.contains("built-in default"), "{out}");
}

/// Eight mistakes in eight lines; a secret on one of them.
const BAD: &str = r#"providers:
  - name: "Official"
    base_url: "ftp://api.anthropic.com"
    auth_valeu: "sk-canary-1"
  - { name: B, base_url: "http://api.example.com", auth_value: "sk-canary-2", proxy: "127.0.0.1:1" }
  - { name: C, auth_value: "${NOT_SET}", enabled: maybe }
model_routes:
  "*sonnet*":
    - { provider: "Offical", priority: high }
settings:
  log_level: LOUD
  prot: 9090
"#;

#[tokio::test]
async fn check_reports_every_mistake_at_once_with_its_place_and_a_cure() {
    let binary = Binary::new();
    let bad = binary.file("bad.yaml", BAD);
    let Said { status, out, err } = binary.run(&["check", bad.to_str().unwrap()]).await;
    assert_eq!((status, err.as_str()), (Some(1), ""), "{out}");
    for (place, path, cure) in [
        ("bad.yaml:3:", "providers[0].base_url", "https://"),
        ("bad.yaml:4:", "providers[0]", "auth_value"),
        ("bad.yaml:5:", "providers[1].base_url", "allow_insecure_http"),
        ("bad.yaml:5:", "providers[1].proxy", "http://"),
        ("bad.yaml:6:", "providers[2].auth_value", "NOT_SET"),
        ("bad.yaml:6:", "providers[2].enabled", "true"),
        ("bad.yaml:9:", "model_routes.\"*sonnet*\"[0].provider", "\"Official\""),
        ("bad.yaml:9:", "model_routes.\"*sonnet*\"[0].priority", "number"),
        ("bad.yaml:11:", "settings.log_level", "INFO"),
        ("bad.yaml:12:", "settings", "port"),
    ] {
        let at = out.split('\n').position(|line| line.contains(place) && line.contains(path));
        let at = at.unwrap_or_else(|| panic!("no problem at {place} {path}:\n{out}"));
        let told: String = out.split('\n').skip(at).take(3).collect();
        assert!(told.contains(cure), "{place} {path} has no cure {cure:?}:\n{told}");
    }
    assert!(out.contains("11 problem(s)"), "{out}");
    assert!(!out.contains("canary"), "{out}");

    let missing = binary.run(&["check", "nowhere.yaml"]).await;
    assert_eq!(missing.status, Some(1), "{missing:?}");
    assert!(missing.out.contains("nowhere.yaml") && missing.out.contains("no such file"), "{missing:?}");
}

#[tokio::test]
async fn check_speaks_json_to_programs_and_schema_prints_what_editors_read() {
    let binary = Binary::new();
    let bad = binary.file("bad.yaml", BAD);
    let Said { status, out, err } = binary.run(&["check", "--format", "json", bad.to_str().unwrap()]).await;
    assert_eq!((status, err.as_str()), (Some(1), ""), "{out}");
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&told["usable"], told["file"].as_str()), (&false.into(), bad.to_str()), "{told}");
    let problems = told["problems"].as_array().unwrap();
    let errors = problems.iter().filter(|problem| problem["severity"] == "error").count();
    assert_eq!((problems.len(), errors), (12, 11), "{told}");
    let keys: Vec<_> = problems[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["severity", "line", "column", "path", "message", "cure"]);
    assert_eq!((&problems[0]["severity"], &problems[0]["line"]), (&"error".into(), &2.into()), "{told}");
    assert!(!out.contains("canary"), "{out}");

    let odd = binary.file("odd.yaml", &GOOD.replace("${KEY}", "sk-your-api-key"));
    let said = binary.run(&["check", odd.to_str().unwrap(), "--format", "json"]).await;
    let told: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((said.status, &told["usable"]), (Some(0), &true.into()), "{told}");
    assert_eq!(told["problems"][0]["severity"], "warning", "{told}");
    let said = Binary::new().run(&["check", "--format", "json"]).await;
    let told: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((said.status, &told["usable"]), (Some(0), &true.into()), "{told}");
    assert_eq!(binary.run(&["check", "--format", "xml"]).await.status, Some(64));

    let said = binary.run(&["schema"]).await;
    assert_eq!((said.status, said.out.as_str()), (Some(0), claude_code_balancer::config::schema().as_str()));
}

#[tokio::test]
async fn an_unusable_configuration_ends_with_64_and_all_its_problems() {
    let binary = Binary::new();
    let bad = binary.file("bad.yaml", BAD);
    let bad = bad.to_str().unwrap();
    for arguments in [&["--config", bad][..], &["serve", "--config", bad], &["explain", "m", "--config", bad]] {
        let Said { status, err, .. } = binary.run(arguments).await;
        assert_eq!(status, Some(64), "{arguments:?}: {err}");
        for line in [3, 4, 5, 6, 9, 11, 12] {
            assert!(err.contains(&format!("bad.yaml:{line}:")), "{arguments:?}: no line {line} in\n{err}");
        }
        assert!(!err.contains("canary"), "{err}");
    }
    let missing = binary.run(&["--config", "nowhere.yaml"]).await;
    assert_eq!(missing.status, Some(64), "{missing:?}");
    let unknown = binary.run(&["--confg", bad]).await;
    assert_ne!(unknown.status, Some(0), "{unknown:?}");
}

#[tokio::test]
async fn a_bind_to_the_world_needs_a_key() {
    let binary = Binary::new().with("KEY", "k");
    let file = |name: &str, settings: &str| binary.file(name, &format!("{GOOD}settings: {settings}\n"));
    let open = file("open.yaml", "{ host: 0.0.0.0 }");
    let short = file("short.yaml", "{ host: 0.0.0.0, auth: { enabled: true, api_key: short } }");
    let sample = file("sample.yaml", "{ host: \"::\", auth: { enabled: true, api_key: your-api-key-0123456789 } }");
    let off = file("off.yaml", "{ host: 10.1.2.3, auth: { enabled: false, api_key: a-good-key-0123456789 } }");
    let local = file("local.yaml", "{}");
    for (file, more) in [(&open, &[][..]), (&short, &[]), (&sample, &[]), (&off, &[]), (&local, &["--host", "0.0.0.0"])]
    {
        let arguments = [&["serve", "--config", file.to_str().unwrap(), "--port", "0"], more].concat();
        let said = binary.run(&arguments).await;
        assert_eq!(said.status, Some(64), "{arguments:?}: {said:?}");
        assert!(said.err.contains("auth"), "{said:?}");
    }
    let no_file = binary.run(&["--host", "0.0.0.0", "--port", "0"]).await;
    assert_eq!(no_file.status, Some(64), "{no_file:?}");
    let good = file("good.yaml", "{ host: 0.0.0.0, auth: { enabled: true, api_key: a-good-key-0123456789 } }");
    let mut service = binary.start(&["--config", good.to_str().unwrap(), "--port", "0"]);
    service.line("listening on http://0.0.0.0:").await;
    let line = service.line("export ANTHROPIC_BASE_URL=").await;
    assert!(line.contains("ANTHROPIC_BASE_URL=http://127.0.0.1:"), "{line}");
}

#[tokio::test]
async fn a_port_that_is_taken_ends_with_69() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let said = Binary::new().run(&["--port", &port]).await;
    assert_eq!(said.status, Some(69), "{said:?}");
    assert!(said.err.contains(&format!("127.0.0.1:{port}")), "{said:?}");
}

#[tokio::test]
async fn the_first_file_that_exists_is_used() {
    let binary = Binary::new().with("KEY", "k");
    let used = async |binary: &Binary, wanted: &str| {
        let said = binary.run(&["check"]).await;
        assert!(said.out.contains(wanted) && said.status == Some(0), "not {wanted}: {said:?}");
    };
    used(&binary, "built-in default").await;
    binary.file(".config/claude-code-balancer/config.yaml", GOOD);
    used(&binary, ".config/claude-code-balancer/config.yaml: ok").await;
    let binary = binary.with("XDG_CONFIG_HOME", "xdg");
    used(&binary, "built-in default").await;
    binary.file("xdg/claude-code-balancer/config.yaml", GOOD);
    used(&binary, "xdg/claude-code-balancer/config.yaml: ok").await;
    binary.file("config/config.yaml", GOOD);
    used(&binary, "config/config.yaml: ok").await;
    binary.file("config.yaml", GOOD);
    let said = binary.run(&["check"]).await;
    assert!(said.out.starts_with("config.yaml"), "{said:?}");
    let named = binary.file("named.yaml", GOOD);
    let binary = binary.with("CLAUDE_CODE_BALANCER_CONFIG", named.to_str().unwrap());
    used(&binary, "named.yaml: ok").await;
    let asked = binary.file("asked.yaml", GOOD);
    let (service, _) = binary.serve(&["--config", asked.to_str().unwrap()]).await;
    assert!(
        service.seen.iter().any(|line| line.contains("using") && line.contains("asked.yaml")),
        "{:?}",
        service.seen
    );
    // A file that was named and is not there is an error, not a reason to take another one.
    let binary = binary.with("CLAUDE_CODE_BALANCER_CONFIG", "nowhere.yaml");
    assert_eq!(binary.run(&["check"]).await.status, Some(1));
}

#[tokio::test]
async fn without_a_file_the_built_in_default_passes_the_clients_own_login_through() {
    let binary = Binary::new();
    let (mut service, address) = binary.serve(&[]).await;
    let text = service.seen.join("\n");
    assert!(text.contains("no configuration file"), "{text}");
    assert!(text.contains(&format!("export ANTHROPIC_BASE_URL=http://127.0.0.1:{}", address.port())), "{text}");
    let all = ask(address, "GET", "/providers", &[], "").await.json();
    assert_eq!((&all["total_providers"], &all["config"]["file"]), (&1.into(), &Value::Null));
    let only = &all["providers"][0];
    assert_eq!((&only["name"], &only["base_url"]), (&"Anthropic".into(), &"https://api.anthropic.com".into()));
    assert_eq!(only["models"][0]["pattern"], "*");
    // Without a credential of the client's nothing is sent.
    let reply = ask(address, "POST", "/v1/messages", &[], &ask_for("claude-x")).await;
    assert_eq!(reply.status, 401, "{}", reply.text());
    service.signal("TERM");
    assert_eq!(service.end().await, Some(0));
    assert!(!binary.home().join("logs").exists(), "no log file without a configuration file");
}

#[tokio::test]
async fn explain_orders_the_targets_from_the_file_and_from_the_health_of_a_running_server() {
    let (bad, good) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    bad.always(Script::error(500, "api_error", "x"));
    let binary = Binary::new();
    let port = unused_port().unwrap();
    let config = format!(
        "{}  - {{ name: Off, base_url: \"https://off.test\", auth_value: k, enabled: false }}\nmodel_routes:\n  \
         \"*sonnet*\":\n    - {{ provider: Good, priority: 2, model: other-name }}\n    - {{ provider: Bad, priority: 1 }}\n    \
         - {{ provider: Off, priority: 3 }}\n  \"*\": [{{ provider: Good }}]\nsettings: {{ port: {port}, unhealthy_threshold: 1 }}\n",
        providers(&[("Bad", &bad), ("Good", &good)])
    );
    let file = binary.file("config.yaml", &config);
    let said = binary.run(&["explain", "claude-sonnet-4-5"]).await;
    assert_eq!(said.status, Some(0), "{said:?}");
    let places = |text: &str| {
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what:?} in\n{text}"));
        (at("Bad at"), at("Good at"), at("Off at"))
    };
    let (first, second, third) = places(&said.out);
    assert!(first < second && second < third, "{}", said.out);
    for words in [
        "route \"*sonnet*\"",
        "1. Bad",
        "priority 1",
        "2. Good",
        "as other-name",
        "the provider is disabled",
        "no server answered",
    ] {
        assert!(said.out.contains(words), "{words}: {}", said.out);
    }
    let unknown = binary.file("narrow.yaml", &format!("{GOOD}model_routes: {{ \"x-*\": [{{ provider: A }}] }}\n"));
    let binary = binary.with("KEY", "k");
    let none = binary.run(&["explain", "claude-x", "--config", unknown.to_str().unwrap()]).await;
    assert_eq!(none.status, Some(1), "{none:?}");
    assert!(none.err.contains("claude-x") && none.err.contains("x-*"), "{none:?}");

    let mut service = binary.start(&["--config", file.to_str().unwrap()]);
    service.line("export ANTHROPIC_BASE_URL=").await;
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let reply = ask(address, "POST", "/v1/messages", &[], &ask_for("claude-sonnet-4-5")).await;
    assert_eq!(reply.header("x-provider-used"), Some("Good"), "{}", reply.text());
    let said = binary.run(&["explain", "claude-sonnet-4-5"]).await;
    let (bad, good, _) = places(&said.out);
    assert!(good < bad, "{}", said.out);
    assert!(
        said.out.contains("cooling for") && said.out.contains("with the health of the running server"),
        "{}",
        said.out
    );
}

#[tokio::test]
async fn the_log_file_has_one_json_line_for_each_event_and_one_info_line_for_each_request() {
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new();
    let file = binary.file("conf/config.yaml", &providers(&[("A", &lab)]));
    let (mut service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    lab.next(Script::error(400, "invalid_request_error", "no"));
    ask(address, "POST", "/v1/messages?secret=canary", &[], &ask_for("model-one")).await;
    ask(address, "POST", "/v1/messages", &[], &stream_of("model-two")).await;
    ask(address, "POST", "/v1/messages", &[], "{").await;
    ask(address, "GET", "/v1/models", &[], "").await;
    service.signal("TERM");
    assert_eq!(service.end().await, Some(0));
    let lines = logged(&binary.home().join("conf/logs/logs.jsonl"));
    let requests: Vec<_> = lines.iter().filter(|line| line["ending"].is_string()).collect();
    assert_eq!(requests.len(), 4, "{requests:?}");
    for (line, message, status, provider) in [
        (requests[0], "POST /v1/messages", 400, Some("A")),
        (requests[1], "POST /v1/messages", 200, Some("A")),
        (requests[2], "POST /v1/messages", 400, None),
        (requests[3], "GET /v1/models", 200, Some("A")),
    ] {
        assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &message.into()), "{line}");
        assert_eq!((&line["status"], line["provider"].as_str()), (&status.into(), provider), "{line}");
        assert_eq!(line["ending"], "complete", "{line}");
        for key in ["id", "attempts", "bytes", "first_byte_ms", "duration_ms"] {
            assert!(!line[key].is_null(), "{key} in {line}");
        }
    }
    assert_eq!((&requests[1]["model"], &requests[1]["route"]), (&"model-two".into(), &"*".into()));
    let shown = service.seen.iter().filter(|line| line.contains("ending=")).count();
    assert_eq!(shown, 4, "{:?}", service.seen);
    let everything = format!("{lines:?} {:?}", service.seen);
    assert!(!everything.contains("canary") && !everything.contains("\u{1b}"), "{everything}");
}

#[tokio::test]
async fn log_level_warning_hides_what_is_normal() {
    let lab = Lab::start().await.unwrap();
    lab.next(Script::error(500, "api_error", "x"));
    let binary = Binary::new();
    let port = unused_port().unwrap();
    let config = format!(
        "{}settings: {{ port: {port}, log_level: warning, log_file_path: here.jsonl, failure_cooldown: 0 }}\n",
        providers(&[("A", &lab), ("B", &lab)])
    );
    let file = binary.file("config.yaml", &config);
    let mut service = binary.start(&["--config", file.to_str().unwrap()]);
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    // It says nothing of its start: ask until it answers.
    soon("the port", async {
        while Client::connect(address).await.is_err() {
            tokio::task::yield_now().await
        }
    })
    .await;
    assert_eq!(ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await.status, 200);
    service.line("attempt failed").await;
    service.signal("TERM");
    assert_eq!(service.end().await, Some(0));
    assert!(!service.seen.iter().any(|line| line.contains(" INFO ")), "{:?}", service.seen);
    let lines = logged(&binary.home().join("here.jsonl"));
    assert!(!lines.is_empty() && lines.iter().all(|line| line["level"] != "INFO"), "{lines:?}");
}

#[tokio::test]
async fn sigterm_and_sigint_close_the_listener_at_once_and_let_a_stream_end() {
    for signal in ["TERM", "INT"] {
        let lab = Lab::start().await.unwrap();
        let gate = Gate::new();
        let script = Script::stream(&["one", "two"]).gate_before(4, gate.clone());
        lab.always(script.clone());
        let binary = Binary::new();
        let file = binary.file("config.yaml", &providers(&[("A", &lab)]));
        let (mut service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
        let host = address.to_string();
        // An idle connection must not hold up the end.
        let mut idle = Client::connect(address).await.unwrap();
        idle.send("GET", "/health", &[("host", &host)], "").await.unwrap();
        idle.read_to_end().await.unwrap();
        let mut client = Client::connect(address).await.unwrap();
        client.send("POST", "/v1/messages", &[("host", &host)], stream_of("m")).await.unwrap();
        soon("the head", client.head()).await.unwrap();
        gate.reached(1).await;
        service.signal(signal);
        service.line("finishing what is in flight").await;
        soon("the idle connection's end", idle.raw_to_end()).await;
        let refused = soon("a refusal", async {
            loop {
                if let Err(error) = Client::connect(address).await {
                    return error.kind();
                }
            }
        });
        assert_eq!(refused.await, std::io::ErrorKind::ConnectionRefused);
        gate.open();
        let (body, clean) = soon("the stream's end", client.rest()).await;
        assert_eq!((body, clean), (script.body_bytes(), true), "{signal}");
        assert_eq!(service.end().await, Some(0), "{signal}: {:?}", service.seen);
    }
}

#[tokio::test]
async fn a_signal_right_after_the_start_up_lines_is_heeded() {
    let binary = Binary::new();
    let mut service = binary.start(&["--port", "0"]);
    service.line("listening on").await;
    service.signal("TERM");
    assert_eq!(service.end().await, Some(0), "{:?}", service.seen);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let lab = Lab::start().await.unwrap();
    lab.always(Script::stall());
    let binary = Binary::new();
    let file = binary.file("config.yaml", &providers(&[("A", &lab)]));
    let (mut service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    let host = address.to_string();
    let mut client = Client::connect(address).await.unwrap();
    client.send("POST", "/v1/messages", &[("host", &host)], ask_for("m")).await.unwrap();
    soon("the request", lab.received(1)).await;
    service.signal("INT");
    service.line("finishing what is in flight").await;
    service.signal("INT");
    assert_eq!(service.end().await, Some(130), "{:?}", service.seen);
}

#[tokio::test]
async fn sighup_opens_the_log_file_anew() {
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new();
    let file = binary.file("config.yaml", &providers(&[("A", &lab)]));
    let (mut service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    let (log, aside) = (binary.home().join("logs/logs.jsonl"), binary.home().join("logs/aside"));
    std::fs::rename(&log, &aside).unwrap();
    service.signal("HUP");
    let again = async {
        while !log.exists() {
            tokio::task::yield_now().await
        }
    };
    soon("a new file", again).await;
    assert_eq!(ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await.status, 200);
    service.signal("TERM");
    assert_eq!(service.end().await, Some(0));
    let read = |path| std::fs::read_to_string(path).unwrap();
    assert!(read(&log).contains("POST /v1/messages") && read(&log).contains("\"stopped\""), "{}", read(&log));
    assert!(read(&aside).contains("listening on") && !read(&aside).contains("POST /v1/messages"));
}

#[tokio::test]
async fn sighup_reads_the_file_again() {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let binary = Binary::new();
    let file = binary.file("config.yaml", &providers(&[("A", &a)]));
    let (mut service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    binary.file("config.yaml", &providers(&[("B", &b)]));
    service.signal("HUP");
    let line = service.line("configuration reloaded").await;
    assert!(line.contains("\"B\" added"), "{line}");
    let reply = ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await;
    assert_eq!(reply.header("x-provider-used"), Some("B"));
    binary.file("config.yaml", BAD);
    service.signal("HUP");
    let line = service.line("was not accepted").await;
    assert!(line.contains("WARN"), "{line}");
    // One line for each problem, with its cure, and the last one is there.
    let line = service.line("settings.prot").await;
    assert!(
        line.contains("WARN") && line.contains("config.yaml:12:") && line.contains("did you mean `port`?"),
        "{line}"
    );
    let said = service.seen.join("\n");
    assert!(said.contains("config.yaml:3:") && !said.contains("canary") && !said.contains("\\u{a}"), "{said}");
    let reply = ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await;
    assert_eq!(reply.header("x-provider-used"), Some("B"), "what was in force stays");
}

#[tokio::test]
async fn credentials_come_from_the_environment_and_from_files_and_are_read_anew() {
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new().with("SOME_KEY", "from-the-environment");
    binary.file("key.txt", "from-a-file\n");
    let config = format!(
        "providers:\n  - {{ name: A, base_url: \"{url}\", auth_value: \"${{SOME_KEY}}\" }}\n  \
         - {{ name: B, base_url: \"{url}\", auth_type: auth_token, auth_value: \"file:key.txt\" }}\n\
         model_routes: {{ \"a*\": [{{ provider: A }}], \"b*\": [{{ provider: B }}] }}\n",
        url = lab.url()
    );
    let file = binary.file("config.yaml", &config);
    let (_service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    for model in ["a", "b"] {
        ask(address, "POST", "/v1/messages", &[], &ask_for(model)).await;
    }
    binary.file("key.txt", "a-new-one");
    assert_eq!(ask(address, "POST", "/providers/reload", &[], "").await.status, 200);
    ask(address, "POST", "/v1/messages", &[], &ask_for("b")).await;
    let seen: Vec<_> = lab
        .requests()
        .iter()
        .map(|request| request.header("x-api-key").or(request.header("authorization")).unwrap().to_owned())
        .collect();
    assert_eq!(seen, ["from-the-environment", "Bearer from-a-file", "Bearer a-new-one"]);
}

#[tokio::test]
async fn the_demo_needs_nothing_and_shows_failovers() {
    let said = Binary::new().run(&["demo"]).await;
    assert_eq!((said.status, said.err.as_str()), (Some(0), ""), "{}", said.out);
    for words in [
        "next provider",
        "529",
        "its answer goes to the client",
        "its error goes to the client",
        "event: error",
        "x-balancer-attempts: 3",
    ] {
        assert!(said.out.contains(words), "{words}:\n{}", said.out);
    }
}

#[tokio::test]
async fn the_demo_stays_when_asked_to() {
    let binary = Binary::new();
    let mut service = binary.start(&["demo", "--serve"]);
    let line = service.line("/providers").await;
    let url = line.split("http://").nth(1).unwrap().trim_end_matches("/providers");
    let reply = ask(url.parse().unwrap(), "POST", "/v1/messages", &[], &stream_of("claude-sonnet-4-5")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    service.signal("INT");
    assert_eq!(service.end().await, Some(0), "{:?}", service.seen);
}

#[tokio::test]
async fn on_an_open_bind_this_machine_still_manages_with_the_key() {
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new();
    let key = "a-good-key-0123456789";
    let config = format!(
        "{}settings: {{ host: 0.0.0.0, allowed_hosts: [gateway.lan], auth: {{ enabled: true, api_key: {key} }} }}\n",
        providers(&[("A", &lab)])
    );
    let file = binary.file("config.yaml", &config);
    let mut service = binary.start(&["--config", file.to_str().unwrap(), "--port", "0"]);
    let line = service.line("listening on http://0.0.0.0:").await;
    let port: u16 = line.rsplit(':').next().unwrap().trim().parse().unwrap();
    service.line("export ANTHROPIC_BASE_URL=").await;
    let ask_at = async |ip: std::net::IpAddr, method: &str, path: &str, body: &str| {
        let mut client = Client::connect((ip, port).into()).await.unwrap();
        let headers = [("host", "gateway.lan"), ("x-api-key", key), ("connection", "close")];
        client.send(method, path, &headers, body).await.unwrap();
        soon(path, client.read_to_end()).await.unwrap().status
    };
    let rows = [("GET", "/providers"), ("POST", "/providers/reload"), ("GET", "/metrics"), ("DELETE", "/oauth/tokens")];
    for (method, path) in rows {
        let status = ask_at([127, 0, 0, 1].into(), method, path, "").await;
        assert_ne!(status, 403, "{method} {path} from this machine");
    }
    // (That other machines are refused is the gate's own test: here nobody but this machine is spoken to.)
    assert_eq!(ask_at([127, 0, 0, 1].into(), "POST", "/v1/messages", &ask_for("m")).await, 200);
}

#[tokio::test]
async fn explain_opens_a_server_that_has_a_key_of_its_own() {
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new();
    let port = unused_port().unwrap();
    let config = format!(
        "{}settings: {{ port: {port}, auth: {{ enabled: true, api_key: the-canary-key-0123456789 }} }}\n",
        providers(&[("A", &lab)])
    );
    binary.file("config.yaml", &config);
    let mut service = binary.start(&[]);
    service.line("export ANTHROPIC_BASE_URL=").await;
    let said = binary.run(&["explain", "m"]).await;
    assert!(said.out.contains("with the health of the running server)"), "{said:?}");
    assert!(!format!("{said:?} {:?}", service.seen).contains("canary"), "{said:?} {:?}", service.seen);
}

#[tokio::test]
async fn a_log_file_that_cannot_be_written_is_said_and_does_not_stop_the_service() {
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new();
    binary.file("taken", "a file where a folder should be");
    let config = format!("{}settings: {{ log_file_path: taken/logs.jsonl }}\n", providers(&[("A", &lab)]));
    let file = binary.file("config.yaml", &config);
    let (service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    assert!(service.seen.iter().any(|line| line.contains("cannot write the log file")), "{:?}", service.seen);
    assert_eq!(ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await.status, 200);
}

#[tokio::test]
async fn the_log_file_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new();
    let file = binary.file("config.yaml", &providers(&[("A", &lab)]));
    let (_service, _) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    let mode = std::fs::metadata(binary.home().join("logs/logs.jsonl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn log_level_follows_a_reload() {
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new();
    let file = binary.file("config.yaml", &providers(&[("A", &lab)]));
    let (mut service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    binary.file("config.yaml", &format!("{}settings: {{ log_level: debug }}\n", providers(&[("A", &lab)])));
    assert_eq!(ask(address, "POST", "/providers/reload", &[], "").await.status, 200);
    ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await;
    let line = service.line("verdict=").await;
    assert!(line.contains("DEBUG attempt"), "{line}");
}

#[tokio::test]
async fn what_an_edit_cannot_change_without_a_restart_is_said() {
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new();
    let file = binary.file("config.yaml", &providers(&[("A", &lab)]));
    let (_service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    let settings = "settings: { log_file_path: other.jsonl, oauth: { service_name: x, storage: memory } }\n";
    binary.file("config.yaml", &format!("{}{settings}", providers(&[("A", &lab)])));
    let reply = ask(address, "POST", "/providers/reload", &[], "").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.text().matches("restart").count(), 3, "{}", reply.text());
}

/// T20: whoever lists processes reads their arguments, so no secret is ever one of them.
#[test]
fn no_argument_is_a_secret() {
    use clap::CommandFactory as _;
    let program = claude_code_balancer::cli::Cli::command();
    let commands: Vec<_> = std::iter::once(&program).chain(program.get_subcommands()).collect();
    let mut names: Vec<_> = commands
        .iter()
        .flat_map(|command| command.get_arguments())
        .map(|argument| argument.get_id().as_str())
        .filter(|name| !matches!(*name, "help" | "version"))
        .collect();
    names.sort_unstable();
    names.dedup();
    let known = [
        "config",
        "email",
        "failover",
        "format",
        "host",
        "model",
        "only",
        "own",
        "path",
        "port",
        "serve",
        "target",
        "upstream_port",
    ];
    assert_eq!(names, known);
}
