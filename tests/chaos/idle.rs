//! F8, idle connections: what each of them costs the real program, and whether it is given back.

use std::time::Duration;

use claude_code_balancer::lab::Lab;
use tokio::time::Instant;

use super::process::{held_within, home, status};
use super::report::Report;
use super::support::binary::Service;
use super::support::{Client, soon};

/// KiB for one connection, also when all of them have come and gone before.
const EACH: f64 = 20.0;
/// The memory of those that have left is the system's again after so long, but for a twentieth of what all of them took
/// and what the first visitors make a program allocate once, in KiB.
const BACK: Duration = Duration::from_secs(70);
const LEFT_BEHIND: u64 = 1024;
/// Connections before anything is measured, so that what every program allocates once is not counted.
const WARM: u64 = 32;
/// All of them come and go so often.
const LOADS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn run(n: u64) -> Report {
    let mut report = Report::new("idle", format!("{n} idle connections, {LOADS} times"));
    let lab = Lab::start().await.unwrap();
    let binary = home(&[lab.url()], "");
    let (mut service, address) = binary.serve(&[]).await;
    let connect = async |n: u64, report: &mut Report| {
        let mut clients = Vec::new();
        for _ in 0..n {
            let mut client = soon("a connection", Client::connect(address)).await.unwrap();
            let host = address.to_string();
            client.send("GET", "/health", &[("host", &host)], "").await.unwrap();
            let reply = soon("an answer", client.read_to_end()).await.unwrap();
            report.requests += 1;
            report.ends.ok += u64::from(reply.status == 200);
            clients.push(client);
        }
        clients
    };
    drop(connect(WARM, &mut report).await);
    settled(&service, 0, &mut report).await;
    let descriptors = sockets(&service);
    let base = status(&service, "VmRSS");

    let began = Instant::now();
    let clients = connect(n, &mut report).await;
    let took = began.elapsed();
    let full = status(&service, "VmRSS");
    let each = full.saturating_sub(base) as f64 / n as f64;
    report.check("≤ 20 KiB for each idle connection", each <= EACH, || format!("{each:.1} KiB"));
    drop(clients);
    let back = settled(&service, descriptors, &mut report).await;
    let goal = base + full.saturating_sub(base) / 20 + LEFT_BEHIND;
    let memory_back = held_within(BACK, || status(&service, "VmRSS") <= goal).await;
    let after = status(&service, "VmRSS");
    report.check("the memory is given back", memory_back.is_some(), || format!("{after} KiB, not {goal}"));

    let mut loads = vec![full];
    for _ in 1..LOADS {
        let clients = connect(n, &mut report).await;
        loads.push(status(&service, "VmRSS"));
        drop(clients);
        settled(&service, descriptors, &mut report).await;
    }
    let last = loads[LOADS - 1];
    let again = last.saturating_sub(base) as f64 / n as f64;
    report.check("also for the fifth time, in memory that was free", again <= EACH, || {
        format!("{again:.1} KiB; {loads:?}")
    });

    report.figure("KiB for each", each);
    report.figure("KiB for each the fifth time", again);
    report.figure("resident before, KiB", base);
    report.figure("with all of them, KiB", full);
    report.figure("after they left, KiB", after);
    report.figure("given back after, ms", memory_back.map(|back| back.as_secs_f64() * 1000.0));
    report.figure("with all of them the fifth time, KiB", last);
    report.figure("sockets given back after, ms", back.map(|back| back.as_secs_f64() * 1000.0));
    report.figure("connected in, ms", took.as_secs_f64() * 1000.0);
    service.signal("TERM");
    let end = service.end().await;
    report.check("exit status 0", end == Some(0), || format!("{end:?}"));
    report.done()
}

/// Waits until the descriptors of clients are given back.
async fn settled(service: &Service, base: usize, report: &mut Report) -> Option<Duration> {
    let few = base.max(usize::try_from(WARM / 2).unwrap_or(0));
    let back = held_within(PATIENCE, || sockets(service) <= few).await;
    report.check("the sockets are given back", back.is_some(), || format!("{} are left", sockets(service)));
    back
}

/// Its sockets.
fn sockets(service: &Service) -> usize {
    let Ok(all) = std::fs::read_dir(format!("/proc/{}/fd", service.id())) else { return 0 };
    let links = all.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}
