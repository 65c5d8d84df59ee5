//! The background loop: tokens that are due, saves that failed, a store that did not answer, usage. It looks at the
//! clocks at least every 30 s, so that a laptop that wakes up does not wait for a timer that slept along.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Urgency;
use crate::health::Now;
use crate::oauth::accounts::Accounts;
use crate::oauth::standing::{GAP, Need};

/// The longest time between two looks.
const LOOK: Duration = Duration::from_secs(30);

impl Accounts {
    /// Keeps the accounts well for as long as it is polled. What it begins is not ended with it.
    pub async fn run(self: &Arc<Self>) {
        loop {
            let rest = self.tick(Now::read()).await;
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = self.woken.notified() => {}
            }
        }
    }

    /// One look: begins what is due at this moment, and answers how long the next look may wait. [`Accounts::run`]
    /// does this; it is open for tests with clocks of their own.
    pub async fn tick(self: &Arc<Self>, now: Now) -> Duration {
        self.forget_logins(now);
        if !self.is_open() {
            self.open().await;
        } else if self.unreplayed.load(Ordering::Relaxed) {
            self.replay().await;
        }
        let ahead = self.setup.load().oauth.enable_auto_refresh;
        let mut rest = LOOK;
        for account in self.roll().iter() {
            let standing = account.standing();
            let Some(token) = &standing.token else { continue };
            if !standing.persisted && account.change(|standing| standing.retry(GAP, now.monotonic)) {
                let (accounts, account) = (self.clone(), account.clone());
                self.tasks.spawn(async move { accounts.save_again(&account).await });
            }
            if standing.need.is_some() && standing.retry_in(now.monotonic).is_zero() {
                // Somebody may have signed in beside us.
                let (accounts, account) = (self.clone(), account.clone());
                self.tasks.spawn(async move { accounts.look_again(&account).await });
            }
            if !standing.persisted || standing.need.is_some() {
                let again = standing.retry_in(now.monotonic);
                rest = rest.min(if again.is_zero() { GAP } else { again });
            }
            if token.refresh.is_none() && standing.need.is_none() && standing.expired(now) {
                self.require_login(account, Need::NoRefreshToken);
            }
            match standing.due_in(now) {
                Some(Duration::ZERO) if ahead => {
                    // An error is a wait that has just begun; a landing wakes the loop.
                    let _ = self.fly(account, token.generation, Urgency::Use);
                }
                Some(due) if ahead => rest = rest.min(due),
                _ => {}
            }
        }
        self.save_usage().await;
        rest.max(Duration::from_millis(100))
    }
}
