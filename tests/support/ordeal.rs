//! Real balancers that share one store of accounts, a scripted authorization server, and a provider that refuses tokens
//! when it is told to.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use claude_code_balancer::config::{OAuthStorage, Settings};
use claude_code_balancer::lab::{Authority, Entry, Lab, Received, Script};
use claude_code_balancer::oauth::vault::Options;
use claude_code_balancer::oauth::{Accounts, Storage, Token, Vault};
use claude_code_balancer::provider::Email;
use claude_code_balancer::secret::Secret;
use claude_code_balancer::upstream::Upstream;
use rustls::RootCertStore;

use super::accounts::email;
use super::binary::{Binary, Service};
use super::{Client, Reply, soon};

const PASSPHRASE: &str = "CLAUDE_CODE_BALANCER_PASSPHRASE";

/// How accounts are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Plain,
    Sealed,
    /// In the system's keyring.
    Keyring,
}

/// See above. The account number `n` has the model, the name and the family `n`.
pub struct Ordeal {
    pub authority: Authority,
    /// For the accounts.
    pub provider: Lab,
    /// For the model `key`, with a key.
    pub other: Lab,
    pub binary: Binary,
    pub count: usize,
    kept: Kept,
    rule: Arc<Mutex<Rule>>,
    pub service: String,
    state: PathBuf,
    /// The family of each account: a new login begins a new one.
    families: Vec<usize>,
}

/// What the provider refuses.
#[derive(Debug, Default)]
struct Rule {
    /// Tokens up to this number, for each family.
    floors: Vec<usize>,
    /// Each token is good for one request.
    once: bool,
}

impl Rule {
    fn answer(&mut self, request: &Received) -> Script {
        let bearer = request.header("authorization").unwrap_or_default();
        let mut words = bearer.rsplit('-').map(|word| word.parse::<usize>().unwrap_or(0));
        let (number, family) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        if self.floors.len() <= family {
            self.floors.resize(family + 1, 0);
        }
        if number <= self.floors[family] {
            return Script::error(401, "authentication_error", "Scripted refusal");
        }
        if self.once {
            self.floors[family] = number;
        }
        Script::message("as asked")
    }
}

impl Ordeal {
    /// So many accounts, signed in; their tokens last for `life` seconds. `lines` go into `settings.oauth`.
    pub async fn new(count: usize, kept: Kept, life: u64, lines: &str) -> Self {
        let binary = Binary::new();
        let state = binary.home().join("state");
        Self::with(binary, &state, count, kept, life, lines).await
    }

    /// The same with the state below another folder.
    pub async fn at(count: usize, kept: Kept, life: u64, lines: &str, state: &Path) -> Self {
        Self::with(Binary::new(), state, count, kept, life, lines).await
    }

    async fn with(binary: Binary, state: &Path, count: usize, kept: Kept, life: u64, lines: &str) -> Self {
        let authority = Authority::start().await.unwrap();
        authority.life(life);
        let (provider, other) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
        let rule = Arc::new(Mutex::new(Rule::default()));
        let answering = rule.clone();
        provider.answer(move |request| answering.lock().unwrap().answer(request));
        provider.remember(false);
        let mut binary = binary.with("XDG_STATE_HOME", state.to_str().unwrap());
        if kept == Kept::Sealed {
            binary = binary.with(PASSPHRASE, "correct horse");
        }
        let unique = binary.home().file_name().unwrap().to_string_lossy().into_owned();
        let service = format!("claude-code-balancer-{unique}");
        if kept == Kept::Keyring {
            for name in ["DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"] {
                binary = binary.with(name, std::env::var(name).unwrap_or_default());
            }
        }
        let (families, state) = (Vec::new(), state.to_owned());
        let mut ordeal = Self { authority, provider, other, binary, count, kept, rule, service, state, families };
        ordeal.configure(lines);
        for number in 0..count {
            ordeal.families.push(number);
            ordeal.sign_in(number).await;
        }
        ordeal
    }

    /// Writes the configuration.
    pub fn configure(&self, lines: &str) {
        let storage = if self.kept == Kept::Keyring { "keyring" } else { "file" };
        let mut yaml = String::from("providers:\n");
        let (url, other) = (self.provider.url(), self.other.url());
        for number in 0..self.count {
            let address = email(&number.to_string());
            yaml +=
                &format!("  - {{ name: P, base_url: \"{url}\", auth_value: oauth, account_email: \"{address}\" }}\n");
        }
        yaml += &format!("  - {{ name: K, base_url: \"{other}\", auth_value: \"some-key\" }}\nmodel_routes:\n");
        for number in 0..self.count {
            let address = email(&number.to_string());
            yaml += &format!("  \"{number}\": [{{ provider: P, account_email: \"{address}\" }}]\n");
        }
        yaml += "  \"key\": [{ provider: K }]\n";
        yaml += &format!(
            "settings:\n  log_file_path: \"\"\n  oauth:\n    storage: {storage}\n    service_name: \"{}\"\n    \
             token_url: \"{}\"\n    authorize_url: \"{}\"\n",
            self.service,
            self.authority.token_url(),
            self.authority.authorize_url()
        );
        lines.lines().for_each(|line| yaml += &format!("    {}\n", line.trim()));
        self.binary.file("config.yaml", &yaml);
    }

    pub fn folder(&self) -> PathBuf {
        self.state.join("claude-code-balancer")
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.oauth.authorize_url = self.authority.authorize_url();
        settings.oauth.token_url = self.authority.token_url();
        settings.oauth.service_name = self.service.clone();
        settings.oauth.storage = match self.kept {
            Kept::Keyring => OAuthStorage::Keyring,
            Kept::Plain | Kept::Sealed => OAuthStorage::File,
        };
        settings
    }

    /// The store, as a process of its own would open it.
    pub async fn vault(&self) -> Vault {
        let passphrase = (self.kept == Kept::Sealed).then(|| Secret::new("correct horse"));
        Vault::open(Options::new(&self.settings().oauth, self.folder(), passphrase)).await
    }

    /// Signs an account in, beside whatever runs.
    pub async fn sign_in(&mut self, number: usize) {
        let accounts = self.accounts().await;
        self.sign_in_to(&accounts, number).await;
        accounts.finish().await;
    }

    /// The accounts as a process of its own would have them.
    pub async fn accounts(&self) -> Arc<Accounts> {
        let upstream = Arc::new(Upstream::new(RootCertStore::empty()));
        let vault = Storage::Open(Arc::new(self.vault().await));
        let accounts = Accounts::new(vault, upstream, Arc::default(), &self.settings());
        accounts.open().await;
        accounts
    }

    /// The same in a certain process.
    pub async fn sign_in_to(&mut self, accounts: &Arc<Accounts>, number: usize) {
        let who = email(&number.to_string());
        let begun = accounts.begin(Some(who.clone())).unwrap();
        let pasted = self.authority.sign_in(&begun.authorization_url, who.as_str());
        let signed_in = soon("the exchange", accounts.exchange(&pasted, None)).await.unwrap();
        assert!(signed_in.persisted);
        let issued = self.authority.ledger().into_iter().rev().find_map(|entry| match entry {
            Entry::Issued { family } => Some(family),
            _ => None,
        });
        self.families[number] = issued.unwrap();
    }

    pub async fn serve(&self) -> (Service, SocketAddr) {
        self.binary.serve(&["--config", "config.yaml"]).await
    }

    /// The number of the newest token of an account.
    pub fn newest(&self, number: usize) -> usize {
        self.authority.newest(self.families[number])
    }

    /// The provider refuses an account's current token from now on.
    pub fn refuse(&self, number: usize) {
        let (family, newest) = (self.families[number], self.newest(number));
        let mut rule = self.rule.lock().unwrap();
        if rule.floors.len() <= family {
            rule.floors.resize(family + 1, 0);
        }
        rule.floors[family] = newest;
    }

    /// Whether each token is good for one request only.
    pub fn once(&self, once: bool) {
        self.rule.lock().unwrap().once = once;
    }

    /// The stored tokens; each must be there and readable.
    pub async fn stored(&self, vault: &Vault) -> Vec<Token> {
        let mut stored = Vec::new();
        for number in 0..self.count {
            let token = vault.load(&email(&number.to_string())).await;
            stored.push(token.unwrap_or_else(|error| panic!("account {number}: {error}")).unwrap());
        }
        stored
    }
}

/// Asks for a message of an account's model.
pub async fn request(address: SocketAddr, model: &str) -> io::Result<Reply> {
    let asking = async {
        let mut client = Client::connect(address).await?;
        let host = address.to_string();
        let headers = [("host", host.as_str()), super::balancer::JSON, ("connection", "close")];
        client.send("POST", "/v1/messages", &headers, super::balancer::request_for(model, false)).await?;
        client.read_to_end().await
    };
    tokio::time::timeout(Duration::from_secs(25), asking).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// The same, which must be answered with a message.
pub async fn answered(address: SocketAddr, model: &str) {
    let reply = request(address, model).await.unwrap_or_else(|error| panic!("{model}: {error}"));
    assert_eq!(reply.status, 200, "{model}: {}", reply.text());
}

/// The number of a token: it is the last part of it.
pub fn number_of(token: &str) -> usize {
    token.rsplit('-').next().unwrap().parse().unwrap()
}

/// How often a test does its thing: a few times, unless the environment says otherwise.
pub fn rounds(few: usize) -> usize {
    std::env::var("ORDEAL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(few)
}

/// Numbers that differ from run to run.
pub fn below(limit: u64) -> u64 {
    getrandom::u64().unwrap() % limit
}

pub fn who(number: usize) -> Email {
    email(&number.to_string())
}
