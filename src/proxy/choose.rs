//! Which targets a request may be sent to, and in which order: the route table's word, and how the targets stand.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::Call;
use super::intake::Inbound;
use super::reject::Error;
use crate::config::Snapshot;
use crate::health::{Now, Scope, Standing};
use crate::provider::{Auth, Provider};
use crate::route::{ModelChoice, Plan, Route, Selection, Session, Strategy, Target};

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
        Plan::new(routes, selection, |target| {
            let scope = Scope { model: target.model.resolve(model), count_tokens };
            self.standing(&target.provider, &scope, now)
        })
    }

    fn standing(self, provider: &Provider, scope: &Scope, now: Now) -> Standing {
        if !provider.enabled {
            Standing::Disabled
        } else if provider.auth == Auth::OAuth {
            Standing::LoginRequired
        } else {
            self.proxy.health.standing(provider, scope, now)
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
