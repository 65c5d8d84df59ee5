//! Signing in: a link for a human, and the code that comes back.

use std::time::Duration;

use http::header::ACCEPT;
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::page::{self, Page};
use super::{EXCHANGE_CODE, GENERATE_URL, not_an_address, unavailable, unix};
use crate::admin::{Admin, reply};
use crate::config::Snapshot;
use crate::inflow::{Body, BodyFault};
use crate::oauth::client::ClientError;
use crate::oauth::login::{Begun, LoginFault};
use crate::oauth::paste::PasteFault;
use crate::oauth::{ExchangeError, SignedIn};
use crate::provider::{Email, percent_decode};
use crate::proxy::reject::Error;
use crate::proxy::relay::Outbound;

/// Largest body with a code, in bytes.
const BODY_LIMIT: usize = 64 * 1024;
/// Longest time for it.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The body with a code. A field that stands there twice is an error.
#[derive(Deserialize)]
struct Asked {
    code: Option<Value>,
    account_email: Option<Value>,
}

impl Admin {
    /// `GET /oauth/generate-url`: begins a login. HEAD does not.
    pub(in crate::admin) fn generate_url(&self, snapshot: &Snapshot, head: &Parts) -> Response<Outbound> {
        let for_people = prefers_html(&head.headers);
        let language = snapshot.settings.language;
        let refuse = |error: Error| if for_people { page::refusal(&error, language) } else { reply::refusal(error) };
        let email = match account_of(head.uri.query()) {
            Ok(email) => email,
            Err(error) => return refuse(error),
        };
        if head.method == Method::HEAD {
            return if for_people { page::empty() } else { reply::empty() };
        }
        let begun = match self.accounts.begin(email.clone()) {
            Ok(begun) => begun,
            Err(LoginFault::TooMany(wait)) => {
                let error = Error::new(StatusCode::TOO_MANY_REQUESTS, LoginFault::TooMany(wait).to_string());
                return refuse(error.retry_in(wait));
            }
            Err(fault) => return refuse(Error::new(StatusCode::INTERNAL_SERVER_ERROR, fault.to_string())),
        };
        if for_people {
            let locked = keys_are_needed(snapshot, EXCHANGE_CODE);
            return Page { account: email.as_ref(), link: Some(&begun.authorization_url), locked, language }.response();
        }
        reply::json(&self.begun(snapshot, &begun, email.as_ref()))
    }

    /// The page for a browser that came without the key, which no browser sends by itself: it asks for the key, and
    /// begins a login with it. `None` = this request is not a browser's, or not for that page.
    pub fn locked<B>(&self, snapshot: &Snapshot, request: &http::Request<B>) -> Option<Response<Outbound>> {
        let wanted = request.method() == Method::GET && request.uri().path() == GENERATE_URL;
        if !wanted || !prefers_html(request.headers()) {
            return None;
        }
        let language = snapshot.settings.language;
        let mut response = match account_of(request.uri().query()) {
            Ok(email) => Page { account: email.as_ref(), link: None, locked: true, language }.response(),
            Err(error) => return Some(page::refusal(&error, language)),
        };
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        Some(response)
    }

    /// `POST /oauth/exchange-code`
    pub(in crate::admin) async fn exchange_code(&self, body: &mut Body) -> Response<Outbound> {
        let (code, email) = match read(body).await {
            Ok(asked) => asked,
            Err(error) => return reply::refusal(error),
        };
        match self.accounts.exchange(&code, email).await {
            Ok(signed_in) => {
                self.health.forgive(&signed_in.email);
                reply::json(&finished(&signed_in, self.accounts.keeps()))
            }
            Err(error) => reply::refusal(not_finished(&error)),
        }
    }

    fn begun(&self, snapshot: &Snapshot, begun: &Begun, email: Option<&Email>) -> Value {
        let example = json!({
            "code": "CODE#STATE",
            "account_email": email.map_or("user@example.com", Email::as_str),
        });
        json!({
            "status": "success",
            "authorization_url": begun.authorization_url,
            "login_url": begun.authorization_url,
            "expires_in": begun.expires_in.as_secs(),
            "expires_in_minutes": begun.expires_in.as_secs() / 60,
            "account_email": email.map(Email::as_str),
            "instructions": "Visit the URL to authorize, then exchange the code",
            "callback_format": format!("{}?code=YOUR_CODE&state=STATE", snapshot.settings.oauth.redirect_uri),
            "exchange_example": format!(
                "curl -X POST {}{EXCHANGE_CODE} -H 'Content-Type: application/json' -d '{}'",
                self.endpoint,
                // The one character that ends a quoted word of the shell; e-mails may have it.
                example.to_string().replace('\'', r"'\''"),
            ),
        })
    }
}

fn finished(signed_in: &SignedIn, keeps: bool) -> Value {
    json!({
        "status": "success",
        "message": "Authorization successful",
        "account_email": signed_in.email.as_str(),
        "expires_at": unix(signed_in.expires_at),
        "scopes": signed_in.scopes,
        "verified": signed_in.verified,
        "persisted": signed_in.persisted && keeps,
    })
}

/// The code and the account, from a body within its bounds. Nothing of it is repeated in an error.
async fn read(body: &mut Body) -> Result<(Zeroizing<String>, Option<Email>), Error> {
    let refuse = |message: &str| Error::new(StatusCode::BAD_REQUEST, message);
    let bytes = tokio::time::timeout(BODY_TIME, collect(body)).await.map_err(|_| too_slow())??;
    // A list would do for serde.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(refuse("the body must be a JSON object: {\"code\": …, \"account_email\": …}"));
    }
    let asked: Asked = serde_json::from_slice(&bytes)
        .map_err(|_| refuse("the body is not valid JSON: {\"code\": …, \"account_email\": …}"))?;
    let code = match asked.code {
        Some(Value::String(code)) => Zeroizing::new(code),
        None | Some(Value::Null) => return Err(missing_code()),
        Some(_) => return Err(refuse("code must be a string")),
    };
    let email = match asked.account_email {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.trim().is_empty() => None,
        Some(Value::String(text)) => Some(Email::parse(text.trim()).ok_or_else(not_an_address)?),
        Some(_) => return Err(refuse("account_email must be a string")),
    };
    Ok((code, email))
}

fn too_slow() -> Error {
    Error::new(StatusCode::REQUEST_TIMEOUT, "the request body did not come within 10 s")
}

async fn collect(body: &mut Body) -> Result<Zeroizing<Vec<u8>>, Error> {
    let too_large = || Error::new(StatusCode::PAYLOAD_TOO_LARGE, "the request body is larger than 64 KiB");
    if body.length().is_some_and(|length| length > BODY_LIMIT as u64) {
        return Err(too_large());
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(BODY_LIMIT));
    while let Some(piece) = body.frame().await {
        let data = piece.map_err(|fault| match fault {
            BodyFault::Slow => too_slow(),
            BodyFault::Interrupted => {
                Error::new(StatusCode::BAD_REQUEST, "the request body ended early or its framing is broken")
            }
        })?;
        // It never grows: what a growing buffer leaves behind is not erased.
        if bytes.len() + data.len() > BODY_LIMIT {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn missing_code() -> Error {
    Error::new(StatusCode::BAD_REQUEST, "Missing authorization code")
}

/// Why a login was not finished, for a client. Nothing was stored.
fn not_finished(error: &ExchangeError) -> Error {
    let bad = |message: String| Error::new(StatusCode::BAD_REQUEST, message);
    match error {
        ExchangeError::Paste(PasteFault::Empty) => missing_code(),
        ExchangeError::Paste(fault) => bad(sentence(fault)),
        ExchangeError::Login(LoginFault::Randomness(fault)) => {
            Error::new(StatusCode::INTERNAL_SERVER_ERROR, fault.to_string())
        }
        ExchangeError::Login(fault) => bad(format!("Failed to exchange authorization code: {fault}")),
        ExchangeError::NoEmail => {
            bad("Missing account_email parameter. Please provide your email address for account identification.".into())
        }
        ExchangeError::Server(server) => by_server(server),
        ExchangeError::Unusable => {
            let message = format!("Failed to exchange authorization code: {error}; begin a new login");
            Error::new(StatusCode::BAD_GATEWAY, message)
        }
        ExchangeError::Mismatch { .. } => {
            let message = format!("{}. Sign out there, and begin a new login for the right account", sentence(error));
            Error::new(StatusCode::CONFLICT, message)
        }
        ExchangeError::Stopped => unavailable(sentence(error)).retry_in(Duration::from_secs(1)),
    }
}

fn by_server(error: &ClientError) -> Error {
    let next = if error.nothing_sent() { "the same code may be tried again" } else { "begin a new login" };
    let message = format!("Failed to exchange authorization code: {error}; {next}");
    match error {
        ClientError::Rejected(_) | ClientError::Refused(_) => Error::new(
            StatusCode::BAD_REQUEST,
            format!(
                "Failed to exchange authorization code: {error}. The code may be too old, used already, or from \
                 another login; begin a new login"
            ),
        ),
        ClientError::Endpoint(_) | ClientError::Insecure => Error::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        ClientError::Transient { retry_after: Some(wait), .. } => {
            Error::new(StatusCode::BAD_GATEWAY, message).retry_in(*wait)
        }
        ClientError::Transient { .. } | ClientError::Unknown(_) => Error::new(StatusCode::BAD_GATEWAY, message),
    }
}

/// With a capital letter.
fn sentence(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}

/// The account that a query names. A plus is a plus: no e-mail has a space.
fn account_of(query: Option<&str>) -> Result<Option<Email>, Error> {
    let mut found = None;
    for pair in query.unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name == "account_email" && !value.is_empty() {
            let email = percent_decode(value).and_then(|text| Email::parse(text.trim())).ok_or_else(not_an_address)?;
            if found.replace(email).is_some() {
                return Err(Error::new(StatusCode::BAD_REQUEST, "account_email is given more than once"));
            }
        }
    }
    Ok(found)
}

/// Whether a path needs a key that a browser does not send.
fn keys_are_needed(snapshot: &Snapshot, path: &str) -> bool {
    let auth = &snapshot.settings.auth;
    !auth.keys.is_empty() && !auth.exempt_paths.iter().any(|exempt| exempt == path)
}

/// Whether a page is liked better than JSON (RFC 9110 §12.5.1). A bare `*/*` asks for no page.
fn prefers_html(headers: &HeaderMap) -> bool {
    let (mut html, mut json, mut any) = (0, None, 0);
    let ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in ranges.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let weight = weight.map_or(1000, thousandths);
        match kind.as_str() {
            "text/html" => html = weight,
            "application/json" => json = Some(weight),
            "application/*" | "*/*" => any = any.max(weight),
            _ => {}
        }
    }
    // A browser's `*/*` is weaker than its pages; a client that likes all the same gets JSON only where it says so.
    match json {
        Some(json) => html > json,
        None => html > 0 && html >= any,
    }
}

/// A quality value; what is none counts as zero.
fn thousandths(text: &str) -> u32 {
    let weight = text.parse::<f32>().ok().filter(|weight| (0.0..=1.0).contains(weight)).unwrap_or_default();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
    let whole = (weight * 1000.0).round() as u32;
    whole
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_page_is_for_those_who_like_it_better_than_json() {
        for (accept, page) in [
            (None, false),
            (Some(""), false),
            (Some("*/*"), false),
            (Some("application/json"), false),
            (Some("text/html"), true),
            (Some("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"), true),
            (Some("TEXT/HTML, */*"), true),
            (Some("application/json, text/html"), false),
            (Some("application/json;q=0.5, text/html"), true),
            (Some("text/html;q=0.4, application/json;q=0.5"), false),
            (Some("text/html;q=0, */*"), false),
            (Some("text/html;q=nan"), false),
            (Some("text/html;q=-1"), false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(prefers_html(&headers), page, "{accept:?}");
        }
    }

    #[test]
    fn a_query_names_one_account_or_none() {
        let email = |text: &str| Ok(Email::parse(text));
        for (query, expected) in [
            (None, Ok(None)),
            (Some(""), Ok(None)),
            (Some("x=1&account_email="), Ok(None)),
            (Some("account_email=a@b.c"), email("a@b.c")),
            (Some("account_email=a%2Bwork%40b.c"), email("a+work@b.c")),
            (Some("account_email=a+work@b.c&x"), email("a+work@b.c")),
            (Some("account_email=%20a@b.c%0A"), email("a@b.c")),
            (Some("account_email=a"), Err(())),
            (Some("account_email=a%2fb@c"), Err(())),
            (Some("account_email=a%00@c"), Err(())),
            (Some("account_email=%zz"), Err(())),
            (Some("account_email=%3Cscript%3E@c"), Err(())),
            (Some("account_email=a@b&account_email=a@b"), Err(())),
        ] {
            assert_eq!(account_of(query).map_err(|_| ()), expected, "{query:?}");
        }
    }
}
