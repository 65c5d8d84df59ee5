//! The points of streaming that are a matter of time: 24, 25, 33, 34, 35.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout};

use super::bench::Bench;
use super::streaming::{TEXTS, whole};
use super::wire::{Reply, Wire};
use super::{Fault, Seen, ensure, failed};
use crate::lab::{Gate, Script, event};

/// The most that an event may take, in the median.
const EVENT: Duration = Duration::from_millis(5);
/// The most until the upstream hears that a client has left, in the median.
const LEFT: Duration = Duration::from_millis(100);
/// An event that has not come by then is being held.
const HELD: Duration = Duration::from_secs(1);
/// The silence of point 33.
const SILENCE: Duration = Duration::from_secs(8);
/// The stream of point 35: so many events of so many bytes; kernels hold some MiB of it for each connection.
const EVENTS: usize = 128;
const EVENT_SIZE: usize = 512 * 1024;

/// Reads until so many bytes of the body are there, then does something, then reads to the end.
pub(super) async fn then(wire: &mut Wire, bytes: usize, act: impl FnOnce()) -> Result<Reply, Fault> {
    let head = wire.head().await?;
    let mut body = BytesMut::new();
    while body.len() < bytes {
        match timeout(HELD, wire.frame()).await {
            Ok(Some(frame)) => body.extend_from_slice(&frame),
            Ok(None) => break,
            // What is held is let go by what comes next, or never.
            Err(_) => break,
        }
    }
    act();
    let mut reply = wire.rest(head).await;
    body.extend_from_slice(&reply.body);
    reply.body = body.freeze();
    Ok(reply)
}

/// Opens the gate for each event in turn, and measures until it is here. The head has been read, unless `head`.
async fn event_by_event(wire: &mut Wire, gate: &Gate, frames: &[Bytes]) -> Result<Vec<Duration>, Fault> {
    let mut times = Vec::new();
    let mut head = None;
    for (number, frame) in frames.iter().enumerate() {
        gate.reached(number + 1).await;
        let begun = Instant::now();
        gate.let_one();
        let mut left = frame.len();
        while left > 0 {
            let piece = timeout(HELD, async {
                if head.is_none() {
                    head = Some(wire.head().await?);
                }
                Ok::<_, Fault>(wire.frame().await)
            });
            match piece.await {
                Ok(piece) => match piece? {
                    Some(piece) => left = left.saturating_sub(piece.len()),
                    None => return failed(format!("the stream ended before event {}", number + 1)),
                },
                Err(_) => {
                    return failed(format!(
                        "event {} of {} did not come while the next was held back",
                        number + 1,
                        frames.len()
                    ));
                }
            }
        }
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// A stream whose every event waits at the gate.
fn gated(frames: &[Bytes], gate: &Gate) -> Script {
    Script::events(frames.to_vec()).gate(gate.clone()).gate_before(0, gate.clone())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

pub(super) async fn at_once(bench: &Bench) -> Seen {
    let texts: Vec<String> = (0..20).map(|number| format!("word {number} ")).collect();
    let frames = event::message("claude-lab", &texts);
    let mut times = Vec::new();
    let mut firsts = Vec::new();
    for _ in 0..5 {
        let gate = Gate::new();
        bench.first_plays(vec![gated(&frames, &gate)]);
        let mut wire = bench.open().await?;
        bench.send(&mut wire, &bench.ask_for("stream")).await?;
        let found = event_by_event(&mut wire, &gate, &frames).await?;
        firsts.extend(found.first());
        times.extend(found.into_iter().skip(1));
        // It does not wait for its own end.
        gate.open();
    }
    let (count, slowest) = (times.len(), times.iter().max().copied().unwrap_or_default());
    let (first, others) = (median(firsts), median(times));
    let seen = format!(
        "the first {}, the others {} (median of {count}; slowest {})",
        milliseconds(first),
        milliseconds(others),
        milliseconds(slowest)
    );
    ensure(first < EVENT && others < EVENT, || seen.clone())?;
    Ok(seen)
}

pub(super) async fn pings(bench: &Bench) -> Seen {
    let mut frames = vec![event::message_start("claude-lab"), event::block_start()];
    frames.extend([event::ping(), event::ping(), event::text_delta("Hello"), event::ping(), event::ping()]);
    frames.extend([event::block_stop(), event::message_delta(1), event::message_stop()]);
    let gate = Gate::new();
    bench.first_plays(vec![gated(&frames, &gate)]);
    let mut wire = bench.open().await?;
    bench.send(&mut wire, &bench.ask_for("stream")).await?;
    event_by_event(&mut wire, &gate, &frames).await?;
    Ok("4 pings, each at once".into())
}

pub(super) async fn silence(bench: &Bench) -> Seen {
    let head = Script::stream(&TEXTS).delay_head(SILENCE);
    let body = Script::stream(&TEXTS).pause_before(4, SILENCE);
    let wanted = head.body_bytes();
    bench.first_plays(vec![head, body]);
    let ask = bench.ask_for("slow");
    // Both at once; which gets which script does not matter.
    let (one, other) = tokio::join!(bench.once(&ask), bench.once(&ask));
    whole(&one?, &wanted, "the one")?;
    whole(&other?, &wanted, "the other")?;
    Ok("both whole".into())
}

pub(super) async fn departure(bench: &Bench) -> Seen {
    let mut times = Vec::new();
    for _ in 0..5 {
        let gate = Gate::new();
        bench.first_plays(vec![Script::stream(&TEXTS).gate_before(4, gate.clone())]);
        let mut wire = bench.open().await?;
        bench.send(&mut wire, &bench.ask_for("stream")).await?;
        gate.reached(1).await;
        // Where the beginning comes through, it is a client in the middle of an answer.
        let _ = timeout(HELD, async {
            let _ = wire.head().await;
            wire.frame().await
        })
        .await;
        let departures = bench.first.departures();
        let begun = Instant::now();
        drop(wire);
        if timeout(Duration::from_secs(3), bench.first.departed(departures + 1)).await.is_err() {
            gate.open();
            return failed("the upstream connection stayed open for 3 s");
        }
        times.push(begun.elapsed());
    }
    let time = median(times);
    ensure(time < LEFT, || milliseconds(time))?;
    Ok(milliseconds(time))
}

pub(super) async fn back_pressure(bench: &Bench) -> Seen {
    let gate = Gate::new();
    gate.open();
    let text = "x".repeat(EVENT_SIZE);
    let mut frames = vec![event::message_start("claude-lab"), event::block_start()];
    frames.extend((0..EVENTS).map(|_| event::text_delta(&text)));
    frames.extend([event::block_stop(), event::message_delta(1), event::message_stop()]);
    let total: usize = frames.iter().map(Bytes::len).sum();
    bench.first_plays(vec![Script::events(frames).gate(gate.clone())]);
    let mut wire = bench.open().await?;
    bench.send(&mut wire, &bench.ask_for("large")).await?;
    // How far the upstream gets while nobody reads.
    let mut sent = 0;
    while sent < EVENTS && timeout(HELD, gate.reached(sent + 1)).await.is_ok() {
        sent += 1;
    }
    let held = (sent * EVENT_SIZE) >> 20;
    let reply = wire.reply().await?;
    ensure(reply.clean && reply.body.len() == total, || format!("{total} bytes became {}", reply.body.len()))?;
    ensure(sent < EVENTS / 2, || format!("{held} MiB of {} were taken while nobody read", total >> 20))?;
    Ok(format!("{held} MiB of {} taken while nobody read, then all of it", total >> 20))
}
