//! The judge of gateways: sends what the real clients send through any gateway to scripted providers, and says point by
//! point whether the public gateway contract is kept.
//!
//! It works from outside only: what it knows is the gateway's URL, what comes back, and what the [`lab`](crate::lab)
//! behind the gateway has seen. So it judges any gateway whose upstream can be set. A point is *not applicable*, with
//! a reason, only where it needs a second upstream or a configuration that nobody has given.
//!
//! * [`Bench`]: the gateway and its two scripted providers. * [`judge`]: all points, or some. * [`Report`]: what was
//!   found, for people and programs. * [`SCENES`]: what a gateway that can be configured at will (our own) is
//!   configured for. * [`Wire`], [`Ask`]: a client on a bare socket, and a request as it goes over it.

mod ask;
mod bench;
mod connections;
mod credentials;
mod errors;
mod failover;
mod pace;
mod report;
mod request;
mod scene;
mod shapes;
mod streaming;
mod wire;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

pub use ask::Ask;
pub use bench::{Bench, Gateway, Setup};
pub use report::{Finding, Report, Verdict};
pub use scene::{CANARY, Plan, SCENES, model_for};
pub use wire::{Reply, Wire};

/// The longest that one point may take; the slowest waits for 8 s on purpose.
const LIMIT: Duration = Duration::from_secs(60);
/// The point that is judged on all the others' answers, so last.
const SECRECY: u8 = 20;

/// One point of the checklist.
struct Point {
    number: u8,
    title: &'static str,
    /// What a gateway owes, in a few words.
    expected: &'static str,
    judge: for<'a> fn(&'a Bench) -> Boxed<'a, Seen>,
}

/// A future of one size, whatever is in it.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What was seen; an error where it was not what was expected.
type Seen = Result<String, Fault>;

/// Why a point is not passed.
#[derive(Debug)]
enum Fault {
    /// What was seen instead.
    Failed(String),
    /// Why it cannot be judged.
    NotApplicable(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("the connection to the gateway: {error}"))
    }
}

fn failed<T>(seen: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Failed(seen.into()))
}

fn not_applicable<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::NotApplicable(why.into()))
}

/// Goes on where the condition holds.
fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Fault> {
    if holds { Ok(()) } else { Err(Fault::Failed(otherwise())) }
}

/// All groups, in the order of the checklist.
fn groups() -> [(&'static str, &'static [Point]); 6] {
    [
        ("request", &request::POINTS),
        ("credentials", &credentials::POINTS),
        ("streaming", &streaming::POINTS),
        ("errors and failover", &errors::POINTS),
        ("connections", &connections::POINTS),
        ("end to end", &END_TO_END),
    ]
}

/// What only the real programs can show.
const END_TO_END: [Point; 2] = [
    Point {
        number: 59,
        title: "the real Claude Code, both generations",
        expected: "a prompt, a tool turn, a subagent and /context end as they do directly",
        judge: |_| Box::pin(programs()),
    },
    Point {
        number: 60,
        title: "the official SDKs, Python and TypeScript",
        expected: "the same table as directly",
        judge: |_| Box::pin(programs()),
    },
];

async fn programs() -> Seen {
    not_applicable("needs the real programs: tests/clients drives them")
}

/// Judges the points with these numbers, or all, and tells each finding as it is made.
pub async fn judge(bench: &Bench, only: &[u8], mut tell: impl FnMut(&Finding)) -> Report {
    let mut findings = Vec::new();
    let wanted = |point: &Point| only.is_empty() || only.contains(&point.number);
    let points = || groups().into_iter().flat_map(|(group, points)| points.iter().map(move |point| (group, point)));
    let ordinary = points().filter(|(_, point)| point.number != SECRECY);
    let last = points().filter(|(_, point)| point.number == SECRECY);
    for (group, point) in ordinary.chain(last).filter(|(_, point)| wanted(point)) {
        bench.calm().await;
        let judged = tokio::time::timeout(LIMIT, (point.judge)(bench)).await;
        let (verdict, seen) = match judged {
            Ok(Ok(seen)) => (Verdict::Pass, seen),
            Ok(Err(Fault::Failed(seen))) => (Verdict::Fail, seen),
            Ok(Err(Fault::NotApplicable(why))) => (Verdict::NotApplicable, why),
            Err(_) => (Verdict::Fail, format!("no end within {} s", LIMIT.as_secs())),
        };
        let Point { number, title, expected, .. } = *point;
        let finding = Finding { number, group, title, verdict, expected, seen };
        tell(&finding);
        findings.push(finding);
    }
    findings.sort_by_key(|finding| finding.number);
    Report { findings }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_points_are_numbered_from_1_to_60() {
        let numbers = groups().into_iter().flat_map(|(_, points)| points.iter().map(|point| point.number));
        assert_eq!(numbers.collect::<Vec<_>>(), (1..=60).collect::<Vec<u8>>());
    }
}
