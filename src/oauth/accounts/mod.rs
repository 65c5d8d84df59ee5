//! The accounts: who is signed in, with which token, and who needs a login. A request reads its token here without a
//! lock; what takes time (the store, the authorization server) happens in tasks that no client can cancel.

mod account;
mod bearer;
mod choose;
mod missing;
mod remove;
mod sign_in;
mod status;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub(super) use account::{Account, Flight, is_flying, locked};
pub use bearer::{Bearer, Lacking, WAIT_LIMIT};
pub use remove::RemoveError;
pub use sign_in::{ExchangeError, SignedIn};
pub use status::{AccountStatus, State};

use super::login::Logins;
use super::standing::{GLANCE, Need};
use super::store::{Storage, Store};
use super::vault::{Usage, VaultError};
use crate::config::{OAuthSettings, Settings};
use crate::metrics::Metrics;
use crate::provider::Email;
use crate::upstream::{DialLimits, Upstream};

/// Who must sign in, and why; `None` = anybody, for nobody is signed in.
pub type Needy = Vec<(Option<Email>, Need)>;

/// All accounts, for the whole life of the process.
#[derive(Debug)]
pub struct Accounts {
    pub(super) store: Store,
    pub(super) upstream: Arc<Upstream>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) setup: ArcSwap<Setup>,
    /// Owns every refresh, exchange and save.
    pub(super) tasks: TaskTracker,
    /// Something is due sooner than it was.
    pub(super) woken: Notify,
    /// In the order in which they became known; few, so they are looked through.
    roll: ArcSwap<Vec<Arc<Account>>>,
    logins: Logins,
    /// Whether the store was read.
    opened: AtomicBool,
    /// Whether it was tried.
    tried: watch::Sender<bool>,
    /// Whether the journal still holds what could not be saved.
    pub(super) unreplayed: AtomicBool,
    /// Why it was not.
    closed: ArcSwapOption<String>,
    /// Who must sign in, whenever that changes.
    needy: watch::Sender<Needy>,
    /// Nobody is signed in, and somebody was asked for.
    missed: AtomicBool,
    /// The last look for whoever may have signed in beside us.
    looked: Mutex<Option<Instant>>,
    turn: AtomicUsize,
    sticky: choose::Sticky,
}

/// What the accounts need of the configuration.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) oauth: OAuthSettings,
    pub(super) limits: DialLimits,
    pub(super) sticky: Duration,
}

/// Beginning and end.
impl Accounts {
    /// Knows nobody until [`Accounts::open`].
    pub fn new(storage: Storage, upstream: Arc<Upstream>, metrics: Arc<Metrics>, settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            store: Store::new(storage),
            upstream,
            metrics,
            setup: ArcSwap::from_pointee(Setup::from(settings)),
            tasks: TaskTracker::new(),
            woken: Notify::new(),
            roll: ArcSwap::default(),
            logins: Logins::default(),
            opened: AtomicBool::new(false),
            tried: watch::Sender::new(false),
            unreplayed: AtomicBool::new(false),
            closed: ArcSwapOption::empty(),
            needy: watch::Sender::new(Vec::new()),
            missed: AtomicBool::new(false),
            looked: Mutex::default(),
            turn: AtomicUsize::new(0),
            sticky: choose::Sticky::default(),
        })
    }

    /// After a reload.
    pub fn configure(&self, settings: &Settings) {
        self.setup.store(Arc::new(Setup::from(settings)));
        self.woken.notify_one();
    }

    /// Reads the store, and finishes what an earlier process could not. A store that does not answer is no error
    /// here: the accounts are unavailable, and [`Accounts::run`] tries again.
    pub async fn open(self: &Arc<Self>) {
        if let Err(error) = self.take_all().await {
            if self.closed.swap(Some(Arc::new(error.to_string()))).is_none() {
                tracing::error!(%error, "the accounts cannot be read; trying again every 30 s");
            }
            self.tried.send_replace(true);
            return;
        }
        self.closed.store(None);
        if !self.opened.swap(true, Ordering::AcqRel) {
            for (email, usage) in self.store.load_usage().await {
                if let Some(account) = self.find(&email) {
                    account.add_usage(usage);
                }
            }
        }
        self.replay().await;
        self.tried.send_replace(true);
        self.announce();
        self.woken.notify_one();
    }

    /// Waits until nothing is under way any longer: a refresh that has begun is finished. The caller has a limit.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.save_usage().await;
        self.store.flush_usage().await;
    }
}

/// For this room.
impl Accounts {
    pub(super) fn roll(&self) -> arc_swap::Guard<Arc<Vec<Arc<Account>>>> {
        self.roll.load()
    }

    pub(super) fn find(&self, email: &Email) -> Option<Arc<Account>> {
        self.roll.load().iter().find(|account| account.email == *email).cloned()
    }

    /// Finds an account, or makes room for it. E-mails come from the configuration, the store and finished logins.
    pub(super) fn enter(&self, email: &Email) -> Arc<Account> {
        if let Some(account) = self.find(email) {
            return account;
        }
        let new = Arc::new(Account::new(email.clone()));
        self.roll.rcu(|roll| {
            let mut roll = Vec::clone(roll);
            if !roll.iter().any(|account| account.email == *email) {
                roll.push(new.clone());
            }
            roll
        });
        self.find(email).unwrap_or(new)
    }

    /// Reads everything that is stored, and compares.
    async fn take_all(&self) -> Result<(), VaultError> {
        let roll = self.roll.load_full();
        let known: Vec<_> = roll.iter().map(|account| (account, account.standing().changes)).collect();
        for (email, record) in self.store.load_all().await? {
            let seen = known.iter().find(|(account, _)| account.email == email).map_or(0, |(_, changes)| *changes);
            self.enter(&email).change(|standing| match record {
                Ok(token) => standing.reconcile(Some(token), seen),
                Err(fault) => standing.storage = Some(fault.to_string().into()),
            });
        }
        Ok(())
    }

    /// Reads an account's record, and compares.
    pub(super) async fn compare(&self, account: &Account) -> Result<(), VaultError> {
        let seen = account.standing().changes;
        let stored = self.store.load(&account.email).await?;
        account.change(|standing| standing.reconcile(stored, seen));
        Ok(())
    }

    /// Reads an account's record again, at most every 200 ms: somebody may have signed in beside us.
    pub(super) async fn look_again(&self, account: &Account) {
        if account.change(|standing| standing.retry(GLANCE, Instant::now()))
            && let Err(error) = self.compare(account).await
        {
            account.change(|standing| standing.storage = Some(error.to_string().into()));
        }
        self.announce();
    }

    /// Nothing but a login helps this account.
    pub(super) fn require_login(&self, account: &Account, need: Need) {
        let new = account.change(|standing| standing.need.replace(need) != Some(need));
        if new {
            tracing::error!(account = %account.email, reason = %need, "the account must sign in");
            self.announce();
        }
    }

    /// Whether the store has been read.
    pub fn is_open(&self) -> bool {
        self.opened.load(Ordering::Acquire)
    }

    /// Tells who must sign in, if that has changed.
    pub(super) fn announce(&self) {
        let roll = self.roll.load();
        if roll.iter().any(|account| account.standing().token.is_some()) {
            self.missed.store(false, Ordering::Relaxed);
        }
        let named = roll.iter().filter_map(|account| Some((Some(account.email.clone()), account.standing().need?)));
        let anyone = self.missed.load(Ordering::Relaxed).then_some((None, Need::NotSignedIn));
        let needy: Needy = named.chain(anyone).collect();
        self.needy.send_if_modified(|known| {
            let changed = *known != needy;
            *known = needy;
            changed
        });
    }

    pub(super) async fn save_usage(&self) {
        let roll = self.roll.load_full();
        // All of them are asked, for asking takes the mark away.
        if roll.iter().filter(|account| account.take_used()).count() > 0 {
            let usage = roll.iter().map(|account| (account.email.clone(), account.usage()));
            self.store.save_usage(usage.filter(|(_, usage)| *usage != Usage::default())).await;
        }
    }
}

impl From<&Settings> for Setup {
    fn from(settings: &Settings) -> Self {
        Self {
            oauth: settings.oauth.clone(),
            limits: DialLimits { connect: settings.timeouts.connect, tls: settings.timeouts.tls },
            sticky: settings.sticky_provider_duration,
        }
    }
}
