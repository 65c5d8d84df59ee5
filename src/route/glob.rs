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

    fn naive(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', after)), _) => {
                naive(after, text) || text.split_first().is_some_and(|(_, rest)| naive(pattern, rest))
            }
            (Some((p, after)), Some((t, rest))) if *p == '?' || p == t => naive(after, rest),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_matcher(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(Glob::new(&pattern).matches(&text), naive(&p, &t));
        }
    }
}
