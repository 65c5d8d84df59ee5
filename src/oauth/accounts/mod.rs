//! The accounts: who is signed in, with which token, and who needs a login. A request reads its token here without a
//! lock; what takes time (the store, the authorization server) happens in tasks that no client can cancel.

mod account;
mod choose;
mod sign_in;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

pub(super) use account::{Account, Flight, is_flying, locked};
pub use sign_in::{ExchangeError, SignedIn};
pub use status::{AccountStatus, State};

use super::login::Logins;
use super::refresh::{RefreshFault, Urgency};
use super::standing::{Lack, Need};
use super::store::Store;
use super::token::{Generation, Token};
use super::vault::{Vault, VaultError};
use crate::config::{OAuthSettings, Settings};
use crate::health::Now;
use crate::metrics::Metrics;
use crate::provider::Email;
use crate::secret::Secret;
use crate::upstream::{DialLimits, Upstream};

/// How long a request waits for a refresh.
pub const WAIT_LIMIT: Duration = Duration::from_secs(15);

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

/// A token that may be used now.
#[derive(Clone, Debug)]
pub struct Bearer(Arc<Token>);

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lacking {
    /// A human must act.
    #[error("{0}")]
    LoginRequired(Need),
    /// The store of tokens does not answer.
    #[error("the store of tokens is unavailable")]
    StorageUnavailable,
    /// The token has ended, and renewing it does not work at the moment.
    #[error("the token cannot be renewed at the moment")]
    Failing {
        /// Until the next try.
        retry_in: Duration,
    },
    /// It is being renewed, and that takes longer than a request waits.
    #[error("the token is still being renewed")]
    Busy,
}

/// Why an account was not removed.
#[derive(Debug, thiserror::Error)]
#[error("{} of the accounts were removed; then: {source}", .removed.len())]
pub struct RemoveError {
    /// Those that are gone all the same.
    pub removed: Vec<Email>,
    /// The store's word.
    pub source: VaultError,
}

impl Bearer {
    /// For the `authorization` header.
    pub fn access(&self) -> &Secret {
        &self.0.access
    }

    /// Which token it is: a 401 is reported with it.
    pub fn generation(&self) -> Generation {
        self.0.generation
    }

    /// Whose it is.
    pub fn email(&self) -> &Email {
        &self.0.email
    }
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

/// For requests.
impl Accounts {
    /// The current token of an account. No lock, no wait.
    ///
    /// # Errors
    /// [`Lacking`]; where it may be cured by waiting, [`Accounts::access`] does so.
    pub fn bearer(&self, email: &Email, now: Now) -> Result<Bearer, Lacking> {
        let account = self.find(email).ok_or_else(|| self.lacking(Lack::Need(Need::NotSignedIn)))?;
        account.standing().usable(now).map(|token| Bearer(token.clone())).map_err(|lack| self.lacking(lack))
    }

    /// The current token of an account; an expired one is renewed first, which the caller may stop waiting for.
    ///
    /// # Errors
    /// [`Lacking`].
    pub async fn access(self: &Arc<Self>, email: &Email, now: Now) -> Result<Bearer, Lacking> {
        let account = self.enter(email);
        let lack = match account.standing().usable(now) {
            Ok(token) => return Ok(Bearer(token.clone())),
            Err(lack) => lack,
        };
        match lack {
            Lack::Stale(generation) => self.renewed(&account, generation).await,
            Lack::Need(need) if self.is_open() => {
                // Perhaps somebody has signed in beside us.
                self.look_again(&account).await;
                let found = account.standing().usable(now).map(|token| Bearer(token.clone()));
                found.map_err(|lack| {
                    if lack == Lack::Need(need) {
                        self.require_login(&account, need);
                    }
                    self.lacking(lack)
                })
            }
            lack => Err(self.lacking(lack)),
        }
    }

    /// What to do after a 401 to the token of this generation: the newer token where there is one, else one forced
    /// refresh, for everybody who asks.
    ///
    /// # Errors
    /// [`Lacking`].
    pub async fn refused(self: &Arc<Self>, email: &Email, generation: Generation) -> Result<Bearer, Lacking> {
        let account = self.find(email).ok_or_else(|| self.lacking(Lack::Need(Need::NotSignedIn)))?;
        let lack = account.change(|standing| {
            standing.refused |= standing.generation() == Some(generation);
            standing.usable(Now::read()).map(|token| Bearer(token.clone()))
        });
        match lack {
            Ok(newer) => Ok(newer),
            Err(Lack::Stale(generation)) => self.renewed(&account, generation).await,
            Err(Lack::Need(need)) => {
                self.require_login(&account, need);
                Err(Lacking::LoginRequired(need))
            }
            Err(lack) => Err(self.lacking(lack)),
        }
    }

    /// Counts a request; a few atomic additions.
    pub fn used(&self, email: &Email, wall: SystemTime) {
        if let Some(account) = self.find(email) {
            account.count(wall);
        }
    }

    /// Who must sign in, and why; changes only when that does. The login box is shown for those who are new in it.
    pub fn needing_login(&self) -> watch::Receiver<Vec<(Email, Need)>> {
        self.needy.subscribe()
    }

    async fn renewed(self: &Arc<Self>, account: &Arc<Account>, stale: Generation) -> Result<Bearer, Lacking> {
        if let Some(flight) = self.fly(account, stale, Urgency::Use).map_err(Lacking::from)? {
            match tokio::time::timeout(WAIT_LIMIT, Self::landing(flight)).await {
                Ok(outcome) => outcome.map_err(Lacking::from)?,
                Err(_) => return Err(Lacking::Busy),
            };
        }
        // Whatever the clock says of it: it came this moment.
        match &account.standing().token {
            Some(token) => Ok(Bearer(token.clone())),
            None => Err(Lacking::LoginRequired(Need::NotSignedIn)),
        }
    }

    fn lacking(&self, lack: Lack) -> Lacking {
        match lack {
            Lack::Need(Need::NotSignedIn) | Lack::Unread if !self.is_open() => Lacking::StorageUnavailable,
            Lack::Need(need) => Lacking::LoginRequired(need),
            Lack::Unread => Lacking::StorageUnavailable,
            Lack::Stale(_) => Lacking::Failing { retry_in: Duration::ZERO },
        }
    }
}

/// Removal.
impl Accounts {
    /// Removes an account here and in the store; a refresh under way does not bring it back. `false` = there was none.
    ///
    /// # Errors
    /// The store does not do it; then the account is still there.
    pub async fn remove(&self, email: &Email) -> Result<bool, VaultError> {
        let stored = self.store.remove(email).await?;
        let account = self.find(email);
        let held = account.as_ref().is_some_and(|account| {
            locked(&account.unerased).take();
            account.change(|standing| {
                let held = standing.token.is_some();
                standing.forget();
                held
            })
        });
        self.announce();
        if stored || held {
            tracing::info!(account = %email, "the account was removed");
        }
        Ok(stored || held)
    }

    /// Removes all accounts, and names them.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub async fn remove_all(&self) -> Result<Vec<Email>, RemoveError> {
        let mut removed = Vec::new();
        let stored = match self.store.load_all().await {
            Ok(stored) => stored,
            Err(source) => return Err(RemoveError { removed, source }),
        };
        let mut emails: Vec<Email> = self.roll.load().iter().map(|account| account.email.clone()).collect();
        for (email, _) in stored {
            if !emails.contains(&email) {
                emails.push(email);
            }
        }
        for email in emails {
            match self.remove(&email).await {
                Ok(true) => removed.push(email),
                Ok(false) => {}
                Err(source) => return Err(RemoveError { removed, source }),
            }
        }
        Ok(removed)
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

impl From<RefreshFault> for Lacking {
    fn from(fault: RefreshFault) -> Self {
        match fault {
            RefreshFault::LoginRequired(need) => Self::LoginRequired(need),
            RefreshFault::StorageUnavailable => Self::StorageUnavailable,
            RefreshFault::Failing { retry_in } => Self::Failing { retry_in },
            RefreshFault::Stopped => Self::Busy,
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
