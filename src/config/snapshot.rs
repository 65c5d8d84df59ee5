//! One immutable, validated configuration. No serde, and no impossible state: a target holds its provider.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::gate::ClientKey;
use crate::health::Policy;
use crate::provider::{Egress, Provider};
use crate::route::{RouteTable, Strategy};

/// What every request reads, once.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts the accepted configurations of this process, from 1.
    pub generation: u64,
    /// The file it came from; none = the built-in default.
    pub file: Option<PathBuf>,
    /// When it came into force.
    pub loaded_at: SystemTime,
    /// In file order, those that are switched off among them.
    pub providers: Vec<Arc<Provider>>,
    /// Whose targets hold the providers above.
    pub routes: RouteTable,
    /// Everything else.
    pub settings: Settings,
}

/// `settings:`, with every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The address or name to bind; needs a restart.
    pub host: String,
    /// The port to bind, 0 = any free one; needs a restart.
    pub port: u16,
    /// Further Host names that the gate accepts, lower-case, with or without a port.
    pub allowed_hosts: Vec<String>,
    /// The least severe level that is written.
    pub log_level: LogLevel,
    /// The JSON-lines file; needs a restart.
    pub log_file_path: Option<PathBuf>,
    /// Colours on a terminal.
    pub log_color: bool,
    /// Of the human strings.
    pub language: Language,
    /// The order inside a tier.
    pub strategy: Strategy,
    /// How long a session keeps its choice; zero = not at all.
    pub sticky_provider_duration: Duration,
    /// Cooldowns after failures.
    pub health: Policy,
    /// Further statuses that fail over as a failure instead of going to the client.
    pub unhealthy_http_codes: Vec<u16>,
    /// Whether a request that was sent on a fresh connection and got no byte back may go to the next target.
    pub replay_after_send: bool,
    /// All of them.
    pub timeouts: Timeouts,
    /// The key that opens this proxy.
    pub auth: ClientAuth,
    /// The accounts' settings.
    pub oauth: OAuthSettings,
}

/// `settings.timeouts`.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeouts {
    /// To a TCP connection.
    pub connect: Duration,
    /// To the end of a TLS handshake.
    pub tls: Duration,
    /// To the head of a streaming answer, while another usable target is left.
    pub first_byte_stream: Duration,
    /// To the head of a plain answer, while another usable target is left.
    pub first_byte: Duration,
    /// All attempts of a streaming request together.
    pub before_commit_stream: Duration,
    /// All attempts of a plain request together.
    pub before_commit: Duration,
    /// Silence inside a committed body.
    pub idle: Duration,
}

/// `settings.auth`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientAuth {
    /// The keys that open this proxy; none = no key is asked for.
    pub keys: Vec<ClientKey>,
    /// Paths that need no key, compared exactly.
    pub exempt_paths: Vec<String>,
}

/// `settings.oauth`.
#[derive(Clone, Debug, PartialEq)]
pub struct OAuthSettings {
    /// Refresh ahead of expiry.
    pub enable_auto_refresh: bool,
    /// Store tokens at all.
    pub enable_persistence: bool,
    /// The keyring service; needs a restart.
    pub service_name: String,
    /// Egress for the authorization server's two calls.
    pub proxy: Egress,
    /// Where accounts are kept; needs a restart.
    pub storage: OAuthStorage,
    /// The authorization page.
    pub authorize_url: String,
    /// The token endpoint.
    pub token_url: String,
    /// The public client id.
    pub client_id: String,
    /// Where the page shows the code.
    pub redirect_uri: String,
    /// Space-separated.
    pub scopes: String,
    /// Further hosts that may receive an account's token.
    pub allowed_hosts: Vec<String>,
}

/// `settings.oauth.storage`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OAuthStorage {
    /// The keyring if it answers, else a file.
    #[default]
    Auto,
    /// The OS keyring.
    Keyring,
    /// A private file.
    File,
    /// Nowhere.
    Memory,
}

/// `settings.language`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// English.
    #[default]
    En,
    /// Chinese.
    Zh,
}

/// `settings.log_level`, in the predecessor's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// The verdict of each attempt.
    Debug,
    /// Normal life.
    #[default]
    Info,
    /// The system recovered by itself.
    Warning,
    /// A human must act.
    Error,
    /// The same as `Error` here.
    Critical,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            tls: Duration::from_secs(10),
            first_byte_stream: Duration::from_secs(120),
            first_byte: Duration::from_secs(590),
            before_commit_stream: Duration::from_secs(280),
            before_commit: Duration::from_secs(590),
            idle: Duration::from_secs(290),
        }
    }
}

impl Default for ClientAuth {
    fn default() -> Self {
        Self { keys: Vec::new(), exempt_paths: vec!["/health".into()] }
    }
}

impl Default for OAuthSettings {
    fn default() -> Self {
        Self {
            enable_auto_refresh: true,
            enable_persistence: true,
            service_name: "claude-code-balancer".into(),
            proxy: Egress::Direct,
            storage: OAuthStorage::Auto,
            authorize_url: "https://claude.ai/oauth/authorize".into(),
            token_url: "https://console.anthropic.com/v1/oauth/token".into(),
            client_id: "9d1c250a-e61b-44d9-88ed-5944d1962f5e".into(),
            redirect_uri: "https://console.anthropic.com/oauth/code/callback".into(),
            scopes: "org:create_api_key user:profile user:inference".into(),
            allowed_hosts: Vec::new(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 9090,
            allowed_hosts: Vec::new(),
            log_level: LogLevel::Info,
            log_file_path: None,
            log_color: true,
            language: Language::En,
            strategy: Strategy::Priority,
            sticky_provider_duration: Duration::from_secs(300),
            health: Policy::default(),
            unhealthy_http_codes: Vec::new(),
            replay_after_send: true,
            timeouts: Timeouts::default(),
            auth: ClientAuth::default(),
            oauth: OAuthSettings::default(),
        }
    }
}
