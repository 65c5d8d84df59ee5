//! Which targets a request may be sent to, and in which order: the route table's word, and how the targets stand.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::Call;
use super::intake::Inbound;
use super::reject::Error;
use crate::config::Snapshot;
use crate::health::{Now, Scope, Standing};
use crate::oauth::{Lacking, WAIT_LIMIT};
use crate::provider::{Auth, Email, Provider};
use crate::route::{ModelChoice, Plan, Route, Selection, Session, Strategy, Target};

/// Longest wait for a store of tokens that was not read yet, where another target is there.
const STORE_TIME: Duration = Duration::from_secs(1);
/// Names the session whose choice of a target is kept.
const SESSION_ID: &str = "x-claude-code-session-id";

impl<'a> Call<'a> {
    pub(super) fn session<'h>(self, headers: &'h HeaderMap) -> Option<Session<'h>>
    where
        'a: 'h,
    {
        let lasts = self.snapshot.settings.sticky_provider_duration;
        let id = headers.get(SESSION_ID).filter(|_| !lasts.is_zero())?;
        Some(Session { sticky: &self.proxy.sticky, id: id.as_bytes(), lasts, now: Instant::now() })
    }

    pub(super) fn plan(
        self,
        inbound: &Inbound,
        count_tokens: bool,
        session: Option<Session<'_>>,
    ) -> Result<Plan, Error> {
        let selection = Selection { strategy: self.snapshot.settings.strategy, session };
        let model = &inbound.model;
        if let Some(name) = &inbound.pin {
            let route = pinned(self.snapshot, name, model)?;
            return Ok(self.plan_of(std::iter::once(&route), selection, model, count_tokens));
        }
        let routes = &self.snapshot.routes;
        let mut matching = routes.matching(model).peekable();
        if matching.peek().is_none() {
            return Err(Error::new(StatusCode::NOT_FOUND, routes.no_match(model)));
        }
        Ok(self.plan_of(matching, selection, model, count_tokens))
    }

    /// A plan that knows of every account: waits for the store where it was not read yet, and reads it again before an
    /// account must sign in. Neither holds up a request for long that can be served without.
    pub(super) async fn with_accounts<E>(self, plan: impl Fn() -> Result<Plan, E>) -> Result<Plan, E> {
        let made = plan()?;
        let lacking = |standing: &Standing| matches!(standing, Standing::StorageUnavailable | Standing::LoginRequired);
        if made.skipped.iter().any(|skipped| lacking(&skipped.standing)) {
            Box::pin(self.with_those_that_lack(made, plan)).await
        } else {
            Ok(made)
        }
    }

    async fn with_those_that_lack<E>(self, mut made: Plan, plan: impl Fn() -> Result<Plan, E>) -> Result<Plan, E> {
        let accounts = &self.proxy.accounts;
        let unread =
            |plan: &Plan| plan.skipped.iter().any(|skipped| matches!(skipped.standing, Standing::StorageUnavailable));
        if unread(&made) && !accounts.is_settled() {
            let limit = if made.targets.is_empty() { WAIT_LIMIT } else { STORE_TIME };
            drop(made);
            let _ = tokio::time::timeout(limit, accounts.settled()).await;
            made = plan()?;
        }
        let out = made.skipped.iter().filter(|skipped| matches!(skipped.standing, Standing::LoginRequired));
        let missing: Vec<_> = out.map(|skipped| skipped.target.provider.key.account.clone()).collect();
        if missing.is_empty() {
            return Ok(made);
        }
        if !made.targets.is_empty() {
            accounts.miss(missing);
            return Ok(made);
        }
        let mut found = false;
        for account in missing {
            found |= accounts.missing(account.as_ref()).await;
        }
        if found { plan() } else { Ok(made) }
    }

    /// For what concerns no model: every provider, in the order of the file.
    pub(super) fn plan_in_file_order(self) -> Plan {
        let route = Route::new("/v1/models", entries(&self.snapshot.providers, |_| true));
        let selection = Selection { strategy: Strategy::Priority, session: None };
        self.plan_of(std::iter::once(&route), selection, &"".into(), false)
    }

    fn plan_of<'r>(
        self,
        routes: impl Iterator<Item = &'r Route>,
        selection: Selection<'_>,
        model: &Arc<str>,
        count_tokens: bool,
    ) -> Plan {
        let now = Now::read();
        Plan::new(routes, selection, |target, place| {
            let scope = Scope { model: target.model.resolve(model), count_tokens };
            let provider = &target.provider;
            if !provider.enabled {
                place(target, Standing::Disabled);
            } else if provider.auth != Auth::OAuth {
                let standing = self.proxy.health.standing(provider, &scope, now);
                place(target, standing);
            } else if let Some(account) = &provider.key.account {
                let standing = self.standing(provider, account, &scope, now);
                place(target, standing);
            } else {
                self.any_account(target, selection.session, &scope, now, place);
            }
        })
    }

    /// How the account of a provider stands.
    fn standing(self, provider: &Provider, account: &Email, scope: &Scope, now: Now) -> Standing {
        match self.proxy.accounts.bearer(account, now) {
            Err(Lacking::LoginRequired(_)) => Standing::LoginRequired,
            Err(Lacking::StorageUnavailable) => Standing::StorageUnavailable,
            // One that has expired is renewed on use.
            Ok(_) | Err(Lacking::Failing { .. } | Lacking::Busy) => self.proxy.health.standing(provider, scope, now),
        }
    }

    /// A target that names no account: all that are signed in, in their order.
    fn any_account(
        self,
        target: Target,
        session: Option<Session<'_>>,
        scope: &Scope,
        now: Now,
        place: &mut dyn FnMut(Target, Standing),
    ) {
        let accounts = &self.proxy.accounts;
        let standings = RefCell::new(Vec::new());
        let order = accounts.order(session.map(|session| session.id), now, |account| {
            let provider = target.provider.for_account(account);
            let standing = self.proxy.health.standing(&provider, scope, now);
            let well = matches!(standing, Standing::Ready(_));
            standings.borrow_mut().push((account.clone(), provider, standing));
            well
        });
        let mut standings = standings.into_inner();
        if order.is_empty() {
            let standing = if accounts.is_open() { Standing::LoginRequired } else { Standing::StorageUnavailable };
            place(target, standing);
            return;
        }
        for account in order {
            if let Some(at) = standings.iter().position(|(other, _, _)| *other == account) {
                let (_, provider, standing) = standings.swap_remove(at);
                place(Target { provider, ..target.clone() }, standing);
            }
        }
    }
}

/// Entries as targets, in file order.
fn entries(providers: &[Arc<Provider>], wanted: impl Fn(&Provider) -> bool) -> Vec<Target> {
    let target = |provider: &Arc<Provider>| Target {
        provider: provider.clone(),
        model: ModelChoice::Passthrough,
        priority: 1,
        enabled: true,
    };
    providers.iter().filter(|provider| wanted(provider)).map(target).collect()
}

/// The route of a request that insists on a provider: its targets in the matching routes, else its entries.
fn pinned(snapshot: &Snapshot, name: &str, model: &str) -> Result<Route, Error> {
    let own = |target: &&Target| &*target.provider.key.name == name;
    let mut targets: Vec<Target> =
        snapshot.routes.matching(model).flat_map(|route| route.targets.iter().filter(own)).cloned().collect();
    if targets.is_empty() {
        targets = entries(&snapshot.providers, |provider| &*provider.key.name == name);
    }
    if targets.is_empty() {
        let message = format!("the request insists on a provider \"{name}\", which the configuration does not have");
        return Err(Error::new(StatusCode::NOT_FOUND, message));
    }
    Ok(Route::new(name, targets))
}
