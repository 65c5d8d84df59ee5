//! The way out of this machine.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::url::{UrlFault, UrlParts, bracketed, percent_decode};
use crate::secret::Secret;

/// The longest user and the longest password that fit into SOCKS5 (RFC 1929 §2).
const SOCKS_LIMIT: usize = 255;

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
    /// `user:password`, percent-decoded; no colon in the user, and for SOCKS5 at most 255 bytes each.
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
        let credentials = match &parts.user_info {
            Some(user_info) => Some(credentials(user_info, scheme)?),
            None => None,
        };
        Ok(Self::Proxy(EgressProxy { scheme, host: parts.host.into(), port, credentials }))
    }

    pub(super) fn fingerprint(&self) -> u64 {
        match self {
            Self::Proxy(EgressProxy { credentials: Some(secret), .. }) => secret.fingerprint().rotate_left(1),
            _ => 0,
        }
    }
}

/// `user` and `password`, each decoded and checked, joined again.
fn credentials(user_info: &str, scheme: ProxyScheme) -> Result<Secret, UrlFault> {
    // Basic credentials need their colon, a user without a password too (RFC 7617 §2).
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    let user = Zeroizing::new(percent_decode(user).ok_or(UrlFault::Path)?);
    let password = Zeroizing::new(percent_decode(password).ok_or(UrlFault::Path)?);
    if user.contains(':') {
        return Err(UrlFault::Colon);
    }
    let socks = matches!(scheme, ProxyScheme::Socks5 | ProxyScheme::Socks5h);
    if socks && (user.len() > SOCKS_LIMIT || password.len() > SOCKS_LIMIT) {
        return Err(UrlFault::LongLogin);
    }
    Ok(Secret::new(format!("{}:{}", *user, *password)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_egress_never_shows_its_credentials() {
        let egress = Egress::parse("http://us%40er:canary@10.0.0.1:8080").expect("valid");
        assert_eq!(egress.to_string(), "http://10.0.0.1:8080");
        assert!(!format!("{egress:?}").contains("canary"));
        let Egress::Proxy(proxy) = egress else { panic!("not a proxy") };
        assert_eq!(proxy.credentials.expect("given").expose(), "us@er:canary");
        let Ok(Egress::Proxy(alone)) = Egress::parse("http://user@10.0.0.1:1") else { panic!("not a proxy") };
        assert_eq!(alone.credentials.expect("given").expose(), "user:");
        assert_eq!(Egress::parse("http://10.0.0.1").expect_err("no port"), UrlFault::NoPort);
        assert_eq!(Egress::parse("127.0.0.1:20171").expect_err("no scheme"), UrlFault::NoScheme);
        assert_eq!(Egress::parse("socks4://a:1").expect_err("scheme"), UrlFault::Scheme);
    }

    #[test]
    fn a_login_must_fit_into_its_protocol() {
        let long = |length: usize| "%C3%BC".repeat(length / 2) + &"x".repeat(length % 2);
        for (scheme, user, password, fault) in [
            ("socks5", long(255), long(255), None),
            ("socks5h", long(256), "p".to_owned(), Some(UrlFault::LongLogin)),
            ("socks5", "u".to_owned(), long(256), Some(UrlFault::LongLogin)),
            ("http", long(256), long(256), None),
            ("https", "us%3Aer".to_owned(), "p".to_owned(), Some(UrlFault::Colon)),
            ("socks5", "user".to_owned(), "p:%3A".to_owned(), None),
        ] {
            let url = format!("{scheme}://{user}:{password}@h:1");
            assert_eq!(Egress::parse(&url).err(), fault, "{url}");
        }
    }
}
