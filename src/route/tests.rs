use super::*;
use crate::health::Cause;
use crate::provider::{Auth, BaseUrl, Egress, Email, Kind, ProviderKey};
use std::collections::HashMap;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// `NAME` or `NAME/account`.
fn provider(label: &str) -> Arc<Provider> {
    let (name, account) = label.split_once('/').map_or((label, None), |(name, account)| (name, Some(account)));
    let account = account.and_then(|account| Email::parse(&format!("{account}@x.y")));
    let base = BaseUrl::parse("https://h.test").expect("url");
    let key = ProviderKey { name: name.into(), account };
    Arc::new(Provider::new(key, Kind::Anthropic, base, Auth::Passthrough, Egress::Direct))
}

fn route(pattern: &str, targets: &[(&str, i64)]) -> Route {
    let target = |(label, priority): &(&str, i64)| Target {
        provider: provider(label),
        model: ModelChoice::Passthrough,
        priority: *priority,
        enabled: true,
    };
    Route::new(pattern, targets.iter().map(target).collect())
}

fn label(target: &Target) -> String {
    match &target.provider.key.account {
        Some(account) => format!("{}/{}", target.provider.key.name, account.as_str().trim_end_matches("@x.y")),
        None => target.provider.key.name.to_string(),
    }
}

/// How targets stand: `cooling N` (until second N), `limited`, `login`, `off`; anything else is ready.
fn plan_with(routes: &[&Route], strategy: Strategy, session: Option<Session<'_>>, standings: &[(&str, &str)]) -> Plan {
    let standings: HashMap<_, _> = standings.iter().copied().collect();
    let start = Instant::now();
    Plan::new(routes.iter().copied(), Selection { strategy, session }, |target, place| {
        let standing = match standings.get(label(&target).as_str()).copied().unwrap_or_default().split_once(' ') {
            Some(("cooling", until)) => Standing::Cooling {
                until: start + Duration::from_secs(until.parse().expect("seconds")),
                cause: Cause::Failures,
            },
            Some(("limited", _)) => Standing::Limited { until: SystemTime::UNIX_EPOCH },
            Some(("login", _)) => Standing::LoginRequired,
            Some(("off", _)) => Standing::Disabled,
            _ => Standing::Ready(None),
        };
        place(target, standing);
    })
}

fn order(plan: &Plan) -> Vec<String> {
    plan.targets.iter().map(|planned| label(&planned.target)).collect()
}

fn ordered(routes: &[&Route], standings: &[(&str, &str)]) -> Vec<String> {
    order(&plan_with(routes, Strategy::Priority, None, standings))
}

#[test]
fn the_exact_name_comes_first_then_patterns_in_file_order() {
    let table = RouteTable::new(vec![
        route("*", &[("Any", 1)]),
        route("*sonnet*", &[("S", 1)]),
        route("claude-sonnet-4", &[("Exact", 1)]),
    ]);
    let matching = |model: &str| table.matching(model).map(|route| route.pattern.to_string()).collect::<Vec<_>>();
    assert_eq!(matching("claude-sonnet-4"), ["claude-sonnet-4", "*", "*sonnet*"]);
    assert_eq!(matching("Claude-Sonnet-4"), ["*", "*sonnet*"], "exact names are case-sensitive");
    assert_eq!(matching("gpt"), ["*"]);
}

#[test]
fn tiers_ascend_ties_keep_file_order_and_cooling_targets_come_last() {
    let route = route("*", &[("C", 3), ("B1", 2), ("A", 1), ("B2", 2)]);
    assert_eq!(ordered(&[&route], &[]), ["A", "B1", "B2", "C"]);
    assert_eq!(ordered(&[&route], &[("A", "cooling 9")]), ["B1", "B2", "C", "A"]);
    assert_eq!(ordered(&[&route], &[("A", "cooling 9"), ("B1", "cooling 5")]), ["B2", "C", "A", "B1"]);
    assert_eq!(ordered(&[&route], &[("A", "limited "), ("B2", "login "), ("C", "off ")]), ["B1"]);
}

#[test]
fn when_every_candidate_cools_only_the_one_that_ends_first_is_tried() {
    let route = route("*", &[("A", 1), ("B", 2), ("C", 3)]);
    let plan =
        plan_with(&[&route], Strategy::Priority, None, &[("A", "cooling 9"), ("B", "cooling 5"), ("C", "limited ")]);
    assert_eq!(order(&plan), ["B"]);
    let skipped: Vec<_> = plan.skipped.iter().map(|skipped| label(&skipped.target)).collect();
    assert_eq!(skipped, ["C", "A"]);
}

#[test]
fn the_next_matching_pattern_serves_as_a_backup_while_nothing_before_it_is_ready() {
    let (first, last) = (route("*sonnet*", &[("A", 1), ("B", 2)]), route("*", &[("D", 1), ("A", 1)]));
    assert_eq!(ordered(&[&first, &last], &[]), ["A", "B"]);
    assert_eq!(ordered(&[&first, &last], &[("A", "limited ")]), ["B"]);
    assert_eq!(ordered(&[&first, &last], &[("A", "cooling 9"), ("B", "limited ")])[0], "D");
    assert_eq!(ordered(&[&first, &last], &[("A", "login "), ("B", "off ")])[0], "D");
}

#[test]
fn a_target_is_tried_once_even_if_two_patterns_name_it() {
    let shared = provider("A");
    let one = |pattern: &str| {
        let target = Target { provider: shared.clone(), model: ModelChoice::Passthrough, priority: 1, enabled: true };
        Route::new(pattern, vec![target])
    };
    assert_eq!(ordered(&[&one("*sonnet*"), &one("*")], &[("A", "cooling 3")]), ["A"]);
}

#[test]
fn round_robin_moves_on_inside_a_tier_and_skips_what_is_switched_off() {
    let mut route = route("*", &[("A", 1), ("Off", 1), ("B", 1), ("C", 2)]);
    for target in &mut route.targets {
        target.enabled = *target.provider.key.name != *"Off";
    }
    let firsts: Vec<_> =
        (0..4).map(|_| order(&plan_with(&[&route], Strategy::RoundRobin, None, &[])).join(" ")).collect();
    assert_eq!(firsts, ["A B C", "B A C", "A B C", "B A C"]);
}

#[test]
fn random_draws_every_order_of_a_tier() {
    let route = route("*", &[("A", 1), ("B", 1), ("C", 2)]);
    let orders: std::collections::HashSet<_> =
        (0..200).map(|_| order(&plan_with(&[&route], Strategy::Random, None, &[])).join(" ")).collect();
    assert_eq!(orders, ["A B C".to_owned(), "B A C".to_owned()].into());
}

#[tokio::test(start_paused = true)]
async fn a_session_keeps_its_choice_inside_its_tier_while_it_lasts() {
    let (sticky, shared) = (Sticky::default(), route("*", &[("A", 1), ("B", 1), ("C", 2)]));
    let session =
        |id: &'static [u8]| Session { sticky: &sticky, id, lasts: Duration::from_secs(300), now: Instant::now() };
    let b = shared.targets.iter().find(|target| &*target.provider.key.name == "B").expect("B");
    session(b"one").choose("*", b);
    let first = |id, standings: &[(&str, &str)]| {
        order(&plan_with(&[&shared], Strategy::Priority, Some(session(id)), standings)).join(" ")
    };
    assert_eq!(first(b"one", &[]), "B A C");
    assert_eq!(first(b"two", &[]), "A B C");
    assert_eq!(first(b"one", &[("B", "cooling 9")]), "A C B", "while it is healthy");
    tokio::time::advance(Duration::from_secs(301)).await;
    assert_eq!(first(b"one", &[]), "A B C");
}

#[test]
fn after_an_overload_another_provider_of_the_tier_comes_before_another_account_of_the_same() {
    let route = route("*", &[("A/main", 1), ("A/backup", 1), ("B", 1), ("A/third", 2), ("C", 2)]);
    let mut plan = plan_with(&[&route], Strategy::Priority, None, &[]);
    let failed = plan.targets.pop_front().expect("first");
    plan.demote(&failed.target.provider, failed.tier);
    assert_eq!(order(&plan), ["B", "A/backup", "A/third", "C"], "other tiers stay as they are");
}
