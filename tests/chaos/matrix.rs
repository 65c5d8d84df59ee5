//! F1, the matrix: requests in numbers against providers that fail in 24 ways, every one of them accounted for by the
//! client, by the providers, and by the balancer's own counters.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use claude_code_balancer::health::Policy;
use claude_code_balancer::lab::{Lab, Script, closed_port};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::fault::{Case, Expected, Fault};
use super::report::{Ends, Report, number};
use super::support::balancer::{Balancer, JSON};
use super::support::{Client, Head, Reply, sse, tls};

const CONCURRENCY: u64 = 32;
/// No request may take longer.
const HANG: Duration = Duration::from_secs(20);
const PROVIDERS: [&str; 3] = ["A", "B", "C"];
/// Ways to the first two providers: to the provider, to a port that refuses, to a certificate of nobody.
const WAYS: [char; 3] = ['n', 'r', 't'];

/// A request that arrived at a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Visit {
    provider: usize,
    reused: bool,
}

/// What the providers of one seed have seen.
#[derive(Default)]
struct Seen {
    visits: Mutex<HashMap<u64, Vec<Visit>>>,
    /// Clients that want to know when their request has arrived where it will get no answer.
    waiting: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    /// Requests that were not what their number says.
    strange: Mutex<Vec<String>>,
}

/// How one request ended, as its client sees it.
#[derive(Debug)]
enum End {
    Answered { reply: Reply, provider: Option<usize>, attempts: usize },
    Left { provider: Option<usize> },
    Hung,
    Lost(#[expect(dead_code, reason = "told with a broken invariant")] std::io::ErrorKind),
}

pub async fn run(n: u64, seeds: u64, first: u64) -> Report {
    let mut report = Report::new("matrix", format!("{n} requests, {seeds} seeds"));
    let mut totals = Totals::default();
    for seed in first..first + seeds {
        one_seed(n, seed, &mut report, &mut totals).await;
    }
    let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole.max(1) as f64;
    report.figure("answered in spite of a fault before the commit point, %", percent(totals.saved, totals.early));
    report.figure("failed over", totals.failovers);
    report.figure("stale connections retried", totals.stale);
    report.figure("replays after send", totals.replays);
    report.figure("faults played", totals.played.values().sum::<u64>());
    let names = |map: &BTreeMap<Fault, u64>| -> Value {
        map.iter()
            .map(|(fault, count)| (format!("{fault:?}"), Value::from(*count)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    report.figure("faults played by kind", names(&totals.played));
    report.figure("sent again though it may have been billed, % of all", percent(totals.replays, report.requests));
    report.figure("dup_by_class", names(&totals.again));
    report.done()
}

#[derive(Default)]
struct Totals {
    early: u64,
    saved: u64,
    failovers: u64,
    stale: u64,
    replays: u64,
    played: BTreeMap<Fault, u64>,
    again: BTreeMap<Fault, u64>,
}

/// The way to a provider in a case.
fn way(case: Case, provider: usize) -> char {
    match case.fault(provider) {
        Some(Fault::Refused) => 'r',
        Some(Fault::Tls) => 't',
        _ => 'n',
    }
}

fn model(case: Case) -> String {
    format!("chaos-{}-{}-{}-{}", way(case, 0), way(case, 1), case.seed, case.number)
}

fn configuration(labs: &[Lab], closed: &str, tls: &str) -> String {
    let mut yaml = String::from("providers:\n");
    let mut entry = |name: &str, url: &str| {
        writeln!(yaml, "  - {{ name: \"{name}\", base_url: \"{url}\", auth_value: \"key-{name}\" }}").unwrap();
    };
    for (lab, name) in labs.iter().zip(PROVIDERS) {
        entry(&format!("{name} n"), &lab.url());
    }
    for name in &PROVIDERS[..2] {
        entry(&format!("{name} r"), closed);
        entry(&format!("{name} t"), tls);
    }
    yaml.push_str("model_routes:\n");
    for a in WAYS {
        for b in WAYS {
            writeln!(yaml, "  \"chaos-{a}-{b}-*\":").unwrap();
            for (priority, target) in [format!("A {a}"), format!("B {b}"), "C n".to_owned()].iter().enumerate() {
                writeln!(yaml, "    - {{ provider: \"{target}\", priority: {} }}", priority + 1).unwrap();
            }
        }
    }
    // No cooldown after failures, and stalls that take a moment instead of minutes.
    yaml.push_str(
        "settings:\n  log_file_path: \"\"\n  failure_cooldown: 0\n  timeouts:\n    first_byte_stream: \"800ms\"\n    \
         first_byte: \"800ms\"\n    idle: \"1s\"\n",
    );
    yaml
}

fn obey(lab: &Lab, provider: usize, seed: u64, seen: &Arc<Seen>) {
    lab.remember(false);
    let seen = seen.clone();
    let served = Mutex::new(HashSet::new());
    lab.answer(move |request| {
        let reused = !served.lock().unwrap().insert(request.connection);
        let body = request.json();
        let number = body["model"].as_str().and_then(|model| model.rsplit('-').next()?.parse().ok());
        let Some(number) = number else {
            seen.strange.lock().unwrap().push(format!("{body}"));
            return Script::error(500, "api_error", "who is this?");
        };
        let case = Case::new(seed, number);
        let mine = body["messages"][0]["content"] == case.prompt()
            && body["stream"] == case.stream
            && request.header("x-api-key") == Some(&format!("key-{} n", PROVIDERS[provider]));
        if !mine {
            seen.strange.lock().unwrap().push(format!("{number} at {provider}: {body}"));
        }
        seen.visits.lock().unwrap().entry(number).or_default().push(Visit { provider, reused });
        if case.fault(provider) == Some(Fault::ClientLeaves)
            && case.leaves_after() == 0
            && let Some(waiting) = seen.waiting.lock().unwrap().remove(&number)
        {
            let _ = waiting.send(());
        }
        case.script(provider, reused)
    });
}

async fn one_seed(n: u64, seed: u64, report: &mut Report, totals: &mut Totals) {
    let seen = Arc::new(Seen::default());
    let mut labs = Vec::new();
    for provider in 0..PROVIDERS.len() {
        let lab = Lab::start().await.unwrap();
        obey(&lab, provider, seed, &seen);
        labs.push(lab);
    }
    let stranger = Lab::start_tls(tls::Authority::unknown()).await.unwrap();
    let closed = format!("http://{}", closed_port().unwrap());
    let balancer = Arc::new(Balancer::start(&configuration(&labs, &closed, &stranger.url())).await);
    let next = Arc::new(AtomicU64::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..CONCURRENCY {
        let (balancer, next, seen) = (balancer.clone(), next.clone(), seen.clone());
        workers.spawn(async move {
            let (mut ends, mut client) = (Vec::new(), None);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= n {
                    return ends;
                }
                // What providers said of limits, keys and load is forgotten, or nobody would ask them again for long.
                let policy = Policy { failure_cooldown: Duration::ZERO, ..Policy::default() };
                balancer.app.proxy.health.retain(policy, &[]);
                let case = Case::new(seed, number);
                let end = timeout(HANG, one(&balancer, &seen, case, &mut client)).await;
                if end.is_err() {
                    client = None;
                }
                ends.push((case, end.unwrap_or(End::Hung)));
            }
        });
    }
    let ends = workers.join_all().await.concat_all();
    balancer.inflight(0).await;
    let metrics = balancer.fetch("GET", "/metrics", &[], "").await.text();

    let mut counted = Ends::default();
    let visits = seen.visits.lock().unwrap();
    for (case, end) in &ends {
        let visits = visits.get(&case.number).map(Vec::as_slice).unwrap_or_default();
        judge(*case, end, visits, report, totals, &mut counted);
    }
    let told = Ends::of_metrics(&metrics);
    report.check("every request has exactly one end", ends.len() as u64 == n && counted.sum() == n, || {
        format!("seed {seed}: {counted:?} of {n}")
    });
    report.check("the balancer counts the same ends", told == counted, || {
        format!("seed {seed}: the balancer says {told:?}, the clients {counted:?}")
    });
    let strange = seen.strange.lock().unwrap();
    report.check("providers get what was sent", strange.is_empty(), || format!("seed {seed}: {}", strange[0]));
    let complaints: Vec<String> = labs.iter().flat_map(Lab::complaints).collect();
    report
        .check("providers get nothing malformed", complaints.is_empty(), || format!("seed {seed}: {}", complaints[0]));
    totals.replays += number(&metrics, "balancer_replays_after_send_total");
    totals.failovers += number(&metrics, "balancer_failovers_total");
    report.requests += n;
    report.ends.add(counted);
}

trait ConcatAll<T> {
    fn concat_all(self) -> Vec<T>;
}

impl<T> ConcatAll<T> for Vec<Vec<T>> {
    fn concat_all(self) -> Vec<T> {
        self.into_iter().flatten().collect()
    }
}

/// Sends one request, on the connection that is there, and follows it to its end.
async fn one(balancer: &Balancer, seen: &Seen, case: Case, client: &mut Option<Client>) -> End {
    match try_one(balancer, seen, case, client).await {
        Ok(end) => end,
        Err(error) => {
            *client = None;
            End::Lost(error.kind())
        }
    }
}

async fn try_one(balancer: &Balancer, seen: &Seen, case: Case, kept: &mut Option<Client>) -> std::io::Result<End> {
    let mut client = match kept.take() {
        Some(client) => client,
        None => Client::connect(balancer.address).await?,
    };
    let (sender, arrived) = oneshot::channel();
    seen.waiting.lock().unwrap().insert(case.number, sender);
    let body = serde_json::json!({
        "model": model(case), "max_tokens": 16, "stream": case.stream,
        "messages": [{ "role": "user", "content": case.prompt() }],
    });
    let host = balancer.address.to_string();
    client.send("POST", "/v1/messages", &[("host", &host), JSON], body.to_string()).await?;
    let head = tokio::select! {
        head = client.head() => head?,
        Ok(()) = arrived => return Ok(End::Left { provider: None }),
    };
    seen.waiting.lock().unwrap().remove(&case.number);
    let provider = answerer(&head);
    if let Some(provider) = provider
        && case.expected(provider) == Expected::Left
    {
        if case.leaves_after() > 1 {
            let mut text = Vec::new();
            while !sse::names(&text).iter().any(|name| name == "content_block_delta") {
                let Some(frame) = client.frame().await else { break };
                text.extend_from_slice(&frame);
            }
        }
        return Ok(End::Left { provider: Some(provider) });
    }
    let (body, clean_end) = client.rest().await;
    let attempts = head.header("x-balancer-attempts").and_then(|attempts| attempts.parse().ok()).unwrap_or(0);
    if clean_end && head.header("connection") != Some("close") {
        *kept = Some(client);
    }
    Ok(End::Answered {
        reply: Reply { status: head.status, headers: head.headers, body, clean_end },
        provider,
        attempts,
    })
}

fn answerer(head: &Head) -> Option<usize> {
    let name = head.header("x-provider-used")?;
    PROVIDERS.iter().position(|provider| name.starts_with(provider))
}

/// Whether an answer is what its provider should have made of the case.
fn is_right(case: Case, provider: usize, reply: &Reply) -> bool {
    let script = case.script(provider, false);
    match case.expected(provider) {
        Expected::Whole | Expected::OwnError => {
            (reply.status, &reply.body) == (200, &script.body_bytes()) && reply.clean_end
        }
        Expected::ClientError => (reply.status, &reply.body) == (400, &script.body_bytes()) && reply.clean_end,
        Expected::BrokenOff => {
            let whole = sse::events(&script.body_bytes());
            let mut got = sse::events(&reply.body);
            let last = got.pop();
            let real = |events: Vec<sse::Event>| events.into_iter().filter(|event| event.event != "ping").collect();
            let (whole, got): (Vec<_>, Vec<_>) = (real(whole), real(got));
            reply.status == 200
                && reply.clean_end
                && last.is_some_and(|last| last.event == "error" && last.data.contains("\"type\":\"error\""))
                && whole.starts_with(&got)
        }
        Expected::Left | Expected::Nothing => false,
    }
}

fn judge(case: Case, end: &End, visits: &[Visit], report: &mut Report, totals: &mut Totals, counted: &mut Ends) {
    let tell =
        || format!("seed {} request {}: {end:?} after {visits:?}; faults {:?}", case.seed, case.number, faults(case));
    report.check("no request hangs", !matches!(end, End::Hung), tell);
    report.check("no connection is lost", !matches!(end, End::Lost(_)), tell);

    // At most once at each provider, and once more where a reused connection was dead.
    for provider in 0..PROVIDERS.len() {
        let here: Vec<&Visit> = visits.iter().filter(|visit| visit.provider == provider).collect();
        let stale = here.len() == 2
            && here[0].reused
            && matches!(case.fault(provider), Some(Fault::Stale | Fault::Reset))
            && !here[1].reused;
        totals.stale += u64::from(stale);
        report.check("one attempt for each target, and one stale retry", here.len() <= 1 || stale, tell);
        if let (Some(fault), false) = (case.fault(provider), here.is_empty()) {
            *totals.played.entry(fault).or_default() += 1;
            if visits.last().is_some_and(|last| last.provider != provider)
                && visits.iter().position(|visit| visit.provider == provider)
                    < visits.iter().rposition(|v| v.provider != provider)
            {
                *totals.again.entry(fault).or_default() += 1;
                let content = case.stream && matches!(fault, Fault::ErrorAfterStart | Fault::CutLate | Fault::Silence);
                report.check(
                    "nothing is sent twice after a 400 or after content",
                    fault != Fault::BadRequest && !content,
                    tell,
                );
                report.check(
                    "only faults before the commit point are tried elsewhere",
                    before_commit(case, provider),
                    tell,
                );
            }
        }
    }
    for provider in 0..2 {
        if let Some(fault @ (Fault::Refused | Fault::Tls)) = case.fault(provider) {
            *totals.played.entry(fault).or_default() += 1;
        }
    }
    match end {
        End::Left { provider } => {
            counted.cancelled += 1;
            let last = visits.last().map(|visit| visit.provider);
            report.check(
                "nothing is sent again after the client has left",
                provider.is_none_or(|p| last == Some(p)),
                tell,
            );
        }
        End::Answered { reply, provider, attempts } => {
            answered(case, reply, *provider, *attempts, visits, report, totals, counted, &tell);
        }
        End::Hung | End::Lost(_) => {}
    }
}

#[expect(clippy::too_many_arguments, reason = "the facts of one answer, used once")]
fn answered(
    case: Case,
    reply: &Reply,
    provider: Option<usize>,
    attempts: usize,
    visits: &[Visit],
    report: &mut Report,
    totals: &mut Totals,
    counted: &mut Ends,
    tell: &dyn Fn() -> String,
) {
    let names = sse::names(&reply.body);
    let own_end = names.iter().any(|name| name == "error" || name == "message_stop");
    match reply.status {
        500.. => counted.upstream_error += 1,
        400..500 => counted.client_error += 1,
        _ if names.iter().any(|name| name == "error") => counted.upstream_error += 1,
        _ => counted.ok += 1,
    }
    let whole = !case.stream || own_end || reply.status >= 400 || reply.header("content-encoding").is_some();
    report.check("no truncation in silence", whole && reply.clean_end, tell);
    // The third provider is well, so somebody must have answered.
    totals.early += u64::from(attempts > 1);
    totals.saved += u64::from(attempts > 1 && provider.is_some());
    report.check("a healthy provider answers in place of a failing one", provider.is_some(), tell);
    let Some(provider) = provider else { return };
    report.check("every answer is its request's own, to the byte", is_right(case, provider, reply), tell);

    let mut asked: Vec<usize> = visits.iter().map(|visit| visit.provider).collect();
    asked.sort_unstable();
    asked.dedup();
    let unseen = (0..2).filter(|provider| way(case, *provider) != 'n').count();
    let fits = asked.len() <= attempts && attempts <= (asked.len() + unseen).min(PROVIDERS.len());
    report.check("the attempts that are told are those that were made", fits, tell);
    let last = visits.last().map(|visit| visit.provider);
    report.check("nothing is sent again after the commit point", last == Some(provider), tell);
}

fn before_commit(case: Case, provider: usize) -> bool {
    // A client that has not left yet when the head is due is served by the next one.
    case.expected(provider) == Expected::Nothing
}

fn faults(case: Case) -> Vec<Option<Fault>> {
    (0..PROVIDERS.len()).map(|provider| case.fault(provider)).collect()
}
