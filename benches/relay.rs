//! A request through the balancer beside the same request without it: one process, real sockets on loopback.
//!
//! The figures of both are dominated by the kernel and by the scripted provider; what the balancer costs is the
//! difference, and the ratio is what is comparable between machines. At the end it prints both ratios and what the
//! balancer allocates for each event of a stream.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]
#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::net::SocketAddr;
use std::sync::Arc;

use claude_code_balancer::app::App;
use claude_code_balancer::config::{Live, Overrides};
use claude_code_balancer::lab::{Lab, Script};
use claude_code_balancer::oauth::Storage;
use claude_code_balancer::server;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::Instant;

const EVENTS: usize = 500;
/// What the events around the deltas add up to.
const FRAME: usize = 6;

/// One provider, and a balancer in front of it.
struct Stage {
    lab: Lab,
    balancer: SocketAddr,
    _folder: tempfile::TempDir,
    _serving: tokio::task::JoinSet<()>,
}

impl Stage {
    async fn set() -> Self {
        let lab = Lab::start().await.expect("a free port");
        lab.remember(false);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.yaml");
        let text = format!(
            "providers: [{{ name: Lab, base_url: \"{}\", auth_value: a-key-of-the-bench }}]\n\
             settings: {{ log_file_path: \"\" }}\n",
            lab.url()
        );
        std::fs::write(&file, text).expect("a file");
        let live = Live::open(Some(&file), Overrides { host: None, port: Some(0) }).expect("valid");
        let listeners = server::bind("127.0.0.1", 0).expect("a free port");
        let balancer = listeners.first().expect("one").local_addr().expect("an address");
        let app = App::new(
            Arc::new(live),
            rustls::RootCertStore::empty(),
            Arc::default(),
            balancer.port(),
            None,
            Storage::memory(),
        );
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(async move {
            let _ = server::serve(
                listeners,
                Arc::new(app),
                std::future::pending(),
                server::Limits::default(),
                server::Workers::here(),
            )
            .await;
        });
        Self { lab, balancer, _folder: folder, _serving: serving }
    }
}

/// A kept-alive connection that sends one request at a time.
struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    inbox: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr, stream: bool) -> Self {
        let prompt = "Say something. ".repeat(1000);
        let body = serde_json::json!({
            "model": "claude-sonnet-4-5", "max_tokens": 64, "stream": stream,
            "messages": [{ "role": "user", "content": prompt }],
        });
        let body = body.to_string();
        let request = format!(
            "POST /v1/messages HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             anthropic-version: 2023-06-01\r\nx-api-key: dummy\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, request: request.into_bytes(), inbox: Vec::with_capacity(1024 * 1024) }
    }

    /// Sends the request and reads the answer to its end; answers how many bytes it had.
    async fn ask(&mut self) -> usize {
        self.stream.write_all(&self.request).await.expect("sent");
        self.inbox.clear();
        let mut whole = None;
        loop {
            let length = self.inbox.len();
            let read = self.stream.read_buf(&mut self.inbox).await.expect("an answer");
            assert!(read > 0, "closed after {length} bytes");
            if whole.is_none() {
                whole = self.announced();
            }
            match whole {
                Some(Some(length)) if self.inbox.len() >= length => return length,
                Some(None) if self.inbox.ends_with(b"\r\n0\r\n\r\n") => return self.inbox.len(),
                _ => {}
            }
        }
    }

    /// Once the head is there: the length of head and body, or none where the body comes in chunks.
    fn announced(&self) -> Option<Option<usize>> {
        let end = memchr::memmem::find(&self.inbox, b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(self.inbox.get(..end)?).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
        Some(length.map(|length| end + length))
    }
}

fn deltas(count: usize) -> Script {
    Script::stream(&vec!["a few words of text"; count])
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn relay(criterion: &mut Criterion) {
    // Provider, balancer and client share one thread, so that what is measured is work and not waiting.
    let runtime = runtime();
    let stage = runtime.block_on(Stage::set());
    for (name, streaming, script) in [
        ("message", false, Script::message(&"a few words of text ".repeat(100))),
        ("stream of 500 events", true, deltas(EVENTS - FRAME)),
    ] {
        stage.lab.always(script);
        let mut group = criterion.benchmark_group(format!("relay/{name}"));
        group.throughput(Throughput::Elements(if streaming { EVENTS as u64 } else { 1 }));
        for (way, address) in [("direct", stage.lab.address()), ("through the balancer", stage.balancer)] {
            let mut client = runtime.block_on(Client::connect(address, streaming));
            group.bench_function(way, |bencher| bencher.iter(|| runtime.block_on(client.ask())));
        }
        group.finish();
        println!("relay/{name}: {}", runtime.block_on(ratio(&stage, streaming)));
    }
    println!("relay: {}", allocations(&runtime, &stage));
}

/// Both ways in turn, so that a busy machine is busy for both; the medians are compared.
async fn ratio(stage: &Stage, streaming: bool) -> String {
    const ROUNDS: usize = 201;
    let mut direct = Client::connect(stage.lab.address(), streaming).await;
    let mut through = Client::connect(stage.balancer, streaming).await;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (client, times) in [&mut direct, &mut through].into_iter().zip(&mut times) {
            let start = Instant::now();
            client.ask().await;
            times.push(start.elapsed());
        }
    }
    let [direct, through] = times.map(|mut times| {
        times.sort_unstable();
        times.get(ROUNDS / 2).copied().unwrap_or_default()
    });
    let ratio = through.as_secs_f64() / direct.as_secs_f64();
    format!("direct {direct:.1?}, through {through:.1?}, ratio {ratio:.2}")
}

/// What a longer stream costs more than a shorter one, less what it costs without the balancer. Everything runs on this
/// thread.
fn allocations(runtime: &Runtime, stage: &Stage) -> String {
    let cost = |address| {
        let mut client = runtime.block_on(Client::connect(address, true));
        let [short, long] = [EVENTS, 3 * EVENTS].map(|events| {
            stage.lab.always(deltas(events - FRAME));
            runtime.block_on(client.ask());
            let rounds = 20_u32;
            let info = allocation_counter::measure(|| {
                for _ in 0..rounds {
                    runtime.block_on(client.ask());
                }
            });
            [info.count_total as f64 / f64::from(rounds), info.bytes_total as f64 / f64::from(rounds)]
        });
        let per_event =
            |at: usize| (long.get(at).unwrap_or(&0.0) - short.get(at).unwrap_or(&0.0)) / (2 * EVENTS) as f64;
        (per_event(0), per_event(1), short.first().copied().unwrap_or_default())
    };
    let (direct, through) = (cost(stage.lab.address()), cost(stage.balancer));
    format!(
        "the balancer allocates {:.2} times and {:.0} bytes for each event (it shares this thread with a client and a \
         provider, which need {:.2}), and {:.0} times for a whole stream of {EVENTS}",
        through.0 - direct.0,
        through.1 - direct.1,
        direct.0,
        through.2 - direct.2,
    )
}

criterion_group!(benches, relay);
criterion_main!(benches);
