//! Points 15 to 22: one credential goes upstream, the right one, and to nobody else.

use super::bench::Bench;
use super::scene::CANARY;
use super::shapes::{client_key, client_token, discovery, probes};
use super::{Point, Seen, ensure, failed, not_applicable};
use crate::lab::{Received, Script};

pub(super) const POINTS: [Point; 8] = [
    Point {
        number: 15,
        title: "the client's x-api-key and Authorization",
        expected: "both removed where the gateway has a credential of its own",
        judge: |bench| Box::pin(both_removed(bench)),
    },
    Point {
        number: 16,
        title: "an upstream with x-api-key",
        expected: "gets x-api-key only",
        judge: |bench| Box::pin(key_only(bench)),
    },
    Point {
        number: 17,
        title: "an upstream with Bearer",
        expected: "gets Bearer only",
        judge: |bench| Box::pin(bearer_only(bench)),
    },
    Point {
        number: 18,
        title: "the oauth beta, for an account",
        expected: "added once, none of the client's lost",
        judge: |bench| Box::pin(oauth_beta(bench)),
    },
    Point {
        number: 19,
        title: "passing the client's credential through",
        expected: "left alone: Bearer, x-api-key, both",
        judge: |bench| Box::pin(passed_through(bench)),
    },
    Point {
        number: 20,
        title: "secrets in answers, logs and metrics",
        expected: "none, in all of this run",
        judge: |bench| Box::pin(secrecy(bench)),
    },
    Point {
        number: 21,
        title: "one upstream's credential at another",
        expected: "never, on failover",
        judge: |bench| Box::pin(no_crossing(bench)),
    },
    Point {
        number: 22,
        title: "HEAD probes without a credential",
        expected: "200 for / and /api/hello",
        judge: |bench| Box::pin(head_probes(bench)),
    },
];

/// The credentials of a request as it arrived.
struct Arrived {
    keys: Vec<String>,
    authorizations: Vec<String>,
}

impl Arrived {
    fn of(received: &Received) -> Self {
        let all = |name: &str| received.headers_named(name).into_iter().map(str::to_owned).collect();
        Self { keys: all("x-api-key"), authorizations: all("authorization") }
    }

    /// Whether anything of the client's own is among them.
    fn clients(&self, bench: &Bench) -> bool {
        let clients = [client_key(), client_token()];
        let of_client = |value: &String| clients.iter().any(|secret| value.contains(secret.as_str()));
        let opens = |value: &String| bench.setup.key.as_ref().is_some_and(|key| value.contains(key.as_str()));
        self.keys.iter().chain(&self.authorizations).any(|value| of_client(value) || opens(value))
    }

    /// How many, and where; never the values.
    fn brief(&self) -> String {
        format!("{} x-api-key, {} authorization", self.keys.len(), self.authorizations.len())
    }
}

/// What arrives of a request that brings both.
async fn of_both(bench: &Bench, scene: &str) -> Result<Arrived, super::Fault> {
    let ask = bench.keyed(bench.ask_for(scene).with("X-Api-Key", &client_key()));
    Ok(Arrived::of(&bench.arrives(&ask).await?))
}

async fn both_removed(bench: &Bench) -> Seen {
    let arrived = of_both(bench, "one").await?;
    let count = arrived.keys.len() + arrived.authorizations.len();
    match (arrived.clients(bench), count) {
        (false, 1) => Ok(format!("one credential, the gateway's: {}", arrived.brief())),
        (true, 2) => not_applicable("it passes the client's own credentials on and has none"),
        _ => failed(format!("{}, the client's own among them: {}", arrived.brief(), arrived.clients(bench))),
    }
}

async fn key_only(bench: &Bench) -> Seen {
    let arrived = of_both(bench, "one").await?;
    match (arrived.keys.len(), arrived.authorizations.len()) {
        _ if arrived.clients(bench) => not_applicable("it has no credential of its own"),
        (1, 0) => Ok(arrived.brief()),
        (0, 1) => not_applicable("its upstream takes Bearer"),
        _ => failed(arrived.brief()),
    }
}

async fn bearer_only(bench: &Bench) -> Seen {
    let arrived = of_both(bench, "bearer").await?;
    let bearer = arrived.authorizations.iter().all(|value| value.starts_with("Bearer "));
    match (arrived.keys.len(), arrived.authorizations.len()) {
        _ if arrived.clients(bench) => not_applicable("it has no credential of its own"),
        (0, 1) if bearer => Ok(arrived.brief()),
        (1, 0) if !bench.setup.scenes => not_applicable("its upstream takes x-api-key"),
        _ => failed(arrived.brief()),
    }
}

async fn oauth_beta(bench: &Bench) -> Seen {
    bench.needs_scenes("an account that is signed in at the gateway")?;
    const BETA: &str = "oauth-2025-04-20";
    for own in ["", "a-1,b-2", "a-1,oauth-2025-04-20,b-2"] {
        let ask = bench.ask_for("account");
        let ask = if own.is_empty() { ask.without("anthropic-beta") } else { ask.set("anthropic-beta", own) };
        let received = bench.arrives(&ask).await?;
        let found = received.headers_named("anthropic-beta").join(",");
        let names: Vec<&str> = found.split(',').map(str::trim).collect();
        let once = names.iter().filter(|name| **name == BETA).count() == 1;
        let kept = own.split(',').filter(|name| !name.is_empty()).all(|name| names.contains(&name));
        ensure(once && kept, || format!("{own:?} became {found:?}"))?;
        let arrived = Arrived::of(&received);
        ensure(arrived.keys.is_empty() && arrived.authorizations.len() == 1 && !arrived.clients(bench), || {
            arrived.brief()
        })?;
    }
    Ok("added where it is missing, kept where it is not".into())
}

async fn passed_through(bench: &Bench) -> Seen {
    let bearer = format!("Bearer {}", client_token());
    let (key, plain) = (client_key(), bench.ask_for("own").without("authorization"));
    let asks = [
        (plain.clone().with("Authorization", &bearer), vec![], vec![bearer.clone()]),
        (plain.clone().with("X-Api-Key", &key), vec![key.clone()], vec![]),
        (plain.with("Authorization", &bearer).with("X-Api-Key", &key), vec![key], vec![bearer]),
    ];
    if !bench.setup.scenes && !of_both(bench, "own").await?.clients(bench) {
        return not_applicable("it has a credential of its own and passes none on");
    }
    for (ask, keys, authorizations) in asks {
        let arrived = Arrived::of(&bench.arrives(&ask).await?);
        ensure(arrived.keys == keys && arrived.authorizations == authorizations, || {
            format!("{}, or other values", arrived.brief())
        })?;
    }
    Ok("untouched, in all three shapes".into())
}

async fn secrecy(bench: &Bench) -> Seen {
    // What may be told of itself, and an error of its own with a secret at hand.
    for path in ["/metrics", "/health", "/providers", "/oauth/status", "/nothing-here"] {
        let ask = super::Ask::new("GET", path, "").with("Authorization", &format!("Bearer {}", client_token()));
        let _ = bench.once(&ask).await;
    }
    bench.first_plays(vec![Script::close()]);
    bench.second_plays(vec![Script::close()]);
    let _ = bench.once(&bench.ask_for("secrecy")).await;
    let found = |bytes: &[u8]| memchr::memmem::find(bytes, CANARY.as_bytes()).is_some();
    let heard = bench.heard();
    ensure(!heard.iter().any(|bytes| found(bytes)), || "a secret in an answer".into())?;
    let answers = format!("none in the answers of {} connections", heard.len());
    match &bench.setup.log {
        None => Ok(format!("{answers} (its log cannot be seen from here)")),
        Some(log) => {
            let log = log();
            ensure(!found(log.as_bytes()), || "a secret in the log".into())?;
            ensure(!log.is_empty(), || "the log is empty".into())?;
            Ok(format!("{answers}, nor in {} lines of its log", log.lines().count()))
        }
    }
}

async fn no_crossing(bench: &Bench) -> Seen {
    bench.needs_second()?;
    let mark = bench.mark();
    let reply = bench.streamed("secrecy", Script::error(503, "api_error", "Scripted")).await?;
    let (first, second) = (bench.at_first(&mark), bench.at_second(&mark));
    let (Some(first), Some(second)) = (first.first(), second.first()) else {
        return failed(format!("no failover: {}", reply.brief()));
    };
    let (first, second) = (Arrived::of(first), Arrived::of(second));
    if first.clients(bench) {
        return not_applicable("it passes the client's own credential on and has none");
    }
    let crossed = first.keys.iter().chain(&first.authorizations).any(|one| {
        let bare = one.trim_start_matches("Bearer ");
        second.keys.iter().chain(&second.authorizations).any(|other| other.contains(bare))
    });
    ensure(!crossed && !second.clients(bench), || "the first's, or the client's, at the second".into())?;
    Ok(format!("the second got its own: {}", second.brief()))
}

async fn head_probes(bench: &Bench) -> Seen {
    for probe in probes() {
        let reply = bench.once(&probe).await?;
        ensure(reply.status == 200 && reply.body.is_empty(), || {
            format!("HEAD {} was answered with {}", probe.target, reply.status)
        })?;
    }
    let reply = bench.once(&bench.keyed(discovery())).await?;
    ensure(reply.status == 200, || format!("model discovery: {}", reply.brief()))?;
    Ok("200 for both; model discovery is answered, too".into())
}
