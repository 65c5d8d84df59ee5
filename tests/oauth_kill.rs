//! kill -9 at any moment of a rotation, again and again, of the real program: what is lost at most is a reply that was
//! not read yet, and where the authorization server gives a grace, not even that.
#![cfg(unix)]

use std::time::Duration;

use claude_code_balancer::lab::Entry;
use claude_code_balancer::oauth::Vault;

use crate::support::ordeal::{Kept, Ordeal, below, number_of, request, rounds, who};

/// What became of all the kills.
#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    rotations: usize,
    /// The newest token was only in the journal.
    journalled: usize,
    /// The newest token was nowhere: its reply was not read at the kill.
    unread: usize,
    /// The account had to sign in again.
    lost: usize,
}

/// The number of the newest refresh token that the dead process has left, stored or journalled; and of the stored one.
async fn left(ordeal: &Ordeal, vault: &Vault) -> Vec<(usize, usize)> {
    let pending = vault.pending_journal().await.unwrap();
    let stored = ordeal.stored(vault).await;
    let numbers = stored.iter().enumerate().map(|(number, token)| {
        let stored = number_of(token.refresh.as_ref().unwrap().expose());
        let replies = pending.iter().filter(|pending| pending.email == who(number));
        let journalled = replies.map(|pending| {
            let reply: serde_json::Value = serde_json::from_slice(&pending.reply).unwrap();
            number_of(reply["refresh_token"].as_str().unwrap())
        });
        (journalled.max().unwrap_or(0).max(stored), stored)
    });
    numbers.collect()
}

/// Kills the balancer while it renews four accounts as fast as it can.
async fn kills(kept: Kept, kills: usize, grace: bool) -> Tally {
    let mut ordeal = Ordeal::new(4, kept, 28_800, "").await;
    ordeal.once(true);
    ordeal.authority.grace(if grace { Duration::from_secs(60) } else { Duration::ZERO });
    let mut tally = Tally { kills, ..Tally::default() };
    let mut due = vec![false; ordeal.count];
    for kill in 0..=kills {
        let (mut service, address) = ordeal.serve().await;
        // The first request after a kill: the account is there, or says why not.
        for (number, unread) in due.iter().enumerate() {
            let reply = request(address, &number.to_string()).await.unwrap();
            let text = reply.text();
            if *unread && !grace {
                assert_eq!(reply.status, 401, "{text}");
                assert!(text.contains("invalid_grant") && text.contains(who(number).as_str()), "{text}");
                tally.lost += 1;
                continue;
            }
            assert_eq!(reply.status, 200, "account {number} after kill {kill}: {text}\n{:?}", ordeal.authority.ledger());
        }
        for number in 0..ordeal.count {
            if due[number] && !grace {
                let before = ordeal.stored(&ordeal.vault().await).await;
                assert!(before[number].refresh.is_some(), "a stored token is never deleted");
                ordeal.sign_in(number).await;
            }
        }
        if kill == kills {
            break;
        }
        let mut load = tokio::task::JoinSet::new();
        for number in 0..ordeal.count {
            load.spawn(async move {
                while let Ok(reply) = request(address, &number.to_string()).await {
                    // A login beside us is found when it is looked for, at most every 30 s.
                    if reply.status != 200 {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_micros(below(150_000))).await;
        service.kill();
        while load.join_next().await.is_some() {}
        // The store parses; what is missing was not read.
        let vault = ordeal.vault().await;
        for (number, (newest, stored)) in left(&ordeal, &vault).await.into_iter().enumerate() {
            let given = ordeal.newest(number);
            assert!(newest == given || newest + 1 == given, "account {number}: {newest} is left of {given}");
            due[number] = newest < given;
            tally.unread += usize::from(newest < given);
            tally.journalled += usize::from(newest > stored);
        }
    }
    tally.rotations = ordeal.authority.redeemed();
    let graced = ordeal.authority.ledger().iter().filter(|entry| matches!(entry, Entry::Graced { .. })).count();
    println!("{kept:?}, {}: {tally:?}, {graced} answered again", if grace { "60 s of grace" } else { "no grace" });
    assert!(tally.rotations > kills, "{tally:?}");
    // Exactly the losses are reuses, and none of another kind.
    assert_eq!(ordeal.authority.reuses(), tally.lost);
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_during_a_rotation_loses_no_account_where_there_is_a_grace() {
    let tally = kills(Kept::Plain, rounds(10), true).await;
    assert_eq!(tally.lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_during_a_rotation_loses_at_most_what_was_not_read() {
    let tally = kills(Kept::Plain, rounds(10), false).await;
    assert!(tally.lost <= 2, "{tally:?}");
}
