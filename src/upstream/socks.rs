//! Egress through a SOCKS5 proxy: CONNECT (RFC 1928), with and without a login (RFC 1929). Each answer is read to its
//! exact end: the proxy may not speak ahead, and what came after the last one would be taken for the provider's.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::error::TunnelFault;
use crate::provider::EgressProxy;
use crate::secret::Secret;

const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
const CONNECT: u8 = 1;
const GRANTED: u8 = 0;

const NO_LOGIN: u8 = 0;
const LOGIN: u8 = 2;
const NO_METHOD: u8 = 0xff;

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Longer than the longest answer: a reply with a name of 255 bytes has 262.
const ANSWER_LIMIT: usize = 512;

/// Where a proxy is asked to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Address(SocketAddr),
    /// The proxy resolves it.
    Name(String, u16),
}

impl Place {
    /// A host as it was written: a name, or an address, which needs no resolving.
    pub(super) fn named(host: &str, port: u16) -> Self {
        match host.parse::<IpAddr>() {
            Ok(address) => Self::Address(SocketAddr::new(address, port)),
            Err(_) => Self::Name(host.to_owned(), port),
        }
    }
}

/// Asks a SOCKS5 proxy for a tunnel over an open connection; at most `limit`.
pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    proxy: &EgressProxy,
    place: &Place,
    limit: Duration,
) -> Result<S, TunnelFault> {
    let talk = connect(&mut stream, proxy.credentials.as_ref(), place);
    tokio::time::timeout(limit, talk).await.map_err(|_| TunnelFault::Timeout)??;
    Ok(stream)
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    credentials: Option<&Secret>,
    place: &Place,
) -> Result<(), TunnelFault> {
    let methods: &[u8] = if credentials.is_some() { &[VERSION, 2, NO_LOGIN, LOGIN] } else { &[VERSION, 1, NO_LOGIN] };
    send(stream, methods).await?;
    match (answer(stream, method).await?, credentials) {
        (NO_LOGIN, _) => {}
        (LOGIN, Some(credentials)) => {
            send(stream, &login_request(credentials)?).await?;
            answer(stream, login_answer).await?;
        }
        (NO_METHOD, None) => return Err(TunnelFault::NoLogin),
        (NO_METHOD, Some(_)) => return Err(TunnelFault::NoMethod),
        _ => return Err(TunnelFault::NotSocks),
    }
    send(stream, &request(place)?).await?;
    answer(stream, reply).await
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), TunnelFault> {
    stream.write_all(bytes).await.map_err(|_| TunnelFault::Closed)?;
    stream.flush().await.map_err(|_| TunnelFault::Closed)
}

/// An answer and its length; `None` where more must be read.
type Parsed<T> = Result<Option<(T, usize)>, TunnelFault>;

/// Reads one answer and nothing else.
async fn answer<S: AsyncRead + Unpin, T>(stream: &mut S, parse: fn(&[u8]) -> Parsed<T>) -> Result<T, TunnelFault> {
    let mut bytes = Vec::with_capacity(ANSWER_LIMIT);
    loop {
        if stream.read_buf(&mut bytes).await.map_err(|_| TunnelFault::Closed)? == 0 {
            return Err(TunnelFault::Closed);
        }
        match parse(&bytes)? {
            Some((value, length)) if length == bytes.len() => return Ok(value),
            None if bytes.len() < ANSWER_LIMIT => {}
            _ => return Err(TunnelFault::NotSocks),
        }
    }
}

/// `version method`
fn method(bytes: &[u8]) -> Parsed<u8> {
    match bytes {
        [VERSION, method, ..] => Ok(Some((*method, 2))),
        [] | [VERSION] => Ok(None),
        _ => Err(TunnelFault::NotSocks),
    }
}

/// `version length user length password`
fn login_request(credentials: &Secret) -> Result<Zeroizing<Vec<u8>>, TunnelFault> {
    let (user, password) = credentials.expose().split_once(':').unwrap_or((credentials.expose(), ""));
    // As long as it may become, so that no copy stays behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(3 + user.len() + password.len()));
    bytes.push(LOGIN_VERSION);
    for part in [user, password] {
        // The configuration holds nothing longer.
        bytes.push(u8::try_from(part.len()).map_err(|_| TunnelFault::Login)?);
        bytes.extend_from_slice(part.as_bytes());
    }
    Ok(bytes)
}

/// `version status`
fn login_answer(bytes: &[u8]) -> Parsed<()> {
    match bytes {
        [LOGIN_VERSION, GRANTED, ..] => Ok(Some(((), 2))),
        [LOGIN_VERSION, _, ..] => Err(TunnelFault::Login),
        [] | [LOGIN_VERSION] => Ok(None),
        _ => Err(TunnelFault::NotSocks),
    }
}

/// `version command 0 type address port`
fn request(place: &Place) -> Result<Vec<u8>, TunnelFault> {
    let mut bytes = vec![VERSION, CONNECT, 0];
    let port = match place {
        Place::Address(address) => {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(IPV4);
                    bytes.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(IPV6);
                    bytes.extend_from_slice(&ip.octets());
                }
            }
            address.port()
        }
        Place::Name(name, port) => {
            // A host name has at most 254 bytes, its final dot included.
            let length = u8::try_from(name.len()).map_err(|_| TunnelFault::Reply(8))?;
            bytes.extend_from_slice(&[NAME, length]);
            bytes.extend_from_slice(name.as_bytes());
            *port
        }
    };
    bytes.extend_from_slice(&port.to_be_bytes());
    Ok(bytes)
}

/// `version code 0 type address port`; the address is of no use here. A refusal is one as soon as its code is there,
/// for not every proxy sends the rest.
fn reply(bytes: &[u8]) -> Parsed<()> {
    match bytes {
        [VERSION, code, ..] if *code != GRANTED => Err(TunnelFault::Reply(*code)),
        [VERSION, GRANTED, 0, IPV4, ..] => Ok(whole(bytes, 10)),
        [VERSION, GRANTED, 0, IPV6, ..] => Ok(whole(bytes, 22)),
        [VERSION, GRANTED, 0, NAME, length, ..] => Ok(whole(bytes, 7 + usize::from(*length))),
        [] | [VERSION] | [VERSION, GRANTED] | [VERSION, GRANTED, 0] | [VERSION, GRANTED, 0, NAME] => Ok(None),
        _ => Err(TunnelFault::NotSocks),
    }
}

fn whole(bytes: &[u8], length: usize) -> Option<((), usize)> {
    (bytes.len() >= length).then_some(((), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_laid_out_as_the_standard_says() {
        let bytes = |host, port| request(&Place::named(host, port)).expect("fits");
        assert_eq!(bytes("1.2.3.4", 443), [5, 1, 0, 1, 1, 2, 3, 4, 1, 187]);
        assert_eq!(bytes("::1", 80), [&[5, 1, 0, 4][..], &[0; 15], &[1, 0, 80]].concat());
        assert_eq!(bytes("a.test", 65535), [&[5, 1, 0, 3, 6][..], b"a.test", &[255, 255]].concat());
        assert!(request(&Place::Name("x".repeat(256), 1)).is_err());
        let login = |text: &str| login_request(&Secret::new(text)).expect("fits").to_vec();
        assert_eq!(login("us:p:w"), [&[1, 2][..], b"us", &[3], b"p:w"].concat());
        assert_eq!(login("us:"), [&[1, 2][..], b"us", &[0]].concat());
        assert!(login_request(&Secret::new("x".repeat(256) + ":")).is_err());
    }

    #[test]
    fn a_reply_is_read_to_its_exact_end_at_every_cut() {
        let name = [&[5, 0, 0, 3, 255][..], &[b'x'; 255], &[0, 80]].concat();
        let whole = [
            vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
            [&[5, 0, 0, 4][..], &[0; 18]].concat(),
            vec![5, 0, 0, 3, 0, 0, 0],
            name.clone(),
        ];
        for bytes in whole {
            for cut in 0..bytes.len() {
                assert!(matches!(reply(&bytes[..cut]), Ok(None)), "{cut} of {bytes:?}");
            }
            assert!(matches!(reply(&bytes), Ok(Some(((), length))) if length == bytes.len()), "{bytes:?}");
            let more = [&bytes[..], b"x"].concat();
            assert!(matches!(reply(&more), Ok(Some(((), length))) if length == bytes.len()), "{more:?}");
        }
        assert!(name.len() < ANSWER_LIMIT);
        for bytes in [&[4][..], &[0], b"HTTP/1.1 400", &[5, 0, 1], &[5, 0, 0, 2], &[5, 0, 0, 0]] {
            assert!(matches!(reply(bytes), Err(TunnelFault::NotSocks)), "{bytes:?}");
        }
        for code in 1..=255 {
            assert!(matches!(reply(&[5, code]), Err(TunnelFault::Reply(told)) if told == code));
        }
    }
}
