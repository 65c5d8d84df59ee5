//! The chaos runner: experiments with the fault laboratory, counted exactly from both sides.
//!
//! ```console
//! $ cargo test --test chaos                                            # all of them in their short form
//! $ cargo test --release --test chaos -- all --full --json FILE --table    # all of them in full
//! $ cargo test --release --test chaos -- matrix --full                     # one of them
//! $ cargo test --release --test chaos -- soak --minutes 60                 # one of them, of another size
//! ```
//!
//! `--json FILE` writes the report as JSON, `--table` prints it as a table in Markdown. A broken invariant is exit
//! status 1.
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

mod abuse;
mod accounts;
mod cancel;
mod descriptors;
mod disk;
mod drain;
mod fault;
mod idle;
mod leakscan;
mod loris;
mod matrix;
mod process;
mod quota;
mod report;
mod soak;
mod storm;
#[path = "../support/mod.rs"]
mod support;

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::ExitCode;

use report::Report;

type Running = Pin<Box<dyn Future<Output = Report>>>;
type Begin = fn(&Order) -> Running;

/// All experiments, each with what begins it; of two sizes the first is the short form.
const EXPERIMENTS: &[(&str, Begin)] = &[
    ("matrix", |o| Box::pin(matrix::run(o.size("n", 1500, 10_000), o.size("seeds", 1, 5), o.size("seed", 1, 1)))),
    ("storm", |o| Box::pin(storm::run(o.size("seconds", 0, 60)))),
    ("drain", |o| Box::pin(drain::run(o.size("runs", 5, 100)))),
    ("descriptors", |o| Box::pin(descriptors::run(o.size("seconds", 2, 10)))),
    ("loris", |o| {
        let (heads, bodies) = (o.size("heads", 100, 1000), o.size("bodies", 50, 500));
        let (readers, seconds) = (o.size("readers", 20, 200), o.size("seconds", 12, 120));
        Box::pin(loris::run(loris::Crowd { heads, bodies, readers, seconds }))
    }),
    ("abuse", |_| Box::pin(abuse::run())),
    ("leakscan", |_| Box::pin(leakscan::run())),
    ("reload", |o| Box::pin(accounts::reload(o.size("edits", 16, 1000)))),
    ("kill9", |o| Box::pin(accounts::kill9(o.size("n", 2, 200)))),
    ("rotate-race", |o| Box::pin(accounts::rotate_race(o.size("rounds", 3, 250)))),
    ("lost-reply", |o| paused(accounts::lost_reply(o.size("rounds", 40, 500)))),
    ("quota", |o| paused(quota::run(o.size("hours", 24, 7 * 24)))),
    ("cancel", |o| Box::pin(cancel::run(o.size("n", 150, 400)))),
    ("suspend", |o| Box::pin(accounts::suspend(o.size("life", 2, 30), o.size("sleep", 3, 60)))),
    ("disk", |o| Box::pin(disk::run(o.size("n", 12, 500) as usize, o.full))),
    ("idle", |o| Box::pin(idle::run(o.size("n", 1500, 5000)))),
    // Last, for it takes by far the longest in full.
    ("soak", |o| {
        Box::pin(soak::run(match o.size("minutes", 0, 20) {
            0 => SOAK,
            minutes => minutes * 60,
        }))
    }),
];

/// Seconds of the short form.
const SOAK: u64 = 9;

/// Sizes that can be given.
const SIZES: [&str; 14] = [
    "--n",
    "--seeds",
    "--seed",
    "--seconds",
    "--runs",
    "--minutes",
    "--edits",
    "--rounds",
    "--heads",
    "--bodies",
    "--readers",
    "--life",
    "--sleep",
    "--hours",
];

/// What was asked for.
struct Order {
    experiments: Vec<&'static str>,
    full: bool,
    numbers: HashMap<String, u64>,
    json: Option<String>,
    table: bool,
}

impl Order {
    /// A size that was given, or that of the short or the full form.
    fn size(&self, name: &str, short: u64, full: u64) -> u64 {
        self.numbers.get(name).copied().unwrap_or(if self.full { full } else { short })
    }
}

/// Runs one where time stands still but for timers, so that waits cost nothing.
fn paused(experiment: impl Future<Output = Report> + Send + 'static) -> Running {
    let run = move || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap().block_on(experiment)
    };
    Box::pin(async move {
        let begun = tokio::time::Instant::now();
        let report = tokio::task::spawn_blocking(run).await.unwrap();
        report.lasted(begun.elapsed())
    })
}

fn all() -> impl Iterator<Item = &'static str> {
    EXPERIMENTS.iter().map(|(name, _)| *name)
}

/// `Err` says what is wrong. A word that names no experiment selects none, as the filters of other tests do.
fn order(mut arguments: impl Iterator<Item = String>) -> Result<Order, String> {
    let (experiments, numbers) = (Vec::new(), HashMap::new());
    let mut order = Order { experiments, full: false, numbers, json: None, table: false };
    let mut filtered = false;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--table" => order.table = true,
            "--full" => order.full = true,
            "--json" => order.json = Some(arguments.next().ok_or("--json wants a file")?),
            size if SIZES.contains(&size) => {
                let value = arguments.next().and_then(|value| value.parse().ok());
                let value = value.ok_or_else(|| format!("{argument} wants a number"))?;
                order.numbers.insert(argument[2..].to_owned(), value);
            }
            "all" => order.experiments = all().collect(),
            // What `cargo test -- --skip WORD` says to every test program.
            "--skip" => {
                let skipped = arguments.next().ok_or("--skip wants a word")?;
                filtered |= "chaos".contains(&skipped);
            }
            // Options of the usual test programs.
            option if option.starts_with('-') => {}
            word => {
                filtered = true;
                order.experiments.extend(all().filter(|name| *name == word));
            }
        }
    }
    if order.experiments.is_empty() && !filtered {
        order.experiments = all().collect();
    }
    Ok(order)
}

/// Runs one to its end; what it asserts in vain is a broken invariant of its report.
fn run(name: &'static str, begin: Begin, order: &Order) -> Report {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    catch_unwind(AssertUnwindSafe(|| runtime.block_on(begin(order)))).unwrap_or_else(|panic| {
        let mut report = Report::new(name, "broken off".to_owned());
        report.check("all that it asserts holds", false, || words(&*panic));
        report
    })
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}

fn main() -> ExitCode {
    let order = match order(std::env::args().skip(1)) {
        Ok(order) => order,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(64);
        }
    };
    let mut reports = Vec::new();
    for (name, begin) in EXPERIMENTS.iter().filter(|(name, _)| order.experiments.contains(name)) {
        let report = run(name, *begin, &order);
        print!("{report}");
        reports.push(report);
        // After each, so that a long run that is broken off has told something.
        if let Some(file) = &order.json {
            std::fs::write(file, report::json(&reports)).unwrap();
        }
    }
    if order.table && !reports.is_empty() {
        println!("{}", report::table(&reports));
    }
    let broken: usize = reports.iter().map(Report::broken).sum();
    println!("chaos: {} experiments, {broken} broken invariants", reports.len());
    ExitCode::from(u8::from(broken > 0))
}
