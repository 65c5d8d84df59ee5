//! What was found, as lines for people and as JSON for programs.

use serde_json::{Value, json};

/// How a point was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As expected.
    Pass,
    /// Not as expected.
    Fail,
    /// It cannot be judged here; the reason stands where the rest says what was seen.
    NotApplicable,
}

impl Verdict {
    /// As it stands in a report for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NotApplicable => "not_applicable",
        }
    }
}

/// One judged point.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its place in the checklist, from 1.
    pub number: u8,
    /// Its group.
    pub group: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// How it was judged.
    pub verdict: Verdict,
    /// What a gateway owes.
    pub expected: &'static str,
    /// What was seen, or why it cannot be judged.
    pub seen: String,
}

/// All judged points.
#[derive(Clone, Debug)]
pub struct Report {
    /// In the order of the checklist.
    pub findings: Vec<Finding>,
}

impl Finding {
    /// One line for people.
    pub fn line(&self) -> String {
        let Self { number, title, expected, .. } = self;
        let seen = one_line(&self.seen);
        match self.verdict {
            Verdict::NotApplicable => format!("n/a   {number:>2}  {title} | expected: {expected} | {seen}"),
            verdict => format!("{}  {number:>2}  {title} | expected: {expected} | seen: {seen}", verdict.word()),
        }
    }
}

impl Report {
    /// How many were judged so.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// Whether none failed.
    pub fn good(&self) -> bool {
        self.count(Verdict::Fail) == 0
    }

    /// The last line for people.
    pub fn summary(&self) -> String {
        format!(
            "{} points: {} passed, {} failed, {} not applicable",
            self.findings.len(),
            self.count(Verdict::Pass),
            self.count(Verdict::Fail),
            self.count(Verdict::NotApplicable)
        )
    }

    /// For programs.
    pub fn json(&self, target: &str) -> Value {
        let point = |finding: &Finding| {
            json!({
                "number": finding.number, "group": finding.group, "title": finding.title,
                "verdict": finding.verdict.word(), "expected": finding.expected, "seen": finding.seen,
            })
        };
        json!({
            "target": target,
            "passed": self.count(Verdict::Pass),
            "failed": self.count(Verdict::Fail),
            "not_applicable": self.count(Verdict::NotApplicable),
            "points": self.findings.iter().map(point).collect::<Vec<_>>(),
        })
    }
}

/// Without what would end the line or move the cursor: some of it was said by a stranger.
fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}
