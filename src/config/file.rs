//! What a file says: its sections with all values decoded and placed. What they mean is decided in `resolve`.

use std::time::Duration;

use crate::provider::{BaseUrl, Egress, Email, Kind, UrlFault};
use crate::secret::Secret;

use super::fields::{At, Fields, elements, entries};
use super::keys;
use super::legacy;
use super::problem::{Place, Problems, is_unprintable, quote, runs_on};
use super::settings::{self, SettingsGiven};
use super::tree::Node;

/// A whole file.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) providers: Vec<ProviderEntry>,
    /// Where the list stands; none = there is no list.
    pub(super) providers_at: Option<Place>,
    pub(super) routes: Vec<RouteEntry>,
    pub(super) settings: SettingsGiven,
}

/// One entry of `providers:`; what is missing or wrong is `None`.
#[derive(Debug)]
pub(super) struct ProviderEntry {
    pub(super) place: Place,
    pub(super) path: String,
    pub(super) name: Option<At<String>>,
    pub(super) kind: Option<At<Kind>>,
    pub(super) base: Option<At<BaseUrl>>,
    pub(super) auth_type: Option<At<AuthType>>,
    pub(super) auth_value: Option<At<Secret>>,
    /// Something stands there, and its problem has been reported.
    pub(super) auth_value_faulty: bool,
    pub(super) account: Option<At<Email>>,
    pub(super) proxy: Option<At<Egress>>,
    pub(super) enabled: bool,
    pub(super) http2: bool,
    pub(super) http2_at: Option<Place>,
    pub(super) allow_insecure_http: bool,
}

/// `auth_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AuthType {
    ApiKey,
    AuthToken,
    OAuth,
}

/// One pattern of `model_routes:`.
#[derive(Debug)]
pub(super) struct RouteEntry {
    pub(super) pattern: String,
    pub(super) place: Place,
    pub(super) path: String,
    pub(super) targets: Vec<TargetEntry>,
    /// Some targets were not understood, and have been reported.
    pub(super) faulty: bool,
}

/// One target of a route.
#[derive(Debug)]
pub(super) struct TargetEntry {
    pub(super) provider: At<String>,
    pub(super) model: Option<String>,
    pub(super) priority: i64,
    pub(super) account: Option<At<Email>>,
    pub(super) enabled: bool,
}

/// The longest `name`, in characters.
const NAME_LIMIT: usize = 128;
/// The longest model name or pattern.
const MODEL_LIMIT: usize = 256;

impl File {
    pub(super) fn read(root: &Node, problems: &mut Problems) -> Option<Self> {
        if root.is_null() {
            problems.error(None, "", "the file says nothing", "start with `providers:`, as in config/minimal.yaml");
            return None;
        }
        let fields = Fields::open(root, "", &keys::TOP, &legacy::TOP, problems)?;
        let providers_at = fields.raw("providers").map(|node| node.place);
        let mut file = Self { providers_at, ..Self::default() };
        if let Some(node) = fields.node("providers") {
            for (path, item) in elements(node, "providers", problems).unwrap_or_default() {
                file.providers.extend(ProviderEntry::read(item, path, problems));
            }
            // An entry that is no map has been reported; "no provider" would only confuse.
        }
        if let Some(node) = fields.node("model_routes") {
            for (pattern, place, targets) in entries(node, "model_routes", problems).unwrap_or_default() {
                file.routes.extend(RouteEntry::read(pattern, place, targets, problems));
            }
        }
        if let Some(node) = fields.node("settings") {
            file.settings = settings::read(node, problems);
        }
        Some(file)
    }
}

impl ProviderEntry {
    fn read(node: &Node, path: String, problems: &mut Problems) -> Option<Self> {
        let fields = Fields::open(node, path, &keys::PROVIDER, &legacy::PROVIDER, problems)?;
        let name = fields.literal("name", problems);
        if !fields.has("name") {
            problems.error(Some(fields.place), &fields.path, "has no `name`", "give the provider a name");
        }
        let kinds = [("anthropic", Kind::Anthropic), ("openai", Kind::OpenAi)];
        let auth_types =
            [("api_key", AuthType::ApiKey), ("auth_token", AuthType::AuthToken), ("oauth", AuthType::OAuth)];
        let auth_value = fields.literal("auth_value", problems).map(|text| At {
            value: Secret::new(text.value),
            place: text.place,
            path: text.path,
        });
        Some(Self {
            name: name.and_then(|name| printable(name, NAME_LIMIT, problems)),
            kind: fields.word("type", &kinds, problems),
            base: fields.text("base_url", problems).and_then(|text| url(text, BaseUrl::parse, BASE_CURE, problems)),
            auth_type: fields.word("auth_type", &auth_types, problems),
            auth_value_faulty: fields.has("auth_value") && auth_value.is_none(),
            auth_value,
            account: account(&fields, problems),
            proxy: proxy(&fields, "proxy", problems),
            enabled: fields.flag("enabled", problems).unwrap_or(true),
            http2_at: fields.raw("http2").map(|node| node.place),
            http2: fields.flag("http2", problems).unwrap_or(false),
            allow_insecure_http: fields.flag("allow_insecure_http", problems).unwrap_or(false),
            place: fields.place,
            path: fields.path,
        })
    }
}

impl RouteEntry {
    fn read(pattern: &str, place: Place, targets: &Node, problems: &mut Problems) -> Option<Self> {
        let path = format!("model_routes.{}", quote(pattern));
        let pattern = At { value: pattern, place, path: path.clone() };
        let pattern = printable(pattern, MODEL_LIMIT, problems);
        let items = match targets.is_null() {
            true => Vec::new(),
            false => elements(targets, &path, problems)?,
        };
        let count = items.len();
        let mut list = Vec::with_capacity(count);
        for (path, item) in items {
            list.extend(TargetEntry::read(item, path, problems));
        }
        Some(Self { pattern: pattern?.value, place, path, faulty: list.len() < count, targets: list })
    }
}

impl TargetEntry {
    fn read(node: &Node, path: String, problems: &mut Problems) -> Option<Self> {
        let fields = Fields::open(node, path, &keys::TARGET, &[], problems)?;
        let provider = fields.literal("provider", problems);
        if !fields.has("provider") {
            let cure = "name one of `providers:`";
            problems.error(Some(fields.place), &fields.path, "has no `provider`", cure);
        }
        let model = fields.literal("model", problems).and_then(|model| printable(model, MODEL_LIMIT, problems));
        let model = model.map(|model| model.value).filter(|model| !model.eq_ignore_ascii_case("passthrough"));
        let priority = fields.number("priority", i64::MIN..=i64::MAX, problems);
        let account = account(&fields, problems);
        let enabled = fields.flag("enabled", problems).unwrap_or(true);
        let provider = provider.and_then(|provider| printable(provider, NAME_LIMIT, problems))?;
        Some(Self { provider, model, priority: priority.map_or(1, |number| number.value), account, enabled })
    }
}

/// A text that reaches a header, a log or a path.
pub(super) fn printable(text: At<&str>, limit: usize, problems: &mut Problems) -> Option<At<String>> {
    let At { value, place, path } = text;
    let (message, cure) = if value.trim().is_empty() {
        ("is empty".to_owned(), "write a text")
    } else if runs_on(value) {
        ("has swallowed the line below it".to_owned(), "put a space after the colon of that line")
    } else if value.chars().any(is_unprintable) {
        (format!("{} has characters that cannot be seen", quote(value)), "remove them, and type the text anew")
    } else if value.trim() != value {
        (format!("{} begins or ends with a space", quote(value)), "remove the space")
    } else if value.chars().count() > limit {
        (format!("{} is too long", quote(value)), "shorten it: names have at most 128 characters, models 256")
    } else {
        return Some(At { value: value.to_owned(), place, path });
    };
    problems.error(Some(place), &path, message, cure);
    None
}

fn account(fields: &Fields<'_>, problems: &mut Problems) -> Option<At<Email>> {
    // A key without a value, and an empty text, mean "none", as they always have.
    fields.node("account_email")?;
    let text = fields.text("account_email", problems)?;
    if text.value.is_empty() {
        return None;
    }
    match Email::parse(text.value) {
        Some(value) => Some(At { value, place: text.place, path: text.path }),
        None => {
            let message = format!("{} is not an e-mail address", quote(text.value));
            problems.error(Some(text.place), &text.path, message, "write it as name@example.com, in ASCII");
            None
        }
    }
}

const BASE_CURE: &str = "for example https://api.anthropic.com";
const PROXY_CURE: &str = "for example http://127.0.0.1:8080; http, https, socks5 and socks5h are spoken";

/// An egress; a key without a value, and an empty text, mean "direct".
pub(super) fn proxy(fields: &Fields<'_>, key: &str, problems: &mut Problems) -> Option<At<Egress>> {
    fields.node(key)?;
    let text = fields.text(key, problems).filter(|text| !text.value.is_empty())?;
    match Egress::parse(text.value) {
        Ok(value) => Some(At { value, place: text.place, path: text.path }),
        Err(fault) => {
            // Never quoted: what is no URL may still hold a user and a password.
            let message = match fault {
                UrlFault::NoScheme => "has no scheme; write http://HOST:PORT".to_owned(),
                UrlFault::Path => {
                    "is more than scheme://user:password@host:port, or has characters that cannot be sent".to_owned()
                }
                fault => fault.to_string(),
            };
            problems.error(Some(text.place), &text.path, message, PROXY_CURE);
            None
        }
    }
}

pub(super) fn url<T>(
    text: At<&str>,
    parse: impl FnOnce(&str) -> Result<T, UrlFault>,
    cure: &str,
    problems: &mut Problems,
) -> Option<At<T>> {
    match parse(text.value) {
        Ok(value) => Some(At { value, place: text.place, path: text.path }),
        Err(fault) => {
            problems.error(Some(text.place), &text.path, format!("{} {fault}", quote(text.value)), cure);
            None
        }
    }
}

/// The longest duration that means anything here.
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
