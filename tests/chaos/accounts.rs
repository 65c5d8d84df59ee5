//! F3 to F6 and F15 as experiments: what the tests of edits and accounts do a few times, in numbers. What they assert is
//! told as a broken invariant by the runner.

use std::time::Duration;

use super::report::Report;
use super::support::edits::{edits_under_load, percentile};
use super::support::kills::{Grace, Pace, Tally, kills};
use super::support::ordeal::Kept;
use super::support::race::{inside_the_lock, lost_replies, race, suspended};

const SECOND: Duration = Duration::from_secs(1);

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// F3: edits under load, half of them invalid, in every way of saving.
pub async fn reload(edits: u64) -> Report {
    let mut report = Report::new("reload", format!("{edits} edits under load, half of them invalid"));
    let pause = Duration::from_millis(if edits < 500 { 0 } else { 100 });
    let edited = edits_under_load(usize::try_from(edits).unwrap(), pause).await;
    let (middle, late) = (percentile(&edited.took, 50), percentile(&edited.took, 99));
    let told = edited.told as u64;
    report.check("invalid edits are told, and never applied", told >= edits / 2, || format!("{told} of {edits}"));
    report.check("half of the valid edits are in force within 1 s", middle <= SECOND, || format!("{middle:?}"));
    if let Some(slope) = edited.slope {
        report.check("memory ≤ 1 KiB for each edit", slope <= 1.0, || format!("{slope:.2} KiB"));
        report.figure("memory for each edit, KiB", slope);
    }
    report.figure("in force after, ms (median)", milliseconds(middle));
    report.figure("in force after, ms (p99)", milliseconds(late));
    report.figure("rejections told", edited.told);
    report.requests = (edited.plain + edited.streams) as u64;
    report.ends.ok = report.requests;
    report.done()
}

/// F4: kill -9 during rotations, where a used token gets its answer again for a minute, and where it does not.
pub async fn kill9(n: u64) -> Report {
    let mut report = Report::new("kill9", format!("{n} kills in each of 4 ways"));
    let n = usize::try_from(n).unwrap();
    let told = |name: &'static str, tally: &Tally, report: &mut Report| {
        let due = if name.starts_with("with a") { 0 } else { tally.unread };
        report.check("an account is lost only where its newest token was not read", tally.lost == due, || {
            format!("{name}: {tally:?}")
        });
        report.figure(name, serde_json::json!({ "rotations": tally.rotations, "only in the journal": tally.journalled,
            "not read": tally.unread, "proved unread": tally.proved, "lost": tally.lost, "told again": tally.repeated }));
    };
    let tally = kills(Kept::Plain, n, Grace::Minute, Pace::Worst).await;
    report.check("with a grace of 60 s no account is lost", tally.lost == 0, || format!("{tally:?}"));
    report.figure("lost with a grace", tally.lost);
    report.figure("rotations with a grace", tally.rotations);
    told("with a grace, worst case", &tally, &mut report);
    let tally = kills(Kept::Plain, n, Grace::None, Pace::Brisk).await;
    report.check("without, at a usual pace, hardly any is", tally.lost <= 2, || format!("{tally:?}"));
    report.figure("lost without a grace, tokens of 2 s", tally.lost);
    told("without a grace, tokens of 2 s", &tally, &mut report);
    let tally = kills(Kept::Plain, n, Grace::None, Pace::Often).await;
    report.check("without, with a rotation every 20 ms, hardly any is", tally.lost <= 2, || format!("{tally:?}"));
    report.figure("lost without a grace, a rotation every 20 ms", tally.lost);
    told("without a grace, a rotation every 20 ms", &tally, &mut report);
    let tally = kills(Kept::Plain, n, Grace::None, Pace::Worst).await;
    report.check("without, in the worst case, only what was not read", tally.lost <= tally.proved + 2, || {
        format!("{tally:?}")
    });
    report.figure("lost without a grace, worst case", tally.lost);
    report.figure("of these, replies that the kernel proves unread", tally.proved);
    told("without a grace, worst case", &tally, &mut report);
    report.done()
}

/// F5: eight processes with one store; one stopped, one killed inside the lock.
pub async fn rotate_race(rounds: u64) -> Report {
    let mut report = Report::new("rotate-race", format!("8 processes, 4 accounts, {rounds} rounds"));
    let rotations = race(usize::try_from(rounds).unwrap()).await;
    let asked = 8 * 4 * (rounds + 1);
    report.check(
        "one refresh for each token, whoever asks; none is used twice",
        rotations as u64 == 4 * rounds,
        || format!("{rotations}"),
    );
    let took = inside_the_lock().await;
    report.check("the lock of a process that was killed is free at once", took <= 5 * SECOND, || format!("{took:?}"));
    report.figure("rotations", rotations);
    report.figure("answered after a kill inside the lock, ms", milliseconds(took));
    report.requests = asked;
    report.ends.ok = asked;
    report.done()
}

/// F6: one reply in five of the authorization server is lost.
pub async fn lost_reply(rounds: u64) -> Report {
    let mut report = Report::new("lost-reply", format!("{rounds} rotations, one reply in five lost"));
    let rounds = usize::try_from(rounds).unwrap();
    let (world, lost) = lost_replies(true, rounds).await;
    let (redeemed, reuses) = (world.authority.redeemed(), world.authority.reuses());
    report.check("with a grace of 60 s no account is lost", reuses == 0 && redeemed == rounds, || {
        format!("{reuses} reuses, {redeemed} of {rounds}")
    });
    report.figure("rotations", redeemed);
    report.figure("replies lost", lost);
    let (world, lost) = lost_replies(false, rounds).await;
    let reuses = world.authority.reuses();
    report.check(
        "without one, the first lost reply costs that account, and no other",
        lost <= 1 && reuses <= 1,
        || format!("{lost} lost, {reuses} reuses"),
    );
    report.done()
}

/// F15: a process that is suspended for longer than its tokens last, both in seconds.
pub async fn suspend(life: u64, sleep: u64) -> Report {
    let mut report = Report::new("suspend", format!("asleep for {sleep} s with tokens of {life} s"));
    let took = suspended(life, sleep).await;
    report.check("3 accounts answer within 3 s, after one refresh each", took <= 3 * SECOND, || format!("{took:?}"));
    report.figure("answered after, ms", milliseconds(took));
    report.requests = 6;
    report.ends.ok = 6;
    report.done()
}
