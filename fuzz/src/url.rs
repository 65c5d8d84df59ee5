//! Where a provider is: what was read is written so that it means the same, to us, to a strict reader of URLs, and to
//! the socket.

use std::net::IpAddr;

use claude_code_balancer::provider::BaseUrl;
use http::{HeaderValue, Uri};

pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(url) = BaseUrl::parse(text) else { return };
    let shown = url.to_string();
    assert_eq!(BaseUrl::parse(&shown).as_ref(), Ok(&url), "{shown} is read otherwise");
    assert!(shown.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\\".contains(&byte)), "{shown}");
    assert!(!url.authority().contains('@') && !url.origin().contains('@'), "{shown}");

    let uri: Uri = shown.parse().expect("a URL");
    assert_eq!(uri.scheme_str(), Some(if url.tls { "https" } else { "http" }));
    let host = uri.host().expect("a host").trim_matches(['[', ']']);
    assert_eq!((host, uri.port_u16().unwrap_or(if url.tls { 443 } else { 80 })), (&*url.host, url.port), "{shown}");
    assert_eq!(uri.path().trim_end_matches('/'), &*url.prefix);
    assert_eq!(HeaderValue::from_str(&url.authority()).expect("a value"), url.authority());
    assert!(url.origin().ends_with(&format!(":{}", url.port)));

    assert!(!url.prefix.ends_with('/') && !url.prefix.contains("//"), "{shown}");
    let prefix = url.prefix.to_ascii_lowercase().replace("%2e", ".");
    assert!(!prefix.split('/').any(|segment| segment == "." || segment == ".."), "{shown}");

    // What a resolver takes for an address is one that was looked at.
    let last = url.host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.starts_with("0x") && u128::from_str_radix(&last[2..], 16).is_ok();
    let address: Option<IpAddr> = url.host.parse().ok();
    assert!(!number || address.is_some(), "{} may be an address", url.host);
    let forbidden = match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V4(address)) => address.octets()[..2] == [169, 254] || address.is_unspecified(),
        Some(IpAddr::V6(address)) => address.segments()[0] & 0xffc0 == 0xfe80 || address.is_unspecified(),
        None => false,
    };
    assert!(!forbidden, "{shown}");
}
