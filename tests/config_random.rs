//! Random configurations, and random edits of them.

use claude_code_balancer::config::{self, Surroundings, check_any};
use proptest::prelude::*;
use serde_json::{Value, json};

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["A", "B", "Büro", "中文 provider", "with \"quotes\"", "#hash", "true", "1e3", "*star*"])
        .prop_map(str::to_owned)
}

fn provider() -> impl Strategy<Value = Value> {
    let auth = prop::sample::select(vec!["oauth", "passthrough", "${SET}", "sk-ant-of-a-test"]);
    let url = prop::sample::select(vec!["https://api.anthropic.com", "http://127.0.0.1:8080/pre", "https://h.test/"]);
    let proxy = prop::sample::select(vec![
        Value::Null,
        "http://127.0.0.1:3128".into(),
        "socks5h://us%40er:p%3Aw@proxy.test:1080".into(),
    ]);
    let email = prop::option::of(prop::sample::select(vec!["a@example.com", "B@Example.com", "c+d@example.com"]));
    (word(), auth, url, proxy, email, any::<bool>()).prop_map(|(name, auth, url, proxy, email, enabled)| {
        json!({
            "name": name, "auth_value": auth, "base_url": url, "proxy": proxy, "account_email": email,
            "enabled": enabled, "allow_insecure_http": true,
        })
    })
}

prop_compose! {
    fn file()(
        providers in prop::collection::vec(provider(), 1..6),
        targets in prop::collection::vec((0..6_usize, -3..3_i64, any::<bool>(), "[a-z*?.-]{1,12}"), 0..8),
        cooldown in 0..600_u32,
        threshold in 1..9_u32,
        codes in prop::collection::vec(400..600_u16, 0..4),
        strategy in prop::sample::select(vec!["priority", "round_robin", "random"]),
    ) -> Value {
        let mut routes = serde_json::Map::new();
        for (at, priority, enabled, pattern) in targets {
            let name = providers[at % providers.len()]["name"].clone();
            let target = json!({ "provider": name, "model": pattern, "priority": priority, "enabled": enabled });
            let list = routes.entry(pattern).or_insert_with(|| json!([]));
            list.as_array_mut().unwrap().push(target);
        }
        json!({
            "providers": providers,
            "model_routes": routes,
            "settings": {
                "failure_cooldown": cooldown, "unhealthy_threshold": threshold, "unhealthy_http_codes": codes,
                "selection_strategy": strategy, "timeouts": { "idle": format!("{}ms", cooldown + 1) },
            },
        })
    }
}

/// One keystroke, a lost line, a line that comes twice, or an end that comes too early.
fn edit(text: &str, (kind, at, with): (u8, prop::sample::Index, char)) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    let line = at.index(lines.len());
    match kind % 4 {
        0 => drop(lines.remove(line)),
        1 => lines.insert(line, lines[line]),
        2 => {
            let mut text: Vec<char> = text.chars().collect();
            text.insert(at.index(text.len()), with);
            return text.into_iter().collect();
        }
        _ => lines.truncate(line),
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is accepted means the same when it is printed and read; whatever is not is explained.
    #[test]
    fn random_configurations_and_random_edits_of_them_hold(
        file in file(),
        edits in prop::collection::vec((any::<u8>(), any::<prop::sample::Index>(), any::<char>()), 0..4),
    ) {
        let mut text = serde_json::to_string_pretty(&file).unwrap();
        check_any(text.as_bytes());
        for change in edits {
            text = edit(&text, change);
            check_any(text.as_bytes());
            if text.is_empty() {
                break;
            }
        }
    }

    /// They are not refused for something that nobody did: but for pairs of name and account that come twice.
    #[test]
    fn random_configurations_load(file in file()) {
        let env = |name: &str| (name == "SET").then(|| "set".to_owned());
        if let Err(report) = config::parse(file.to_string().as_bytes(), "any.yaml", &Surroundings::pure(&env)) {
            let problems = report.problems.iter().filter(|problem| problem.severity == config::Severity::Error);
            for problem in problems {
                let known = ["twice", "duplicate", "already", "same", "receive"].iter().any(|word| problem.message.contains(word));
                prop_assert!(known, "{}", report);
            }
        }
    }
}
