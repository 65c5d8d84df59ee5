//! Finding `model` and `stream` in a large body, beside a reader that skips the whole value.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::expect_used, reason = "a bench fails by panicking")]

use std::hint::black_box;

use claude_code_balancer::proxy::scan::{Scan, splice};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde::de::IgnoredAny;
use serde_json::json;

const SIZE: usize = 1024 * 1024;
/// What one read of a socket brings.
const PIECE: usize = 16 * 1024;

/// A long conversation: prose and code with their escapes, and the members that matter at the end.
fn body() -> Vec<u8> {
    let line = "fn main() {\n\tprintln!(\"Hello, wörld\");\n}\n// The quick brown fox jumps over the lazy dog.\n";
    let turn = json!({ "role": "user", "content": [{ "type": "text", "text": line.repeat(40) }] });
    let count = SIZE / turn.to_string().len();
    let head = json!({ "max_tokens": 64, "messages": vec![turn; count] }).to_string();
    let head = head.strip_suffix('}').expect("an object");
    format!("{head},\"model\":\"claude-sonnet-4-5\",\"stream\":true}}").into_bytes()
}

fn scan(body: &[u8]) -> std::ops::Range<usize> {
    let mut scan = Scan::new(&["model", "stream", "provider"]);
    for piece in body.chunks(PIECE) {
        scan.feed(piece).expect("valid");
    }
    scan.finish().expect("valid").member("model").expect("a model").span.clone()
}

fn intake(criterion: &mut Criterion) {
    let body = body();
    let mut group = criterion.benchmark_group("intake");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("scan 1 MiB in pieces", |bencher| bencher.iter(|| scan(black_box(&body))));
    group.bench_function("serde_json IgnoredAny 1 MiB whole", |bencher| {
        bencher.iter(|| serde_json::from_slice::<IgnoredAny>(black_box(&body)).expect("valid"));
    });
    group.finish();

    let span = scan(&body);
    let pieces: Vec<_> = body.chunks(PIECE).map(bytes::Bytes::copy_from_slice).collect();
    let change = [(span, bytes::Bytes::from_static(b"\"claude-other\""))];
    criterion.bench_function("intake/replace the model of 1 MiB", |bencher| {
        bencher.iter(|| splice(black_box(&pieces), &change));
    });
}

criterion_group!(benches, intake);
criterion_main!(benches);
