//! Proof Key for Code Exchange (RFC 7636), method S256: a login that was begun here can only be finished here. The
//! verifier and the state live in memory and nowhere else.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Bytes of randomness in a verifier and in a state: 43 characters of base64url.
const ENTROPY: usize = 32;

/// The system has no randomness to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

/// What proves, when the code is exchanged, who asked for it.
#[derive(Clone, Debug)]
pub struct Verifier(Secret);

impl Verifier {
    /// A new one.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn new() -> Result<Self, NoRandomness> {
        random().map(Self)
    }

    /// What the authorization page gets: base64url(SHA-256(verifier)), without padding.
    pub fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.0.expose().as_bytes()))
    }

    /// The verifier itself: for the exchange, and for nothing else.
    pub fn secret(&self) -> &Secret {
        &self.0
    }
}

/// A new state: names one login, and cannot be guessed.
///
/// # Errors
/// [`NoRandomness`].
pub fn state() -> Result<Secret, NoRandomness> {
    random()
}

fn random() -> Result<Secret, NoRandomness> {
    let mut bytes = Zeroizing::new([0; ENTROPY]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|_| NoRandomness)?;
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(bytes.as_slice())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_that_of_rfc_7636_appendix_b() {
        let verifier = Verifier(Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"));
        assert_eq!(verifier.challenge(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn verifiers_and_states_are_43_characters_of_base64url_and_never_the_same() {
        let verifier = Verifier::new().expect("randomness");
        let state = state().expect("randomness");
        for text in [verifier.secret().expose(), state.expose()] {
            assert_eq!(text.len(), 43, "{text}");
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'), "{text}");
        }
        assert_ne!(verifier.secret(), &state);
        assert_ne!(verifier.secret(), Verifier::new().expect("randomness").secret());
        assert!(!format!("{verifier:?} {state:?}").contains(verifier.secret().expose()));
    }
}
