//! What an experiment found: who ended how, what held, what did not, and the figures.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

/// How requests ended, as one side counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    pub ok: u64,
    pub client_error: u64,
    pub upstream_error: u64,
    pub cancelled: u64,
}

impl Ends {
    pub fn sum(&self) -> u64 {
        self.ok + self.client_error + self.upstream_error + self.cancelled
    }

    /// From the text of `/metrics`.
    pub fn of_metrics(text: &str) -> Self {
        let kind = |kind: &str| number(text, &format!("balancer_requests_total{{kind=\"{kind}\"}}"));
        Self {
            ok: kind("ok"),
            client_error: kind("client_error"),
            upstream_error: kind("upstream_error"),
            cancelled: kind("cancelled"),
        }
    }

    /// Counts one by its status.
    pub fn count(&mut self, status: Option<u16>) {
        match status {
            Some(..400) => self.ok += 1,
            Some(400..500) => self.client_error += 1,
            _ => self.upstream_error += 1,
        }
    }

    pub fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.client_error += other.client_error;
        self.upstream_error += other.upstream_error;
        self.cancelled += other.cancelled;
    }
}

/// The value of a metric.
pub fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

/// Something that must always be so.
#[derive(Debug)]
struct Invariant {
    name: &'static str,
    checks: u64,
    broken: u64,
    /// The first few.
    cases: Vec<String>,
}

/// Cases that are told of a broken invariant.
const CASES: usize = 5;

/// The report of one experiment.
#[derive(Debug)]
pub struct Report {
    experiment: &'static str,
    form: String,
    pub requests: u64,
    pub ends: Ends,
    invariants: Vec<Invariant>,
    figures: Vec<(&'static str, Value)>,
    started: Instant,
    took: Duration,
}

impl Report {
    pub fn new(experiment: &'static str, form: String) -> Self {
        let (started, took) = (Instant::now(), Duration::ZERO);
        let (invariants, figures, ends) = (Vec::new(), Vec::new(), Ends::default());
        Self { experiment, form, requests: 0, ends, invariants, figures, started, took }
    }

    /// Notes whether an invariant held once more; `case` words what is told if it did not.
    pub fn check(&mut self, name: &'static str, held: bool, case: impl FnOnce() -> String) {
        let at = self.invariants.iter().position(|invariant| invariant.name == name).unwrap_or_else(|| {
            self.invariants.push(Invariant { name, checks: 0, broken: 0, cases: Vec::new() });
            self.invariants.len() - 1
        });
        let invariant = &mut self.invariants[at];
        invariant.checks += 1;
        if !held {
            invariant.broken += 1;
            if invariant.cases.len() < CASES {
                invariant.cases.push(case());
            }
        }
    }

    /// Notes a figure; told again, the last one stands.
    pub fn figure(&mut self, name: &'static str, value: impl Into<Value>) {
        self.figures.retain(|(known, _)| *known != name);
        self.figures.push((name, value.into()));
    }

    /// A figure so far; 0 where there is none.
    pub fn number(&self, name: &str) -> f64 {
        let figure = self.figures.iter().find(|(known, _)| *known == name);
        figure.and_then(|(_, value)| value.as_f64()).unwrap_or(0.0)
    }

    /// Counts a request by the status of its answer; without one it is an upstream error.
    pub fn count(&mut self, status: Option<u16>) {
        self.requests += 1;
        self.ends.count(status);
    }

    /// Both sides must have counted the same ends.
    pub fn agree(&mut self, clients: Ends, metrics: &str) {
        let told = Ends::of_metrics(metrics);
        self.check("the balancer counts the same ends", told == clients, || {
            format!("the balancer says {told:?}, the clients {clients:?}")
        });
    }

    pub fn done(self) -> Self {
        let took = self.started.elapsed();
        self.lasted(took)
    }

    /// The time that it took in truth, where its own stood still.
    pub fn lasted(mut self, took: Duration) -> Self {
        self.took = took;
        self
    }

    /// How many invariants did not hold.
    pub fn broken(&self) -> usize {
        self.invariants.iter().filter(|invariant| invariant.broken > 0).count()
    }

    fn held(&self) -> usize {
        self.invariants.len() - self.broken()
    }

    fn json(&self) -> Value {
        let invariants = self.invariants.iter().map(|invariant| {
            let Invariant { name, checks, broken, cases } = invariant;
            json!({ "name": name, "checks": checks, "broken": broken, "cases": cases })
        });
        let figures: Map<String, Value> =
            self.figures.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        json!({
            "experiment": self.experiment,
            "form": self.form,
            "seconds": self.took.as_secs_f64(),
            "requests": self.requests,
            "ok": self.ends.ok,
            "client_error": self.ends.client_error,
            "upstream_error": self.ends.upstream_error,
            "cancelled": self.ends.cancelled,
            "invariants": invariants.collect::<Vec<_>>(),
            "figures": figures,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ends { ok, client_error, upstream_error, cancelled } = self.ends;
        writeln!(f, "\n{} ({}), {:.1} s", self.experiment, self.form, self.took.as_secs_f64())?;
        writeln!(
            f,
            "  {} requests = {ok} ok + {client_error} client error + {upstream_error} upstream error + {cancelled} cancelled",
            self.requests
        )?;
        for invariant in &self.invariants {
            let word = if invariant.broken == 0 { "held  " } else { "BROKEN" };
            writeln!(f, "  {word} {} ({} of {} checks broken)", invariant.name, invariant.broken, invariant.checks)?;
            invariant.cases.iter().try_for_each(|case| writeln!(f, "           {case}"))?;
        }
        for (name, value) in &self.figures {
            writeln!(f, "  {name}: {}", plain(value))?;
        }
        Ok(())
    }
}

/// A figure for people.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => format!("{:.2}", number.as_f64().unwrap_or_default()),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect();
            pairs.join(", ")
        }
        other => other.to_string(),
    }
}

/// All reports as JSON.
pub fn json(reports: &[Report]) -> String {
    let all: Vec<Value> = reports.iter().map(Report::json).collect();
    serde_json::to_string_pretty(&json!({ "reliability": all })).unwrap() + "\n"
}

/// All reports as a table in Markdown.
pub fn table(reports: &[Report]) -> String {
    let mut table = String::from(
        "\n| experiment | requests | ok | client error | upstream error | cancelled | invariants held/broken | key figures |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for report in reports {
        let Ends { ok, client_error, upstream_error, cancelled } = report.ends;
        let figures = report.figures.iter().filter(|(_, value)| !value.is_object());
        let figures: Vec<String> = figures.map(|(name, value)| format!("{name} {}", plain(value))).collect();
        table.push_str(&format!(
            "| {} ({}) | {} | {ok} | {client_error} | {upstream_error} | {cancelled} | {}/{} | {} |\n",
            report.experiment,
            report.form,
            report.requests,
            report.held(),
            report.broken(),
            figures.join("; ")
        ));
    }
    table
}
