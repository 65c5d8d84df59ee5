//! From a model name to a plan.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::expect_used, reason = "a bench fails by panicking")]

use std::hint::black_box;
use std::sync::Arc;

use claude_code_balancer::health::{Health, Now, Policy, Scope};
use claude_code_balancer::provider::{Auth, BaseUrl, Egress, Kind, Provider, ProviderKey};
use claude_code_balancer::route::{ModelChoice, Plan, Route, RouteTable, Selection, Strategy, Target};
use criterion::{Criterion, criterion_group, criterion_main};

fn provider(number: usize) -> Arc<Provider> {
    let key = ProviderKey { name: format!("Provider {number}").into(), account: None };
    let base = BaseUrl::parse("http://127.0.0.1:1").expect("a URL");
    Arc::new(Provider::new(key, Kind::Anthropic, base, Auth::Passthrough, Egress::Direct))
}

fn targets(count: usize) -> Vec<Target> {
    let target = |number: usize| Target {
        provider: provider(number),
        model: ModelChoice::Passthrough,
        priority: 1,
        enabled: true,
    };
    (0..count).map(target).collect()
}

/// Half exact names, half patterns; the last pattern is the one that is asked for.
fn table(routes: usize) -> RouteTable {
    let targets = targets(3);
    let route = |number: usize| {
        let pattern = if number.is_multiple_of(2) { format!("model-{number}") } else { format!("*family-{number}-*") };
        Route::new(pattern, targets.clone())
    };
    RouteTable::new((0..routes).map(route).chain([Route::new("*sonnet*", targets.clone())]).collect())
}

fn lookup(criterion: &mut Criterion) {
    for routes in [10, 1_000, 10_000] {
        let table = table(routes);
        let exact = format!("model-{}", routes / 2 / 2 * 2);
        assert!(table.matching(&exact).next().is_some());
        criterion.bench_function(&format!("routing/exact/{routes}"), |bencher| {
            bencher.iter(|| table.matching(black_box(&exact)).next().map(|route| route.pattern.clone()));
        });
        assert!(table.matching("claude-sonnet-4-5").next().is_some());
        criterion.bench_function(&format!("routing/last pattern/{routes}"), |bencher| {
            bencher.iter(|| table.matching(black_box("claude-sonnet-4-5")).next().map(|route| route.pattern.clone()));
        });
    }
}

fn plan(criterion: &mut Criterion) {
    let health = Health::new(Policy::default());
    for count in [1, 3, 20] {
        let table = RouteTable::new(vec![Route::new("*", targets(count))]);
        for strategy in [Strategy::Priority, Strategy::RoundRobin, Strategy::Random] {
            criterion.bench_function(&format!("routing/plan/{count} targets/{strategy:?}"), |bencher| {
                let model: Arc<str> = "claude-sonnet-4-5".into();
                bencher.iter(|| {
                    let now = Now::read();
                    let selection = Selection { strategy, session: None };
                    Plan::new(table.matching(black_box(&model)), selection, |target, place| {
                        let scope = Scope { model: target.model.resolve(&model), count_tokens: false };
                        let standing = health.standing(&target.provider, &scope, now);
                        place(target, standing);
                    })
                });
            });
        }
    }
}

criterion_group!(benches, lookup, plan);
criterion_main!(benches);
