//! Every key that a file may have, and what stands behind it: one table for the reader, which refuses all others, and
//! for the schema that editors use.

/// A key, what its value looks like, and what it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) about: &'static str,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// A text; numbers and the like must be quoted.
    Text,
    /// A text that may be left without a value.
    TextOrNothing,
    /// A text for which a number or a flag is taken as it is written.
    Literal,
    Flag,
    /// A whole number, at least and at most.
    Number(i64, i64),
    Duration,
    /// One of these, in any case.
    Word(&'static [&'static str]),
    Texts,
    /// A list of whole numbers, each at least and at most.
    Numbers(i64, i64),
    /// One literal, or a list of them.
    Literals,
    /// A map of these keys, or nothing.
    Section(&'static [Key], &'static [Tolerated]),
    /// A list of maps of these keys; the first of them must be there.
    Entries(&'static [Key], &'static [Tolerated]),
    /// A map from any name to [`Shape::Entries`] of these keys, or nothing.
    Routes(&'static [Key]),
}

/// A key that is accepted with a warning, and what the warning says.
pub(super) type Tolerated = (&'static str, &'static str);

use Shape::{
    Duration, Entries, Flag, Literal, Literals, Number, Numbers, Routes, Section, Text, TextOrNothing, Texts, Word,
};

use super::legacy;

const fn key(name: &'static str, shape: Shape, about: &'static str) -> Key {
    Key { name, shape, about }
}

/// The whole file.
pub(super) const TOP: [Key; 3] = [
    key(
        "providers",
        Entries(&PROVIDER, &legacy::PROVIDER),
        "Who can answer. The order matters where priorities are equal.",
    ),
    key(
        "model_routes",
        Routes(&TARGET),
        "Which provider answers for which model: an exact name first, then patterns (* and ?) in file order.",
    ),
    key("settings", Section(&SETTINGS, &legacy::SETTINGS), "Everything else."),
];

pub(super) const PROVIDER: [Key; 10] = [
    key("name", Literal, "Any printable text; accounts of one provider share it."),
    key("type", Word(&["anthropic", "openai"]), "Default: that of the first entry of the same name, else anthropic."),
    key("base_url", Text, "Default: that of the first entry of the same name, else https://api.anthropic.com."),
    key(
        "auth_type",
        Word(&["api_key", "auth_token", "oauth"]),
        "api_key: x-api-key; auth_token: Authorization: Bearer. Default: auth_token for oauth, else api_key.",
    ),
    key("auth_value", Literal, "oauth, passthrough, ${NAME}, file:/path, or the credential itself."),
    key("account_email", TextOrNothing, "Which signed-in account this entry uses."),
    key("proxy", TextOrNothing, "http, https, socks5 or socks5h, with user:password@ if needed. Default: none."),
    key("enabled", Flag, "Default: true."),
    key("http2", Flag, "Offer HTTP/2 to this provider. Default: false."),
    key("allow_insecure_http", Flag, "Needed for http:// to another machine. Default: false."),
];

pub(super) const TARGET: [Key; 5] = [
    key("provider", Literal, "The name of an entry of providers."),
    key("model", Literal, "passthrough (the default), or the name to ask for there instead."),
    key("priority", Number(i64::MIN, i64::MAX), "The smallest comes first. Default: 1."),
    key("account_email", TextOrNothing, "Which of the entries of that name."),
    key("enabled", Flag, "Default: true."),
];

pub(super) const SETTINGS: [Key; 17] = [
    key("host", Text, "Where to listen. Default: 127.0.0.1. Needs a restart."),
    key("port", Number(0, 65535), "Default: 9090; 0 = any free one. Needs a restart."),
    key("allowed_hosts", Texts, "Further names in the Host header."),
    key("log_level", Word(&["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]), "Default: INFO."),
    key("log_file_path", TextOrNothing, "JSON lines, beside the configuration file; empty = off. Needs a restart."),
    key("log_color", Flag, "On a terminal. Default: true."),
    key("language", Word(&["en", "zh"]), "Of the login box. Default: by LANG."),
    key("selection_strategy", Word(&["priority", "round_robin", "random"]), "The order inside one priority."),
    key("sticky_provider_duration", Duration, "How long a session keeps its choice. Default: 300; 0 = not at all."),
    key("failure_cooldown", Duration, "The first cooldown; doubles with each renewed failure. Default: 60; 0 = none."),
    key("unhealthy_threshold", Number(1, u32::MAX as i64), "Failures in a row before a cooldown. Default: 2."),
    key("unhealthy_reset_timeout", Duration, "Older failures are forgotten. Default: 300; 0 = never."),
    key("unhealthy_http_codes", Numbers(400, 599), "Statuses that fail over besides those that always do."),
    key("replay_after_send", Flag, "Whether a request that was sent, but got no byte back, may go to the next target."),
    key("timeouts", Section(&TIMEOUTS, &legacy::TIMEOUTS), "How long to wait."),
    key("auth", Section(&AUTH, &[]), "A key that clients must show."),
    key("oauth", Section(&OAUTH, &[]), "Signed-in accounts."),
];

pub(super) const TIMEOUTS: [Key; 9] = [
    key("connect", Duration, "To a connection. Default: 5s."),
    key("tls", Duration, "To the end of a TLS handshake. Default: 10s."),
    key("first_byte_stream", Duration, "To the head of one streaming answer. Default: 120s."),
    key("first_byte", Duration, "To the head of one plain answer. Default: 590s."),
    key("before_commit_stream", Duration, "All attempts of a streaming request together. Default: 280s."),
    key("before_commit", Duration, "All attempts of a plain request together. Default: 590s."),
    key("idle", Duration, "Silence inside an answer that has begun. Default: 290s."),
    key("streaming", Section(&NESTED, &legacy::NESTED_TOLERATED), "The predecessor's form."),
    key("non_streaming", Section(&NESTED, &legacy::NESTED_TOLERATED), "The predecessor's form."),
];

pub(super) const NESTED: [Key; 2] = [
    key("connect_timeout", Duration, "Now: timeouts.connect."),
    key("read_timeout", Duration, "Now: timeouts.idle for streams, timeouts.first_byte for plain answers."),
];

pub(super) const AUTH: [Key; 4] = [
    key("enabled", Flag, "Default: false."),
    key("api_key", Literals, "A text, ${NAME}, file:/path, or a list of those."),
    key("keys", Entries(&CLIENT_KEY, &[]), "Keys with names; the name stands in the log line of each request."),
    key("exempt_paths", Texts, "Paths that need no key. Default: /health."),
];

pub(super) const CLIENT_KEY: [Key; 2] =
    [key("name", Text, "Of whom it is."), key("key", Literal, "A text, ${NAME} or file:/path.")];

pub(super) const OAUTH: [Key; 11] = [
    key("enable_auto_refresh", Flag, "Default: true."),
    key("enable_persistence", Flag, "false: accounts are forgotten at the end. Default: true."),
    key("service_name", Text, "In the keyring. Needs a restart."),
    key("proxy", TextOrNothing, "For signing in and refreshing. Default: none."),
    key("storage", Word(&["auto", "keyring", "file", "memory"]), "Where accounts are kept. Needs a restart."),
    key("authorize_url", Text, "The authorization page."),
    key("token_url", Text, "The token endpoint."),
    key("client_id", Text, "The public client id."),
    key("redirect_uri", Text, "Where the page shows the code."),
    key("scopes", Text, "Separated by spaces."),
    key("allowed_hosts", Texts, "Further hosts that may receive an account's token."),
];
