//! What the README says is so.

use std::collections::BTreeSet;
use std::path::Path;

use clap::CommandFactory as _;
use claude_code_balancer::cli::Cli;
use claude_code_balancer::config::{self, Surroundings};
use claude_code_balancer::metrics::Metrics;

const README: &str = include_str!("../README.md");

/// The contents of the code blocks in a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let mut blocks = README.split("```").skip(1).step_by(2);
    let blocks: Vec<_> = blocks.by_ref().filter_map(|block| block.strip_prefix(&format!("{language}\n"))).collect();
    assert!(!blocks.is_empty(), "no {language}");
    blocks
}

/// The text under a heading.
fn section(heading: &str) -> &'static str {
    let (_, rest) = README.split_once(&format!("\n{heading}\n")).expect(heading);
    rest.split("\n## ").next().expect("text")
}

/// What stands in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn subcommands() -> BTreeSet<String> {
    Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

#[test]
fn its_configurations_pass_the_check() {
    for text in blocks("yaml") {
        let env = |name: &str| name.ends_with("_KEY").then(|| "a-value-of-the-environment".to_owned());
        let (_, warnings) = config::parse(text.as_bytes(), "README.md", &Surroundings::pure(&env))
            .unwrap_or_else(|report| panic!("{report}\n{text}"));
        assert!(warnings.is_empty(), "{warnings:?}\n{text}");
    }
}

#[test]
fn its_commands_are_the_commands_that_there_are() {
    let rows = section("## Commands").lines().filter(|line| line.starts_with("| `"));
    let named: BTreeSet<_> =
        rows.map(|row| quoted(row).next().expect(row).split(' ').next().expect(row).to_owned()).collect();
    assert_eq!(named, subcommands());
}

#[test]
fn its_command_lines_are_understood() {
    let lines = blocks("console").into_iter().flat_map(str::lines).filter_map(|line| line.strip_prefix("$ cargo run"));
    let mut count = 0;
    for line in lines {
        let line = line.split('#').next().unwrap_or_default();
        let Some(line) = line.trim().strip_prefix("--release") else { panic!("not the release build: {line}") };
        let words = line.split_whitespace().skip_while(|word| *word == "--");
        let parsed = Cli::command().try_get_matches_from(["claude-code-balancer"].into_iter().chain(words));
        assert!(parsed.is_ok(), "{line}: {parsed:?}");
        count += 1;
    }
    assert!(count > 4);
}

#[test]
fn its_keys_stand_in_the_example() {
    let example = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example.yaml")).unwrap();
    let rows = section("## Configuration").lines().filter(|line| line.starts_with("| `"));
    let mut count = 0;
    for row in rows {
        let first = row.split('|').nth(1).expect(row);
        for key in quoted(first).filter_map(|key| key.rsplit('.').next()) {
            assert!(example.contains(&format!("{key}:")), "{key}");
            count += 1;
        }
    }
    assert!(count > 30, "{count}");
}

#[test]
fn its_metrics_are_counted() {
    let metrics = Metrics::default().render();
    let names = ["requests", "attempts", "failovers", "replays_after_send"];
    assert!(README.contains("balancer_(requests|attempts|failovers)_total"));
    for name in names {
        assert!(metrics.contains(&format!("balancer_{name}_total")), "{name}");
    }
}

#[test]
fn its_links_lead_somewhere() {
    let links = README.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for link in links.filter(|link| !link.starts_with("https://")) {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(link).exists(), "{link}");
    }
}
