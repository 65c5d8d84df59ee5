//! Sealing what is written to a disk: XChaCha20-Poly1305 under a random key, or one that is stretched from a passphrase
//! (Argon2id). What a key is for is part of it, so that nothing sealed for one purpose opens for another.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::secret::Secret;

const NONCE: usize = 24;

/// 256 bits that open what they have sealed.
#[derive(Clone)]
pub(super) struct Key(Zeroizing<[u8; 32]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The system has no randomness: nothing can be sealed.
#[derive(Debug)]
pub(super) struct NoRandomness;

impl Key {
    pub(super) fn random() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bytes).map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }

    /// As it is kept in a keyring.
    pub(super) fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(*self.0))
    }

    pub(super) fn from_text(text: &[u8]) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64.decode(text).ok()?);
        let mut key = Zeroizing::new([0; 32]);
        (bytes.len() == key.len()).then(|| key.copy_from_slice(&bytes))?;
        Some(Self(key))
    }

    /// The key for one purpose.
    pub(super) fn derive(&self, purpose: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(*self.0);
        hash.update(purpose.as_bytes());
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(&hash.finalize());
        Self(key)
    }

    /// Tells a wrong key from a damaged text, and helps nobody who has not the key.
    pub(super) fn check(&self) -> String {
        BASE64.encode(self.derive("check").0.get(..8).unwrap_or_default())
    }

    pub(super) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, NoRandomness> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| NoRandomness)?;
        let sealed = self.cipher().encrypt(&XNonce::from(nonce), Payload::from(plain)).map_err(|_| NoRandomness)?;
        Ok([&nonce[..], &sealed].concat())
    }

    pub(super) fn open(&self, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>()?;
        self.cipher().decrypt(&XNonce::from(*nonce), Payload::from(sealed)).ok().map(Zeroizing::new)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }
}

/// How a passphrase is stretched; kept beside what was sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stretch {
    /// KiB of memory.
    memory: u32,
    /// Passes over it.
    passes: u32,
    lanes: u32,
    /// Base64.
    salt: String,
}

impl Stretch {
    /// The recommended cost, and a salt of its own.
    pub(super) fn new() -> Result<Self, NoRandomness> {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|_| NoRandomness)?;
        let (memory, passes, lanes) = (Params::DEFAULT_M_COST, Params::DEFAULT_T_COST, Params::DEFAULT_P_COST);
        Ok(Self { memory, passes, lanes, salt: BASE64.encode(salt) })
    }

    /// The key that a passphrase stands for; `None` = no cost that we would pay (a damaged file must not cost us all
    /// memory).
    pub(super) fn key(&self, passphrase: &Secret) -> Option<Key> {
        if self.memory > 256 * 1024 || self.passes > 16 || self.lanes > 8 {
            return None;
        }
        let salt = BASE64.decode(&self.salt).ok()?;
        let params = Params::new(self.memory, self.passes, self.lanes, Some(32)).ok()?;
        let mut key = Zeroizing::new([0; 32]);
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon.hash_password_into(passphrase.expose().as_bytes(), &salt, &mut *key).ok()?;
        Some(Key(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_of_the_same_purpose_opens_and_no_bit_may_change() {
        let key = Key::random().expect("randomness");
        let sealed = key.derive("file").seal(b"sk-ant-canary").expect("sealed");
        assert!(!String::from_utf8_lossy(&sealed).contains("canary"));
        assert_eq!(key.derive("file").open(&sealed).as_deref().map(Vec::as_slice), Some(&b"sk-ant-canary"[..]));
        assert!(key.derive("journal").open(&sealed).is_none() && key.open(&sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.derive("file").open(&changed).is_none(), "byte {at}");
            assert!(key.derive("file").open(&sealed[..at]).is_none(), "cut at {at}");
        }
        assert_ne!(sealed, key.derive("file").seal(b"sk-ant-canary").expect("sealed"), "nonces differ");
        assert_eq!(format!("{key:?}"), "[redacted]");
    }

    #[test]
    fn a_key_survives_the_keyring() {
        let key = Key::random().expect("randomness");
        let again = Key::from_text(key.to_text().as_bytes()).expect("read");
        assert_eq!(key.check(), again.check());
        assert!(Key::from_text(b"c2hvcnQ").is_none() && Key::from_text(b"?").is_none());
    }

    #[test]
    fn a_passphrase_gives_the_same_key_again_and_another_one_another() {
        let stretch = Stretch::new().expect("randomness");
        let key = |text: &str, stretch: &Stretch| stretch.key(&Secret::new(text)).expect("key").check();
        assert_eq!(key("correct horse", &stretch), key("correct horse", &stretch));
        assert_ne!(key("correct horse", &stretch), key("correct horse ", &stretch));
        assert_ne!(key("correct horse", &stretch), key("correct horse", &Stretch::new().expect("another salt")));
        let greedy = Stretch { memory: u32::MAX, ..stretch };
        assert!(greedy.key(&Secret::new("x")).is_none());
    }
}
