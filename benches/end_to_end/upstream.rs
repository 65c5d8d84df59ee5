//! The scripted provider: a thread of its own, so that it answers while the client is busy. What it does, the name of
//! the model in the request says. It is much lighter than the laboratory: it must not be what a round waits for.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// Events of a stream in a hurry.
pub(crate) const HURRY: usize = 4000;
/// From one event of a paced stream to the next.
pub(crate) const PACE: Duration = Duration::from_millis(100);

const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
    transfer-encoding: chunked\r\nrequest-id: req_bench\r\n\r\n";
const START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\
    \"type\":\"message\",\"role\":\"assistant\",\"model\":\"bench\",\"content\":[],\"stop_reason\":null,\
    \"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n";
const DELTA: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
    \"delta\":{\"type\":\"text_delta\",\"text\":\"a few words of text\"}}\n\n";
const STOP: &str = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

/// Where it listens. It ends with this process.
pub(crate) struct Upstream {
    /// Answers as the model says.
    pub(crate) well: SocketAddr,
    /// Answers 529, whatever it is asked.
    pub(crate) overloaded: SocketAddr,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let (sender, addresses) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut servers = JoinSet::new();
                for overloaded in [false, true] {
                    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                    let _ = sender.send(listener.local_addr().expect("an address"));
                    servers.spawn(accept(listener, overloaded));
                }
                servers.join_all().await
            })
        });
        let next = || addresses.recv().expect("an address");
        Self { well: next(), overloaded: next() }
    }
}

async fn accept(listener: TcpListener, overloaded: bool) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        connections.spawn(serve(stream, overloaded));
        while connections.try_join_next().is_some() {}
    }
}

/// Answers until the other side leaves; it may do so at any time.
async fn serve(mut stream: TcpStream, overloaded: bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut inbox = Vec::with_capacity(128 * 1024);
    while let Some(model) = next(&mut stream, &mut inbox).await? {
        let answers = answers();
        match model {
            _ if overloaded => stream.write_all(&answers.overloaded).await?,
            Model::Plain => stream.write_all(&answers.plain).await?,
            Model::Hurry => stream.write_all(&answers.hurry).await?,
            Model::Brief => {
                stream.write_all(&answers.opening).await?;
                stream.write_all(&answers.ending).await?;
            }
            Model::Quiet => stream.write_all(&answers.opening).await?,
            Model::Paced => {
                stream.write_all(&answers.opening).await?;
                return pace(stream, &answers.delta).await;
            }
        }
    }
    Ok(())
}

/// Gives an event at each beat, until the other side leaves. Streams do not beat together.
async fn pace(mut stream: TcpStream, event: &[u8]) -> io::Result<()> {
    static STREAMS: AtomicU64 = AtomicU64::new(0);
    let offset = Duration::from_millis(STREAMS.fetch_add(61, Ordering::Relaxed) % 100);
    let mut beat = interval_at(Instant::now() + offset, PACE);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beat.tick() => stream.write_all(event).await?,
            _ = stream.read_u8() => return Ok(()),
        }
    }
}

/// What is asked for, by the first word of the model's name.
#[derive(Clone, Copy)]
enum Model {
    /// A message of 1 KB.
    Plain,
    /// All events of a stream at once.
    Hurry,
    /// The first events of a stream, then the last.
    Brief,
    /// The first events of a stream, and no more.
    Quiet,
    /// The first events, and one at each beat, for ever.
    Paced,
}

/// Reads a request to its end; `None` where there is none.
async fn next(stream: &mut TcpStream, inbox: &mut Vec<u8>) -> io::Result<Option<Model>> {
    inbox.clear();
    let mut whole = usize::MAX;
    let mut head = 0;
    while inbox.len() < whole {
        if stream.read_buf(inbox).await? == 0 {
            return Ok(None);
        }
        if head == 0
            && let Some(end) = memchr::memmem::find(inbox, b"\r\n\r\n")
        {
            head = end + 4;
            whole = head + crate::client::content_length(inbox.get(..head).unwrap_or_default()).expect("a length");
        }
    }
    let body = inbox.get(head..).unwrap_or_default();
    let model = body.strip_prefix(b"{\"model\":\"").expect("the model comes first");
    Ok(Some(match model.split(|byte| *byte == b'-').next().unwrap_or_default() {
        b"hurry" => Model::Hurry,
        b"brief" => Model::Brief,
        b"quiet" => Model::Quiet,
        b"paced" => Model::Paced,
        _ => Model::Plain,
    }))
}

/// The answers, written once.
struct Answers {
    plain: Vec<u8>,
    overloaded: Vec<u8>,
    hurry: Vec<u8>,
    opening: Vec<u8>,
    ending: Vec<u8>,
    delta: Vec<u8>,
}

fn answers() -> &'static Answers {
    static ANSWERS: OnceLock<Answers> = OnceLock::new();
    ANSWERS.get_or_init(|| {
        let message = serde_json::json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "bench",
            "content": [{ "type": "text", "text": "a few words of text ".repeat(40) }],
            "stop_reason": "end_turn", "stop_sequence": null,
            "usage": { "input_tokens": 9, "output_tokens": 200 },
        });
        let error = serde_json::json!({
            "type": "error", "error": { "type": "overloaded_error", "message": "Overloaded" },
        });
        let chunks = |events: &[&str]| -> Vec<u8> {
            events.iter().flat_map(|event| format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()).collect()
        };
        let hurry = [vec![START], vec![DELTA; HURRY - 2], vec![STOP]].concat();
        Answers {
            plain: reply("200 OK", &message.to_string()),
            overloaded: reply("529 ", &error.to_string()),
            hurry: [STREAM, &chunks(&hurry), b"0\r\n\r\n"].concat(),
            opening: [STREAM, &chunks(&[START, DELTA])].concat(),
            ending: [chunks(&[DELTA, STOP]), b"0\r\n\r\n".to_vec()].concat(),
            delta: chunks(&[DELTA]),
        }
    })
}

fn reply(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nrequest-id: req_bench\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
