//! `demo`: scripted providers on loopback, the real balancer in front of them, a few real requests. Prints what each
//! attempt did and what the client received; succeeds when every request was answered as it should be.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::client::fetch;
use super::{INTERNAL, complain, say, until_end};
use crate::app::App;
use crate::config::{Live, Overrides};
use crate::lab::{Lab, Script, closed_port};
use crate::oauth::Storage;
use crate::server;

/// Longest wait for the end of one request on loopback.
const LIMIT: Duration = Duration::from_secs(10);
/// What the healthy provider says.
const ANSWER: [&str; 4] = ["Hello", " from", " the healthy", " provider."];

pub(super) async fn run(leave_running: bool) -> ExitCode {
    match Box::pin(rehearse(leave_running)).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            complain(&format!("the demo cannot run: {error}"));
            ExitCode::from(INTERNAL)
        }
    }
}

/// The scripted providers, and a configuration file that names them.
struct Cast {
    overloaded: Lab,
    cutting: Lab,
    healthy: Lab,
    file: ConfigFile,
}

/// A file that is gone when the demo is.
struct ConfigFile(PathBuf);

impl Drop for ConfigFile {
    fn drop(&mut self) {
        if let Some(folder) = self.0.parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

impl Cast {
    async fn assemble() -> io::Result<Self> {
        let (overloaded, cutting, healthy) = (Lab::start().await?, Lab::start().await?, Lab::start().await?);
        overloaded.always(Script::error(529, "overloaded_error", "Overloaded"));
        // A stream that has begun is cut in the middle; anything else before it says anything.
        cutting.answer(|request| match asks_for(request.body.as_ref()) {
            (model, true) if model.contains("haiku") => Script::stream(&ANSWER).cut_after(5),
            (_, true) => Script::stream(&ANSWER).cut_after(0),
            (_, false) => Script::message(&ANSWER.concat()).cut_at_byte(20),
        });
        healthy.answer(|request| match asks_for(request.body.as_ref()) {
            (model, _) if model.contains("opus") => {
                Script::error(400, "invalid_request_error", "max_tokens: Field required")
            }
            (_, true) => Script::stream(&ANSWER),
            (_, false) => Script::message(&ANSWER.concat()),
        });
        let folder = std::env::temp_dir().join(format!("claude-code-balancer-demo-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let file = ConfigFile(folder.join("config.yaml"));
        let text = format!(
            r#"providers:
  - {{ name: "Overloaded", base_url: "{}", auth_value: "demo-key-1" }}
  - {{ name: "Cuts streams", base_url: "{}", auth_value: "demo-key-2" }}
  - {{ name: "Gone", base_url: "http://{}", auth_value: "demo-key-3" }}
  - {{ name: "Healthy", base_url: "{}", auth_value: "demo-key-4" }}
model_routes:
  "*sonnet*":
    - {{ provider: "Overloaded", priority: 1 }}
    - {{ provider: "Cuts streams", priority: 2 }}
    - {{ provider: "Healthy", priority: 3 }}
  "*haiku*":
    - {{ provider: "Cuts streams" }}
  "*opus*":
    - {{ provider: "Gone", priority: 1 }}
    - {{ provider: "Healthy", priority: 2 }}
settings:
  log_file_path: ""
"#,
            overloaded.url(),
            cutting.url(),
            closed_port()?,
            healthy.url(),
        );
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        io::Write::write_all(&mut options.open(&file.0)?, text.as_bytes())?;
        Ok(Self { overloaded, cutting, healthy, file })
    }
}

fn asks_for(body: &[u8]) -> (String, bool) {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let model = body.get("model").and_then(Value::as_str).unwrap_or_default().to_owned();
    (model, body.get("stream") == Some(&Value::Bool(true)))
}

async fn rehearse(leave_running: bool) -> io::Result<bool> {
    let cast = Cast::assemble().await?;
    let live = Live::open(Some(&cast.file.0), Overrides { host: None, port: Some(0) })
        .map_err(|report| io::Error::other(report.to_string()))?;
    let attempts = Attempts::listen();
    let listeners = server::bind("127.0.0.1", 0)?;
    let port = listeners.first().map(TcpListener::local_addr).transpose()?.map_or(0, |address| address.port());
    let app = Arc::new(App::new(
        Arc::new(live),
        rustls::RootCertStore::empty(),
        Arc::default(),
        port,
        None,
        Storage::memory(),
    ));
    let url = format!("http://127.0.0.1:{port}");

    let (stop, stopped) = oneshot::channel::<()>();
    let serving = server::serve(
        listeners,
        app,
        async {
            let _ = stopped.await;
        },
        server::Limits { drain_time: Duration::from_secs(2), ..server::Limits::default() },
        server::Workers::here(),
    );
    let playing = async {
        let good = play(&cast, &url, &attempts).await;
        if leave_running {
            invite(&url, &cast);
            until_end().await;
        }
        let _ = stop.send(());
        good
    };
    let (served, good) = tokio::join!(serving, playing);
    served?;
    Ok(good)
}

/// One request, and what must come of it.
struct Scene {
    title: &'static str,
    model: &'static str,
    stream: bool,
    expected: Expected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// The whole answer, under 200.
    Answer,
    /// A part of it, then `event: error`.
    HonestCut,
    /// The provider's own 400.
    BadRequest,
}

const SCENES: [Scene; 5] = [
    Scene {
        title: "a stream past an overloaded provider and one that cuts its streams",
        model: "claude-sonnet-4-5",
        stream: true,
        expected: Expected::Answer,
    },
    Scene {
        title: "a plain request: the overloaded provider is left alone for ten seconds",
        model: "claude-sonnet-4-5",
        stream: false,
        expected: Expected::Answer,
    },
    Scene {
        title: "a stream again: the provider that failed twice cools down, too",
        model: "claude-sonnet-4-5",
        stream: true,
        expected: Expected::Answer,
    },
    Scene {
        title: "a mistake of the client's own: no other provider is asked",
        model: "claude-opus-4-1",
        stream: false,
        expected: Expected::BadRequest,
    },
    Scene {
        title: "a stream that is cut after content: no replay, no pretence",
        model: "claude-haiku-4-5",
        stream: true,
        expected: Expected::HonestCut,
    },
];

async fn play(cast: &Cast, url: &str, attempts: &Attempts) -> bool {
    say("Claude Code Provider Balancer: a rehearsal");
    say("");
    say("Scripted providers on loopback:");
    say(&format!("  Overloaded    {}  answers 529", cast.overloaded.url()));
    say(&format!("  Cuts streams  {}  ends its answers early", cast.cutting.url()));
    say("  Gone          refuses connections");
    say(&format!("  Healthy       {}  answers", cast.healthy.url()));
    say(&format!("The balancer:   {url}"));
    let mut good = 0;
    for (number, scene) in SCENES.iter().enumerate() {
        let kind = if scene.stream { "stream" } else { "plain" };
        say("");
        say(&format!("{}. {}", number + 1, scene.title));
        say(&format!("   client    POST /v1/messages  {}  {kind}", scene.model));
        let received = tokio::time::timeout(LIMIT, ask(url, scene)).await.unwrap_or(Err("no answer".into()));
        for attempt in attempts.so_far() {
            say(&format!("   {attempt}"));
        }
        let verdict = match &received {
            Ok((what, text)) => {
                say(&format!("   received  {text}"));
                *what == scene.expected
            }
            Err(why) => {
                say(&format!("   received  nothing: {why}"));
                false
            }
        };
        if verdict {
            good += 1;
        } else {
            say(&format!("   NOT as expected: {:?}", scene.expected));
        }
    }
    say("");
    say(&format!("{good} of {} requests were answered as they should be.", SCENES.len()));
    good == SCENES.len()
}

/// Sends one request as a client would, and reads the answer to its end.
async fn ask(url: &str, scene: &Scene) -> Result<(Expected, String), String> {
    let body = json!({
        "model": scene.model,
        "max_tokens": 64,
        "stream": scene.stream,
        "messages": [{ "role": "user", "content": "Say hello." }],
    });
    let body = Some(Bytes::from(body.to_string()));
    let mut response = fetch(url, Method::POST, "/v1/messages", None, body).await.ok_or("cannot connect")?;
    let mut received = Vec::new();
    while let Some(frame) = response.body.frame().await {
        received.extend_from_slice(&frame.map_err(|error| error.to_string())?);
    }
    let header = |name: &str| response.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
    let by = format!(
        "x-provider-used: {}, x-balancer-attempts: {}",
        header("x-provider-used"),
        header("x-balancer-attempts")
    );
    let text = String::from_utf8_lossy(&received);
    let status = response.status;
    if status == StatusCode::BAD_REQUEST {
        return Ok((Expected::BadRequest, format!("{status}, the provider's own words: {text}\n             {by}")));
    }
    if status != StatusCode::OK {
        return Err(format!("{status}: {text}"));
    }
    let said = if scene.stream { deltas(&text) } else { message(&text) };
    if said == ANSWER.concat() && (!scene.stream || text.contains("event: message_stop")) {
        return Ok((Expected::Answer, format!("200, complete: \"{said}\"\n             {by}")));
    }
    if text.contains("event: error") && !text.contains("message_stop") && ANSWER.concat().starts_with(&said) {
        let error = text.lines().last().unwrap_or_default();
        let error = text.rsplit("data: ").next().filter(|_| error.is_empty()).unwrap_or(error).trim();
        let line = format!("200, \"{said}\", then event: error\n             {error}\n             {by}");
        return Ok((Expected::HonestCut, line));
    }
    Err(format!("an answer that was not expected: {text}"))
}

fn deltas(stream: &str) -> String {
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| {
        serde_json::from_str::<Value>(data).ok()?.pointer("/delta/text")?.as_str().map(str::to_owned)
    })
    .collect()
}

fn message(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    body.pointer("/content/0/text").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn invite(url: &str, cast: &Cast) {
    say("");
    say("It stays for your own requests; end it with Ctrl-C. For example:");
    say(&format!(
        "  curl -N {url}/v1/messages -d '{{\"model\":\"claude-sonnet-4-5\",\"stream\":true,\"messages\":[]}}'"
    ));
    say(&format!("  curl {url}/providers"));
    say(&format!("  ANTHROPIC_BASE_URL={url} ANTHROPIC_AUTH_TOKEN=anything claude -p hello"));
    say(&format!("Its configuration: {}", cast.file.0.display()));
    say(&format!("  (after an edit: curl -X POST {url}/providers/reload)"));
}

/// What the balancer's own log says of each attempt, as lines for the rehearsal.
struct Attempts(Mutex<Receiver<String>>);

impl Attempts {
    fn listen() -> Self {
        let (lines, attempts) = channel();
        // Fails only where a subscriber is there already.
        let _ = tracing_subscriber::registry().with(Tap(lines)).try_init();
        Self(Mutex::new(attempts))
    }

    fn so_far(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).try_iter().collect()
    }
}

struct Tap(Sender<String>);

#[derive(Default)]
struct Attempt {
    is_attempt: bool,
    number: u64,
    provider: String,
    outcome: String,
    verdict: String,
}

impl<S: Subscriber> Layer<S> for Tap {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut attempt = Attempt::default();
        event.record(&mut attempt);
        if !attempt.is_attempt {
            return;
        }
        let next = match attempt.verdict.split(['(', ' ']).next() {
            Some("Commit") => "its answer goes to the client",
            Some("Forward") => "its error goes to the client",
            _ => "next provider",
        };
        let Attempt { number, provider, outcome, .. } = attempt;
        let _ = self.0.send(format!("attempt {number} {provider:<13} {outcome}  ->  {next}"));
    }
}

impl Visit for Attempt {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "attempt" {
            self.number = value;
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.is_attempt = text == "attempt",
            "provider" => self.provider = text,
            "outcome" => self.outcome = text,
            "verdict" => self.verdict = text,
            _ => {}
        }
    }
}
