//! From YAML text to a snapshot.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::panic, reason = "a bench fails by panicking")]

use std::fmt::Write as _;
use std::hint::black_box;

use claude_code_balancer::config::{self, Surroundings};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// As many providers, and as many routes of two targets each.
fn text(providers: usize) -> String {
    let mut text = String::from("providers:\n");
    for number in 0..providers {
        let _ = write!(
            text,
            "  - name: \"Provider {number}\"\n    base_url: \"https://p{number}.example.com/claude\"\n    \
             auth_type: \"api_key\"\n    auth_value: \"sk-your-api-key\"\n"
        );
    }
    text.push_str("model_routes:\n");
    for number in 0..providers {
        let _ = write!(
            text,
            "  \"*family-{number}-*\":\n    - provider: \"Provider {number}\"\n      priority: 1\n    - provider: \
             \"Provider {}\"\n      priority: 2\n      model: \"claude-{number}\"\n",
            (number + 1) % providers
        );
    }
    text
}

fn parse(criterion: &mut Criterion) {
    for providers in [10, 1_000] {
        let text = text(providers);
        let env = |_: &str| None;
        let around = Surroundings::pure(&env);
        let mut group = criterion.benchmark_group("config");
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(format!("{providers} providers and routes"), |bencher| {
            bencher.iter(|| match config::parse(black_box(text.as_bytes()), "bench", &around) {
                Ok((snapshot, _)) => assert_eq!(snapshot.providers.len(), providers),
                Err(report) => panic!("{report}"),
            });
        });
        group.finish();
    }
}

/// The largest that anybody should have: ten routes for each provider, half of them exact names.
fn large(criterion: &mut Criterion) {
    let mut text = String::from("providers:\n");
    for number in 0..1_000 {
        let _ = writeln!(text, "  - {{ name: P{number}, base_url: \"https://p{number}.test\", auth_value: key }}");
    }
    text.push_str("model_routes:\n");
    for number in 0..10_000 {
        let star = if number % 2 == 0 { "" } else { "*" };
        let _ = writeln!(text, "  \"model-{number}{star}\": [{{ provider: P{} }}]", number % 1_000);
    }
    let env = |_: &str| None;
    let around = Surroundings::pure(&env);
    let read = |text: &str| match config::parse(text.as_bytes(), "bench", &around) {
        Ok((snapshot, _)) => snapshot,
        Err(report) => panic!("{report}"),
    };
    let mut group = criterion.benchmark_group("config");
    group.sample_size(10);
    group.bench_function("1000 providers, 10000 routes", |bencher| bencher.iter(|| read(black_box(&text))));
    let (old, new) = (read(&text), read(&text.replace("model-5*", "model-five*")));
    group.bench_function("difference of 1000 providers, 10000 routes", |bencher| {
        bencher.iter(|| assert_eq!(config::difference(black_box(&old), black_box(&new)).len(), 2));
    });
    group.finish();
}

criterion_group!(benches, parse, large);
criterion_main!(benches);
