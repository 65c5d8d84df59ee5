//! Accounts in front of a scripted authorization server.

use std::sync::Arc;
use std::time::Duration;

use claude_code_balancer::config::Settings;
use claude_code_balancer::health::Now;
use claude_code_balancer::lab::Authority;
use claude_code_balancer::oauth::vault::Memory;
use claude_code_balancer::oauth::{Accounts, Bearer, Generation, SignedIn, Storage, Token, Vault};
use claude_code_balancer::provider::Email;
use claude_code_balancer::upstream::Upstream;
use rustls::RootCertStore;

use super::soon;

/// One process with its accounts.
pub struct Signed {
    pub authority: Authority,
    pub accounts: Arc<Accounts>,
    pub vault: Arc<Vault>,
    pub settings: Settings,
}

pub const HOURS: Duration = Duration::from_secs(3600);

pub fn email(name: &str) -> Email {
    Email::parse(&format!("{name}@example.com")).unwrap()
}

/// Both clocks, so much later.
pub fn after(time: Duration) -> Now {
    let now = Now::read();
    Now { monotonic: now.monotonic + time, wall: now.wall + time }
}

impl Signed {
    /// Nobody has signed in yet.
    pub async fn out() -> Self {
        let authority = Authority::start().await.unwrap();
        let mut settings = Settings::default();
        settings.oauth.authorize_url = authority.authorize_url();
        settings.oauth.token_url = authority.token_url();
        let vault = Arc::new(Vault::Memory(Memory::default()));
        let accounts = process(&vault, &settings).await;
        Self { authority, accounts, vault, settings }
    }

    /// These accounts have signed in.
    pub async fn signed_in(names: &[&str]) -> Self {
        let world = Self::out().await;
        for name in names {
            world.sign_in(name).await;
        }
        world
    }

    /// Another process with the same store.
    pub async fn another(&self) -> Arc<Accounts> {
        process(&self.vault, &self.settings).await
    }

    /// Link, browser, code.
    pub async fn sign_in(&self, name: &str) -> SignedIn {
        let begun = self.accounts.begin(Some(email(name))).unwrap();
        let pasted = self.authority.sign_in(&begun.authorization_url, email(name).as_str());
        soon("the exchange", self.accounts.exchange(&pasted, None)).await.unwrap()
    }

    pub fn bearer(&self, name: &str) -> Bearer {
        self.accounts.bearer(&email(name), Now::read()).unwrap()
    }

    pub fn generation(&self, name: &str) -> u64 {
        self.bearer(name).generation().0
    }

    pub async fn stored(&self, name: &str) -> Option<Token> {
        self.vault.load(&email(name)).await.unwrap()
    }

    /// Waits for the token of this generation.
    pub async fn until_generation(&self, name: &str, generation: u64) {
        let there = async {
            while self.accounts.bearer(&email(name), Now::read()).ok().map(|bearer| bearer.generation())
                != Some(Generation(generation))
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        soon("the next token", there).await;
    }

    /// How often the authorization server was called.
    pub fn calls(&self) -> usize {
        self.authority.lab().requests().len()
    }
}

async fn process(vault: &Arc<Vault>, settings: &Settings) -> Arc<Accounts> {
    let upstream = Arc::new(Upstream::new(RootCertStore::empty()));
    let accounts = Accounts::new(Storage::Open(vault.clone()), upstream, Arc::default(), settings);
    accounts.open().await;
    accounts
}
