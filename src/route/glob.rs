//! Model patterns: `*` stands for any run of characters, `?` for one; anchored at both ends, without regard to case.

/// A compiled pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    pattern: Vec<char>,
}

impl Glob {
    /// Whether a text needs to be read as a pattern at all.
    pub fn is_pattern(text: &str) -> bool {
        text.contains(['*', '?'])
    }

    /// Compiles a pattern; every text is one.
    pub fn new(text: &str) -> Self {
        let mut pattern: Vec<char> = text.chars().map(fold).collect();
        pattern.dedup_by(|a, b| *a == '*' && *b == '*');
        Self { pattern }
    }

    /// Whether the whole of `text` matches. Allocates nothing; the time is bounded by the product of both lengths.
    pub fn matches(&self, text: &str) -> bool {
        let mut pattern = self.pattern.as_slice();
        let mut rest = text.chars();
        // After the last `*`: what follows it in the pattern, and where its run began in the text.
        let mut retry: Option<(&[char], std::str::Chars<'_>)> = None;
        loop {
            match (pattern.split_first(), rest.clone().next().map(fold)) {
                (Some(('*', [])), _) => return true,
                (Some(('*', after)), _) => {
                    retry = Some((after, rest.clone()));
                    pattern = after;
                    continue;
                }
                (Some((wanted, after)), Some(found)) if *wanted == '?' || *wanted == found => {
                    rest.next();
                    pattern = after;
                    continue;
                }
                (None, None) => return true,
                _ => {}
            }
            // A mismatch: let the last `*` swallow one character more.
            let Some((after, run)) = &mut retry else { return false };
            if run.next().is_none() {
                return false;
            }
            pattern = after;
            rest = run.clone();
        }
    }
}

fn fold(character: char) -> char {
    if character.is_ascii() {
        character.to_ascii_lowercase()
    } else {
        character.to_lowercase().next().unwrap_or(character)
    }
}

/// What must hold for any bytes, read as a pattern, a line end and a text: the matcher agrees with one that is too simple
/// to be wrong. For fuzzing and for the replay of its corpus.
pub fn check_any(bytes: &[u8]) {
    let whole = String::from_utf8_lossy(bytes);
    let (pattern, text) = whole.split_once('\n').unwrap_or((&whole, ""));
    // The simple one takes the product of both.
    if pattern.len() > 1024 || text.len() > 1024 {
        return;
    }
    let found = Glob::new(pattern).matches(text);
    assert_eq!(found, simple(pattern, text), "{pattern:?} on {text:?}");
    assert!(Glob::new(pattern).matches(pattern), "{pattern:?} does not match itself");
    assert_eq!(found, Glob::new(pattern).matches(&text.to_ascii_uppercase()), "case matters: {pattern:?} on {text:?}");
}

/// For each end of the text, whether the pattern so far matches all before it.
fn simple(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().map(fold).collect();
    let mut ends = vec![false; text.len() + 1];
    ends.iter_mut().take(1).for_each(|end| *end = true);
    for wanted in pattern.chars().map(fold) {
        let mut next = vec![false; ends.len()];
        let mut any = false;
        for (at, end) in next.iter_mut().enumerate() {
            let before = at.checked_sub(1);
            let came_from = |at: Option<usize>| at.and_then(|at| ends.get(at)).copied().unwrap_or(false);
            any |= came_from(Some(at));
            *end = match wanted {
                '*' => any,
                _ => came_from(before) && (wanted == '?' || before.and_then(|at| text.get(at)) == Some(&wanted)),
            };
        }
        ends = next;
    }
    ends.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_are_anchored_at_both_ends_and_ignore_case() {
        let cases = [
            ("*sonnet*", "claude-Sonnet-4-5", true),
            ("*sonnet*", "claude-sonne-t", false),
            ("gpt-4*", "my-gpt-4", false),
            ("gpt-4*", "GPT-4o", true),
            ("claude.haiku", "claude-haiku", false),
            ("claude-?-x", "claude-3-x", true),
            ("claude-?-x", "claude--x", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("?", "é", true),
            ("**********b", "aaaab", true),
            ("*a*a*a*a*b", &"a".repeat(256), false),
            ("a*bc", "abcbc", true),
            ("[", "[", true),
        ];
        for (pattern, text, wanted) in cases {
            assert_eq!(Glob::new(pattern).matches(text), wanted, "{pattern:?} on {text:?}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_simple_matcher(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            check_any(format!("{pattern}\n{text}").as_bytes());
        }
    }
}
