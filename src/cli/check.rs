//! `check`: every problem of a file at once, for people or for programs.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::{say, summary};
use crate::admin;
use crate::config::{self, Problem, Severity, Snapshot};

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Human,
    Json,
}

/// Exit status 0, or 1 where the file cannot be used.
pub(super) fn run(path: Option<&Path>, format: Format) -> ExitCode {
    let Some(path) = config::locate(path, &config::process_env) else {
        match format {
            Format::Human => say("no configuration file: the built-in default is used, and it is fine"),
            Format::Json => report("built-in default", true, &[]),
        }
        return ExitCode::SUCCESS;
    };
    match (config::load(&path), format) {
        (Ok((snapshot, warnings)), Format::Human) => fine(&path.display().to_string(), &snapshot, &warnings),
        (Ok((_, warnings)), Format::Json) => report(&path.display().to_string(), true, &warnings),
        (Err(found), Format::Json) => {
            report(&found.file, false, &found.problems);
            return ExitCode::from(1);
        }
        (Err(found), Format::Human) => {
            say(&found.to_string());
            let errors = found.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
            say(&format!("{errors} problem(s)"));
            return ExitCode::from(1);
        }
    }
    ExitCode::SUCCESS
}

fn fine(file: &str, snapshot: &Snapshot, warnings: &[Problem]) {
    for warning in warnings {
        say(&warning.render(file));
    }
    say(&format!("{file}: ok ({})", summary(snapshot)));
}

/// One JSON object; the problems are those of `POST /providers/reload`.
fn report(file: &str, usable: bool, problems: &[Problem]) {
    let problems: Vec<_> = problems.iter().map(admin::problem).collect();
    say(&json!({ "file": file, "usable": usable, "problems": problems }).to_string());
}
