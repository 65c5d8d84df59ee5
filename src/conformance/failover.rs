//! The points that a second upstream decides: 38 to 45, and 49.

use serde_json::Value;

use super::bench::Bench;
use super::streaming::TEXTS;
use super::wire::Reply;
use super::{Fault, Seen, ensure, not_applicable, pace, shapes};
use crate::lab::{Gate, Script, Welcome};

/// One request while the first lab fails so: the second must answer, and the client see nothing of it.
async fn saved(bench: &Bench, scene: &str, script: Script) -> Result<(), Fault> {
    let mark = bench.mark();
    bench.first_plays(vec![script.clone(), script]);
    let reply = bench.once(&bench.ask_for(scene)).await?;
    saved_by_second(&reply, bench.counts(&mark), scene)
}

/// Whether the second answered, alone, and the client saw nothing of the first.
fn saved_by_second(reply: &Reply, (first, second): (usize, usize), what: &str) -> Result<(), Fault> {
    let complete = reply.text().contains("event: message_stop") && !reply.text().contains("event: error");
    // A connection that dies before any answer may have been an idle one that was closed: asking once more is right.
    let asked = first <= 2 && second == 1;
    ensure(reply.status == 200 && reply.clean && complete && asked, || {
        format!("{what}: {}, requests upstream: {first} and {second}", reply.brief())
    })
}

/// One request that the first lab answers for good: status and body must be its own.
async fn final_answer(bench: &Bench, scene: &str, status: u16, script: Script) -> Result<(), Fault> {
    let (mark, body) = (bench.mark(), script.body_bytes());
    let reply = bench.streamed(scene, script).await?;
    let counts = bench.counts(&mark);
    ensure(reply.status == status && reply.body == body && counts == (1, 0), || {
        format!("{scene}: {}, requests upstream: {counts:?}", reply.brief())
    })
}

pub(super) async fn overload(bench: &Bench) -> Seen {
    bench.needs_second()?;
    let kinds = [
        (408, "timeout_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "api_error"),
        (529, "overloaded_error"),
    ];
    let mut lost = Vec::new();
    for (status, kind) in kinds {
        if saved(bench, &format!("next-{status}"), Script::error(status, kind, "Scripted")).await.is_err() {
            lost.push(status.to_string());
        }
        bench.calm().await;
    }
    let script = Script::stream(&TEXTS).first_event_error("overloaded_error");
    if saved(bench, "next-event", script).await.is_err() {
        lost.push("an error as first event".into());
    }
    ensure(lost.is_empty(), || format!("not answered by the next, alone: {}", lost.join(", ")))?;
    Ok(format!("{} statuses and an error as first event: one 200 each", kinds.len()))
}

pub(super) async fn of_the_request(bench: &Bench) -> Seen {
    bench.needs_second()?;
    let message = |status, kind| Script::error(status, kind, "Scripted");
    final_answer(bench, "request-400", 400, message(400, "invalid_request_error")).await?;
    final_answer(bench, "request-413", 413, message(413, "request_too_large")).await?;
    final_answer(bench, "request-404", 404, message(404, "not_found_error")).await?;
    let model = format!("model: {}", bench.model("model-404"));
    saved(bench, "model-404", Script::error(404, "not_found_error", &model)).await?;
    Ok("400, 413, 404 to the client; a 404 that names the model to the next".into())
}

pub(super) async fn refused_keys(bench: &Bench) -> Seen {
    bench.needs_second()?;
    let refusals = [(401, "authentication_error"), (403, "permission_error")];
    if !bench.setup.scenes {
        return not_applicable("needs upstreams with keys and one without, which are judged with --self only");
    }
    for (status, kind) in refusals {
        saved(bench, &format!("key-{status}"), Script::error(status, kind, "Scripted")).await?;
        final_answer(bench, &format!("own-{status}"), status, Script::error(status, kind, "Scripted")).await?;
    }
    Ok("both, 401 and 403".into())
}

pub(super) async fn web_pages(bench: &Bench) -> Seen {
    bench.needs_second()?;
    for status in [403, 502] {
        saved(bench, &format!("html-{status}"), Script::html(status)).await?;
        bench.calm().await;
    }
    bench.second_plays(vec![Script::html(502)]);
    let reply = bench.streamed("html-both", Script::html(403)).await?;
    ensure(reply.is_api_error() && reply.status >= 400, || format!("pages everywhere: {}", reply.brief()))?;
    Ok(format!("both go to the next; pages everywhere: {} in the API's shape", reply.status))
}

pub(super) async fn gone(bench: &Bench) -> Seen {
    bench.needs_second()?;
    saved(bench, "gone-fin", Script::close()).await?;
    bench.calm().await;
    saved(bench, "gone-rst", Script::reset()).await?;
    bench.calm().await;
    let mark = bench.mark();
    bench.first.welcome(Welcome::Reset);
    let reply = bench.once(&bench.ask_for("gone-accept")).await?;
    bench.first.welcome(Welcome::Serve);
    saved_by_second(&reply, bench.counts(&mark), "gone-accept")?;
    if bench.setup.scenes {
        let mark = bench.mark();
        let reply = bench.once(&bench.ask_for("gone-refused")).await?;
        saved_by_second(&reply, bench.counts(&mark), "gone-refused")?;
        return Ok("refused, FIN, RST, and RST at once: the next answers".into());
    }
    Ok("FIN, RST, and RST at once: the next answers".into())
}

pub(super) async fn committed(bench: &Bench) -> Seen {
    bench.needs_second()?;
    let mark = bench.mark();
    let script = Script::stream(&TEXTS).cut_after(5);
    let sent = script.body_bytes();
    let reply = bench.streamed("committed-cut", script).await?;
    let counts = bench.counts(&mark);
    ensure(counts == (1, 0) && reply.body.starts_with(&sent), || format!("after FIN: requests upstream {counts:?}"))?;
    bench.calm().await;
    let (mark, gate) = (bench.mark(), Gate::new());
    bench.first_plays(vec![Script::stream(&TEXTS).reset_after(5).gate_end(gate.clone())]);
    let mut wire = bench.open().await?;
    bench.send(&mut wire, &bench.ask_for("committed-rst")).await?;
    let reply = pace::then(&mut wire, sent.len(), || gate.open()).await?;
    let counts = bench.counts(&mark);
    ensure(counts == (1, 0) && reply.body.starts_with(&sent), || format!("after RST: requests upstream {counts:?}"))?;
    Ok("FIN and RST after content: nobody else was asked".into())
}

pub(super) async fn exhausted(bench: &Bench) -> Seen {
    bench.needs_second()?;
    let limited =
        |seconds: &str| Script::error(429, "rate_limit_error", "Scripted").with_header("retry-after", seconds);
    bench.second_plays(vec![limited("90")]);
    let reply = bench.streamed("long-wait", limited("3600")).await?;
    ensure(reply.status == 429 && reply.is_api_error(), || reply.brief())?;
    let wait = reply.field("retry-after").and_then(|wait| wait.parse::<u64>().ok());
    ensure(wait.is_some_and(|wait| (85..=90).contains(&wait)), || {
        format!("retry-after: {wait:?}, 90 being the least")
    })?;
    let again = reply.field("x-should-retry");
    ensure(again == Some("false"), || format!("x-should-retry: {again:?} with 90 s to wait"))?;
    bench.calm().await;
    bench.second_plays(vec![limited("20")]);
    let reply = bench.streamed("short-wait", limited("30")).await?;
    let wait = reply.field("retry-after").and_then(|wait| wait.parse::<u64>().ok());
    let again = reply.field("x-should-retry");
    ensure(wait.is_some_and(|wait| (15..=20).contains(&wait)) && again != Some("false"), || {
        format!("retry-after: {wait:?}, x-should-retry: {again:?} with 20 s to wait")
    })?;
    bench.calm().await;
    bench.second_plays(vec![Script::error(529, "overloaded_error", "Overloaded")]);
    let reply = bench.streamed("all-529", Script::error(529, "overloaded_error", "Overloaded")).await?;
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let kind = body.pointer("/error/type").and_then(Value::as_str) == Some("overloaded_error");
    ensure(reply.status == 529 && kind, || format!("529 everywhere: {}", reply.brief()))?;
    Ok("429 with the smallest wait, false over 60 s only; 529 stays 529".into())
}

pub(super) async fn bounded(bench: &Bench) -> Seen {
    const RETRIES: usize = 10;
    let upstreams = if bench.setup.failover { 2 } else { 1 };
    let failures = || vec![Script::error(500, "api_error", "Scripted"); 100];
    bench.first_plays(failures());
    bench.second_plays(failures());
    let mark = bench.mark();
    for _ in 0..RETRIES {
        let reply = bench.once(&bench.ask_for("retried")).await?;
        ensure(reply.status >= 500 && reply.is_api_error(), || reply.brief())?;
    }
    let (first, second) = bench.counts(&mark);
    ensure(first <= RETRIES && second <= RETRIES, || format!("{first} and {second} requests upstream"))?;
    Ok(format!("{} requests upstream for {RETRIES}, {upstreams} upstream(s)", first + second))
}

pub(super) async fn pinned(bench: &Bench) -> Seen {
    bench.needs_second()?;
    for target in ["/v1/messages/batches/msgbatch_1", "/v1/files/file_1"] {
        for (status, kind) in [(500, "api_error"), (529, "overloaded_error"), (404, "not_found_error")] {
            let script = Script::error(status, kind, "Scripted");
            let (mark, body) = (bench.mark(), script.body_bytes());
            bench.first_plays(vec![script]);
            let reply = bench.once(&bench.keyed(shapes::other("GET", target))).await?;
            let counts = bench.counts(&mark);
            ensure(reply.status == status && reply.body == body && counts == (1, 0), || {
                format!("{target}: {}, requests upstream: {counts:?}", reply.brief())
            })?;
        }
    }
    Ok("errors of the first go to the client, the second is never asked".into())
}
