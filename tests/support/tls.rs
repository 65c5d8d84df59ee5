//! Certificates made for one test run, good and bad.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A certificate authority of our own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Lab authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// What a client must trust, in PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A good certificate for `localhost` and `127.0.0.1`.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server_for(&["localhost", "127.0.0.1"])
    }

    /// The same, for a server that chooses HTTP/2 where it is offered, or else HTTP/1.1.
    pub fn server_http2(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.server());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// A good certificate for these names.
    pub fn server_for(&self, names: &[&str]) -> Arc<ServerConfig> {
        self.config(params(names))
    }

    /// A certificate for `localhost` that is no longer valid.
    pub fn expired(&self) -> Arc<ServerConfig> {
        let mut params = params(&["localhost", "127.0.0.1"]);
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.config(params)
    }

    /// A valid certificate for somebody else.
    pub fn wrong_host(&self) -> Arc<ServerConfig> {
        self.server_for(&["elsewhere.example.test"])
    }

    /// A good certificate for `localhost`, signed by nobody whom a client knows.
    pub fn unknown() -> Arc<ServerConfig> {
        Self::new().server()
    }

    /// A client that trusts this authority and nobody else.
    pub fn client(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }

    /// Connects to `localhost` at this address.
    pub async fn connect(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        self.secure("localhost", TcpStream::connect(address).await?).await
    }

    /// Speaks TLS with `name` over a connection that is there.
    pub async fn secure(&self, name: &str, tcp: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(self.client()).connect(name, tcp).await
    }

    fn config(&self, params: CertificateParams) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(builder.with_single_cert(vec![certificate.der().clone()], key).unwrap())
    }
}

fn params(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
}
