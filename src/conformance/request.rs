//! Points 1 to 14: what arrives upstream is what the client sent.

use super::bench::Bench;
use super::{Point, Seen, ensure, shapes};

pub(super) const POINTS: [Point; 14] = [
    Point {
        number: 1,
        title: "path and query",
        expected: "byte for byte, ?beta=true and odd ones",
        judge: |bench| Box::pin(path_and_query(bench)),
    },
    Point {
        number: 2,
        title: "request body",
        expected: "the same bytes, for every recorded client",
        judge: |bench| Box::pin(body(bench)),
    },
    Point {
        number: 3,
        title: "anthropic-beta",
        expected: "byte for byte, never an allow-list",
        judge: |bench| Box::pin(betas(bench)),
    },
    Point {
        number: 4,
        title: "anthropic-version",
        expected: "passed, 2023-06-01 and 2026-10-21",
        judge: |bench| Box::pin(versions(bench)),
    },
    Point {
        number: 5,
        title: "unknown anthropic-* and x-claude-code-* headers",
        expected: "passed",
        judge: |bench| Box::pin(unknown_headers(bench)),
    },
    Point {
        number: 6,
        title: "x-stainless-*, x-app, user-agent",
        expected: "passed",
        judge: |bench| Box::pin(client_headers(bench)),
    },
    Point {
        number: 7,
        title: "custom headers",
        expected: "passed verbatim",
        judge: |bench| Box::pin(custom_headers(bench)),
    },
    Point {
        number: 8,
        title: "hop-by-hop headers, and those that Connection names",
        expected: "gone",
        judge: |bench| Box::pin(hop_by_hop(bench)),
    },
    Point { number: 9, title: "Host", expected: "the upstream's own", judge: |bench| Box::pin(host(bench)) },
    Point {
        number: 10,
        title: "Content-Length",
        expected: "kept, and no chunks instead",
        judge: |bench| Box::pin(length(bench)),
    },
    Point {
        number: 11,
        title: "a chunked request",
        expected: "accepted, body intact",
        judge: |bench| Box::pin(chunked(bench)),
    },
    Point {
        number: 12,
        title: "a path in the provider's base URL",
        expected: "put in front of the client's",
        judge: |bench| Box::pin(prefix(bench)),
    },
    Point { number: 13, title: "a multipart upload", expected: "unchanged", judge: |bench| Box::pin(upload(bench)) },
    Point {
        number: 14,
        title: "role \"system\" among the messages, unknown keys",
        expected: "accepted, passed unchanged",
        judge: |bench| Box::pin(unknown_keys(bench)),
    },
];

async fn path_and_query(bench: &Bench) -> Seen {
    let targets = ["/v1/messages?beta=true", "/v1/messages?beta=true&x=%2F%20a+b&&y", "/v1/messages"];
    for target in targets {
        let received = bench.arrives(&bench.ask_for("one").to(target)).await?;
        ensure(received.target == target, || format!("{target} became {}", received.target))?;
    }
    Ok(format!("{} targets, equal", targets.len()))
}

async fn body(bench: &Bench) -> Seen {
    let model = bench.model("one");
    let asks = [
        shapes::claude_code(&model, true),
        shapes::claude_code_old(&model),
        shapes::subagent(&model),
        shapes::title(&model),
        shapes::python(&model),
        shapes::typescript(&model),
        shapes::count_tokens(&model, 83),
        shapes::count_tokens(&model, 30_000),
        // White space and escapes are the client's own business.
        shapes::python(&model).body(format!(
            "{{ \"messages\" : [ ],\r\n\t\"model\":\"{model}\" ,\"stream\":true,\"n\":1.0e+2,\"u\":\"\\u00e9\\/é\" }}\n"
        )),
    ];
    for ask in &asks {
        let received = bench.arrives(&bench.keyed(ask.clone())).await?;
        ensure(received.body == ask.body, || {
            format!(
                "{} bytes of {} became {}",
                ask.body.len(),
                ask.field("user-agent").unwrap_or_default(),
                received.body.len()
            )
        })?;
    }
    Ok(format!("{} bodies of 83 to 76,335 bytes, equal", asks.len()))
}

async fn betas(bench: &Bench) -> Seen {
    let lists =
        [shapes::BETAS, "token-counting-2024-11-01", "a-2099-01-01,  b ,c", "oauth-2025-04-20,files-api-2025-04-14"];
    for list in lists {
        let received = bench.arrives(&bench.ask_for("one").set("anthropic-beta", list)).await?;
        let found = received.headers_named("anthropic-beta");
        ensure(found == [list], || format!("{list:?} became {found:?}"))?;
    }
    Ok(format!("{} lists, equal", lists.len()))
}

async fn versions(bench: &Bench) -> Seen {
    for version in ["2023-06-01", "2026-10-21"] {
        let received = bench.arrives(&bench.ask_for("one").set("anthropic-version", version)).await?;
        let found = received.headers_named("anthropic-version");
        ensure(found == [version], || format!("{version} became {found:?}"))?;
    }
    let received = bench.arrives(&bench.ask_for("one").without("anthropic-version")).await?;
    let found = received.headers_named("anthropic-version");
    ensure(found.is_empty(), || format!("none became {found:?}"))?;
    Ok("both pass, and none is made up".into())
}

/// Sends these fields beside the usual ones and looks for them upstream.
async fn pass(bench: &Bench, fields: &[(&str, &str)]) -> Seen {
    let ask = fields.iter().fold(bench.ask_for("one"), |ask, (name, value)| ask.set(name, value));
    let received = bench.arrives(&ask).await?;
    for (name, value) in fields {
        let found = received.headers_named(name);
        ensure(found == [*value], || format!("{name}: {value} became {found:?}"))?;
    }
    Ok(format!("{} headers, equal", fields.len()))
}

async fn unknown_headers(bench: &Bench) -> Seen {
    let fields = [
        ("anthropic-workspace-id", "wrkspc_1"),
        ("anthropic-of-the-future", "a, b;c=\"d\""),
        ("anthropic-dangerous-direct-browser-access", "true"),
        ("x-claude-code-session-id", shapes::SESSION),
        ("x-claude-code-agent-id", "a8bc354b8e384af94"),
        ("x-claude-code-parent-agent-id", "a00000000000000001"),
        ("x-claude-code-of-the-future", "1"),
    ];
    pass(bench, &fields).await
}

async fn client_headers(bench: &Bench) -> Seen {
    let fields = [
        ("User-Agent", "claude-cli/2.1.331 (external, sdk-cli)"),
        ("x-app", "cli"),
        ("X-Stainless-Retry-Count", "0"),
        ("X-Stainless-Timeout", "600"),
        ("X-Stainless-Helper-Method", "stream"),
        ("X-Stainless-Of-The-Future", "1"),
        ("Accept", "application/json"),
    ];
    pass(bench, &fields).await
}

async fn custom_headers(bench: &Bench) -> Seen {
    pass(bench, &[("X-Custom-Header", "verbatim, \"of the user\"; a=1"), ("X-Team", "blue")]).await
}

async fn hop_by_hop(bench: &Bench) -> Seen {
    let ask = bench
        .ask_for("one")
        .set("Connection", "keep-alive, X-Private")
        .with("X-Private", "hop")
        .with("Keep-Alive", "timeout=5")
        .with("Proxy-Connection", "keep-alive")
        .with("Proxy-Authorization", "Basic aG9wOmhvcA==")
        .with("TE", "trailers");
    let received = bench.arrives(&ask).await?;
    let gone = ["x-private", "keep-alive", "proxy-connection", "proxy-authorization", "te", "upgrade"];
    let left: Vec<_> = gone.into_iter().filter(|name| received.header(name).is_some()).collect();
    ensure(left.is_empty(), || format!("still there: {}", left.join(", ")))?;
    let named = received.headers_named("connection").join(", ").to_ascii_lowercase();
    ensure(!named.contains("x-private"), || format!("connection: {named}"))?;
    Ok("all gone".into())
}

async fn host(bench: &Bench) -> Seen {
    let received = bench.arrives(&bench.ask_for("one")).await?;
    let port = bench.first.address().port();
    let wanted = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    let found = received.headers_named("host").join(", ");
    ensure(wanted.contains(&found), || format!("{found}, the upstream being {}", bench.first.address()))?;
    Ok(found)
}

async fn length(bench: &Bench) -> Seen {
    let ask = bench.ask_for("one");
    let received = bench.arrives(&ask).await?;
    let (length, coding) = (received.headers_named("content-length"), received.header("transfer-encoding"));
    ensure(length == [ask.body.len().to_string()] && coding.is_none(), || {
        format!("content-length {length:?}, transfer-encoding {coding:?}")
    })?;
    Ok(format!("content-length: {}", ask.body.len()))
}

async fn chunked(bench: &Bench) -> Seen {
    let ask = bench.ask_for("one").chunked();
    let received = bench.arrives(&ask).await?;
    ensure(received.body == ask.body, || format!("{} bytes became {}", ask.body.len(), received.body.len()))?;
    Ok(format!("{} bytes in chunks, equal", ask.body.len()))
}

async fn prefix(bench: &Bench) -> Seen {
    bench.needs_scenes("an upstream with a path in its base URL")?;
    let ask = bench.ask_for("prefix");
    let received = bench.arrives(&ask).await?;
    ensure(received.target == format!("/pre/fix{}", ask.target), || received.target.clone())?;
    Ok(received.target)
}

async fn upload(bench: &Bench) -> Seen {
    let ask = bench.keyed(shapes::upload());
    let received = bench.arrives(&ask).await?;
    ensure(received.body == ask.body, || format!("{} bytes became {}", ask.body.len(), received.body.len()))?;
    let kind = received.header("content-type");
    ensure(kind == ask.field("content-type"), || format!("content-type {kind:?}"))?;
    Ok(format!("{} bytes and their boundary, equal", ask.body.len()))
}

async fn unknown_keys(bench: &Bench) -> Seen {
    let model = bench.model("one");
    let body = format!(
        concat!(
            r#"{{"of_the_future":{{"nested":[1,null,true,-0.0,1e300]}},"model":"{}","max_tokens":64,"messages":["#,
            r#"{{"role":"user","content":"hello"}},{{"role":"system","content":"a word in the middle"}},"#,
            r#"{{"role":"of-the-future","content":[{{"type":"of_the_future","data":"x"}}]}}],"#,
            r#""safeguards":{{"mode":"of the future"}},"stream":false}}"#
        ),
        model
    );
    let ask = bench.ask_for("one").body(body);
    let received = bench.arrives(&ask).await?;
    ensure(received.body == ask.body, || "the body was changed".into())?;
    Ok("200, body equal".into())
}
