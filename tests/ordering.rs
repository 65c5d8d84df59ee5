//! Who is asked first, who last, and who not at all.

use std::collections::HashMap;
use std::time::Duration;

use claude_code_balancer::lab::{Gate, Lab, Script};
use serde_json::Value;

use crate::support::balancer::{Balancer, JSON, request, request_for};
use crate::support::{Reply, soon};

async fn labs<const N: usize>() -> [Lab; N] {
    let mut labs = Vec::new();
    for _ in 0..N {
        labs.push(Lab::start().await.unwrap());
    }
    labs.try_into().ok().unwrap()
}

/// Providers A, B, C … with these routes and settings.
async fn routed(labs: &[&Lab], rest: &str) -> Balancer {
    let entries = labs.iter().zip('A'..).map(|(lab, name)| {
        format!("  - {{ name: \"{name}\", base_url: \"{}\", auth_value: \"key-{name}\" }}\n", lab.url())
    });
    let settings = if rest.contains("settings:") { "" } else { "settings:\n" };
    Balancer::start(&format!("providers:\n{}{rest}{settings}  log_file_path: \"\"\n", entries.collect::<String>()))
        .await
}

fn who(reply: &Reply) -> String {
    assert_eq!((reply.status, reply.clean_end), (200, true), "{}", reply.text());
    reply.header("x-provider-used").unwrap().to_owned()
}

async fn answers(balancer: &Balancer, count: usize) -> Vec<String> {
    let mut answers = Vec::new();
    for _ in 0..count {
        answers.push(who(&balancer.ask(true).await));
    }
    answers
}

fn counts(labs: &[&Lab]) -> Vec<usize> {
    labs.iter().map(|lab| lab.requests().len()).collect()
}

fn overloaded() -> Script {
    Script::error(529, "overloaded_error", "Overloaded")
}

fn limited(seconds: u64) -> Script {
    Script::error(429, "rate_limit_error", "Limited").header("retry-after", &seconds.to_string())
}

fn broken() -> Script {
    Script::error(500, "api_error", "Internal")
}

#[tokio::test]
async fn smaller_priorities_come_first_and_ties_keep_the_order_of_the_file() {
    let [a, b, c, d] = labs().await;
    let routes = r#"model_routes:
  "*":
    - { provider: A, priority: 2 }
    - { provider: B, priority: 1 }
    - { provider: C, priority: 1 }
    - { provider: D, priority: -3, enabled: false }
"#;
    let balancer = routed(&[&a, &b, &c, &d], routes).await;
    b.always(Script::html(500));
    c.always(Script::html(500));
    let reply = balancer.ask(true).await;
    assert_eq!((who(&reply), reply.header("x-balancer-attempts")), ("A".to_owned(), Some("3")));
    assert_eq!(counts(&[&a, &b, &c, &d]), [1, 1, 1, 0]);
    b.always(Script::stream(&["x"]));
    assert_eq!(answers(&balancer, 1).await, ["B"]);
}

#[tokio::test]
async fn the_exact_name_wins_over_patterns_and_the_first_pattern_over_the_next() {
    let [a, b, c] = labs().await;
    let routes = r#"model_routes:
  "*":
    - { provider: A }
  "claude-*":
    - { provider: B }
  claude-x:
    - { provider: C, model: other }
"#;
    let balancer = routed(&[&a, &b, &c], routes).await;
    for (model, wanted) in [("claude-x", "C"), ("CLAUDE-X", "A"), ("claude-y", "A")] {
        assert_eq!(who(&balancer.post(request_for(model, true)).await), wanted, "{model}");
    }
    assert_eq!(c.requests()[0].json()["model"], "other");
}

#[tokio::test]
async fn after_the_threshold_a_target_comes_last_but_is_not_removed() {
    let [a, b] = labs().await;
    let balancer = Balancer::before(&[&a, &b], "unhealthy_threshold: 3").await;
    a.always(broken());
    assert_eq!(answers(&balancer, 3).await, ["B"; 3]);
    assert_eq!(counts(&[&a, &b]), [3, 3]);
    assert_eq!(answers(&balancer, 2).await, ["B"; 2]);
    assert_eq!(counts(&[&a, &b]), [3, 5], "A cools");
    assert!(balancer.provider("A").await["cooldown_until"].is_number());
    a.always(Script::stream(&["well again"]));
    b.next(broken());
    let reply = balancer.ask(true).await;
    assert_eq!((who(&reply), reply.header("x-balancer-attempts")), ("A".to_owned(), Some("2")));
    assert_eq!(answers(&balancer, 1).await, ["A"], "a success ends the cooldown");
}

#[tokio::test]
async fn a_success_between_failures_sets_the_counter_to_zero() {
    let [a, b] = labs().await;
    let balancer = Balancer::before(&[&a, &b], "").await;
    for _ in 0..3 {
        a.next(broken());
        assert_eq!(answers(&balancer, 2).await, ["B", "A"]);
    }
    assert_eq!(balancer.failures("A").await, 0);
}

#[tokio::test]
async fn when_all_cool_only_one_is_tried_so_that_an_outage_is_not_multiplied() {
    let [a, b, c] = labs().await;
    for lab in [&a, &b, &c] {
        lab.always(broken());
    }
    let balancer = Balancer::before(&[&a, &b, &c], "").await;
    for _ in 0..2 {
        assert_eq!(balancer.ask(true).await.status, 503);
    }
    assert_eq!(counts(&[&a, &b, &c]), [2, 2, 2]);
    for _ in 0..10 {
        let reply = balancer.ask(true).await;
        assert_eq!((reply.status, reply.header("x-balancer-attempts")), (503, Some("1")));
    }
    assert_eq!(counts(&[&a, &b, &c]).iter().sum::<usize>(), 6 + 10);
    // The first that is well again answers at once, whoever is asked.
    for lab in [&a, &b, &c] {
        lab.always(Script::stream(&["well"]));
    }
    assert_eq!(balancer.ask(true).await.status, 200);
}

#[tokio::test]
async fn an_overload_prefers_another_provider_of_the_tier_to_another_account_of_the_same() {
    let [a, b, c] = labs().await;
    let yaml = format!(
        r#"providers:
  - {{ name: P, base_url: "{}", auth_value: k1, account_email: one@x.y }}
  - {{ name: P, base_url: "{}", auth_value: k2, account_email: two@x.y }}
  - {{ name: Q, base_url: "{}", auth_value: k3 }}
"#,
        a.url(),
        b.url(),
        c.url()
    );
    let balancer = Balancer::start(&yaml).await;
    a.always(overloaded());
    let reply = balancer.ask(true).await;
    assert_eq!((who(&reply).as_str(), counts(&[&a, &b, &c])), ("Q", vec![1, 0, 1]));
    // A failure of another kind does not: there the other account is as good.
    let balancer = Balancer::start(&yaml).await;
    a.always(broken());
    assert_eq!(who(&balancer.ask(true).await), "P (two@x.y)");
    // Nor does an overload reach across tiers.
    let [a, b, c] = labs().await;
    let yaml = format!(
        r#"providers:
  - {{ name: P, base_url: "{}", auth_value: k1, account_email: one@x.y }}
  - {{ name: P, base_url: "{}", auth_value: k2, account_email: two@x.y }}
  - {{ name: Q, base_url: "{}", auth_value: k3 }}
model_routes:
  "*":
    - {{ provider: P, account_email: one@x.y }}
    - {{ provider: P, account_email: two@x.y }}
    - {{ provider: Q, priority: 2 }}
"#,
        a.url(),
        b.url(),
        c.url()
    );
    let balancer = Balancer::start(&yaml).await;
    a.always(overloaded());
    assert_eq!(who(&balancer.ask(true).await), "P (two@x.y)");
}

#[tokio::test]
async fn an_overload_concerns_one_model_and_a_missing_model_too() {
    let [a, b] = labs().await;
    for script in [
        overloaded(),
        Script::error(404, "not_found_error", "model: m1"),
        Script::error(429, "rate_limit_error", "bare"),
    ] {
        let balancer = Balancer::before(&[&a, &b], "").await;
        a.next(script);
        let mut answered = Vec::new();
        for model in ["m1", "m1", "m2"] {
            answered.push(who(&balancer.post(request_for(model, true)).await));
        }
        assert_eq!(answered, ["B", "B", "A"]);
        assert_eq!(balancer.provider("A").await["healthy"], true);
    }
}

#[tokio::test]
async fn a_rate_limited_target_is_skipped_and_not_touched() {
    let [a, b] = labs().await;
    let balancer = Balancer::before(&[&a, &b], "").await;
    a.next(limited(30));
    assert_eq!(answers(&balancer, 3).await, ["B"; 3]);
    b.always(broken());
    for _ in 0..3 {
        assert_eq!(balancer.ask(true).await.status, 503);
    }
    assert_eq!(a.connections(), 1, "not even when nothing else works");
    assert_eq!(a.requests().len(), 1);
}

#[tokio::test]
async fn a_limit_of_one_model_leaves_the_others() {
    let [a, b] = labs().await;
    let balancer = Balancer::before(&[&a, &b], "").await;
    let reset = std::time::SystemTime::now() + Duration::from_secs(3600);
    let reset = reset.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs().to_string();
    a.next(
        Script::error(429, "rate_limit_error", "Limited")
            .header("anthropic-ratelimit-unified-7d_opus-status", "rejected")
            .header("anthropic-ratelimit-unified-7d_opus-reset", &reset),
    );
    let mut answered = Vec::new();
    for model in ["claude-opus-4", "claude-opus-4", "claude-sonnet-4"] {
        answered.push(who(&balancer.post(request_for(model, true)).await));
    }
    assert_eq!(answered, ["B", "B", "A"]);
}

#[tokio::test]
async fn the_next_matching_pattern_is_a_backup_for_targets_that_are_limited_or_cool() {
    let routes = r#"model_routes:
  claude-lab:
    - { provider: A }
  "claude-*":
    - { provider: A }
    - { provider: B }
  "*":
    - { provider: C }
"#;
    let [a, b, c] = labs().await;
    let balancer = routed(&[&a, &b, &c], routes).await;
    a.next(limited(30));
    assert_eq!(balancer.ask(true).await.status, 429, "one target, and its answer");
    assert_eq!(answers(&balancer, 2).await, ["B"; 2]);
    b.next(limited(30));
    assert_eq!(balancer.ask(true).await.status, 429);
    assert_eq!(answers(&balancer, 1).await, ["C"]);
    assert_eq!(counts(&[&a, &b, &c]), [1, 3, 1]);

    let [a, b, c] = labs().await;
    let balancer = routed(&[&a, &b, &c], routes).await;
    a.always(broken());
    for _ in 0..2 {
        assert_eq!(balancer.ask(true).await.status, 500);
    }
    b.next(broken());
    a.always(Script::stream(&["x"]));
    let reply = balancer.ask(true).await;
    assert_eq!((who(&reply), reply.header("x-balancer-attempts")), ("A".to_owned(), Some("2")), "first B, then A");
    assert_eq!(counts(&[&a, &b, &c]), [3, 1, 0]);
}

#[tokio::test]
async fn round_robin_goes_round_inside_a_tier() {
    let [a, b, c, d] = labs().await;
    let routes = r#"model_routes:
  "*":
    - { provider: A }
    - { provider: B }
    - { provider: C }
    - { provider: D, priority: 2 }
settings:
  selection_strategy: round_robin
"#;
    let balancer = routed(&[&a, &b, &c, &d], routes).await;
    let answered = answers(&balancer, 6).await;
    assert_eq!(answered[..3], answered[3..]);
    let mut first = answered[..3].to_vec();
    first.sort();
    assert_eq!(first, ["A", "B", "C"]);
    assert_eq!(d.requests().len(), 0);
}

#[tokio::test]
async fn random_uses_all_of_a_tier() {
    let [a, b, c] = labs().await;
    let balancer = Balancer::before(&[&a, &b, &c], "selection_strategy: random").await;
    answers(&balancer, 60).await;
    // Each is missed with a probability of (2/3)^60.
    assert!(counts(&[&a, &b, &c]).iter().all(|count| *count > 0));
}

#[tokio::test]
async fn a_session_keeps_its_choice_while_that_is_healthy() {
    let [a, b, c] = labs().await;
    let balancer = Balancer::before(&[&a, &b, &c], "selection_strategy: round_robin").await;
    let in_session = async |id: &str| {
        let headers = [JSON, ("x-claude-code-session-id", id)];
        who(&balancer.fetch("POST", "/v1/messages", &headers, request(true)).await)
    };
    let mut choices = HashMap::new();
    for round in 0..4 {
        for id in ["s1", "s2", "s3"] {
            let answered = in_session(id).await;
            assert_eq!(*choices.entry(id).or_insert_with(|| answered.clone()), answered, "{id}, round {round}");
        }
    }
    let failing = choices["s1"].clone();
    let lab = match failing.as_str() {
        "A" => &a,
        "B" => &b,
        _ => &c,
    };
    lab.always(overloaded());
    let moved = in_session("s1").await;
    assert_ne!(moved, failing);
    lab.always(Script::stream(&["well again"]));
    for _ in 0..4 {
        assert_eq!(in_session("s1").await, moved, "it keeps the new choice");
    }
}

#[tokio::test]
async fn a_session_keeps_nothing_when_that_is_switched_off() {
    let [a, b] = labs().await;
    let settings = "selection_strategy: round_robin\nsticky_provider_duration: 0";
    let balancer = Balancer::before(&[&a, &b], settings).await;
    let headers = [JSON, ("x-claude-code-session-id", "s")];
    for _ in 0..4 {
        balancer.fetch("POST", "/v1/messages", &headers, request(true)).await;
    }
    assert_eq!(counts(&[&a, &b]), [2, 2]);
}

/// A has cooled, and its cooldown is over.
async fn after_a_cooldown(a: &Lab, b: &Lab) -> Balancer {
    let balancer = Balancer::before(&[a, b], "unhealthy_threshold: 1\nfailure_cooldown: \"100ms\"").await;
    a.next(broken());
    assert_eq!(answers(&balancer, 1).await, ["B"]);
    balancer.until("the end of the cooldown", "A", |a| a["cooldown_until"] == Value::Null).await;
    balancer
}

#[tokio::test]
async fn after_a_cooldown_one_request_at_a_time_prefers_the_target() {
    let [a, b] = labs().await;
    let balancer = after_a_cooldown(&a, &b).await;
    let gate = Gate::new();
    a.next(Script::stream(&["x"]).gate_before(3, gate.clone()));
    let mut first = balancer.asking(true).await;
    let head = soon("the first one's head", first.head()).await.unwrap();
    assert_eq!(head.header("x-provider-used"), Some("A"));
    assert_eq!(answers(&balancer, 3).await, ["B"; 3], "the permit is out until the stream is complete");
    gate.open();
    assert!(soon("the first one's end", first.rest()).await.1);
    balancer.until("the success", "A", |a| a["failure_count"] == 0).await;
    assert_eq!(answers(&balancer, 3).await, ["A"; 3]);
}

#[tokio::test]
async fn a_client_that_leaves_gives_the_permit_back_and_is_no_failure() {
    let [a, b] = labs().await;
    let balancer = after_a_cooldown(&a, &b).await;
    for stalled in [Script::stall(), Script::stream(&["x"]).stall_after(4)] {
        let before = (a.requests().len(), a.departures());
        a.next(stalled);
        let first = balancer.asking(true).await;
        soon("the probe", a.received(before.0 + 1)).await;
        assert_eq!(answers(&balancer, 1).await, ["B"]);
        drop(first);
        soon("the end of the probe", a.departed(before.1 + 1)).await;
        let back = async {
            while answers(&balancer, 1).await == ["B"] {
                tokio::task::yield_now().await;
            }
        };
        soon("A is preferred again", back).await;
        assert_eq!(balancer.failures("A").await, 0, "the answer that ended the wait was a success");
        // Cools again for the next round.
        a.next(broken());
        assert_eq!(answers(&balancer, 1).await, ["B"]);
        balancer.until("the end of the cooldown", "A", |a| a["cooldown_until"] == Value::Null).await;
    }
}

#[tokio::test]
async fn a_probe_that_fails_cools_the_target_again() {
    let [a, b] = labs().await;
    let balancer = after_a_cooldown(&a, &b).await;
    a.next(broken());
    assert_eq!(answers(&balancer, 1).await, ["B"]);
    assert_eq!(counts(&[&a, &b]), [2, 2]);
    assert!(balancer.provider("A").await["cooldown_until"].is_number());
    assert_eq!(answers(&balancer, 1).await, ["B"]);
    assert_eq!(counts(&[&a, &b]), [2, 3]);
}
