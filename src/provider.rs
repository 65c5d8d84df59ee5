//! The nouns of the configuration: who answers, where, with which credential, through which egress.
//!
//! Values here are already checked: a [`BaseUrl`] has a host and no query, an [`Email`] can go into a header.
//! Nothing in this room reads YAML or opens a socket.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::secret::Secret;

/// One entry of `providers:`.
pub struct Provider {
    /// Name and account; names need not be unique.
    pub key: ProviderKey,
    /// The wire format that the provider speaks.
    pub kind: Kind,
    /// Where it is.
    pub base: BaseUrl,
    /// What opens it.
    pub auth: Auth,
    /// How to get there.
    pub egress: Egress,
    /// Whether it takes part at all.
    pub enabled: bool,
    /// Whether HTTP/2 is offered to it.
    pub http2: bool,
    /// The stable identity under which its health outlives a reload.
    pub identity: Arc<Identity>,
    /// The other end of its connections, under which they are pooled.
    pub peer: Arc<Peer>,
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
        Self { key, kind, base, auth, egress, enabled: true, http2: false, identity, peer }
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

/// What connections are pooled by: they are shared by accounts of one origin, never across egress proxies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

/// Where a provider is: scheme, host, port, and a path prefix that requests are put behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    /// Whether TLS is spoken there.
    pub tls: bool,
    /// Lower-case host name or address; IPv6 without brackets.
    pub host: Arc<str>,
    /// The port, the scheme's own if none was given.
    pub port: u16,
    /// Empty, or `/a/b` without a final slash.
    pub prefix: Arc<str>,
}

/// What is wrong with a URL; each says what to write instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlFault {
    /// No scheme.
    #[error("has no scheme; write https://HOST")]
    NoScheme,
    /// A scheme that is not spoken here.
    #[error("has a scheme that is not supported here")]
    Scheme,
    /// `user:password@`.
    #[error("must not hold a user or password; credentials belong in auth_value")]
    UserInfo,
    /// `?…`.
    #[error("must not have a query")]
    Query,
    /// `#…`.
    #[error("must not have a fragment")]
    Fragment,
    /// Empty or malformed.
    #[error("has no valid host name")]
    Host,
    /// Zero, above 65535, or not a number.
    #[error("has a port that is not between 1 and 65535")]
    Port,
    /// Spaces, controls, non-ASCII, dot segments, doubled slashes.
    #[error("has characters or path segments that cannot be sent; use visible ASCII, no `.`, `..` or `//`")]
    Path,
    /// An address that only a cloud machine's own metadata service has.
    #[error("is a link-local or metadata address, which no provider has")]
    LinkLocal,
    /// A proxy URL without a port.
    #[error("has no port; write scheme://host:port")]
    NoPort,
}

impl BaseUrl {
    /// Reads `http(s)://host[:port][/prefix]`.
    ///
    /// # Errors
    /// The first [`UrlFault`]; whether plain http is allowed is not decided here.
    pub fn parse(text: &str) -> Result<Self, UrlFault> {
        let parts = UrlParts::split(text, &["https", "http"])?;
        let tls = parts.scheme == "https";
        if parts.user_info.is_some() {
            return Err(UrlFault::UserInfo);
        }
        if is_link_local(&parts.host) {
            return Err(UrlFault::LinkLocal);
        }
        let prefix = parts.path.trim_end_matches('/');
        let decoded = prefix.to_ascii_lowercase().replace("%2e", ".");
        let odd = decoded.split('/').skip(1).any(|segment| matches!(segment, "" | "." | ".."));
        if odd || prefix.contains('\\') {
            return Err(UrlFault::Path);
        }
        let port = parts.port.unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host: parts.host.into(), port, prefix: prefix.into() })
    }

    /// `scheme://host:port`.
    pub fn origin(&self) -> String {
        format!("{}://{}:{}", self.scheme(), bracketed(&self.host), self.port)
    }

    /// The value of the `host` header: the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let host = bracketed(&self.host);
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// Whether the host is this machine.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority(), self.prefix)
    }
}

/// The way out: direct, or through a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Straight to the provider.
    Direct,
    /// Through a proxy; its `Display` never shows the credentials.
    Proxy(EgressProxy),
}

/// An egress proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressProxy {
    /// How it is spoken to.
    pub scheme: ProxyScheme,
    /// Host name or address; IPv6 without brackets.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
    /// `user:password`, percent-decoded.
    pub credentials: Option<Secret>,
}

/// How an egress proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyScheme {
    /// HTTP `CONNECT` (RFC 9110 §9.3.6).
    Http,
    /// `CONNECT` inside TLS.
    Https,
    /// SOCKS5 (RFC 1928), names resolved here.
    Socks5,
    /// SOCKS5, names resolved by the proxy.
    Socks5h,
}

impl Egress {
    /// Reads `http://`, `https://`, `socks5://` or `socks5h://` `[user:pass@]host:port`.
    ///
    /// # Errors
    /// The first [`UrlFault`].
    pub fn parse(text: &str) -> Result<Self, UrlFault> {
        let parts = UrlParts::split(text, &["http", "https", "socks5", "socks5h"])?;
        let scheme = match parts.scheme.as_str() {
            "http" => ProxyScheme::Http,
            "https" => ProxyScheme::Https,
            "socks5" => ProxyScheme::Socks5,
            _ => ProxyScheme::Socks5h,
        };
        if !matches!(parts.path.as_str(), "" | "/") {
            return Err(UrlFault::Path);
        }
        let port = parts.port.ok_or(UrlFault::NoPort)?;
        let credentials = match parts.user_info {
            Some(user) => Some(Secret::new(percent_decode(&user).ok_or(UrlFault::Path)?)),
            None => None,
        };
        Ok(Self::Proxy(EgressProxy { scheme, host: parts.host.into(), port, credentials }))
    }

    fn fingerprint(&self) -> u64 {
        match self {
            Self::Proxy(EgressProxy { credentials: Some(secret), .. }) => secret.fingerprint().rotate_left(1),
            _ => 0,
        }
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Proxy(proxy) => {
                let scheme = match proxy.scheme {
                    ProxyScheme::Http => "http",
                    ProxyScheme::Https => "https",
                    ProxyScheme::Socks5 => "socks5",
                    ProxyScheme::Socks5h => "socks5h",
                };
                write!(f, "{scheme}://{}:{}", bracketed(&proxy.host), proxy.port)
            }
        }
    }
}

struct UrlParts {
    scheme: String,
    user_info: Option<String>,
    host: String,
    port: Option<u16>,
    path: String,
}

impl UrlParts {
    fn split(text: &str, schemes: &[&str]) -> Result<Self, UrlFault> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlFault::NoScheme)?;
        let scheme = scheme.to_ascii_lowercase();
        if !schemes.contains(&scheme.as_str()) {
            return Err(UrlFault::Scheme);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(UrlFault::Path);
        }
        if rest.contains('#') {
            return Err(UrlFault::Fragment);
        }
        if rest.contains('?') {
            return Err(UrlFault::Query);
        }
        let cut = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(cut);
        let (user_info, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user.to_owned()), place),
            None => (None, authority),
        };
        let (host, port) = split_port(place)?;
        let port = match port {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().ok().filter(|port| *port != 0).ok_or(UrlFault::Port)?)
            }
            Some(_) => return Err(UrlFault::Port),
            None => None,
        };
        Ok(Self { scheme, user_info, host: host.to_ascii_lowercase(), port, path: path.to_owned() })
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`; the host is checked, the port is left as text.
fn split_port(place: &str) -> Result<(&str, Option<&str>), UrlFault> {
    if let Some(inner) = place.strip_prefix('[') {
        let (address, rest) = inner.split_once(']').ok_or(UrlFault::Host)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| UrlFault::Host)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((address, Some(port))),
            None if rest.is_empty() => Ok((address, None)),
            None => Err(UrlFault::Host),
        };
    }
    let (host, port) = match place.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (place, None),
    };
    let labels = host.strip_suffix('.').unwrap_or(host);
    let valid = labels.len() <= 253
        && labels.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    if valid { Ok((host, port)) } else { Err(UrlFault::Host) }
}

/// Whether a host name or address is this machine.
pub fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_link_local(host: &str) -> bool {
    match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(address)) => address.is_link_local() || address.is_unspecified(),
        Ok(std::net::IpAddr::V6(address)) => address.is_unicast_link_local() || address.is_unspecified(),
        Err(_) => host == "metadata.google.internal",
    }
}

/// A host as it stands in an authority: IPv6 in brackets.
pub fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// Decodes `%41`; `None` where it is malformed or not UTF-8.
pub fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_keep_their_prefix_and_know_their_authority() {
        let cases = [
            ("https://api.anthropic.com", "api.anthropic.com", ""),
            ("https://api.anthropic.com/", "api.anthropic.com", ""),
            ("HTTPS://API.Anthropic.com:443/x/", "api.anthropic.com", "/x"),
            ("http://127.0.0.1:8080/pre/fix", "127.0.0.1:8080", "/pre/fix"),
            ("http://[::1]:8080", "[::1]:8080", ""),
        ];
        for (text, authority, prefix) in cases {
            let url = BaseUrl::parse(text).expect(text);
            assert_eq!((url.authority().as_str(), &*url.prefix), (authority, prefix), "{text}");
        }
    }

    #[test]
    fn bad_base_urls_say_what_is_wrong() {
        let cases = [
            ("", UrlFault::NoScheme),
            ("api.anthropic.com", UrlFault::NoScheme),
            ("ftp://h", UrlFault::Scheme),
            ("file:///etc/passwd", UrlFault::Scheme),
            ("https://u:p@h", UrlFault::UserInfo),
            ("https://h/?x", UrlFault::Query),
            ("https://h/#f", UrlFault::Fragment),
            ("https://h:0", UrlFault::Port),
            ("https://h:99999", UrlFault::Port),
            ("https://h:", UrlFault::Port),
            ("https://[::1", UrlFault::Host),
            ("https://h/%2e%2e", UrlFault::Path),
            ("https://h//x", UrlFault::Path),
            ("https://h x", UrlFault::Path),
            ("https://169.254.169.254", UrlFault::LinkLocal),
            ("https://", UrlFault::Host),
        ];
        for (text, fault) in cases {
            assert_eq!(BaseUrl::parse(text).expect_err(text), fault, "{text}");
        }
    }

    #[test]
    fn an_egress_never_shows_its_credentials() {
        let egress = Egress::parse("http://us%40er:canary@10.0.0.1:8080").expect("valid");
        assert_eq!(egress.to_string(), "http://10.0.0.1:8080");
        assert!(!format!("{egress:?}").contains("canary"));
        let Egress::Proxy(proxy) = egress else { panic!("not a proxy") };
        assert_eq!(proxy.credentials.expect("given").expose(), "us@er:canary");
        assert_eq!(Egress::parse("http://10.0.0.1").expect_err("no port"), UrlFault::NoPort);
        assert_eq!(Egress::parse("127.0.0.1:20171").expect_err("no scheme"), UrlFault::NoScheme);
        assert_eq!(Egress::parse("socks4://a:1").expect_err("scheme"), UrlFault::Scheme);
    }

    #[test]
    fn emails_are_compared_without_case_and_are_safe_in_a_header() {
        assert_eq!(Email::parse("Main@Example.com"), Email::parse("main@example.COM"));
        for bad in ["", "a", "@b", "a@", "a@b@c", "a b@c", "a@b\r\nx: y", "../../x@y", "a%2f@b", "ü@b"] {
            assert!(Email::parse(bad).is_none(), "{bad:?}");
        }
    }
}
