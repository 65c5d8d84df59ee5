//! The two calls to the authorization server: a code for a token, a refresh token for the next one. Each goes once, on
//! a connection of its own; what comes back is told apart by what it means for the token, and never quoted.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::login::Login;
use super::reply::Raw;
use crate::config::OAuthSettings;
use crate::provider::{Auth, BaseUrl, Kind, Provider, ProviderKey, UrlFault};
use crate::secret::Secret;
use crate::upstream::{BodyError, DialLimits, Payload, Request, Response, SendError, Upstream};

/// Longest wait for a whole answer.
pub const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Longest answer that is read, in bytes.
pub const REPLY_LIMIT: usize = 64 * 1024;
/// We say who we are.
const AGENT: &str = concat!("claude-code-balancer/", env!("CARGO_PKG_VERSION"));

/// The way to the authorization server.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Connections.
    pub upstream: &'a Upstream,
    /// Where, and as whom.
    pub settings: &'a OAuthSettings,
    /// To a connection.
    pub limits: DialLimits,
}

/// Why a call brought no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// `settings.oauth.token_url` cannot be used.
    #[error("settings.oauth.token_url {0}")]
    Endpoint(UrlFault),
    /// Plain http to another machine.
    #[error("settings.oauth.token_url must be https")]
    Insecure,
    /// The server's last word on this code or refresh token.
    #[error("the authorization server answered {}", .0.as_str())]
    Rejected(Code),
    /// The server refused the request, and does not say that it is for good.
    #[error("the authorization server refused the request with status {0}")]
    Refused(u16),
    /// Did not work now; the token is what it was.
    #[error("{trouble}")]
    Transient {
        /// What happened.
        #[source]
        trouble: Trouble,
        /// The server's word when to come back.
        retry_after: Option<Duration>,
    },
    /// The request went out, and what the server made of it is not known.
    #[error("the reply of the authorization server was lost: {0}")]
    Unknown(#[source] Trouble),
}

/// What happened to a call. No text of the server's is among it.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// No answer.
    #[error("{0}")]
    Send(#[source] SendError),
    /// The answer broke off.
    #[error("{0}")]
    Body(#[source] BodyError),
    /// No whole answer in time.
    #[error("no answer within {} s", CALL_LIMIT.as_secs())]
    Timeout,
    /// Longer than any reply.
    #[error("the answer is longer than {} KiB", REPLY_LIMIT / 1024)]
    TooLong,
    /// Compressed, although we asked for it plain.
    #[error("the answer is compressed")]
    Compressed,
    /// No reply under a good status.
    #[error("the answer cannot be read")]
    Unreadable,
    /// A web page: something stands between us and the server.
    #[error("something before the authorization server answered with a web page (status {0})")]
    Page(u16),
    /// Any other status.
    #[error("the authorization server answered with status {0}")]
    Status(u16),
}

/// The errors that are a last word (RFC 6749 §5.2, and what servers say beside it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The code or token is wrong, old, or used.
    InvalidGrant,
    /// The same in other words.
    InvalidRefreshToken,
    /// Used twice; the server takes that for theft.
    RefreshTokenReused,
    /// The client id is not known.
    InvalidClient,
    /// The client may not do this.
    UnauthorizedClient,
}

impl Code {
    const ALL: [Self; 5] = [
        Self::InvalidGrant,
        Self::InvalidRefreshToken,
        Self::RefreshTokenReused,
        Self::InvalidClient,
        Self::UnauthorizedClient,
    ];

    /// As it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidGrant => "invalid_grant",
            Self::InvalidRefreshToken => "invalid_refresh_token",
            Self::RefreshTokenReused => "refresh_token_reused",
            Self::InvalidClient => "invalid_client",
            Self::UnauthorizedClient => "unauthorized_client",
        }
    }
}

impl ClientError {
    /// Whether the server cannot have seen the request.
    pub fn nothing_sent(&self) -> bool {
        match self {
            Self::Endpoint(_) | Self::Insecure => true,
            Self::Transient { trouble: Trouble::Send(error), .. } => error.nothing_sent(),
            _ => false,
        }
    }
}

impl Client<'_> {
    /// A code for the first token.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn exchange(&self, login: &Login, code: &Secret) -> Result<Raw, ClientError> {
        self.post(&json!({
            "grant_type": "authorization_code",
            "client_id": self.settings.client_id,
            "code": code.expose(),
            "redirect_uri": self.settings.redirect_uri,
            "code_verifier": login.verifier.secret().expose(),
            "state": login.state.expose(),
        }))
        .await
    }

    /// A refresh token for the next token.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn refresh(&self, refresh: &Secret) -> Result<Raw, ClientError> {
        self.post(&json!({
            "grant_type": "refresh_token",
            "client_id": self.settings.client_id,
            "refresh_token": refresh.expose(),
        }))
        .await
    }

    async fn post(&self, body: &Value) -> Result<Raw, ClientError> {
        let base = BaseUrl::parse(&self.settings.token_url).map_err(ClientError::Endpoint)?;
        if !base.tls && !base.is_loopback() {
            return Err(ClientError::Insecure);
        }
        let target = if base.prefix.is_empty() { "/".to_owned() } else { base.prefix.to_string() };
        let authority = HeaderValue::try_from(base.authority()).map_err(|_| ClientError::Endpoint(UrlFault::Host))?;
        let key = ProviderKey { name: "authorization server".into(), account: None };
        let server = Provider::new(key, Kind::Anthropic, base, Auth::Passthrough, self.settings.proxy.clone());
        let headers = [
            ("host", authority),
            ("content-type", HeaderValue::from_static("application/json")),
            ("accept", HeaderValue::from_static("application/json")),
            ("accept-encoding", HeaderValue::from_static("identity")),
            ("user-agent", HeaderValue::from_static(AGENT)),
            ("connection", HeaderValue::from_static("close")),
        ];
        let headers = headers.map(|(name, value)| (name, Cow::Owned(value))).into();
        let payload = Payload::Pieces(vec![Bytes::from(body.to_string())].into());
        let request = Request { method: &Method::POST, target: target.into(), headers, payload };
        let call = async {
            // A refresh token that is sent twice is a stolen one in the eyes of the server: no second try in here.
            let mut response = self.upstream.send_once(&server, request, self.limits).await.map_err(unsent)?;
            let body = read(&mut response).await;
            judge(&response, body)
        };
        // The limits of the dial are shorter, so at this time the request has been sent.
        tokio::time::timeout(CALL_LIMIT, call).await.unwrap_or(Err(ClientError::Unknown(Trouble::Timeout)))
    }
}

fn unsent(error: SendError) -> ClientError {
    if error.nothing_sent() {
        ClientError::Transient { trouble: Trouble::Send(error), retry_after: None }
    } else {
        ClientError::Unknown(Trouble::Send(error))
    }
}

async fn read(response: &mut Response) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut body = Zeroizing::new(Vec::with_capacity(REPLY_LIMIT));
    while let Some(frame) = response.body.frame().await {
        let frame = frame.map_err(Trouble::Body)?;
        if body.len() + frame.len() > REPLY_LIMIT {
            return Err(Trouble::TooLong);
        }
        body.extend_from_slice(&frame);
    }
    Ok(body)
}

/// What an answer means.
///
/// | answer | meaning |
/// | --- | --- |
/// | 2xx | a reply, unless it broke off, is too long or compressed: then its outcome is not known |
/// | 3xx, 403, 408, 425, 429, 5xx, a web page under any status | transient |
/// | other 4xx with one of [`Code`] | rejected |
/// | any other | refused |
fn judge(response: &Response, body: Result<Zeroizing<Vec<u8>>, Trouble>) -> Result<Raw, ClientError> {
    let status = response.status.as_u16();
    let compressed = response.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    let transient = |trouble| {
        let retry_after = retry_after(&response.headers, SystemTime::now());
        Err(ClientError::Transient { trouble, retry_after })
    };
    if response.status.is_success() {
        let body = body.map_err(ClientError::Unknown)?;
        return match (compressed, is_page(&response.headers, &body)) {
            (true, _) => Err(ClientError::Unknown(Trouble::Compressed)),
            (_, true) => transient(Trouble::Page(status)),
            _ => Ok(Raw(body)),
        };
    }
    let body = body.unwrap_or_default();
    if is_page(&response.headers, &body) {
        return transient(Trouble::Page(status));
    }
    match status {
        403 | 408 | 425 | 429 => transient(Trouble::Status(status)),
        400..=499 => Err(error_code(&body).map_or(ClientError::Refused(status), ClientError::Rejected)),
        _ => transient(Trouble::Status(status)),
    }
}

fn is_page(headers: &HeaderMap, body: &[u8]) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    first == Some(&b'<') || (kind.starts_with(b"text/html") && first != Some(&b'{'))
}

/// `{"error":"CODE"}`, or `{"error":{"type":"CODE"}}`.
fn error_code(body: &[u8]) -> Option<Code> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error")?;
    let texts = [Some(error), error.get("type"), error.get("code")];
    let named = |code: &Code| texts.iter().flatten().any(|text| text.as_str() == Some(code.as_str()));
    Code::ALL.into_iter().find(named)
}

/// Seconds, or a date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_errors_are_a_last_word() {
        for (body, code) in [
            (r#"{"error":"invalid_grant","error_description":"x"}"#, Some(Code::InvalidGrant)),
            (
                r#"{"type":"error","error":{"type":"refresh_token_reused","message":"x"}}"#,
                Some(Code::RefreshTokenReused),
            ),
            (r#"{"error":{"code":"invalid_client"}}"#, Some(Code::InvalidClient)),
            (r#"{"error":"invalid_request"}"#, None),
            (r#"{"error":"INVALID_GRANT"}"#, None),
            (r#"{"message":"invalid_grant"}"#, None),
            ("invalid_grant", None),
            ("", None),
        ] {
            assert_eq!(error_code(body.as_bytes()), code, "{body}");
        }
    }

    #[test]
    fn a_time_to_come_back_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        for (value, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", None),
            ("-1", None),
            ("soon", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
