//! What a vault is opened with, and where that comes from: the settings, the environment, the platform.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyring_core::CredentialStore;
use zeroize::Zeroizing;

use crate::config::{OAuthSettings, OAuthStorage};
use crate::secret::Secret;

/// How a keyring is reached; called again after it failed, on the thread that all its calls run on.
pub type OpenKeyring = Arc<dyn Fn() -> keyring_core::Result<Arc<CredentialStore>> + Send + Sync>;

/// Between two tries at a keyring that has failed.
const RETRY: Duration = Duration::from_secs(30);
/// Longest passphrase that is read from a file, in bytes.
const PASSPHRASE_LIMIT: u64 = 4096;
/// The variable with the passphrase …
pub const PASSPHRASE: &str = "CLAUDE_CODE_BALANCER_PASSPHRASE";
/// … and the one that names a file with it.
pub const PASSPHRASE_FILE: &str = "CLAUDE_CODE_BALANCER_PASSPHRASE_FILE";
const FOLDER: &str = "claude-code-balancer";

/// What [`Vault::open`](super::Vault::open) needs to know.
#[derive(Clone)]
pub struct Options {
    /// `settings.oauth.storage`.
    pub storage: OAuthStorage,
    /// `settings.oauth.enable_persistence`; without it, storage is memory.
    pub persistence: bool,
    /// `settings.oauth.service_name`.
    pub service: String,
    /// See [`state_folder`].
    pub state_folder: PathBuf,
    /// See [`passphrase`]; seals the file, if the file it is.
    pub passphrase: Option<Secret>,
    /// The platform's keyring, unless another one is handed in.
    pub keyring: OpenKeyring,
    /// Between two tries at a keyring that has failed.
    pub retry: Duration,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Options");
        out.field("storage", &self.storage).field("persistence", &self.persistence).field("service", &self.service);
        out.field("state_folder", &self.state_folder).field("passphrase", &self.passphrase).finish_non_exhaustive()
    }
}

impl Options {
    /// With the platform's keyring.
    pub fn new(settings: &OAuthSettings, state_folder: PathBuf, passphrase: Option<Secret>) -> Self {
        Self {
            storage: settings.storage,
            persistence: settings.enable_persistence,
            service: settings.service_name.clone(),
            state_folder,
            passphrase,
            keyring: Arc::new(platform),
            retry: RETRY,
        }
    }
}

/// The platform's own keyring.
fn platform() -> keyring_core::Result<Arc<CredentialStore>> {
    #[cfg(any(target_os = "linux", target_os = "freebsd"))]
    return Ok(zbus_secret_service_keyring_store::Store::new()?);
    #[cfg(target_os = "macos")]
    return Ok(apple_native_keyring_store::keychain::Store::new()?);
    #[cfg(windows)]
    return Ok(windows_native_keyring_store::Store::new()?);
    #[cfg(not(any(target_os = "linux", target_os = "freebsd", target_os = "macos", windows)))]
    return Err(keyring_core::Error::NotSupportedByStore("this platform has no keyring that is known here".into()));
}

/// Where what must outlive the process is kept: `$XDG_STATE_HOME/claude-code-balancer`, else the platform's usual
/// place below the home. `None` = there is no home.
pub fn state_folder(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // A relative path is to be ignored (XDG base directory specification), and would depend on where we were started.
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(state) = absolute("XDG_STATE_HOME") {
        return Some(state.join(FOLDER));
    }
    if cfg!(windows) {
        return Some(absolute("LOCALAPPDATA").or_else(|| absolute("APPDATA"))?.join(FOLDER));
    }
    let usual = if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/state" };
    Some(absolute("HOME")?.join(usual).join(FOLDER))
}

/// Why there is no passphrase although one was meant.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseFault {
    /// Set, but not text.
    #[error("{PASSPHRASE} is not valid UTF-8")]
    NotText,
    /// The file cannot be read.
    #[error("{PASSPHRASE_FILE}: cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds nothing, or nothing that could be a passphrase.
    #[error("{PASSPHRASE_FILE}: {} must hold one line of UTF-8, at most {PASSPHRASE_LIMIT} bytes", path.display())]
    NoLine {
        /// Which.
        path: PathBuf,
    },
}

/// The passphrase of the file of accounts: `CLAUDE_CODE_BALANCER_PASSPHRASE`, else the line in the file that
/// `CLAUDE_CODE_BALANCER_PASSPHRASE_FILE` names. Unset or empty = none. Reads a file: for the start, not for a runtime.
///
/// # Errors
/// One is meant, but cannot be had; going on without would store tokens in the open.
pub fn passphrase(env: impl Fn(&str) -> Option<OsString>) -> Result<Option<Secret>, PassphraseFault> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(text) = set(PASSPHRASE) {
        return text.into_string().map(|text| Some(Secret::new(text))).map_err(|_| PassphraseFault::NotText);
    }
    let Some(path) = set(PASSPHRASE_FILE).map(PathBuf::from) else { return Ok(None) };
    let mut text = Zeroizing::new(String::with_capacity(PASSPHRASE_LIMIT as usize + 1));
    let read = std::fs::File::open(&path).and_then(|file| file.take(PASSPHRASE_LIMIT + 1).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(PassphraseFault::NoLine { path }),
        Err(source) => return Err(PassphraseFault::File { path, source }),
        Ok(_) => {}
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains('\n') || text.len() as u64 > PASSPHRASE_LIMIT {
        return Err(PassphraseFault::NoLine { path });
    }
    Ok(Some(Secret::new(line)))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
    }

    #[test]
    fn the_state_folder_is_absolute_or_none() {
        let usual = if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/state" };
        let below_home = format!("/home/u/{usual}/claude-code-balancer");
        for (pairs, folder) in [
            (&[("XDG_STATE_HOME", "/s"), ("HOME", "/home/u")][..], Some("/s/claude-code-balancer")),
            (&[("XDG_STATE_HOME", "relative"), ("HOME", "/home/u")], Some(&below_home)),
            (&[("XDG_STATE_HOME", ""), ("HOME", "/home/u")], Some(&below_home)),
            (&[("HOME", "")], None),
            (&[], None),
        ] {
            assert_eq!(state_folder(env(pairs)), folder.map(PathBuf::from), "{pairs:?}");
        }
    }

    #[test]
    fn a_passphrase_is_one_line_and_one_that_cannot_be_had_is_an_error() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("passphrase");
        let name = path.to_str().expect("UTF-8");
        let read = |text: &[u8]| {
            std::fs::write(&path, text).expect("written");
            passphrase(env(&[(PASSPHRASE_FILE, name)]))
        };
        for text in ["correct horse", "correct horse\n", "correct horse\r\n"] {
            assert_eq!(read(text.as_bytes()).expect("read"), Some(Secret::new("correct horse")), "{text:?}");
        }
        for text in [&b""[..], b"\n", b"two\nlines", b"\xff\xfe", &[b'x'; 5000]] {
            let error = read(text).expect_err("no line");
            assert!(matches!(error, PassphraseFault::NoLine { .. }), "{error}");
        }
        assert!(matches!(passphrase(env(&[(PASSPHRASE_FILE, "/nowhere")])), Err(PassphraseFault::File { .. })));
        let both = passphrase(env(&[(PASSPHRASE, "direct"), (PASSPHRASE_FILE, "/nowhere")]));
        assert_eq!(both.expect("the variable goes first"), Some(Secret::new("direct")));
        assert_eq!(passphrase(env(&[(PASSPHRASE, "")])).expect("empty is unset"), None);
    }
}
