//! Trust, and the handshake. TLS 1.2 and 1.3 by rustls with ring; nothing here can be switched to "insecure".

use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::SendError;

/// The name of HTTP/2 in a handshake (RFC 9113 §3.2).
pub(super) const HTTP2: &[u8] = b"h2";
/// And of HTTP/1.1 (RFC 7301 §6).
const HTTP1: &[u8] = b"http/1.1";

/// Sessions remembered for one peer: its own and its egress proxy's.
const SESSIONS: usize = 16;

/// The roots that are trusted: webpki-roots and the system's store (`SSL_CERT_FILE` and `SSL_CERT_DIR` too), for
/// corporate authorities live only in the latter.
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "part of the system's certificate store cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    roots
}

/// The system's roots and further ones, for tests with an authority of their own.
pub fn roots_with(extra: impl IntoIterator<Item = CertificateDer<'static>>) -> RootCertStore {
    let mut roots = system_roots();
    roots.add_parsable_certificates(extra);
    roots
}

/// The client side of every handshake: HTTP/1.1 by ALPN. `SSLKEYLOGFILE` is never honoured.
pub(super) fn client_config(roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    #[expect(clippy::expect_used, reason = "ring supports both protocol versions; this is decided at build time")]
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP1.to_vec()];
    Arc::new(config)
}

/// The same trust with a memory of sessions of its own.
pub(super) fn with_own_sessions(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Arc::new(config)
}

/// The same trust and the same memory; HTTP/2 is offered before HTTP/1.1.
pub(super) fn offering_http2(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    Arc::new(config)
}

/// Shakes hands with `host` over an open connection.
pub(super) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    config: &Arc<ClientConfig>,
    host: &str,
    stream: S,
    limit: Duration,
) -> Result<TlsStream<S>, SendError> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| SendError::Tls { host: host.to_owned(), reason: "not a valid server name".into() })?;
    let connector = TlsConnector::from(config.clone());
    match tokio::time::timeout(limit, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(SendError::Tls { host: host.to_owned(), reason: error.to_string() }),
        Err(_) => Err(SendError::TlsTimeout { host: host.to_owned(), limit }),
    }
}
