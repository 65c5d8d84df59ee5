//! Who may talk to us, decided from the head alone, before routing and before a body is read.
//!
//! A local port that adds credentials is a prize for any web page: DNS rebinding is stopped by the exact list of Host
//! names, cross-site requests by `Origin` and `Sec-Fetch-Site`, everyone else on a shared machine by
//! `settings.auth`. Nothing here ever grants cross-origin access.

mod fields;
pub mod head;

use std::sync::Arc;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, ORIGIN};
use http::{HeaderMap, Method, Uri};

use crate::provider::percent_decode;
use crate::secret::Secret;
use fields::{Fields, Lone};

/// What the gate compares with.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// The port that is really bound.
    pub port: u16,
    /// The bound address as the user wrote it.
    pub bound: &'a str,
    /// Further Host names, lower-case, with or without a port.
    pub allowed_hosts: &'a [String],
    /// Keys that open this proxy; none = no key is asked for.
    pub keys: &'a [ClientKey],
    /// Paths that need no key.
    pub exempt_paths: &'a [String],
    /// Whether the other end of the connection is this machine.
    pub peer_is_local: bool,
}

/// A key that opens this proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientKey {
    /// For the log; none for a key of `api_key`.
    pub name: Option<Arc<str>>,
    /// The key itself.
    pub secret: Secret,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No `Host`, an empty one, or two.
    #[error("the request needs exactly one Host header")]
    Host,
    /// A name that is not ours.
    #[error("this host name is not served here; add it to settings.allowed_hosts if it should be")]
    ForeignHost,
    /// The request came from a web page.
    #[error("requests from web pages are not served")]
    ForeignOrigin,
    /// Fields of more than 64 KiB in all.
    #[error("the request's header fields are larger than 64 KiB")]
    HeadTooLarge,
    /// Not one of GET, HEAD, POST, DELETE.
    #[error("the method is not supported")]
    Method,
    /// Dot segments, doubled slashes, backslashes, another authority; or over 8 KiB.
    #[error("the request target is malformed")]
    Target,
    /// A body whose length two readers might understand differently.
    #[error("the framing of the request body is ambiguous or malformed")]
    Framing,
    /// A management path from another machine, or through a proxy.
    #[error("management is served to this machine only")]
    Remote,
    /// No key. The answer is the same as to a wrong one.
    #[error("the key of this balancer is missing or wrong: send it as x-api-key, or as Authorization: Bearer")]
    NoKey,
    /// A wrong key.
    #[error("the key of this balancer is missing or wrong: send it as x-api-key, or as Authorization: Bearer")]
    WrongKey,
    /// A management body that a form could have sent.
    #[error("the body must be application/json")]
    MediaType,
    /// An `Expect` of anything but `100-continue`.
    #[error("only Expect: 100-continue is supported")]
    Expectation,
    /// A compressed request body.
    #[error("request bodies with a content-encoding are not supported")]
    Encoded,
}

/// `x-api-key`.
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Largest header fields of a request, in bytes as they are on the wire.
const HEAD_LIMIT: usize = 64 * 1024;
/// Longest request target, in bytes.
const TARGET_LIMIT: usize = 8 * 1024;

/// A request that was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Where this proxy's own keys stood: a header, and which of its values. They are removed and never leave.
    pub keys_in: Vec<(HeaderName, usize)>,
    /// The name of the key, where it has one.
    pub key: Option<Arc<str>>,
}

/// Marks the values that may be credentials, so that no `Debug` shows them.
pub fn mask(headers: &mut HeaderMap) {
    for (name, value) in headers.iter_mut() {
        let name = name.as_str();
        if matches!(name, "authorization" | "cookie" | "proxy-authorization") || name.ends_with("api-key") {
            value.set_sensitive(true);
        }
    }
}

/// Decides about one request.
///
/// # Errors
/// The first [`Refusal`], in the order of the list.
pub fn admit(method: &Method, uri: &Uri, headers: &HeaderMap, policy: Policy<'_>) -> Result<Admitted, Refusal> {
    let fields = Fields::of(headers);
    check_host(fields.host, uri, policy)?;
    if fields.has_origin {
        check_origin(headers, policy)?;
    }
    if fields.from_page {
        return Err(Refusal::ForeignOrigin);
    }
    // hyper's own limit is checked only when it needs to read more.
    if fields.size > HEAD_LIMIT {
        return Err(Refusal::HeadTooLarge);
    }
    if !matches!(*method, Method::GET | Method::HEAD | Method::POST | Method::DELETE) {
        return Err(Refusal::Method);
    }
    check_target(uri)?;
    check_framing(method, &fields)?;
    let path = uri.path();
    let management = is_management(path);
    if management {
        let forwarded = headers.contains_key("forwarded")
            || headers.contains_key("via")
            || headers.keys().any(|name| name.as_str().starts_with("x-forwarded-"));
        if forwarded || !policy.peer_is_local {
            return Err(Refusal::Remote);
        }
    }
    let admitted = check_key(method, path, headers, policy)?;
    if management && has_body(headers, &fields) && !is_json(headers) {
        return Err(Refusal::MediaType);
    }
    if fields.is_encoded {
        return Err(Refusal::Encoded);
    }
    if fields.expects_more {
        return Err(Refusal::Expectation);
    }
    Ok(admitted)
}

/// Whether a path, which begins with a slash, changes or shows the state of the balancer itself.
pub fn is_management(path: &str) -> bool {
    let is_at = |room| path.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    is_at("/providers") || is_at("/oauth") || is_at("/metrics") || is_at("/cleanup")
}

fn check_host(host: Lone<'_>, uri: &Uri, policy: Policy<'_>) -> Result<(), Refusal> {
    let Lone::Once(host) = host else { return Err(Refusal::Host) };
    let host = host.to_str().map_err(|_| Refusal::Host)?;
    if host.is_empty() {
        return Err(Refusal::Host);
    }
    // The absolute form must name the same place.
    if let Some(authority) = uri.authority()
        && !authority.as_str().eq_ignore_ascii_case(host)
    {
        return Err(Refusal::Target);
    }
    if is_ours(host, policy) { Ok(()) } else { Err(Refusal::ForeignHost) }
}

fn is_ours(host: &str, policy: Policy<'_>) -> bool {
    let listed = |name: &str| policy.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
    if listed(host) {
        return true;
    }
    let (name, port) = split_port(host);
    let port_fits = match port {
        Some(port) => port.parse() == Ok(policy.port) && !port.starts_with(['+', '0']),
        None => policy.port == 80,
    };
    let bound = || {
        let address = match policy.bound.contains(':') {
            true => name.strip_prefix('[').and_then(|name| name.strip_suffix(']')),
            false => Some(name),
        };
        policy.bound.parse::<std::net::IpAddr>().is_ok_and(|ip| !ip.is_unspecified())
            && address.is_some_and(|address| address.eq_ignore_ascii_case(policy.bound))
    };
    let own = ["localhost", "127.0.0.1", "[::1]"].iter().any(|own| own.eq_ignore_ascii_case(name));
    port_fits && (own || bound() || listed(name))
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    let colon = host.bytes().rposition(|byte| byte == b':');
    match colon.and_then(|colon| Some((host.get(..colon)?, host.get(colon + 1..)?))) {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    }
}

fn check_origin(headers: &HeaderMap, policy: Policy<'_>) -> Result<(), Refusal> {
    for origin in headers.get_all(ORIGIN) {
        let own = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.strip_prefix("http://"))
            .is_some_and(|host| is_ours(host, policy));
        if !own {
            return Err(Refusal::ForeignOrigin);
        }
    }
    Ok(())
}

fn check_target(uri: &Uri) -> Result<(), Refusal> {
    let path = uri.path();
    let fits = uri.path_and_query().is_none_or(|target| target.as_str().len() <= TARGET_LIMIT);
    if fits && (is_calm(path) || is_clear(path)) { Ok(()) } else { Err(Refusal::Target) }
}

/// Whether a path has nothing that needs a closer look, and nearly all have not: no byte that any reader takes for a
/// way up, an escape, or the end of something.
fn is_calm(path: &str) -> bool {
    let mut before = 0;
    let calm = |byte: u8| {
        let doubled = byte == b'/' && before == b'/';
        before = byte;
        byte.is_ascii_graphic() && !matches!(byte, b'.' | b'%' | b'\\') && !doubled
    };
    path.starts_with('/') && path.bytes().all(calm)
}

/// Whether all readers understand a path alike.
fn is_clear(path: &str) -> bool {
    let plain = path.starts_with('/') && !path.contains("//") && path.bytes().all(|byte| byte.is_ascii_graphic());
    // Decoded once, as a provider would: an escape hides no way up, and no end of a line.
    let clean = |path: &str| {
        let climbs = path.split('/').any(|segment| matches!(segment.split(';').next(), Some("." | "..")));
        !climbs && !path.contains(|character: char| character.is_control() || character == '\\')
    };
    plain && if path.contains('%') { percent_decode(path).is_some_and(|path| clean(&path)) } else { clean(path) }
}

/// One length in canonical digits, or `chunked` and nothing else; and no body where none can be. [`head`] has said the
/// first of the bytes themselves, before any library that shows nothing of a length beside a coding or of a second one.
fn check_framing(method: &Method, fields: &Fields<'_>) -> Result<(), Refusal> {
    let clear = match (fields.length, fields.coding) {
        (Lone::Absent, Lone::Absent) => true,
        (Lone::Once(length), Lone::Absent) => {
            let length = length.as_bytes();
            let canonical = !length.is_empty()
                && length.iter().all(u8::is_ascii_digit)
                && (length == b"0" || !length.starts_with(b"0"));
            canonical && (length == b"0" || may_have_body(method))
        }
        (Lone::Absent, Lone::Once(coding)) => {
            coding.as_bytes().eq_ignore_ascii_case(b"chunked") && may_have_body(method)
        }
        _ => false,
    };
    if clear { Ok(()) } else { Err(Refusal::Framing) }
}

fn may_have_body(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD)
}

fn check_key(method: &Method, path: &str, headers: &HeaderMap, policy: Policy<'_>) -> Result<Admitted, Refusal> {
    let (mut keys_in, mut name_of_key) = (Vec::new(), None);
    if policy.keys.is_empty() {
        // An edit may have taken the keys away while the open address is still bound: that opens nothing.
        return if policy.peer_is_local { Ok(Admitted { keys_in, key: None }) } else { Err(Refusal::NoKey) };
    }
    let mut offered = false;
    // All of them: a client may send the key twice, once in each header.
    for name in [X_API_KEY, AUTHORIZATION] {
        for (index, value) in headers.get_all(&name).iter().enumerate() {
            offered = true;
            let bytes = value.as_bytes();
            let token = match bytes.split_at_checked(7) {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.trim_ascii(),
                _ => bytes,
            };
            // Every key is compared, so that the time tells nothing of which one fits.
            let fitting =
                policy.keys.iter().fold(None, |found, key| if key.secret.matches(token) { Some(key) } else { found });
            if let Some(key) = fitting {
                keys_in.push((name.clone(), index));
                name_of_key = name_of_key.or_else(|| key.name.clone());
            }
        }
    }
    // Claude Code's start-up probes carry no credential.
    let probe = *method == Method::HEAD && matches!(path, "/" | "/api/hello");
    if !keys_in.is_empty() || probe || policy.exempt_paths.iter().any(|exempt| exempt == path) {
        return Ok(Admitted { keys_in, key: name_of_key });
    }
    Err(if offered { Refusal::WrongKey } else { Refusal::NoKey })
}

fn has_body(headers: &HeaderMap, fields: &Fields<'_>) -> bool {
    fields.coding != Lone::Absent
        || headers.contains_key(CONTENT_TYPE)
        || matches!(fields.length, Lone::Once(length) if length != "0")
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (types.next(), types.next()) else { return false };
    let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

#[cfg(test)]
mod tests;
