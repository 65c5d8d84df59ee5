//! Accounts under the worst that happens to processes: many of them with one store, stopped and killed in the middle,
//! suspended for longer than a token lasts; and replies that are lost.

use std::time::Duration;

use claude_code_balancer::health::Now;
use claude_code_balancer::lab::{Entry, Gate, IdleClose, Whim};
use claude_code_balancer::oauth::{Lacking, Need};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::accounts::{Signed, email};
use super::binary::Service;
use super::ordeal::{Kept, Ordeal, answered, below, request};
use super::{Reply, soon};

/// Eight balancers with one store.
pub async fn eight(ordeal: &Ordeal) -> Vec<(Service, std::net::SocketAddr)> {
    let mut services = Vec::new();
    for _ in 0..8 {
        services.push(ordeal.serve().await);
    }
    services
}

/// Sends one request for each of these accounts to each balancer, all at once; all must be answered.
pub async fn ask_all(addresses: &[std::net::SocketAddr], accounts: std::ops::Range<usize>) {
    let mut asking = JoinSet::new();
    for address in addresses {
        for number in accounts.clone() {
            let address = *address;
            asking.spawn(async move { answered(address, &number.to_string()).await });
        }
    }
    while let Some(done) = asking.join_next().await {
        done.unwrap();
    }
}

/// Eight processes renew four tokens in so many rounds, each once; answers how many rotations there were.
pub async fn race(rounds: usize) -> usize {
    let ordeal = Ordeal::new(4, Kept::Plain, 28_800, "").await;
    let services = eight(&ordeal).await;
    let addresses: Vec<_> = services.iter().map(|(_, address)| *address).collect();
    ask_all(&addresses, 0..4).await;
    assert_eq!(ordeal.authority.redeemed(), 0);
    for round in 1..=rounds {
        (0..4).for_each(|number| ordeal.refuse(number));
        ask_all(&addresses, 0..4).await;
        assert_eq!(ordeal.authority.redeemed(), 4 * round, "one for each account, whoever asks");
    }
    // Nobody asked for anything twice or in vain.
    assert_eq!(ordeal.authority.ledger().len(), 4 + 4 * rounds);
    assert_eq!(ordeal.authority.reuses(), 0);
    ordeal.authority.redeemed()
}

/// A process is stopped, and one is killed, inside the lock of an account; answers how long after the kill the others
/// were answered.
pub async fn inside_the_lock() -> Duration {
    let ordeal = Ordeal::new(4, Kept::Plain, 28_800, "").await;
    ordeal.authority.grace(Duration::from_secs(60));
    let mut services = eight(&ordeal).await;
    let addresses: Vec<_> = services.iter().map(|(_, address)| *address).collect();
    ask_all(&addresses, 0..4).await;

    // The first one stands between the answer and its journal.
    let gate = Gate::new();
    ordeal.authority.next(Whim::Hold(gate.clone()));
    ordeal.refuse(0);
    let mut first = JoinSet::new();
    first.spawn(request_at(addresses[0]));
    soon("a refresh", gate.reached(1)).await;
    services[0].0.signal("STOP");
    gate.open();
    let stopped = Instant::now();
    let mut others = JoinSet::new();
    for address in addresses[1..].iter().copied() {
        others.spawn(answered_at(address));
    }
    // The other accounts do not wait for it.
    (1..4).for_each(|number| ordeal.refuse(number));
    ask_all(&addresses[1..], 1..4).await;
    assert!(stopped.elapsed() < Duration::from_secs(5), "others waited: {:?}", stopped.elapsed());
    assert_eq!(others.try_join_next().map(drop), None, "somebody did not wait for the lock");
    tokio::time::sleep_until(stopped + Duration::from_secs(5)).await;
    assert_eq!(ordeal.authority.redeemed(), 4, "one for each");
    services[0].0.signal("CONT");
    assert_eq!(first.join_next().await.unwrap().unwrap().unwrap().status, 200);
    while let Some(done) = others.join_next().await {
        done.unwrap();
    }
    assert_eq!(ordeal.authority.redeemed(), 4, "nobody asked again");

    // The first one dies there; what it was told is told once more.
    let gate = Gate::new();
    ordeal.authority.next(Whim::Hold(gate.clone()));
    ordeal.refuse(0);
    first.spawn(request_at(addresses[0]));
    soon("a refresh", gate.reached(1)).await;
    services[0].0.kill();
    let killed = Instant::now();
    ask_all(&addresses[1..], 0..1).await;
    assert!(killed.elapsed() < Duration::from_secs(5), "the lock was not free: {:?}", killed.elapsed());
    let took = killed.elapsed();
    assert!(first.join_next().await.unwrap().unwrap().is_err());
    gate.open();
    ask_all(&addresses[1..], 0..4).await;
    assert_eq!(ordeal.authority.reuses(), 0);
    assert_eq!(ordeal.authority.redeemed(), 5);
    let graced = ordeal.authority.ledger().iter().filter(|entry| matches!(entry, Entry::Graced { .. })).count();
    assert_eq!(graced, 1);
    took
}

async fn answered_at(address: std::net::SocketAddr) {
    answered(address, "0").await;
}

async fn request_at(address: std::net::SocketAddr) -> std::io::Result<Reply> {
    request(address, "0").await
}

/// A process sleeps for longer than its tokens last, both in seconds; answers how long it took to serve all of them.
pub async fn suspended(life: u64, sleep: u64) -> Duration {
    let ordeal = Ordeal::new(3, Kept::Plain, life, "").await;
    // While it sleeps the provider gives its connections up.
    ordeal.provider.idle_close(IdleClose::After(Duration::from_secs(sleep / 2)));
    let (mut service, address) = ordeal.serve().await;
    // So short a life is due from the beginning.
    for _ in 0..3 {
        service.line("renewed the token").await;
    }
    ask_all(&[address], 0..3).await;
    service.signal("STOP");
    let before = ordeal.authority.redeemed();
    tokio::time::sleep(Duration::from_secs(sleep)).await;
    ordeal.provider.idle_close(IdleClose::Never);
    service.signal("CONT");
    let woken = Instant::now();
    ask_all(&[address], 0..3).await;
    let took = woken.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(ordeal.authority.redeemed(), before + 3, "one for each account");
    assert_eq!((ordeal.authority.reuses(), ordeal.authority.ledger().len()), (0, 3 + before + 3));
    took
}

/// Drops one reply in five of an account; answers how many.
pub async fn lost_replies(grace: bool, rounds: usize) -> (Signed, usize) {
    let world = Signed::signed_in(&["main", "other"]).await;
    world.authority.grace(Duration::from_secs(if grace { 60 } else { 0 }));
    let mut lost = 0;
    for round in 0..rounds {
        let name = if round % 4 == 3 { "other" } else { "main" };
        if name == "main" && below(5) == 0 {
            world.authority.next(Whim::LoseReply);
            lost += 1;
        }
        let Ok(bearer) = world.accounts.bearer(&email(name), Now::read()) else { continue };
        let renewed = world.accounts.refused(&email(name), bearer.generation()).await;
        match renewed {
            Ok(renewed) => assert!(world.authority.accepts(renewed.access().expose())),
            Err(lacking) => {
                assert!(!grace && name == "main", "{name}: {lacking}");
                assert_eq!(lacking, Lacking::LoginRequired(Need::ReplyLost));
                break;
            }
        }
    }
    (world, lost)
}
