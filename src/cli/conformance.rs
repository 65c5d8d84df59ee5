//! `conformance`: judges a gateway by the checklist of the public gateway contract. Scripted providers are the upstream
//! that the gateway must be pointed at; our own program is started and pointed there by itself.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::child::{EMAIL, Own};
use super::{CANNOT_BIND, INTERNAL, UNUSABLE, check, complain, say, until_end};
use crate::conformance::{self, Ask, Bench, CANARY, Gateway, Setup};
use crate::lab::{Authority, Lab};

/// How long somebody has to point the gateway at the labs.
const SETTLE: Duration = Duration::from_secs(120);
const AGAIN: Duration = Duration::from_millis(500);
/// The environment variable that holds the key of a gateway that wants one.
const KEY: &str = "CONFORMANCE_KEY";

/// What `conformance` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The gateway, as clients would be given it in ANTHROPIC_BASE_URL; http:// only
    #[arg(long, value_name = "URL", required_unless_present = "own", conflicts_with = "own")]
    target: Option<String>,
    /// Start and judge this very program
    #[arg(long = "self")]
    own: bool,
    /// The port of the upstream that the gateway is pointed at; a second one listens on the next port. Default: free ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..65535))]
    upstream_port: Option<u16>,
    /// The gateway knows the second upstream, too, and asks it where the first fails
    #[arg(long, conflicts_with = "own")]
    failover: bool,
    /// Judge only these points (1 to 60)
    #[arg(long, value_name = "NUMBER", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=60))]
    only: Vec<u8>,
    /// For people, or for programs
    #[arg(long, value_enum, default_value = "human")]
    format: check::Format,
}

/// Exit status 0 = no point failed, 1 = some did.
pub(super) async fn run(args: Args) -> ExitCode {
    let ended = tokio::select! {
        ended = Box::pin(judged(&args)) => ended,
        () = until_end() => return ExitCode::from(1),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Trouble { status, what }) => {
            complain(&what);
            ExitCode::from(status)
        }
    }
}

/// Why there was nothing to judge.
struct Trouble {
    status: u8,
    what: String,
}

fn trouble(status: u8) -> impl FnOnce(io::Error) -> Trouble {
    move |error| Trouble { status, what: error.to_string() }
}

async fn judged(args: &Args) -> Result<bool, Trouble> {
    let (first, second) = labs(args.upstream_port).await.map_err(trouble(CANNOT_BIND))?;
    let authority = Authority::start().await.map_err(trouble(CANNOT_BIND))?;
    authority.prefix(CANARY);
    let human = args.format == check::Format::Human;
    // For programs, standard output holds the report alone.
    let tell: fn(&str) = if human { say } else { complain };
    let (own, url, setup);
    match &args.target {
        None => {
            let started = Own::start(&first, &second, &authority).await.map_err(trouble(INTERNAL))?;
            let log = started.log();
            url = started.url.clone();
            tell(&format!("judging this program at {url}, in front of {} and {}", first.url(), second.url()));
            let log: std::sync::Arc<dyn Fn() -> String + Send + Sync> = std::sync::Arc::new(move || log.text());
            setup = Setup { scenes: true, failover: true, key: None, log: Some(log) };
            own = Some(started);
        }
        Some(target) => {
            own = None;
            url = target.clone();
            let key = std::env::var(KEY).ok().filter(|key| !key.is_empty());
            setup = Setup { scenes: false, failover: args.failover, key, log: None };
        }
    }
    let gateway = gateway(&url).map_err(|what| Trouble { status: UNUSABLE, what })?;
    let bench = Bench::new(gateway, first, second, setup);
    if own.is_some() {
        sign_in(&bench, &authority).await.map_err(|what| Trouble { status: INTERNAL, what })?;
    } else {
        tell(&directions(&bench, &url));
        reachable(&bench).await.map_err(|what| Trouble { status: CANNOT_BIND, what })?;
    }
    let report = conformance::judge(&bench, &args.only, |finding| {
        if human {
            say(&finding.line());
        }
    })
    .await;
    if human {
        say(&report.summary());
    } else {
        say(&report.json(&url).to_string());
    }
    drop(own);
    Ok(report.good())
}

/// The two upstreams, on neighbouring ports where one is given.
async fn labs(port: Option<u16>) -> io::Result<(Lab, Lab)> {
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let first = Lab::start_on(at(port.unwrap_or(0)), None).await?;
    let second = Lab::start_on(at(port.map_or(0, |port| port.saturating_add(1))), None).await?;
    Ok((first, second))
}

/// What must be configured before anything can be judged.
fn directions(bench: &Bench, url: &str) -> String {
    let (first, second) = (bench.first.url(), bench.second.url());
    let second = if bench.setup.failover {
        format!("and, for where that fails: {second}")
    } else {
        format!("(a gateway that fails over may be given {second} as its second; then say --failover)")
    };
    format!("judging {url}: its upstream, the base URL of its provider, must be {first}\n{second}")
}

/// Waits until a request comes through to the first lab.
async fn reachable(bench: &Bench) -> Result<(), String> {
    let reached = async {
        while !timeout(AGAIN * 4, bench.reached()).await.unwrap_or(false) {
            sleep(AGAIN).await;
        }
    };
    timeout(SETTLE, reached).await.map_err(|_| {
        format!(
            "no request came through to {} within {} s; a gateway that wants a key gets ${KEY}",
            bench.first.url(),
            SETTLE.as_secs()
        )
    })
}

/// Address and prefix of a URL.
fn gateway(url: &str) -> Result<Gateway, String> {
    let wrong = || format!("not the URL of a gateway: {url} (http://HOST:PORT, as in ANTHROPIC_BASE_URL)");
    let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let with_port = if host.rsplit(']').next().is_some_and(|end| end.contains(':')) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let address = with_port.to_socket_addrs().ok().and_then(|mut addresses| addresses.next()).ok_or_else(wrong)?;
    let path = path.trim_end_matches('/');
    let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
    Ok(Gateway { address, host: host.to_owned(), prefix })
}

/// Signs the account of the scenes in, as a human would.
async fn sign_in(bench: &Bench, authority: &Authority) -> Result<(), String> {
    let ask = |ask: Ask| async move {
        let reply = bench.once(&ask).await.map_err(|error| error.to_string())?;
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        if reply.status == 200 { Ok(body) } else { Err(format!("signing in: {}", reply.text())) }
    };
    let begun = ask(Ask::new("GET", &format!("/oauth/generate-url?account_email={EMAIL}"), "")).await?;
    let link = begun.get("authorization_url").and_then(Value::as_str).unwrap_or_default();
    let body = json!({ "code": authority.sign_in(link, EMAIL), "account_email": EMAIL }).to_string();
    ask(Ask::new("POST", "/oauth/exchange-code", body).with("Content-Type", "application/json")).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_as_clients_take_them() {
        let place = |url| gateway(url).map(|gateway| (gateway.address.to_string(), gateway.host, gateway.prefix));
        let wanted = |host: &str, prefix: &str| Ok(("127.0.0.1:9090".to_owned(), host.to_owned(), prefix.to_owned()));
        assert_eq!(place("http://127.0.0.1:9090"), wanted("127.0.0.1:9090", ""));
        assert_eq!(place("http://127.0.0.1:9090/"), wanted("127.0.0.1:9090", ""));
        assert_eq!(place("http://127.0.0.1:9090/pre/fix/"), wanted("127.0.0.1:9090", "/pre/fix"));
        assert_eq!(gateway("http://127.0.0.1").expect("a URL").address.port(), 80);
        for wrong in ["127.0.0.1:9090", "https://127.0.0.1:9090", "http://", "http://127.0.0.1:x"] {
            assert!(gateway(wrong).is_err(), "{wrong}");
        }
    }
}
