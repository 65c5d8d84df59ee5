//! Egress proxies of every kind, and entries that use them.

use claude_code_balancer::lab::{Asked, Socks, Tunnel};
use claude_code_balancer::upstream::tls::roots_with;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::tls::Authority;

/// An entry whose egress is `proxy`.
pub fn entry(name: &str, url: &str, proxy: &str) -> String {
    format!("  - {{ name: {name}, base_url: \"{url}\", auth_value: key-{name}, proxy: \"{proxy}\" }}\n")
}

pub fn direct(name: &str, url: &str) -> String {
    format!("  - {{ name: {name}, base_url: \"{url}\", auth_value: key-{name} }}\n")
}

pub const SCHEMES: [&str; 4] = ["http", "https", "socks5", "socks5h"];

pub fn trust(authority: &Authority) -> RootCertStore {
    roots_with([CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()])
}

/// A proxy of any kind.
pub enum Way {
    Http(Tunnel),
    Socks(Socks, &'static str),
}

impl Way {
    pub async fn open(scheme: &'static str, authority: &Authority) -> Self {
        match scheme {
            "http" => Self::Http(Tunnel::start().await.unwrap()),
            "https" => Self::Http(Tunnel::start_tls(authority.server()).await.unwrap()),
            _ => Self::Socks(Socks::start().await.unwrap(), scheme),
        }
    }

    pub fn url(&self) -> String {
        match self {
            Self::Http(tunnel) => tunnel.url(),
            Self::Socks(socks, scheme) => format!("{scheme}://{}", socks.address()),
        }
    }

    /// Its URL with this before the host.
    pub fn url_of(&self, login: &str) -> String {
        self.url().replacen("://", &format!("://{login}@"), 1)
    }

    pub fn require(&self, user: &str, password: &str) {
        match self {
            Self::Http(tunnel) => tunnel.require(user, password),
            Self::Socks(socks, _) => socks.require(user, password),
        }
    }

    pub fn connections(&self) -> usize {
        match self {
            Self::Http(tunnel) => tunnel.connections(),
            Self::Socks(socks, _) => socks.connections(),
        }
    }

    pub async fn deserted(&self) {
        match self {
            Self::Http(tunnel) => tunnel.deserted().await,
            Self::Socks(socks, _) => socks.deserted().await,
        }
    }

    pub fn seen(&self) -> Vec<u8> {
        match self {
            Self::Http(tunnel) => tunnel.seen(),
            Self::Socks(socks, _) => socks.seen(),
        }
    }

    pub fn asked(&self) -> Vec<String> {
        match self {
            Self::Http(tunnel) => tunnel.targets(),
            Self::Socks(socks, _) => {
                assert_eq!(socks.complaints(), [""; 0]);
                let told = |asked: Asked| match asked {
                    Asked::Name(name, port) => format!("{name}:{port}"),
                    Asked::Address(address) => address.to_string(),
                };
                socks.asked().into_iter().map(told).collect()
            }
        }
    }
}

pub fn holds(bytes: &[u8], needle: &str) -> bool {
    memchr::memmem::find(bytes, needle.as_bytes()).is_some()
}
