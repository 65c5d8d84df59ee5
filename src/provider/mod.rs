//! The nouns of the configuration: who answers, where, with which credential, through which egress.
//!
//! Values here are already checked: a [`BaseUrl`] has a host and no query, an [`Email`] can go into a header.
//! Nothing in this room reads YAML or opens a socket.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;

use crate::secret::Secret;

mod egress;
mod url;

pub use egress::{Egress, EgressProxy, ProxyScheme};
pub use url::{BaseUrl, UrlFault, bracketed, is_loopback, percent_decode};

/// One entry of `providers:`.
pub struct Provider {
    /// Name and account; names need not be unique.
    pub key: ProviderKey,
    /// The wire format that the provider speaks.
    pub kind: Kind,
    /// Where it is.
    pub base: BaseUrl,
    /// What its requests say in `host`.
    pub host: HeaderValue,
    /// Its label as `x-provider-used` says it: spaces and visible ASCII as they are, the rest percent-encoded.
    pub used: HeaderValue,
    /// What opens it.
    pub auth: Auth,
    /// How to get there.
    pub egress: Egress,
    /// Whether it takes part at all.
    pub enabled: bool,
    /// Whether HTTP/2 is wanted; it is offered where there is TLS.
    pub http2: bool,
    /// The stable identity under which its health outlives a reload.
    pub identity: Arc<Identity>,
    /// The identity of the entry in the file: the same, but for what [`Provider::for_account`] gives.
    pub entry: Arc<Identity>,
    /// The other end of its connections, under which they are pooled.
    pub peer: Arc<Peer>,
    /// What [`Provider::for_account`] has given so far.
    accounts: ArcSwap<Vec<Arc<Self>>>,
}

impl Provider {
    /// Puts an entry together and derives its identity.
    pub fn new(key: ProviderKey, kind: Kind, base: BaseUrl, auth: Auth, egress: Egress) -> Self {
        let peer = Arc::new(Peer {
            origin: base.origin(),
            egress: egress.to_string(),
            egress_credential: egress.fingerprint(),
            http2: false,
        });
        let identity = Arc::new(Identity {
            key: key.clone(),
            origin: base.origin(),
            egress: egress.to_string(),
            credential: auth.fingerprint() ^ egress.fingerprint(),
        });
        // A host that was read from a URL is always visible ASCII.
        let host = HeaderValue::from_str(&base.authority()).unwrap_or_else(|_| HeaderValue::from_static(""));
        let used = visible(&key.to_string());
        let (enabled, http2, entry, accounts) = (true, false, identity.clone(), ArcSwap::default());
        Self { key, kind, base, host, used, auth, egress, enabled, http2, identity, entry, peer, accounts }
    }

    /// Offers HTTP/2 to it, which needs TLS; its connections are pooled apart from those to which it is not offered.
    pub fn offer_http2(&mut self) {
        self.http2 = true;
        self.peer = Arc::new(Peer { http2: self.base.tls, ..Peer::clone(&self.peer) });
    }

    /// This entry, which names no account, with one: its health and its label are that account's.
    #[must_use]
    pub fn for_account(&self, account: &Email) -> Arc<Self> {
        let known = |list: &[Arc<Self>]| list.iter().find(|one| one.key.account.as_ref() == Some(account)).cloned();
        if let Some(known) = known(&self.accounts.load()) {
            return known;
        }
        let key = ProviderKey { name: self.key.name.clone(), account: Some(account.clone()) };
        let with = Arc::new(Self {
            identity: Arc::new(Identity { key: key.clone(), ..Identity::clone(&self.identity) }),
            used: visible(&key.to_string()),
            key,
            kind: self.kind,
            base: self.base.clone(),
            host: self.host.clone(),
            auth: self.auth.clone(),
            egress: self.egress.clone(),
            enabled: self.enabled,
            http2: self.http2,
            entry: self.entry.clone(),
            peer: self.peer.clone(),
            accounts: ArcSwap::default(),
        });
        self.accounts.rcu(|list| match known(list) {
            Some(_) => Vec::clone(list),
            None => list.iter().chain([&with]).cloned().collect(),
        });
        known(&self.accounts.load()).unwrap_or(with)
    }

    /// `NAME`, or `NAME (account)`: how logs, errors and `x-provider-used` speak of it.
    pub fn label(&self) -> String {
        self.key.to_string()
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Provider({} at {})", self.key, self.base)
    }
}

fn visible(label: &str) -> HeaderValue {
    let mut text = String::with_capacity(label.len());
    for byte in label.bytes() {
        if byte.is_ascii_graphic() || byte == b' ' {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// What names an entry: `name` and, where several share it, the account.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProviderKey {
    /// The `name` of the entry.
    pub name: Arc<str>,
    /// Its `account_email`.
    pub account: Option<Email>,
}

impl fmt::Display for ProviderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.account {
            Some(account) => write!(f, "{} ({account})", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What health is keyed by: an edit or a login that mends a target changes it, and so starts clean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name and account.
    pub key: ProviderKey,
    /// `scheme://host:port`.
    pub origin: String,
    /// The egress, without its credentials.
    pub egress: String,
    /// Fingerprint of the credential and of the egress proxy's.
    pub credential: u64,
}

impl Hash for Identity {
    /// By what nearly always tells two apart, for it is asked for with each request.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.key.name, self.credential).hash(state);
    }
}

/// What connections are pooled by: they are shared by accounts of one origin, never across egress proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `scheme://host:port`.
    pub origin: String,
    /// The egress, without its credentials.
    pub egress: String,
    /// Fingerprint of the egress proxy's credentials.
    pub egress_credential: u64,
    /// Whether HTTP/2 is offered.
    pub http2: bool,
}

impl Hash for Peer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.origin.hash(state);
    }
}

/// The wire format of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Kind {
    /// Anthropic's Messages API.
    #[default]
    Anthropic,
    /// Loads as disabled until it exists.
    OpenAi,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anthropic => "anthropic",
            Self::OpenAi => "openai",
        })
    }
}

/// The credential of a provider, and the header that carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// `x-api-key: VALUE`.
    ApiKey(Secret),
    /// `authorization: Bearer VALUE`.
    Bearer(Secret),
    /// The token of an OAuth account.
    OAuth,
    /// The client's own credential, untouched.
    Passthrough,
}

impl Auth {
    fn fingerprint(&self) -> u64 {
        match self {
            Self::ApiKey(secret) | Self::Bearer(secret) => secret.fingerprint(),
            Self::OAuth => 1,
            Self::Passthrough => 2,
        }
    }
}

/// An account's e-mail; compared without regard to case, safe in a header, a log line or a path.
#[derive(Clone, Debug)]
pub struct Email(Arc<str>);

/// Longest address (RFC 5321 §4.5.3.1.3 leaves 254 between the brackets).
pub const EMAIL_LIMIT: usize = 254;

impl Email {
    /// Reads an address: visible ASCII with one `@` inside, at most [`EMAIL_LIMIT`] bytes, no `/`, `\` or `%`.
    pub fn parse(text: &str) -> Option<Self> {
        let (local, domain) = text.split_once('@')?;
        let clean = text.bytes().all(|b| b.is_ascii_graphic() && !br#"/\%"<>,;:()[]"#.contains(&b));
        let fits = clean && text.len() <= EMAIL_LIMIT && !local.is_empty() && !domain.is_empty();
        (fits && !domain.contains('@')).then(|| Self(text.into()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Email {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Email {}

impl Hash for Email {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for byte in self.0.bytes() {
            state.write_u8(byte.to_ascii_lowercase());
        }
    }
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emails_are_compared_without_case_and_are_safe_in_a_header() {
        assert_eq!(Email::parse("Main@Example.com"), Email::parse("main@example.COM"));
        for bad in ["", "a", "@b", "a@", "a@b@c", "a b@c", "a@b\r\nx: y", "../../x@y", "a%2f@b", "ü@b"] {
            assert!(Email::parse(bad).is_none(), "{bad:?}");
        }
    }
}
