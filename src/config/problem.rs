//! What is wrong with a configuration, where, and what to do about it.
//!
//! A problem quotes the user's own words, but never a credential: whatever is quoted goes through [`quote`], which
//! hides what looks like one, escapes what could move a terminal's cursor, and cuts what is long.

use std::fmt::{self, Write as _};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but probably does not do what its author wants.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Line and column, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether it keeps the configuration from being used.
    pub severity: Severity,
    /// Where in the file; none for what concerns the file as a whole.
    pub place: Option<Place>,
    /// The keys that lead there (`providers[0].name`); empty for what concerns the file as a whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it; empty where the message says it already.
    pub cure: String,
}

impl Problem {
    /// `FILE:12:7: error: PATH: MESSAGE`, and the cure on a line of its own.
    pub fn render(&self, file: &str) -> String {
        let mut text = file.to_owned();
        if let Some(place) = self.place {
            let _ = write!(text, ":{}:{}", place.line, place.column);
        }
        let _ = write!(text, ": {self}");
        text
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.severity)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if !self.cure.is_empty() {
            write!(f, "\n    {}", self.cure)?;
        }
        Ok(())
    }
}

/// Every problem of a file that cannot be used, warnings among them, in the order of their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The file, as it was asked for.
    pub file: String,
    /// At least one of them is an error.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{}", problem.render(&self.file))?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// A file with more mistakes than this is no configuration; the rest is only counted.
const PROBLEM_LIMIT: usize = 100;

/// Where problems are gathered while the reading goes on.
#[derive(Default)]
pub(super) struct Problems {
    list: Vec<Problem>,
    errors: usize,
    dropped: usize,
}

impl Problems {
    pub(super) fn error(
        &mut self,
        place: Option<Place>,
        path: &str,
        message: impl Into<String>,
        cure: impl Into<String>,
    ) {
        self.errors += 1;
        self.push(Severity::Error, place, path, message.into(), cure.into());
    }

    pub(super) fn warning(
        &mut self,
        place: Option<Place>,
        path: &str,
        message: impl Into<String>,
        cure: impl Into<String>,
    ) {
        self.push(Severity::Warning, place, path, message.into(), cure.into());
    }

    fn push(&mut self, severity: Severity, place: Option<Place>, path: &str, message: String, cure: String) {
        // Warnings never push an error out: a report without an error would look like a verdict.
        if self.list.len() >= PROBLEM_LIMIT && (severity == Severity::Warning || self.errors > PROBLEM_LIMIT) {
            self.dropped += 1;
            return;
        }
        self.list.push(Problem { severity, place, path: path.to_owned(), message, cure });
    }

    pub(super) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// Whether a further problem is only counted.
    pub(super) fn are_too_many(&self) -> bool {
        self.list.len() >= PROBLEM_LIMIT && self.errors > PROBLEM_LIMIT
    }

    pub(super) fn into_list(mut self) -> Vec<Problem> {
        // What concerns the file as a whole comes last; the sort is stable.
        self.list.sort_by_key(|problem| (problem.place.is_none(), problem.place));
        if self.dropped > 0 {
            self.list.push(Problem {
                severity: if self.errors > 0 { Severity::Error } else { Severity::Warning },
                place: None,
                path: String::new(),
                message: format!("{} further problems are not shown", self.dropped),
                cure: String::new(),
            });
        }
        self.list
    }
}

/// The longest text that is quoted, in characters.
const QUOTE_LIMIT: usize = 60;

/// The user's own text in quotes: escaped, cut, and hidden where it looks like a credential.
pub(super) fn quote(text: &str) -> String {
    if looks_secret(text) {
        return "\"[hidden]\"".to_owned();
    }
    // A credential in front of the host of a URL.
    if let Some(at) = text.rfind('@')
        && (text.contains("://") || text.get(..at).is_some_and(|front| front.contains(':')))
    {
        let rest = text.get(at..).unwrap_or_default();
        return format!("\"[hidden]{}\"", escaped(rest.split(['?', '#']).next().unwrap_or_default()));
    }
    // What stands where a port should may be a password whose `@` is missing.
    if let Some((scheme, rest)) = text.split_once("://")
        && !rest.starts_with('[')
        && let Some((host, port)) = rest.split(['/', '?', '#']).next().and_then(|authority| authority.split_once(':'))
        && !port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return format!("\"{}://{}:[hidden]\"", escaped(scheme), escaped(host));
    }
    // What follows `?` in a URL is as likely a key as anything else.
    let shown = if text.contains("://") { text.split(['?', '#']).next().unwrap_or_default() } else { text };
    let more = if shown.len() < text.len() { "…" } else { "" };
    format!("\"{}{more}\"", escaped(shown))
}

/// A file's name on a terminal: whole, but escaped.
pub(super) fn printable_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for character in path.chars() {
        match is_unprintable(character) {
            true => out.extend(character.escape_unicode()),
            false => out.push(character),
        }
    }
    out
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == QUOTE_LIMIT {
            out.push('…');
            break;
        }
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            _ if is_unprintable(character) => out.extend(character.escape_unicode()),
            _ => out.push(character),
        }
    }
    out
}

/// Controls, line separators, and what reorders or hides text on a screen (bidi marks, zero-width characters, tags).
pub(super) fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            u32::from(character),
            0xAD | 0x61C
                | 0x180E
                | 0x200B..=0x200F
                | 0x2028..=0x202E
                | 0x2060..=0x206F
                | 0xFEFF
                | 0xFFF9..=0xFFFB
                | 0xE0000..=0xE0FFF
        )
}

/// Whether a text may be a credential that stands in a wrong place: `sk-…`, `Bearer …`, or a run of letters and
/// digits that no name, model or host has.
pub(super) fn looks_secret(text: &str) -> bool {
    const RUN: usize = 16;
    let lower = text.to_ascii_lowercase();
    let marked = |mark: &str| {
        lower.match_indices(mark).any(|(at, _)| {
            !lower.get(..at).and_then(|front| front.chars().next_back()).is_some_and(|c| c.is_ascii_alphanumeric())
        })
    };
    // A missing space after a colon makes `name: a` and the `auth_value:KEY` below it one text.
    if runs_on(text) {
        return true;
    }
    if ["sk-", "sk_", "pk-", "ghp_", "bearer ", "eyj"].into_iter().any(marked) {
        return true;
    }
    text.split(|c: char| !c.is_ascii_alphanumeric()).any(|run| {
        run.len() >= RUN && run.bytes().any(|b| b.is_ascii_digit()) && run.bytes().any(|b| b.is_ascii_alphabetic())
    })
}

/// Whether a text has swallowed the line below it, which may hold a credential.
pub(super) fn runs_on(text: &str) -> bool {
    ["auth_value:", "key:", "proxy:"].into_iter().any(|key| text.contains(key))
}

/// The one of `known` that `word` was probably meant to be.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // Distances of long texts cost the product of their lengths, and are no slips of the finger.
    if word.len() > 128 {
        return None;
    }
    let folded = word.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|candidate| {
            let other = candidate.to_lowercase().replace('-', "_");
            (strsim::damerau_levenshtein(&folded, &other), candidate)
        })
        .filter(|(distance, candidate)| {
            // A third of the letters may be wrong, but not the only one.
            let letters = candidate.chars().count().max(folded.chars().count());
            *distance <= (letters / 3).max(1) && *distance < letters
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_cannot_move_the_cursor_and_is_cut() {
        assert_eq!(quote("a\u{1b}[2J\r\n\u{202e}b\"\\"), r#""a\u{1b}[2J\u{d}\u{a}\u{202e}b\"\\""#);
        assert_eq!(quote(&"x".repeat(1000)).chars().count(), QUOTE_LIMIT + 3);
        assert_eq!(quote("官方"), "\"官方\"");
    }

    #[test]
    fn what_looks_like_a_credential_is_not_quoted() {
        for secret in ["sk-ant-api03-x", "x sk-1", "Bearer abc", "ab12cd34ef56ab78cd90", "eyJhbGciOi"] {
            assert_eq!(quote(secret), "\"[hidden]\"", "{secret}");
        }
        for plain in ["claude-sonnet-4-5-20250929", "*sonnet*", "Claude Code Official", "risk-x", "main@example.com"] {
            assert_eq!(quote(plain), format!("\"{plain}\""));
        }
        assert_eq!(quote("http://user:pass@host:1/p"), "\"[hidden]@host:1/p\"");
        assert_eq!(quote("user:pass@host"), "\"[hidden]@host\"");
        assert_eq!(quote("https://user:pass/p"), "\"https://user:[hidden]\"");
        assert_eq!(quote("https://host/p?key=1"), "\"https://host/p…\"");
    }

    #[test]
    fn slips_of_the_finger_are_recognised() {
        let known = ["enabled", "auth_value", "proxy"];
        assert_eq!(nearest("enabeld", known), Some("enabled"));
        assert_eq!(nearest("auth-value", known), Some("auth_value"));
        assert_eq!(nearest("colour", known), None);
    }
}
