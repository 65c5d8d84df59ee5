//! What the balancer costs: the real program beside a plain copy of bytes, each a process of its own between the same
//! client and the same scripted provider, in turn, in one run.
//!
//! ```console
//! $ cargo bench --bench end_to_end                      # everything, in a minute
//! $ cargo bench --bench end_to_end -- --quick --check   # the short form, as `.ci/run` has it
//! $ cargo bench --bench end_to_end -- stream            # what has this word in its name
//! ```
//!
//! Processor time is that of one process, user and system, without client and provider; memory is what it holds of its
//! own (`RssAnon`). All of them share one core, for there the same program costs the same each time. The balancer has
//! everything on that a user has: its log at INFO, on a terminal (a pipe) and in a file.
//!
//! Absolute figures depend on the machine; the ratio does so far less, and is what `--check` looks at: it ends with
//! status 1 where a ratio is more than [`MARGIN`] times the recorded one, three times in a row. `--json FILE` writes the
//! figures.
//!
//! Only Linux tells all of this; elsewhere nothing is measured.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench fails by panicking, and prints"
)]

#[cfg(target_os = "linux")]
mod client;
#[cfg(target_os = "linux")]
mod copy;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod scenario;
#[cfg(target_os = "linux")]
mod upstream;

use std::process::ExitCode;

/// How far above its recorded ratio a ratio may be: what a busy machine does to a short run must not reach it.
#[cfg(target_os = "linux")]
const MARGIN: f64 = 1.3;

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    println!("end_to_end: processor time and memory of a process are read from /proc; nothing is measured here");
    ExitCode::SUCCESS
}

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    let mut order = Order::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            copy::ORDER => copy::run(&arguments.next().expect("where to")),
            // Cargo says so to every bench.
            "--bench" => order.bench = true,
            "--quick" => order.quick = true,
            "--check" => order.check = true,
            "--json" => order.json = Some(arguments.next().expect("--json FILE")),
            option if option.starts_with('-') => {
                eprintln!("end_to_end knows --quick, --check, --json FILE and words of names, not {option}");
                return ExitCode::from(64);
            }
            word => order.words.push(word.to_owned()),
        }
    }
    if !order.bench {
        println!("end_to_end: nothing is measured in a debug build; use cargo bench");
        return ExitCode::SUCCESS;
    }
    process::stay_on_one_core();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(&order))
}

/// What was asked for.
#[cfg(target_os = "linux")]
#[derive(Default)]
struct Order {
    bench: bool,
    quick: bool,
    check: bool,
    json: Option<String>,
    words: Vec<String>,
}

#[cfg(target_os = "linux")]
async fn run(order: &Order) -> ExitCode {
    use scenario::{Figure, SCENARIOS, Scenario, measure};

    let wanted = |scenario: &&Scenario| {
        order.words.is_empty() || order.words.iter().any(|word| scenario.name.contains(word.as_str()))
    };
    process::raise_descriptors();
    let upstream = upstream::Upstream::start();
    println!("| | balancer | baseline | ratio | recorded |\n|---|---|---|---|---|");
    let (mut told, mut above) = (Vec::new(), Vec::new());
    for scenario in SCENARIOS.iter().filter(wanted) {
        let limit = scenario.recorded * MARGIN;
        let mut figure = measure(&upstream, scenario, order.quick).await;
        for _ in 0..2 {
            if order.check && figure.ratio > limit {
                println!("| {} | | | {:.2} | once more |", scenario.name, figure.ratio);
                let again = measure(&upstream, scenario, order.quick).await;
                figure = if again.ratio < figure.ratio { again } else { figure };
            }
        }
        let Scenario { name, unit, recorded, .. } = scenario;
        let Figure { balancer, baseline, ratio } = figure;
        println!("| {name} | {balancer:.2} {unit} | {baseline:.2} {unit} | {ratio:.2} | {recorded:.2} |");
        told.push(serde_json::json!({
            "name": name, "unit": unit, "balancer": balancer, "baseline": baseline, "ratio": ratio,
            "recorded": recorded, "limit": limit,
        }));
        if ratio > limit {
            above.push(format!("{name}: {ratio:.2}, recorded is {recorded:.2}, the limit {limit:.2}"));
        }
    }
    assert!(!told.is_empty(), "no name has one of the words {:?}", order.words);
    if let Some(file) = &order.json {
        std::fs::write(file, serde_json::json!({ "quick": order.quick, "figures": told }).to_string()).expect("a file");
    }
    if order.check && !above.is_empty() {
        eprintln!("slower than it was, beside the baseline of this run:\n  {}", above.join("\n  "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
