//! F13, the storm: everything is overloaded, and clients try again and again. The balancer must not multiply them, must
//! serve at once when the providers are back, and must let one request at a time find out whether a provider is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use claude_code_balancer::health::Policy;
use claude_code_balancer::lab::{Gate, Lab, Script};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::report::{Ends, Report, number};
use super::support::balancer::Balancer;
use super::support::soon;

const CLIENTS: u64 = 50;
/// Tries of a client after its first; then, if the outage is to last longer, its next request begins.
const RETRIES: u32 = 10;
/// Requests of each client after the recovery.
const AFTER: u64 = 10;
/// Times that one of many requests finds out whether a provider is back.
const PROBES: usize = 20;

fn overloaded() -> Script {
    Script::error(529, "overloaded_error", "Overloaded")
}

pub async fn run(seconds: u64) -> Report {
    let mut report =
        Report::new("storm", format!("{CLIENTS} clients, {RETRIES} retries each, 529 for {} s", seconds.max(2)));
    storm(Duration::from_secs(seconds), &mut report).await;
    permits(&mut report).await;
    report.done()
}

async fn storm(outage: Duration, report: &mut Report) {
    let labs = [Lab::start().await.unwrap(), Lab::start().await.unwrap(), Lab::start().await.unwrap()];
    for lab in &labs {
        lab.remember(false);
        lab.always(overloaded());
    }
    let balancer = Arc::new(Balancer::before(&[&labs[0], &labs[1], &labs[2]], "").await);
    let asked = Arc::new(AtomicU64::new(0));
    let over = Instant::now() + outage;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (balancer, asked) = (balancer.clone(), asked.clone());
        clients.spawn(async move {
            let mut ends = Ends::default();
            loop {
                for tries in 0..=RETRIES {
                    asked.fetch_add(1, Ordering::Relaxed);
                    let reply = balancer.ask(client % 2 == 0).await;
                    ends.count(Some(reply.status));
                    // What a client does that backs off: twice as long each time.
                    tokio::time::sleep(Duration::from_millis(10 << tries.min(5))).await;
                }
                if Instant::now() >= over {
                    return ends;
                }
            }
        });
    }
    let mut ends = Ends::default();
    clients.join_all().await.into_iter().for_each(|counted| ends.add(counted));
    let (load, upstream) = (asked.load(Ordering::Relaxed), labs.iter().map(Lab::arrivals).sum::<usize>());
    let limit = load as f64 * 1.2 + 3.0;
    report.check("load on providers ≤ 1.2 × load of clients + 3", upstream as f64 <= limit, || {
        format!("{upstream} requests upstream for {load}")
    });
    report.check("nobody is told that it worked", ends.ok == 0 && ends.upstream_error == load, || format!("{ends:?}"));
    report.figure("load in the outage, upstream per client request", upstream as f64 / load.max(1) as f64);

    // Back again: what is asked now must be answered.
    for lab in &labs {
        lab.answer(Script::as_asked);
    }
    let back = Instant::now();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let balancer = balancer.clone();
        clients.spawn(async move {
            let (mut ends, mut first) = (Ends::default(), None);
            for _ in 0..AFTER {
                ends.count(Some(balancer.ask(client % 2 == 0).await.status));
                if ends.ok == 1 && first.is_none() {
                    first = Some(back.elapsed());
                }
            }
            (ends, first)
        });
    }
    let mut after = Ends::default();
    let mut slowest = Duration::ZERO;
    for (counted, first) in clients.join_all().await {
        after.add(counted);
        slowest = slowest.max(first.unwrap_or(Duration::MAX));
    }
    let share = after.ok as f64 * 100.0 / (CLIENTS * AFTER) as f64;
    report.check(
        "≥ 99 % succeed within 15 s of the recovery",
        share >= 99.0 && back.elapsed().as_secs() < 15,
        || format!("{share} % after {:?}", back.elapsed()),
    );
    report.figure("success after the recovery, %", share);
    report.figure("last client served after, ms", u64::try_from(slowest.as_millis()).unwrap_or(u64::MAX));
    balancer.inflight(0).await;
    let metrics = balancer.fetch("GET", "/metrics", &[], "").await.text();
    ends.add(after);
    report.check("the balancer counts the same ends", Ends::of_metrics(&metrics) == ends, || {
        format!("{:?} and {ends:?}", Ends::of_metrics(&metrics))
    });
    report.figure("failovers", number(&metrics, "balancer_failovers_total"));
    report.requests += ends.sum();
    report.ends.add(ends);
}

/// After a cooldown, of many requests at once one is sent to the provider that failed.
async fn permits(report: &mut Report) {
    let (failing, well) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    failing.remember(false);
    well.remember(false);
    let balancer =
        Arc::new(Balancer::before(&[&failing, &well], "unhealthy_threshold: 1\nfailure_cooldown: \"20ms\"").await);
    let policy = Policy { unhealthy_threshold: 1, failure_cooldown: Duration::from_millis(20), ..Policy::default() };
    // Begins the first cooldown.
    failing.always(Script::error(500, "api_error", "no"));
    let mut ends = Ends::default();
    ends.count(Some(balancer.ask(false).await.status));
    let mut most = 0;
    for _ in 0..PROBES {
        let gate = Gate::new();
        failing.always(Script::error(500, "api_error", "no").hold_head(gate.clone()));
        let before = failing.arrivals();
        balancer.until("the cooldown ends", "A", |entry| entry["cooldown_until"].is_null()).await;
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let balancer = balancer.clone();
            clients.spawn(async move { balancer.ask(client % 2 == 0).await.status });
        }
        // All but the one that waits at the failing provider are answered by the other.
        soon("the one that finds out", gate.reached(1)).await;
        for _ in 1..CLIENTS {
            let status = soon("the others", clients.join_next()).await.unwrap().unwrap();
            ends.count(Some(status));
        }
        let together = failing.arrivals() - before;
        most = most.max(together);
        report.check("one request at a time finds out whether a provider is back", together == 1, || {
            format!("{together} at once")
        });
        // The next cooldown shall not be longer: what is known is forgotten, and one failure begins it anew.
        failing.always(Script::error(500, "api_error", "no"));
        gate.open();
        ends.count(Some(soon("the one that found out", clients.join_next()).await.unwrap().unwrap()));
        balancer.app.proxy.health.retain(policy.clone(), &[]);
        ends.count(Some(balancer.ask(false).await.status));
    }
    report.check("nobody notices a provider that fails", ends.sum() == ends.ok, || format!("{ends:?}"));
    report.figure("most requests at once that found out", most);
    report.requests += ends.sum();
    report.ends.add(ends);
}
