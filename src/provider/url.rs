//! Where a provider or a proxy is. What is read here is checked once, and is safe in a head and in a log afterwards.

use std::fmt;
use std::sync::Arc;

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
    /// What no path of a URL has: spaces, controls, non-ASCII, brackets, half an escape, dot segments, doubled slashes.
    #[error(
        "has characters or path segments that cannot be sent; use visible ASCII, odd ones as %41, no `.`, `..` or `//`"
    )]
    Path,
    /// An address that only a cloud machine's own metadata service has.
    #[error("is a link-local or metadata address, which no provider has")]
    LinkLocal,
    /// A proxy URL without a port.
    #[error("has no port; write scheme://host:port")]
    NoPort,
    /// A proxy's user that cannot be told from its password.
    #[error("has a user with a colon, which no proxy can read")]
    Colon,
    /// A login that does not fit into SOCKS5.
    #[error("has a user or password of more than 255 bytes, which does not fit into SOCKS5")]
    LongLogin,
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
        // RFC 3986 §3.3.
        let plain = prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&b));
        let escape = |rest: &str| rest.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
        if odd || !plain || !prefix.split('%').skip(1).all(escape) {
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

/// A URL in its parts, each of them checked.
pub(super) struct UrlParts {
    pub(super) scheme: String,
    pub(super) user_info: Option<String>,
    pub(super) host: String,
    pub(super) port: Option<u16>,
    pub(super) path: String,
}

impl UrlParts {
    pub(super) fn split(text: &str, schemes: &[&str]) -> Result<Self, UrlFault> {
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
    // Resolvers read `2852039166`, `0xa9fea9fe` and `169.254.43518` as addresses: only their plain form is one here.
    let number = labels.rsplit('.').next().is_some_and(|last| {
        let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
        last.bytes().all(|b| b.is_ascii_digit()) || hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
    });
    let plain = !number || host.parse::<std::net::Ipv4Addr>().is_ok();
    if valid && plain { Ok((host, port)) } else { Err(UrlFault::Host) }
}

/// Whether a host name or address is this machine.
pub fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_link_local(host: &str) -> bool {
    match host.parse::<std::net::IpAddr>().map(|address| address.to_canonical()) {
        Ok(std::net::IpAddr::V4(address)) => address.is_link_local() || address.is_unspecified(),
        Ok(std::net::IpAddr::V6(address)) => address.is_unicast_link_local() || address.is_unspecified(),
        Err(_) => host.strip_suffix('.').unwrap_or(host) == "metadata.google.internal",
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
            ("https://h/a>b", UrlFault::Path),
            ("https://h/{region}", UrlFault::Path),
            ("https://h/100%", UrlFault::Path),
            ("https://h/%a", UrlFault::Path),
            ("https://h/%tC", UrlFault::Path),
            ("https://h x", UrlFault::Path),
            ("https://169.254.169.254", UrlFault::LinkLocal),
            ("https://[::ffff:169.254.169.254]", UrlFault::LinkLocal),
            ("https://metadata.google.internal.", UrlFault::LinkLocal),
            ("https://169.254.169.254.", UrlFault::Host),
            ("https://169.254.43518", UrlFault::Host),
            ("https://2852039166", UrlFault::Host),
            ("https://0xA9FEA9FE", UrlFault::Host),
            ("https://h.0x", UrlFault::Host),
            ("https://", UrlFault::Host),
        ];
        for (text, fault) in cases {
            assert_eq!(BaseUrl::parse(text).expect_err(text), fault, "{text}");
        }
    }
}
