//! kill -9 at any moment of a rotation, again and again, of the real program.

use std::time::Duration;

use claude_code_balancer::lab::Entry;
use claude_code_balancer::oauth::Vault;

use super::ordeal::{Kept, Ordeal, below, number_of, request, who};
use super::soon;

/// What became of all the kills.
#[derive(Debug, Default)]
pub struct Tally {
    pub rotations: usize,
    /// The newest token was only in the journal.
    pub journalled: usize,
    /// The newest token was nowhere: its reply was not read at the kill.
    pub unread: usize,
    /// Answers that, by the kernel's word, were not read at the kill.
    pub proved: usize,
    /// The account had to sign in again.
    pub lost: usize,
    /// Replies that the server gave again.
    pub repeated: usize,
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

/// A time by chance, up to this.
fn within(longest: Duration) -> Duration {
    Duration::from_micros(below(1 + u64::try_from(longest.as_micros()).unwrap()))
}

/// Whether a used refresh token gets the same answer again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    Minute,
    None,
}

/// How often four accounts are renewed: each again at once, each so that one of them is about every 20 ms, or as with
/// tokens that last for two seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Worst,
    Often,
    Brisk,
}

impl Pace {
    /// Between two rotations of one account.
    fn pause(self) -> Duration {
        Duration::from_millis(match self {
            Self::Worst => 0,
            Self::Often => 80,
            Self::Brisk => 2000,
        })
    }

    /// Until the kill, at most.
    fn longest(self) -> Duration {
        Duration::from_millis(if self == Self::Brisk { 1000 } else { 150 })
    }
}

/// Kills the balancer while it renews its accounts.
pub async fn kills(kept: Kept, kills: usize, grace: Grace, pace: Pace) -> Tally {
    let mut ordeal = Ordeal::new(4, kept, 28_800, "").await;
    ordeal.once(true);
    ordeal.authority.grace(Duration::from_secs(if grace == Grace::Minute { 60 } else { 0 }));
    let mut tally = Tally::default();
    let mut due = vec![false; ordeal.count];
    for kill in 0..=kills {
        let (mut service, address) = ordeal.serve().await;
        // The first request after a kill: the account is there, or says why not.
        for (number, unread) in due.iter().enumerate() {
            let reply = request(address, &number.to_string()).await.unwrap();
            let text = reply.text();
            if *unread && grace == Grace::None {
                assert_eq!(reply.status, 401, "{text}");
                assert!(text.contains("invalid_grant") && text.contains(who(number).as_str()), "{text}");
                tally.lost += 1;
            } else {
                assert_eq!(reply.status, 200, "{number} after kill {kill}: {text}\n{:?}", ordeal.authority.ledger());
            }
        }
        for number in (0..ordeal.count).filter(|number| due[*number] && grace == Grace::None) {
            // Asserts that the old one is still there.
            ordeal.stored(&ordeal.vault().await).await;
            ordeal.sign_in(number).await;
        }
        if kill == kills {
            break;
        }
        let mut load = tokio::task::JoinSet::new();
        for number in 0..ordeal.count {
            load.spawn(async move {
                tokio::time::sleep(within(pace.pause())).await;
                while let Ok(reply) = request(address, &number.to_string()).await {
                    // A login beside us is found when it is looked for, at most every 30 s.
                    let least = if reply.status == 200 { Duration::ZERO } else { Duration::from_millis(20) };
                    tokio::time::sleep(pace.pause().max(least)).await;
                }
            });
        }
        let unread = || ordeal.authority.lab().unread() + ordeal.authority.lab().departures();
        let before = unread();
        tokio::time::sleep(within(pace.longest())).await;
        service.kill();
        load.shutdown().await;
        // The kernel's word on what the process had not read.
        soon("the ends of all connections", ordeal.authority.lab().deserted()).await;
        tally.proved += unread() - before;
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
    tally.repeated = ordeal.authority.ledger().iter().filter(|entry| matches!(entry, Entry::Graced { .. })).count();
    assert!(tally.rotations > kills, "{tally:?}");
    // Exactly the losses are reuses.
    assert_eq!(ordeal.authority.reuses(), tally.lost, "{tally:?}");
    assert_eq!(tally.lost, if grace == Grace::None { tally.unread } else { 0 }, "{tally:?}");
    tally
}
