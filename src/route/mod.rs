//! From a model name to an ordered queue of targets. Pure: health is asked through a closure, time is an argument.

pub mod glob;
mod sticky;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::health::{Permit, Standing};
use crate::provider::{Identity, Provider};

pub use glob::Glob;
pub use sticky::{Session, Sticky};

/// One provider, account and model choice of a route.
#[derive(Clone, Debug)]
pub struct Target {
    /// Who answers.
    pub provider: Arc<Provider>,
    /// Which model is asked for there.
    pub model: ModelChoice,
    /// Smaller first.
    pub priority: i64,
    /// Whether the route uses it.
    pub enabled: bool,
}

/// The model that is named upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelChoice {
    /// The client's own.
    Passthrough,
    /// This one instead.
    Named(Arc<str>),
}

impl ModelChoice {
    /// The name that goes upstream when the client asked for `requested`.
    pub fn resolve(&self, requested: &Arc<str>) -> Arc<str> {
        match self {
            Self::Passthrough => requested.clone(),
            Self::Named(name) => name.clone(),
        }
    }
}

/// A pattern and its targets, in the order of their tiers.
#[derive(Debug)]
pub struct Route {
    /// As it stands in the file.
    pub pattern: Arc<str>,
    /// Ascending by priority; ties in file order.
    pub targets: Vec<Target>,
    turn: AtomicUsize,
}

impl Route {
    /// Sorts the targets into tiers.
    pub fn new(pattern: impl Into<Arc<str>>, mut targets: Vec<Target>) -> Self {
        targets.sort_by_key(|target| target.priority);
        Self { pattern: pattern.into(), targets, turn: AtomicUsize::new(0) }
    }
}

/// All routes.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Route>,
    exact: HashMap<Arc<str>, usize>,
    patterns: Vec<(Glob, usize)>,
}

impl RouteTable {
    /// Builds the table; the order of `routes` is the order in which patterns are asked.
    pub fn new(routes: Vec<Route>) -> Self {
        let mut table = Self { routes, ..Self::default() };
        for (index, route) in table.routes.iter().enumerate() {
            if Glob::is_pattern(&route.pattern) {
                table.patterns.push((Glob::new(&route.pattern), index));
            } else {
                table.exact.insert(route.pattern.clone(), index);
            }
        }
        table
    }

    /// The routes in file order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// What is said where none matches: the model, and the patterns that there are.
    pub fn no_match(&self, model: &str) -> String {
        let patterns: Vec<_> = self.routes.iter().map(|route| format!("\"{}\"", route.pattern)).collect();
        format!("no route for model \"{model}\"; model_routes has {}", patterns.join(", "))
    }

    /// The routes that match, best first: the exact name, then patterns in file order.
    pub fn matching(&self, model: &str) -> impl Iterator<Item = &Route> {
        let exact = self.exact.get(model).copied();
        let patterns = self.patterns.iter().filter(move |(glob, _)| glob.matches(model)).map(|(_, index)| *index);
        exact.into_iter().chain(patterns).filter_map(|index| self.routes.get(index))
    }
}

/// The order inside one priority tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// File order.
    #[default]
    Priority,
    /// The first place moves on with each request.
    RoundRobin,
    /// Drawn anew for each request.
    Random,
}

/// How one request wants its targets ordered.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// Inside a tier.
    pub strategy: Strategy,
    /// The choice that a session keeps.
    pub session: Option<Session<'a>>,
}

/// A target with its place in a plan.
#[derive(Debug)]
pub struct Planned {
    /// What is tried.
    pub target: Target,
    /// The route it comes from.
    pub pattern: Arc<str>,
    /// Position of that route among the matching ones, and the target's priority: equal = the same tier.
    pub tier: (usize, i64),
    /// Whether it is cooling, and so stands at the end.
    pub cooling: Option<Standing>,
    /// Given back when the attempt is over.
    pub permit: Option<Permit>,
}

/// A target that is not tried, and why.
#[derive(Debug)]
pub struct Skipped {
    /// Which one.
    pub target: Target,
    /// The route it comes from.
    pub pattern: Arc<str>,
    /// See [`Planned::tier`].
    pub tier: (usize, i64),
    /// Why not.
    pub standing: Standing,
}

/// The queue of targets of one request. Not `Clone`: failover consumes it.
#[derive(Debug, Default)]
pub struct Plan {
    /// In the order in which they are tried.
    pub targets: VecDeque<Planned>,
    /// Not tried.
    pub skipped: Vec<Skipped>,
}

impl Plan {
    /// Orders the targets of `routes` (best match first). The next route is asked only while every target so far is
    /// unusable or cooling. `stand` is asked once for each target and says how it stands; a target that stands for
    /// several (any account) it may replace by all of those, in their order.
    pub fn new<'a>(
        routes: impl Iterator<Item = &'a Route>,
        selection: Selection<'_>,
        mut stand: impl FnMut(Target, &mut dyn FnMut(Target, Standing)),
    ) -> Self {
        let mut plan = Self::default();
        let mut cooling = Vec::new();
        let mut seen: Vec<(Arc<Identity>, ModelChoice)> = Vec::new();
        for (group, route) in routes.enumerate() {
            let mut place = |target: Target, state: Standing| {
                if is_among(&seen, &target) {
                    return;
                }
                if !matches!(state, Standing::Disabled) {
                    seen.push((target.provider.identity.clone(), target.model.clone()));
                }
                let (pattern, tier) = (route.pattern.clone(), (group, target.priority));
                match state {
                    Standing::Ready(permit) => {
                        plan.targets.push_back(Planned { target, pattern, tier, cooling: None, permit });
                    }
                    Standing::Cooling { until, .. } => {
                        cooling.push((until, Planned { target, pattern, tier, cooling: Some(state), permit: None }));
                    }
                    _ => plan.skipped.push(Skipped { target, pattern, tier, standing: state }),
                }
            };
            for target in route.ordered(selection) {
                if target.enabled { stand(target, &mut place) } else { place(target, Standing::Disabled) }
            }
            if !plan.targets.is_empty() {
                break;
            }
        }
        plan.append(cooling);
        plan
    }

    /// The pattern of the route that matched best.
    pub fn first_pattern(&self) -> Option<Arc<str>> {
        let tried = self.targets.iter().map(|planned| (planned.tier, &planned.pattern));
        let skipped = self.skipped.iter().map(|skipped| (skipped.tier, &skipped.pattern));
        tried.chain(skipped).min_by_key(|(tier, _)| *tier).map(|(_, pattern)| pattern.clone())
    }

    /// Cooling targets come last; when there are no others, only the one whose cooldown ends first is tried, so that
    /// an outage is not multiplied.
    fn append(&mut self, mut cooling: Vec<(tokio::time::Instant, Planned)>) {
        if self.targets.is_empty()
            && let Some(first) = cooling.iter().enumerate().min_by_key(|(_, (until, _))| *until).map(|(index, _)| index)
        {
            self.targets.push_back(cooling.remove(first).1);
            for (_, Planned { target, pattern, tier, cooling, .. }) in cooling {
                let standing = cooling.unwrap_or(Standing::Ready(None));
                self.skipped.push(Skipped { target, pattern, tier, standing });
            }
            return;
        }
        self.targets.extend(cooling.into_iter().map(|(_, planned)| planned));
    }

    /// Inside the tier of a target that was overloaded, lets other providers come before other accounts of the same one.
    pub fn demote(&mut self, provider: &Provider, tier: (usize, i64)) {
        let end = self.targets.iter().take_while(|planned| planned.tier == tier && planned.cooling.is_none()).count();
        let rest = self.targets.split_off(end);
        let (same, other): (Vec<_>, Vec<_>) =
            self.targets.drain(..).partition(|planned| planned.target.provider.key.name == provider.key.name);
        self.targets.extend(other);
        self.targets.extend(same);
        self.targets.extend(rest);
    }
}

impl Route {
    fn ordered(&self, selection: Selection<'_>) -> Vec<Target> {
        let mut targets = Vec::with_capacity(self.targets.len());
        let turn = match selection.strategy {
            Strategy::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed),
            Strategy::Priority | Strategy::Random => 0,
        };
        for tier in self.targets.chunk_by(|a, b| a.priority == b.priority) {
            let from = targets.len();
            // A target that is switched off takes no turn.
            targets.extend(tier.iter().filter(|target| target.enabled && target.provider.enabled).cloned());
            let tier_len = targets.len() - from;
            if let Some(usable) = targets.get_mut(from..)
                && tier_len > 1
            {
                match selection.strategy {
                    Strategy::Priority => {}
                    Strategy::RoundRobin => usable.rotate_left(turn % tier_len),
                    Strategy::Random => shuffle(usable),
                }
                if let Some(session) = selection.session
                    && let Some(chosen) = usable.iter().position(|target| session.keeps(&self.pattern, target))
                    && let Some(front) = usable.get_mut(..=chosen)
                {
                    front.rotate_right(1);
                }
            }
            targets.extend(tier.iter().filter(|target| !(target.enabled && target.provider.enabled)).cloned());
        }
        targets
    }
}

fn is_among(seen: &[(Arc<Identity>, ModelChoice)], target: &Target) -> bool {
    let own = &target.provider.identity;
    seen.iter().any(|(identity, model)| *model == target.model && (Arc::ptr_eq(identity, own) || identity == own))
}

fn shuffle(targets: &mut [Target]) {
    for index in (1..targets.len()).rev() {
        let random = getrandom::u32().unwrap_or_default();
        targets.swap(index, usize::try_from(random).unwrap_or_default() % (index + 1));
    }
}

#[cfg(test)]
mod tests;
