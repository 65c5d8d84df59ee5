//! What a human pastes after signing in: `code#state`, a whole callback URL, or the bare code; with the dirt that
//! terminals, mail programs and second encodings leave on it. Any text may come in, and none ends the process.

use crate::provider::percent_decode;
use crate::secret::Secret;

/// Longest text that is looked at, in bytes.
const TEXT_LIMIT: usize = 8 * 1024;
/// Longest code, in bytes.
const CODE_LIMIT: usize = 2048;
/// Longest state, in bytes.
const STATE_LIMIT: usize = 512;
/// How often a text may have been percent-encoded.
const ENCODINGS: usize = 3;

/// A code, and the state where it was pasted along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pasted {
    /// Is exchanged for a token, once.
    pub code: Secret,
    /// Names the login that asked for it.
    pub state: Option<Secret>,
}

/// What is wrong with a pasted text; none of these repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasteFault {
    /// Nothing in it.
    #[error("no authorization code was given")]
    Empty,
    /// Longer than any code.
    #[error("the text is too long for an authorization code")]
    TooLong,
    /// A URL, but no callback.
    #[error("this URL holds no authorization code; paste the code that the page shows, or the address it leads to")]
    NoCode,
    /// The callback of a refusal.
    #[error("the authorization page reports that access was not granted; sign in again and allow it")]
    Denied,
    /// Characters that no code has.
    #[error("this is not an authorization code; paste it as the page shows it: CODE#STATE")]
    Malformed,
}

/// Reads a pasted text.
///
/// # Errors
/// [`PasteFault`].
pub fn parse_pasted(text: &str) -> Result<Pasted, PasteFault> {
    if text.len() > TEXT_LIMIT {
        return Err(PasteFault::TooLong);
    }
    let mut text: String = text.chars().filter(|character| !is_dirt(*character)).collect();
    text = text.trim_matches(['"', '\'', '<', '>', '`']).to_owned();
    if text.is_empty() {
        return Err(PasteFault::Empty);
    }
    for _ in 0..ENCODINGS {
        if is_callback(&text) || !text.contains('%') {
            break;
        }
        text = percent_decode(&text).ok_or(PasteFault::Malformed)?;
    }
    let (code, state) = if is_callback(&text) {
        from_pairs(&text)?
    } else if text.contains("://") {
        return Err(if text.contains("error=") { PasteFault::Denied } else { PasteFault::NoCode });
    } else {
        from_plain(&text)
    };
    let code = checked(&code, CODE_LIMIT)?.ok_or(PasteFault::Empty)?;
    if state.as_deref().is_some_and(|state| parameters(state).any(|(name, value)| name == "state" && !value.is_empty()))
    {
        return Err(PasteFault::Malformed);
    }
    let state = state.map_or(Ok(None), |state| checked(&state, STATE_LIMIT))?;
    Ok(Pasted { code, state })
}

/// Whether `code=` stands where a parameter may begin.
fn is_callback(text: &str) -> bool {
    parameters(text).any(|(name, _)| name == "code")
}

/// The parameters of a URL's query and fragment, or of a bare query.
fn parameters(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(['?', '&', '#']).filter_map(|part| part.split_once('='))
}

fn from_pairs(text: &str) -> Result<(String, Option<String>), PasteFault> {
    let named = |wanted: &str| parameters(text).find(|(name, _)| *name == wanted).map(|(_, value)| decoded(value));
    let code = named("code").transpose()?.unwrap_or_default();
    // The page's own form may stand inside the parameter: `?code=CODE#STATE`, or `?code=CODE%23STATE`.
    let (code, inner) = split_state(&code);
    let behind = text.split_once('#').map(|(_, fragment)| fragment);
    let behind = behind.filter(|fragment| !fragment.is_empty() && !fragment.contains('='));
    let given = named("state").transpose()?.filter(|state| !state.is_empty());
    let state = given.or(inner).or(behind.map(str::to_owned));
    Ok((code, state))
}

/// `CODE#STATE`, `CODE&state=STATE` or `CODE`.
fn from_plain(text: &str) -> (String, Option<String>) {
    let behind = text.split_once(['?', '&', '#']).map_or("", |(_, behind)| behind);
    let given = parameters(behind).find(|(name, _)| *name == "state").map(|(_, value)| value.to_owned());
    let (code, state) = split_state(text);
    let code = code.split('&').next().unwrap_or_default().to_owned();
    let state = state.map(|state| state.split('&').next().unwrap_or_default().to_owned());
    (code, given.filter(|state| !state.is_empty()).or(state))
}

fn split_state(text: &str) -> (String, Option<String>) {
    match text.split_once('#') {
        Some((code, state)) => (code.to_owned(), Some(state.to_owned())),
        None => (text.to_owned(), None),
    }
}

/// A parameter's value, however often it was encoded.
fn decoded(value: &str) -> Result<String, PasteFault> {
    let mut value = value.to_owned();
    for _ in 0..ENCODINGS {
        if !value.contains('%') {
            break;
        }
        value = percent_decode(&value).ok_or(PasteFault::Malformed)?;
    }
    Ok(value)
}

fn checked(text: &str, limit: usize) -> Result<Option<Secret>, PasteFault> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > limit {
        return Err(PasteFault::TooLong);
    }
    // At the end `=` is padding; elsewhere it belongs to a name.
    let body = text.trim_end_matches('=');
    let clean = body.bytes().all(|byte| byte.is_ascii_graphic() && !br#"#&%?"'`<>\="#.contains(&byte));
    // Pasted once more it would be read as something else.
    let url = is_callback(text) || text.contains("://");
    if clean && !url { Ok(Some(Secret::new(text))) } else { Err(PasteFault::Malformed) }
}

/// White space, controls and characters that cannot be seen: codes have none of them.
fn is_dirt(character: char) -> bool {
    character.is_whitespace()
        || character.is_control()
        || matches!(character, '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_code_is_found_in_whatever_is_pasted() {
        let cases = [
            ("abc", None),
            ("abc#", None),
            ("  abc#xyz\r\n", Some("xyz")),
            ("abc#xyz#more", None),
            ("\u{feff}a\u{200b}bc#x\u{2060}yz", Some("xyz")),
            ("ab\nc#xyz", Some("xyz")),
            ("\"abc#xyz\"", Some("xyz")),
            ("abc&state=xyz", Some("xyz")),
            ("abc%23xyz", Some("xyz")),
            ("code=abc&state=xyz", Some("xyz")),
            ("https://console.example/oauth/code/callback?code=abc&state=xyz", Some("xyz")),
            ("https://console.example/oauth/code/callback?state=xyz&code=abc", Some("xyz")),
            ("http://localhost:54545/callback?code=abc", None),
            ("https://console.example/callback?code=abc#xyz", Some("xyz")),
            ("https://console.example/callback?code=abc%23xyz", Some("xyz")),
            ("https://console.example/callback#code=abc&state=xyz", Some("xyz")),
            ("https%3A%2F%2Fconsole.example%2Fcallback%3Fcode%3Dabc%26state%3Dxyz", Some("xyz")),
            ("https%253A%252F%252Fconsole.example%252Fcallback%253Fcode%253Dabc%2526state%253Dxyz", Some("xyz")),
            ("https://console.example/callback?code=%2561bc&state=x%2579z", Some("xyz")),
        ];
        for (text, state) in cases {
            let expected = match text {
                "abc#xyz#more" => Err(PasteFault::Malformed),
                _ => Ok(Pasted { code: Secret::new("abc"), state: state.map(Secret::new) }),
            };
            assert_eq!(parse_pasted(text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_code_is_refused_with_a_reason() {
        let long = "a".repeat(CODE_LIMIT + 1);
        let cases = [
            ("", PasteFault::Empty),
            (" \u{200b}\n", PasteFault::Empty),
            ("#xyz", PasteFault::Empty),
            ("?code=&state=xyz", PasteFault::Empty),
            ("https://console.example/", PasteFault::NoCode),
            ("https://console.example/callback?error=access_denied&state=xyz", PasteFault::Denied),
            ("ü", PasteFault::Malformed),
            ("%zz", PasteFault::Malformed),
            ("a%ff", PasteFault::Malformed),
            ("?code=code%3D", PasteFault::Malformed),
            ("?code=state=x", PasteFault::Malformed),
            ("?code=http://x", PasteFault::Malformed),
            ("?code='abc'", PasteFault::Malformed),
            ("?code=abc&state=code%3D", PasteFault::Malformed),
            ("?code=abc&state=state%3D%3D", PasteFault::Malformed),
            (&long, PasteFault::TooLong),
        ];
        for (text, fault) in cases {
            assert_eq!(parse_pasted(text), Err(fault), "{text:.40?}");
        }
        assert_eq!(parse_pasted(&"a".repeat(100 * 1024)), Err(PasteFault::TooLong));
    }

    #[test]
    fn what_was_read_is_read_again_as_the_same() {
        for text in
            ["YWJj==#eHl6=", "state=#xyz", "abc#state=", "?code=state%3D&state=state%3D", "?code=abc&state=#xyz"]
        {
            let pasted = parse_pasted(text).expect(text);
            let state = pasted.state.as_ref().expect(text);
            let again = format!("{}#{}", pasted.code.expose(), state.expose());
            assert_eq!(parse_pasted(&again), Ok(pasted.clone()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_an_end(text in ".{0,200}") {
            let _ = parse_pasted(&text);
        }

        #[test]
        fn any_mixture_of_what_matters_is_read_within_bounds(text in "[a-c#&=?%:/012EFcode state\u{200b}]{0,120}") {
            if let Ok(pasted) = parse_pasted(&text) {
                prop_assert!(!pasted.code.expose().is_empty() && pasted.code.expose().len() <= CODE_LIMIT);
                let clean = |secret: &Secret| secret.expose().bytes().all(|byte| byte.is_ascii_graphic());
                prop_assert!(clean(&pasted.code) && pasted.state.as_ref().is_none_or(clean));
            }
        }

        #[test]
        fn a_code_survives_its_own_url(code in "[A-Za-z0-9_~.-]{1,80}", state in "[A-Za-z0-9_-]{43}") {
            let expected = Ok(Pasted { code: Secret::new(code.clone()), state: Some(Secret::new(state.clone())) });
            prop_assert_eq!(&parse_pasted(&format!("{code}#{state}")), &expected);
            prop_assert_eq!(&parse_pasted(&format!("https://x.example/callback?code={code}&state={state}")), &expected);
        }
    }
}
