//! Points 36 to 49: errors reach the client as the upstream said them, and what another upstream can mend never does.
//! Those that need a second upstream are judged in `failover`.

use tokio::task::JoinSet;

use super::bench::Bench;
use super::{Point, Seen, ensure, failed, failover, shapes};
use crate::lab::Script;

pub(super) const POINTS: [Point; 14] = [
    Point {
        number: 36,
        title: "an upstream's error that is final",
        expected: "status and body, byte for byte",
        judge: |bench| Box::pin(errors(bench)),
    },
    Point {
        number: 37,
        title: "request-id, retry-after, anthropic-ratelimit-*, x-should-retry",
        expected: "forwarded",
        judge: |bench| Box::pin(heads(bench)),
    },
    Point {
        number: 38,
        title: "429, 5xx, 529 before an answer",
        expected: "the next upstream; the client sees one 200",
        judge: |bench| Box::pin(failover::overload(bench)),
    },
    Point {
        number: 39,
        title: "400, 413, 404",
        expected: "to the client; a 404 that names the model: the next upstream",
        judge: |bench| Box::pin(failover::of_the_request(bench)),
    },
    Point {
        number: 40,
        title: "401 and 403",
        expected: "the next upstream for the gateway's key; to the client for its own",
        judge: |bench| Box::pin(failover::refused_keys(bench)),
    },
    Point {
        number: 41,
        title: "web pages under 403 and 502",
        expected: "the next upstream; the client never gets one",
        judge: |bench| Box::pin(failover::web_pages(bench)),
    },
    Point {
        number: 42,
        title: "refused, FIN or RST before the head",
        expected: "the next upstream",
        judge: |bench| Box::pin(failover::gone(bench)),
    },
    Point {
        number: 43,
        title: "a failure behind the commit point",
        expected: "no other upstream",
        judge: |bench| Box::pin(failover::committed(bench)),
    },
    Point {
        number: 44,
        title: "everything exhausted",
        expected: "the API's error shape, the smallest retry-after, x-should-retry: false where the wait is over 60 s",
        judge: |bench| Box::pin(failover::exhausted(bench)),
    },
    Point {
        number: 45,
        title: "a client that retries ten times",
        expected: "at most one attempt per upstream and request",
        judge: |bench| Box::pin(failover::bounded(bench)),
    },
    Point {
        number: 46,
        title: "an error body in gzip",
        expected: "intact, Content-Encoding kept",
        judge: |bench| Box::pin(encoded_error(bench)),
    },
    Point {
        number: 47,
        title: "413 before the body was read",
        expected: "delivered",
        judge: |bench| Box::pin(early(bench)),
    },
    Point {
        number: 48,
        title: "25 count_tokens at once",
        expected: "all succeed, and the next prompt goes to the same upstream",
        judge: |bench| Box::pin(burst(bench)),
    },
    Point {
        number: 49,
        title: "batches and files",
        expected: "one upstream only, its errors to the client",
        judge: |bench| Box::pin(failover::pinned(bench)),
    },
];

/// An error body that nobody would write the same way again.
fn odd_error(status: u16, kind: &str) -> String {
    format!(
        "{{ \"type\":\"error\",\r\n  \"error\" : {{\"type\":\"{kind}\" , \"message\":\"Scripted {status}: \\u00e9 你好\", \
         \"details\":{{\"error_code\":\"odd\"}}}},\"request_id\":\"req_lab\" , \"n\":1.50}}\n"
    )
}

async fn errors(bench: &Bench) -> Seen {
    let all = [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (409, "conflict_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        // With one upstream these are final, too.
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "api_error"),
        (529, "overloaded_error"),
    ];
    let single = bench.setup.scenes || !bench.setup.failover;
    let judged = all.get(..if single { all.len() } else { 5 }).unwrap_or_default();
    for (status, kind) in judged {
        for stream in [true, false] {
            let body = odd_error(*status, kind);
            bench.first_plays(vec![
                Script::body(*status, "application/json", body.clone()).header("request-id", "req_lab"),
            ]);
            let scene = format!("final-{status}");
            let ask = if stream { bench.ask_for(&scene) } else { bench.plain(&scene) };
            let reply = bench.once(&ask).await?;
            let same = reply.status == *status && reply.body == body.as_bytes();
            ensure(same, || format!("{status} became {}", reply.brief()))?;
            // A key that was refused or is out of credit is not asked again: a stream's answer says it all.
            if matches!(status, 401..=403) {
                break;
            }
        }
    }
    Ok(format!("{} statuses, identical", judged.len()))
}

async fn heads(bench: &Bench) -> Seen {
    let fields = [
        ("request-id", "req_of_upstream"),
        ("anthropic-ratelimit-requests-limit", "50"),
        ("anthropic-ratelimit-requests-remaining", "49"),
        ("anthropic-ratelimit-tokens-reset", "2099-01-01T00:00:00Z"),
        ("anthropic-ratelimit-unified-5h-utilization", "0.25"),
        ("anthropic-ratelimit-of-the-future", "x"),
        ("anthropic-organization-id", "org_1"),
        ("retry-after", "7"),
        ("x-should-retry", "true"),
    ];
    let mut scripts = vec![("heads-200", Script::stream(&["Hello"]))];
    if bench.setup.scenes || !bench.setup.failover {
        scripts.push(("heads-429", Script::error(429, "rate_limit_error", "Scripted")));
    }
    for (scene, script) in scripts {
        let script = fields.iter().fold(script, |script, (name, value)| script.with_header(name, value));
        let reply = bench.streamed(scene, script).await?;
        for (name, value) in fields {
            ensure(reply.field(name) == Some(value), || {
                format!("{}: {name}: {value} became {:?}", reply.status, reply.field(name))
            })?;
        }
    }
    Ok(format!("{} headers, on an answer and on an error", fields.len()))
}

async fn encoded_error(bench: &Bench) -> Seen {
    let script = Script::body(429, "application/json", odd_error(429, "rate_limit_error")).gzipped();
    let body = script.body_bytes();
    if bench.setup.failover && !bench.setup.scenes {
        bench.second_plays(vec![script.clone()]);
    }
    let reply = bench.streamed("gzip-429", script).await?;
    let kept = reply.field("content-encoding") == Some("gzip") && reply.body == body;
    ensure(reply.status == 429 && kept, || {
        format!("{}, {} bytes became {}", reply.status, body.len(), reply.body.len())
    })?;
    Ok("intact".into())
}

async fn early(bench: &Bench) -> Seen {
    bench.first.always(Script::error(413, "request_too_large", "Scripted: too large").early());
    let ask = bench.ask_for("early");
    let large = String::from_utf8_lossy(&ask.body).replacen("Some words", &"Some words ".repeat(200_000), 1);
    let mut wire = bench.open().await?;
    let reply = wire.ask_and_listen(&ask.body(large), &bench.gateway.host, &bench.gateway.prefix).await?;
    ensure(reply.status == 413 && reply.text().contains("Scripted: too large"), || reply.brief())?;
    Ok("the upstream's own 413".into())
}

async fn burst(bench: &Bench) -> Seen {
    let mark = bench.mark();
    let model = bench.model("count");
    let mut asking = JoinSet::new();
    let connections: Vec<_> = {
        let mut open = Vec::new();
        for _ in 0..25 {
            open.push(bench.open().await?);
        }
        open
    };
    for (number, mut wire) in connections.into_iter().enumerate() {
        let ask = bench.keyed(shapes::count_tokens(&model, 83 + number * 1246));
        let gateway = bench.gateway.clone();
        asking.spawn(async move {
            wire.ask(&ask, &gateway.host, &gateway.prefix).await?;
            wire.reply().await.map(|reply| (ask.body.len(), reply))
        });
    }
    while let Some(done) = asking.join_next().await {
        let Ok(done) = done else { return failed("a task of the judge's own failed") };
        let (size, reply) = done?;
        let counted = serde_json::from_slice::<serde_json::Value>(&reply.body).unwrap_or_default();
        let counted = counted.get("input_tokens").and_then(serde_json::Value::as_u64);
        ensure(reply.status == 200 && counted == u64::try_from(size).ok(), || reply.brief())?;
    }
    let reply = bench.once(&bench.ask_for("count")).await?;
    ensure(reply.status == 200 && bench.counts(&mark) == (26, 0), || {
        format!("{}, requests upstream: {:?}", reply.status, bench.counts(&mark))
    })?;
    Ok("25 of 25, each its own number".into())
}
