//! What the parser could not read, in words of our own: its messages may quote the line, and a line may hold a
//! credential.

use serde_saphyr::granit_parser::ErrorKind;
use serde_saphyr::{Error, ExternalMessageSource};

use super::problem::{Place, Problem, Severity};

pub(super) fn problem(place: Option<Place>, message: String, cure: &str) -> Problem {
    Problem { severity: Severity::Error, place, path: String::new(), message, cure: cure.to_owned() }
}

pub(super) fn not_utf8(bytes: &[u8], valid: usize) -> Problem {
    let before = bytes.get(..valid).and_then(|before| std::str::from_utf8(before).ok()).unwrap_or_default();
    let lines = lines(before);
    let number = |value| u32::try_from(value).unwrap_or(u32::MAX);
    let column = lines.last().map_or(1, |line| line.chars().count() + 1);
    let place = Place { line: number(lines.len()), column: number(column) };
    problem(Some(place), "the file is not UTF-8 text from here on".into(), "save it as UTF-8")
}

const TABS: &str = "tabs cannot indent YAML; use spaces";
const QUOTE_PATTERN: &str = "quote the pattern: \"*sonnet*\"; without quotes YAML reads a leading * as an alias";

/// The one problem of a text that is no YAML, or more of it than is read.
pub(super) fn explain(error: &Error, text: &str) -> Problem {
    let lines = lines(text);
    let place = error.location().map(|at| {
        let number = |value| u32::try_from(value).unwrap_or(u32::MAX).max(1);
        inside(Place { line: number(at.line()), column: number(at.column()) }, &lines)
    });
    let line = place.and_then(|place| lines.get(usize::try_from(place.line).ok()?.saturating_sub(1)));
    let (message, cure) = words(innermost(error), line.copied().unwrap_or_default());
    problem(place, message.to_owned(), cure)
}

fn innermost(mut error: &Error) -> &Error {
    while let Error::AliasError { error: inner, .. } | Error::WithSnippet { error: inner, .. } = error {
        error = inner;
    }
    error
}

fn words(error: &Error, line: &str) -> (&'static str, &'static str) {
    let starts_with_star = line.trim_start().trim_start_matches("- ").trim_start().starts_with('*');
    match error {
        Error::UnknownAnchor { .. } => no_anchor(starts_with_star),
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            ("an anchor contains an alias of itself", "write the values out")
        }
        Error::MultipleDocuments { .. } => {
            ("a second document begins here", "keep one document; remove this `---` or what does not belong here")
        }
        Error::Budget { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => (
            "the file is nested too deeply, or has too many values or aliases for a configuration",
            "at most 32 levels and 100000 values are read",
        ),
        Error::UnsupportedTag { .. } | Error::TaggedScalarCannotDeserializeIntoString { .. } => (
            "this has a YAML tag (`!…`), and no value here takes one",
            "remove the tag; quote a text that begins with !",
        ),
        Error::Eof { .. } => ("the file ends too early", "complete the last entry"),
        Error::ExternalMessage { source, .. } => match &**source {
            ExternalMessageSource::Parser(error) => syntax(error.kind(), line, starts_with_star),
            _ => ("this is not valid YAML", ""),
        },
        _ if starts_with_star => ("this is not valid YAML", QUOTE_PATTERN),
        _ => ("this is not valid YAML", "check the quotes, brackets and indentation of this line and the one above"),
    }
}

fn no_anchor(starts_with_star: bool) -> (&'static str, &'static str) {
    let cure = if starts_with_star { QUOTE_PATTERN } else { "quote a text that begins with * or &" };
    ("this refers to an anchor that the file does not have", cure)
}

fn syntax(kind: &ErrorKind, line: &str, starts_with_star: bool) -> (&'static str, &'static str) {
    use ErrorKind as K;
    let indent = line.get(..line.len() - line.trim_start().len()).unwrap_or_default();
    match kind {
        K::UnknownAnchor | K::MissingAnchorOrAliasName => no_anchor(starts_with_star),
        _ if starts_with_star => ("this is not valid YAML", QUOTE_PATTERN),
        _ if indent.contains('\t') => ("a tab stands where the line is indented", TABS),
        K::TabNotAllowed
        | K::TabInBlockIndentation
        | K::TabInIndentation
        | K::TabAtBlockScalarStart
        | K::TabInPlainScalar => ("a tab stands where YAML allows only spaces", TABS),
        K::UnclosedQuotedScalar | K::DocumentIndicatorInQuotedScalar | K::InvalidQuotedScalarIndent => {
            ("a quoted text has no end", "close the quote on the line where the text begins")
        }
        K::UnclosedFlowCollection { .. }
        | K::UnexpectedEofFlowSequence
        | K::UnexpectedEofFlowMapping
        | K::UnexpectedEofImplicitFlowMapping
        | K::ExpectedFlowMappingSeparator
        | K::ExpectedFlowSequenceSeparator
        | K::MismatchedFlowCollectionEnd { .. }
        | K::MisplacedFlowCollectionEnd => {
            ("a bracket [ or { has no matching end", "close the bracket, or quote a text that contains one")
        }
        K::RecursionLimitExceeded => (
            "the file is nested too deeply, or has too many values or aliases for a configuration",
            "at most 32 levels and 100000 values are read",
        ),
        K::UnknownQuotedScalarEscape
        | K::InvalidQuotedScalarHexEscape
        | K::InvalidUnicodeEscape
        | K::InvalidLowSurrogate
        | K::MissingLowSurrogate
        | K::UnpairedLowSurrogate
        | K::InvalidLowSurrogateHexEscape => {
            ("a quoted text has an escape that YAML does not know", "write \\\\ for a backslash, or use single quotes")
        }
        K::UndeclaredTagHandle | K::MissingTagUri | K::InvalidTagTerminator | K::ExpectedTagBang => (
            "this has a YAML tag (`!…`), and no value here takes one",
            "remove the tag; quote a text that begins with !",
        ),
        K::MappingValueNotAllowed | K::InvalidMappingValueWhitespace | K::InvalidColonPlacement => (
            "a `key: value` stands where none can be",
            "quote a text that contains `: `; keys of one map stand in the same column",
        ),
        K::SimpleKeyExpected | K::InvalidSimpleKey | K::ExpectedBlockMappingKey | K::MappingKeyNotAllowed => {
            ("a `key: value` was expected here", "keys end with `: ` and those of one map stand in the same column")
        }
        K::UnexpectedEof | K::UnexpectedEofBlockMapping | K::UnexpectedEofBlockSequence => {
            ("the file ends too early", "complete the last entry")
        }
        K::UnexpectedCharacter { .. } => {
            ("no value can begin with this character", "quote texts that begin with @, `, %, or another sign")
        }
        K::MultipleDocumentsUnsupported => {
            ("a second document begins here", "keep one document; remove this `---` or what does not belong here")
        }
        _ => ("this is not valid YAML", "check the quotes, brackets and indentation of this line and the one above"),
    }
}

/// The lines as YAML counts them: a lone carriage return ends one, too.
pub(super) fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.split('\n').collect();
    let last = lines.len() - 1;
    for (index, line) in lines.iter_mut().enumerate() {
        if index < last {
            *line = line.strip_suffix('\r').unwrap_or(line);
        }
    }
    lines.into_iter().flat_map(|line| line.split('\r')).collect()
}

/// The parser may point past the end; a place is always inside the file.
fn inside(place: Place, lines: &[&str]) -> Place {
    let number = |value| u32::try_from(value).unwrap_or(u32::MAX);
    let found = place.line.min(number(lines.len())).max(1);
    let line = usize::try_from(found - 1).ok().and_then(|at| lines.get(at)).copied().unwrap_or_default();
    let end = number(line.chars().count() + 1);
    Place { line: found, column: if found == place.line { place.column.min(end) } else { end } }
}
