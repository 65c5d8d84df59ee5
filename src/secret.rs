//! A string that cannot be printed.
//!
//! Credentials live in [`Secret`] from the moment they are read. It has a masking `Debug`, no `Display`, no
//! `Deref` and no `Serialize`; the one way out is [`Secret::expose`], which is easy to search for. The bytes are
//! erased on drop.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A credential. Comparing two takes time that does not depend on their contents.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of a credential.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The credential itself: for a header that goes to its own provider, and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `candidate` is this secret, in time that depends on neither's contents.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        let ours = Sha256::digest(self.0.as_bytes());
        let theirs = Sha256::digest(candidate);
        ours.ct_eq(&theirs).into()
    }

    /// The first eight bytes of its SHA-256: tells two credentials apart without holding either.
    pub fn fingerprint(&self) -> u64 {
        let digest = Sha256::digest(self.0.as_bytes());
        digest.iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.0.as_bytes())
    }
}

impl Eq for Secret {}

/// Credentials that come with examples and tutorials. They open nothing and must guard nothing.
pub fn is_placeholder(text: &str) -> bool {
    let text = text.trim().to_ascii_lowercase();
    const WORDS: [&str; 6] = ["changeme", "change-me", "your_auth_code", "password", "secret", "xxx"];
    WORDS.contains(&text.as_str())
        || text.starts_with("your-")
        || text.starts_with("your_")
        || text.contains("your-api-key")
        || text.contains("your_api_key")
        || text.contains("your-key")
        || text.contains("your-token")
        || (text.starts_with('<') && text.ends_with('>'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_cannot_be_printed() {
        let secret = Secret::new("sk-ant-canary");
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "[redacted] Some([redacted])");
    }

    #[test]
    fn only_the_same_bytes_match() {
        let secret = Secret::new("sk-ant-canary");
        assert!(secret.matches(b"sk-ant-canary"));
        for other in ["", "sk-ant-canary ", "SK-ANT-CANARY", "sk-ant-canar"] {
            assert!(!secret.matches(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn where_two_keys_differ_takes_no_part_in_the_time() {
        let ours = "k".repeat(1 << 16);
        let secret = Secret::new(ours.clone());
        let fastest = |at: usize| {
            let mut theirs = ours.clone().into_bytes();
            theirs.splice(at..=at, *b"x");
            let time = || {
                let started = tokio::time::Instant::now();
                assert!(!std::hint::black_box(&secret).matches(std::hint::black_box(&theirs)));
                started.elapsed().as_secs_f64()
            };
            (0..30).map(|_| time()).fold(f64::INFINITY, f64::min)
        };
        // What stops at the first difference, or goes back from the last, is hundreds of times faster at one end.
        let ratio = fastest(0) / fastest(ours.len() - 1);
        assert!((0.2..5.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn sample_keys_are_known() {
        for sample in ["sk-your-api-key", "your-api-key-1", "changeme", "YOUR_AUTH_CODE", "<token>"] {
            assert!(is_placeholder(sample), "{sample}");
        }
        for real in ["sk-ant-api03-abc", "3f1c9d0e", "gw-yours-truly"] {
            assert!(!is_placeholder(real), "{real}");
        }
    }
}
