//! kill -9 at any moment of a rotation, again and again, of the real program: what is lost at most is a reply that was
//! not read yet, and where the authorization server gives a grace, not even that.
#![cfg(unix)]

use crate::support::kills::{Grace, Pace, Tally, kills};
use crate::support::ordeal::{Kept, rounds};
use crate::vault::tell;

async fn told(kept: Kept, count: usize, grace: Grace, pace: Pace) -> Tally {
    let tally = kills(kept, count, grace, pace).await;
    tell(&format!("{count} kills, {kept:?}, {grace:?}, {pace:?}: {tally:?}"));
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_during_a_rotation_loses_no_account_where_there_is_a_grace() {
    for kept in [Kept::Plain, Kept::Sealed] {
        told(kept, rounds(10), Grace::Minute, Pace::Worst).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_during_a_rotation_loses_only_what_was_not_read() {
    let tally = told(Kept::Plain, rounds(10), Grace::None, Pace::Worst).await;
    // What was read is in the journal: between the two is one write.
    assert!(tally.lost <= tally.proved + 2, "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_time_loses_hardly_anything_without_a_grace() {
    let tally = told(Kept::Plain, rounds(10), Grace::None, Pace::Brisk).await;
    assert!(tally.lost <= 2, "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a keyring: `.ci/run` brings one along"]
async fn keyring_real_a_kill_during_a_rotation_loses_no_account_where_there_is_a_grace() {
    told(Kept::Keyring, rounds(20), Grace::Minute, Pace::Worst).await;
}
