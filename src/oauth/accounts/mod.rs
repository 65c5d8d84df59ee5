//! The accounts: who is signed in, with which token, and who needs a login. A request reads its token here without a
//! lock; what takes time (the store, the authorization server) happens in tasks that no client can cancel.

mod account;
mod bearer;
mod choose;
mod remove;
mod sign_in;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

pub(super) use account::{Account, Flight, is_flying, locked};
pub use bearer::{Bearer, Lacking, WAIT_LIMIT};
pub use remove::RemoveError;
pub use sign_in::{ExchangeError, SignedIn};
pub use status::{AccountStatus, State};

use super::login::Logins;
use super::standing::Need;
use super::store::Store;
use super::vault::Vault;
use crate::config::{OAuthSettings, Settings};
use crate::metrics::Metrics;
use crate::provider::Email;
use crate::upstream::{DialLimits, Upstream};

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
    /// Whether the journal still holds what could not be saved.
    pub(super) unreplayed: AtomicBool,
    /// Why it was not.
    closed: ArcSwapOption<String>,
    /// Who must sign in, whenever that changes.
    needy: watch::Sender<Vec<(Email, Need)>>,
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
    pub fn new(vault: Arc<Vault>, upstream: Arc<Upstream>, metrics: Arc<Metrics>, settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            store: Store::new(vault),
            upstream,
            metrics,
            setup: ArcSwap::from_pointee(Setup::from(settings)),
            tasks: TaskTracker::new(),
            woken: Notify::new(),
            roll: ArcSwap::default(),
            logins: Logins::default(),
            opened: AtomicBool::new(false),
            unreplayed: AtomicBool::new(false),
            closed: ArcSwapOption::empty(),
            needy: watch::Sender::new(Vec::new()),
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
        let stored = match self.store.load_all().await {
            Ok(stored) => stored,
            Err(error) => {
                if self.closed.swap(Some(Arc::new(error.to_string()))).is_none() {
                    tracing::error!(%error, "the accounts cannot be read; trying again every 30 s");
                }
                return;
            }
        };
        for (email, record) in stored {
            let account = self.enter(&email);
            account.change(|standing| match record {
                Ok(token) => standing.reconcile(Some(token)),
                Err(fault) => standing.storage = Some(fault.to_string().into()),
            });
        }
        self.closed.store(None);
        if !self.opened.swap(true, Ordering::AcqRel) {
            for usage in self.store.load_usage().await {
                if let Some(account) = self.find(&usage.email) {
                    account.add_usage(&usage);
                }
            }
        }
        self.replay().await;
        self.announce();
        self.woken.notify_one();
    }

    /// Waits until nothing is under way any longer: a refresh that has begun is finished. The caller has a limit.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.save_usage().await;
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

    /// Reads an account's record again, at most every 30 s: somebody may have signed in beside us.
    pub(super) async fn look_again(&self, account: &Account) {
        if account.change(|standing| standing.retry(tokio::time::Instant::now())) {
            match self.store.load(&account.email).await {
                Ok(stored) => account.change(|standing| standing.reconcile(stored)),
                Err(error) => account.change(|standing| standing.storage = Some(error.to_string().into())),
            }
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

    pub(super) fn is_open(&self) -> bool {
        self.opened.load(Ordering::Acquire)
    }

    /// Tells who must sign in, if that has changed.
    pub(super) fn announce(&self) {
        let roll = self.roll.load();
        let needy = roll.iter().filter_map(|account| Some((account.email.clone(), account.standing().need?)));
        let needy: Vec<_> = needy.collect();
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
            let usage: Vec<_> = roll.iter().map(|account| account.usage()).collect();
            self.store.save_usage(&usage).await;
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
