//! Egress through an HTTP proxy, spoken to plainly or over TLS: `CONNECT` (RFC 9110 §9.3.6), with and without basic
//! credentials (RFC 7617).
//! Plain-http providers are tunnelled too, so that a proxy never reads a request.

use std::time::Duration;

use base64::Engine;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::error::TunnelFault;
use crate::provider::{EgressProxy, bracketed};

/// Largest head of a proxy's answer.
const HEAD_LIMIT: usize = 16 * 1024;

/// Asks an egress proxy for a tunnel to `host:port` over an open connection; at most `limit`.
pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    proxy: &EgressProxy,
    host: &str,
    port: u16,
    limit: Duration,
) -> Result<S, TunnelFault> {
    tokio::time::timeout(limit, connect(stream, proxy, host, port)).await.map_err(|_| TunnelFault::Timeout)?
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    proxy: &EgressProxy,
    host: &str,
    port: u16,
) -> Result<S, TunnelFault> {
    let place = format!("{}:{port}", bracketed(host));
    let mut request = Zeroizing::new(format!("CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n"));
    if let Some(credentials) = &proxy.credentials {
        let encoded = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(credentials.expose()));
        request.push_str("proxy-authorization: Basic ");
        request.push_str(&encoded);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|_| TunnelFault::Closed)?;
    // Inside TLS, what is written may wait.
    stream.flush().await.map_err(|_| TunnelFault::Closed)?;

    let mut head = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut head).await.map_err(|_| TunnelFault::Closed)? == 0 {
            return Err(TunnelFault::Closed);
        }
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        match response.parse(&head) {
            Ok(httparse::Status::Complete(length)) => {
                let status = response.code.unwrap_or_default();
                if !(200..300).contains(&status) {
                    return Err(TunnelFault::Refused(status));
                }
                // The provider never speaks first: bytes here are the proxy's own, and would be taken for its answer.
                return if length == head.len() { Ok(stream) } else { Err(TunnelFault::Malformed) };
            }
            Ok(httparse::Status::Partial) if head.len() < HEAD_LIMIT => {}
            _ => return Err(TunnelFault::Malformed),
        }
    }
}
