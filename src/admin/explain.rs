//! `explain MODEL`: the ordered targets for a model, with the reason for each place. The very plan that a request
//! would get; how targets stand comes from a running server's `/providers`, if one answers.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::time::Instant;

use crate::config::Snapshot;
use crate::health::{Cause, Standing};
use crate::provider::{Auth, Provider};
use crate::route::{ModelChoice, Plan, Planned, Route, Selection, Skipped, Strategy, Target};

/// What a running server says of its providers.
#[derive(Debug)]
pub struct LiveView(Value);

impl LiveView {
    /// Reads the answer to `GET /providers`.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(body).ok()?;
        value.get("providers")?.as_array()?;
        Some(Self(value))
    }

    /// The file that the server uses.
    pub fn file(&self) -> Option<&str> {
        self.0.get("config")?.get("file")?.as_str()
    }

    fn entry(&self, provider: &Provider) -> Option<&Value> {
        let email = provider.key.account.as_ref().map(ToString::to_string);
        self.0.get("providers")?.as_array()?.iter().find(|entry| {
            entry.get("name").and_then(Value::as_str) == Some(&provider.key.name)
                && entry.get("account_email").and_then(Value::as_str) == email.as_deref()
        })
    }

    fn standing(&self, provider: &Provider) -> Option<Standing> {
        let entry = self.entry(provider)?;
        let at = |key: &str| {
            let seconds = entry.get(key)?.as_f64().filter(|seconds| seconds.is_finite() && *seconds >= 0.0)?;
            SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
        };
        let now = SystemTime::now();
        let state = entry.get("account_state").and_then(Value::as_str);
        // Whom a provider refuses is tried again when its cooldown is over, box or no box.
        if entry.get("login_required") == Some(&Value::Bool(true)) && state != Some("refused") {
            return Some(Standing::LoginRequired);
        }
        if state == Some("storage_unavailable") {
            return Some(Standing::StorageUnavailable);
        }
        if let Some(until) = at("rate_limited_until").filter(|until| *until > now) {
            return Some(Standing::Limited { until });
        }
        let left = at("cooldown_until").and_then(|until| until.duration_since(now).ok());
        Some(match left {
            Some(left) => Standing::Cooling { until: Instant::now() + left, cause: Cause::Failures },
            None => Standing::Ready(None),
        })
    }
}

/// The explanation, for people. `Err` where no route matches.
///
/// # Errors
/// The same words that a client would get.
pub fn explain(snapshot: &Snapshot, model: &str, live: Option<&LiveView>) -> Result<String, String> {
    let routes: Vec<_> = snapshot.routes.matching(model).collect();
    let Some(first) = routes.first() else {
        return Err(snapshot.routes.no_match(model));
    };
    let how = if *first.pattern == *model { "the exact name" } else { "the first pattern that matches" };
    let mut out = format!("{model}\n  route \"{}\" ({how})\n", first.pattern);
    let selection = Selection { strategy: Strategy::Priority, session: None };
    let plan = Plan::new(routes.iter().copied(), selection, |target, place| {
        let standing = standing(&target.provider, live);
        place(target, standing);
    });
    let requested: Arc<str> = model.into();
    // In the order of the file's tiers, those that are not tried in their place; what cools stands at the end.
    let mut rows: Vec<(bool, (usize, i64), String)> = Vec::new();
    for (index, planned) in plan.targets.iter().enumerate() {
        let why = why(planned, first, &plan, snapshot.settings.strategy);
        let row = format!("  {}. {}: {why}", index + 1, describe(&planned.target, &requested));
        rows.push((planned.cooling.is_some(), planned.tier, row));
    }
    for skipped in &plan.skipped {
        let row = format!(
            "  -  {}: priority {} of \"{}\", not tried: {}",
            describe(&skipped.target, &requested),
            skipped.target.priority,
            skipped.pattern,
            why_not(skipped)
        );
        rows.push((false, skipped.tier, row));
    }
    rows.sort_by_key(|(cooling, tier, _)| (*cooling, *tier));
    for (_, _, row) in rows {
        out.push_str(&row);
        out.push('\n');
    }
    if plan.targets.is_empty() {
        out.push_str("  no usable target: the client gets an error at once\n");
    }
    let later: Vec<_> = routes
        .iter()
        .filter(|route| {
            let used = |pattern: &Arc<str>| *pattern == route.pattern;
            !plan.targets.iter().any(|planned| used(&planned.pattern))
                && !plan.skipped.iter().any(|skipped| used(&skipped.pattern))
        })
        .map(|route| format!("\"{}\"", route.pattern))
        .collect();
    if !later.is_empty() {
        let _ = writeln!(out, "  also matching, asked only while nothing above is ready: {}", later.join(", "));
    }
    Ok(out)
}

fn why(planned: &Planned, first: &Route, plan: &Plan, strategy: Strategy) -> String {
    let mut why = format!("priority {}", planned.target.priority);
    if planned.pattern != first.pattern {
        let _ = write!(why, " of \"{}\", appended because nothing before it is ready", planned.pattern);
    }
    if plan.targets.iter().filter(|other| other.tier == planned.tier).count() > 1 {
        why.push_str(match strategy {
            Strategy::Priority => ", ties keep the order of the file",
            Strategy::RoundRobin => ", this tier takes turns (round_robin)",
            Strategy::Random => ", the order in this tier is drawn (random)",
        });
    }
    if let Some(Standing::Cooling { until, .. }) = &planned.cooling {
        let left = until.saturating_duration_since(Instant::now()).as_secs() + 1;
        let _ = write!(why, "; cooling for {left} s more, so it comes last");
    }
    why
}

fn why_not(skipped: &Skipped) -> String {
    match &skipped.standing {
        Standing::Disabled if skipped.target.enabled => "the provider is disabled".into(),
        Standing::Disabled => "the target is disabled".into(),
        Standing::LoginRequired => "login required".into(),
        Standing::StorageUnavailable => "the store of tokens is unavailable".into(),
        Standing::Limited { until } => format!("rate limited until {}", httpdate::fmt_http_date(*until)),
        Standing::Cooling { .. } => "cooling, and another cooldown ends earlier".into(),
        Standing::Ready(_) => "not needed".into(),
    }
}

fn standing(provider: &Provider, live: Option<&LiveView>) -> Standing {
    if !provider.enabled {
        return Standing::Disabled;
    }
    live.and_then(|live| live.standing(provider)).unwrap_or(match provider.auth {
        Auth::OAuth => Standing::LoginRequired,
        _ => Standing::Ready(None),
    })
}

fn describe(target: &Target, requested: &Arc<str>) -> String {
    let model = match &target.model {
        ModelChoice::Passthrough => String::new(),
        ModelChoice::Named(name) if name == requested => String::new(),
        ModelChoice::Named(name) => format!(" as {name}"),
    };
    format!("{} at {}{model}", target.provider.key, target.provider.base)
}
