//! The chaos runner: experiments with the fault laboratory, counted exactly from both sides.
//!
//! ```console
//! $ cargo test --test chaos                                   # all of them in their short form
//! $ cargo test --release --test chaos -- matrix --n 10000 --seeds 5
//! $ cargo test --release --test chaos -- storm --seconds 60
//! $ cargo test --release --test chaos -- drain --runs 100
//! $ cargo test --release --test chaos -- descriptors
//! $ cargo test --release --test chaos -- idle --n 5000
//! ```
//!
//! `all` runs all of them; `--json FILE` writes the report as JSON, `--table` prints it as a table in Markdown. A
//! broken invariant is exit status 1.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test program fails by panicking, and speaks to a terminal"
)]

mod descriptors;
mod drain;
mod fault;
mod idle;
mod matrix;
mod process;
mod report;
mod storm;
#[path = "../support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::process::ExitCode;

use report::Report;

const EXPERIMENTS: [&str; 5] = ["matrix", "storm", "drain", "descriptors", "idle"];

/// What was asked for.
struct Order {
    experiments: Vec<&'static str>,
    numbers: HashMap<String, u64>,
    json: Option<String>,
    table: bool,
}

impl Order {
    /// A size that was given, or its default.
    fn number(&self, name: &str, default: u64) -> u64 {
        self.numbers.get(name).copied().unwrap_or(default)
    }
}

/// `Err` says what is wrong. A word that names no experiment selects none, as the filters of other tests do.
fn order(mut arguments: impl Iterator<Item = String>) -> Result<Order, String> {
    let mut order = Order { experiments: Vec::new(), numbers: HashMap::new(), json: None, table: false };
    let mut filtered = false;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--table" => order.table = true,
            "--json" => order.json = Some(arguments.next().ok_or("--json wants a file")?),
            "--n" | "--seeds" | "--seed" | "--seconds" | "--runs" => {
                let value = arguments.next().and_then(|value| value.parse().ok());
                let value = value.ok_or_else(|| format!("{argument} wants a number"))?;
                order.numbers.insert(argument[2..].to_owned(), value);
            }
            "all" => order.experiments = EXPERIMENTS.to_vec(),
            // What `cargo test -- --skip WORD` says to every test program.
            "--skip" => {
                let skipped = arguments.next().ok_or("--skip wants a word")?;
                filtered |= "chaos".contains(&skipped);
            }
            // Options of the usual test programs.
            option if option.starts_with('-') => {}
            word => {
                filtered = true;
                order.experiments.extend(EXPERIMENTS.iter().copied().filter(|name| *name == word));
            }
        }
    }
    if order.experiments.is_empty() && !filtered {
        order.experiments = EXPERIMENTS.to_vec();
    }
    Ok(order)
}

fn main() -> ExitCode {
    let order = match order(std::env::args().skip(1)) {
        Ok(order) => order,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(64);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut reports = Vec::new();
    for experiment in &order.experiments {
        let report = runtime.block_on(async {
            match *experiment {
                "matrix" => {
                    matrix::run(order.number("n", 1500), order.number("seeds", 1), order.number("seed", 1)).await
                }
                "storm" => storm::run(order.number("seconds", 0)).await,
                "drain" => drain::run(order.number("runs", 5)).await,
                "descriptors" => descriptors::run(order.numbers.get("seconds").copied()).await,
                _ => idle::run(order.number("n", 500)).await,
            }
        });
        print!("{report}");
        reports.push(report);
    }
    if order.table && !reports.is_empty() {
        println!("{}", report::table(&reports));
    }
    if let Some(file) = &order.json {
        std::fs::write(file, report::json(&reports)).unwrap();
    }
    let broken: usize = reports.iter().map(Report::broken).sum();
    println!("chaos: {} experiments, {broken} broken invariants", reports.len());
    ExitCode::from(u8::from(broken > 0))
}
