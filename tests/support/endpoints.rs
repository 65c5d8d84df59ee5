//! The whole balancer in front of a scripted authorization server, and a provider that believes it.

use std::sync::Arc;

use claude_code_balancer::config::{Live, Overrides};
use claude_code_balancer::lab::{Authority, Lab, Script};
use claude_code_balancer::oauth::Storage;
use rustls::RootCertStore;
use serde_json::{Value, json};

use super::Reply;
use super::running::{Running, ask_for};

pub const JSON: (&str, &str) = ("content-type", "application/json");

/// Accounts `main` and `other` at a provider `Official`, for the models `claude-main` and `claude-other`; any account
/// at `Any`, for `any-*`.
pub struct World {
    pub authority: Arc<Authority>,
    pub provider: Lab,
    pub running: Running,
}

impl World {
    pub async fn new() -> Self {
        Self::with("", Storage::memory()).await
    }

    /// With these further lines of `settings`, and this store.
    pub async fn with(settings: &str, storage: Storage) -> Self {
        let authority = Arc::new(Authority::start().await.unwrap());
        let provider = Lab::start().await.unwrap();
        let knows = authority.clone();
        provider.answer(move |request| {
            let bearer = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
            if bearer.is_some_and(|bearer| knows.accepts(bearer)) {
                Script::as_asked(request)
            } else {
                Script::error(401, "authentication_error", "OAuth token has expired")
            }
        });
        let config = format!(
            r#"providers:
  - {{ name: Official, base_url: "{url}", auth_value: oauth, account_email: main@example.com }}
  - {{ name: Official, base_url: "{url}", auth_value: oauth, account_email: other@example.com }}
  - {{ name: Any, base_url: "{url}", auth_value: oauth }}
model_routes:
  claude-main: [{{ provider: Official, account_email: main@example.com }}]
  claude-other: [{{ provider: Official, account_email: other@example.com }}]
  "any-*": [{{ provider: Any }}]
settings:
  oauth: {{ authorize_url: "{authorize}", token_url: "{token}" }}
{settings}
"#,
            url = provider.url(),
            authorize = authority.authorize_url(),
            token = authority.token_url(),
        );
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, config).unwrap();
        let live = Live::open(Some(&file), Overrides { host: None, port: Some(0) });
        let live = live.unwrap_or_else(|report| panic!("{report}"));
        let running = Running::storing(live, folder, RootCertStore::empty(), storage);
        Self { authority, provider, running }
    }

    /// These accounts have signed in.
    pub async fn signed_in(names: &[&str]) -> Self {
        let world = Self::new().await;
        for name in names {
            world.sign_in(name).await;
        }
        world
    }

    /// Begins a login, and signs in at the authorization server: what a human would paste.
    pub async fn code(&self, asked: Option<&str>, who: &str) -> String {
        let query = asked.map(|email| format!("?account_email={email}")).unwrap_or_default();
        let begun = self.running.get(&format!("/oauth/generate-url{query}")).await;
        assert_eq!(begun.status, 200, "{}", begun.text());
        self.authority.sign_in(begun.json()["authorization_url"].as_str().unwrap(), who)
    }

    pub async fn exchange(&self, body: &Value) -> Reply {
        self.running.send("POST", "/oauth/exchange-code", &[JSON], body.to_string()).await
    }

    pub async fn sign_in(&self, name: &str) {
        let email = format!("{name}@example.com");
        let code = self.code(Some(&email), &email).await;
        let reply = self.exchange(&json!({ "code": code, "account_email": email })).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    pub async fn status(&self) -> Value {
        let reply = self.running.get("/oauth/status").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// What the status says of an account.
    pub async fn token(&self, name: &str) -> Option<Value> {
        let status = self.status().await;
        let mut tokens = status["tokens"].as_array().unwrap().iter();
        tokens.find(|token| token["account_email"] == format!("{name}@example.com")).cloned()
    }

    pub async fn refresh(&self, account: &str) -> Reply {
        self.running.send("POST", &format!("/oauth/refresh/{account}"), &[], "").await
    }

    pub async fn remove(&self, account: &str) -> Reply {
        self.running.send("DELETE", &format!("/oauth/tokens/{account}"), &[], "").await
    }

    pub async fn ask(&self, model: &str) -> Reply {
        self.running.message(ask_for(model)).await
    }

    /// How often the authorization server was called.
    pub fn calls(&self) -> usize {
        self.authority.lab().requests().len()
    }
}
