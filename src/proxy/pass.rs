//! Paths that no route concerns: files, batches and whatever comes. Streamed both ways to the first enabled provider
//! in file order, without failover, for ids there belong to one account.

use std::borrow::Cow;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{Method, Response, StatusCode};

use super::Call;
use super::answer::{Flow, note_provider};
use super::failover::Exhausted;
use super::ledger::Entry;
use super::reject::{self, Error};
use super::relay::Outbound;
use super::rewrite;
use crate::health::Now;
use crate::inflow::Body;
use crate::oauth::{Bearer, Lacking, Need, WAIT_LIMIT};
use crate::provider::{Auth, Provider};
use crate::upstream::{DialLimits, Payload, SendError};

/// Longest upload.
const UPLOAD_TIME: Duration = Duration::from_secs(60 * 60);

impl Call<'_> {
    pub(super) async fn passed(self, head: Parts, body: Body, mut entry: Entry) -> Response<Outbound> {
        let Some(provider) = self.snapshot.providers.iter().find(|provider| provider.enabled) else {
            return reject::all_failed(&Exhausted::default(), "", SystemTime::now()).response(Some(entry));
        };
        let timeouts = &self.snapshot.settings.timeouts;
        let (payload, limit) = if !body.is_end() {
            (Payload::Stream(body), UPLOAD_TIME)
        } else if head.method == Method::POST {
            // An empty body has a length, too.
            (Payload::Pieces(Cow::Borrowed(&[])), timeouts.before_commit)
        } else {
            (Payload::Empty, timeouts.before_commit)
        };
        let inbound = rewrite::Inbound { identity_only: false, ..self.outgoing(&head) };
        let bearer = match self.bearer(provider).await {
            Ok(bearer) => bearer,
            Err(lacking) => {
                let status = match lacking {
                    Lacking::LoginRequired(_) => StatusCode::UNAUTHORIZED,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                };
                let mut message = format!("{}: {lacking}", provider.key);
                if status == StatusCode::UNAUTHORIZED {
                    message = format!("{message}. {}", self.login(provider.key.account.as_ref()));
                }
                let error = Error::new(status, message);
                let error = match lacking {
                    Lacking::Failing { retry_in, .. } => error.retry_in(retry_in),
                    _ => error,
                };
                return error.response(Some(entry));
            }
        };
        let account = bearer.as_ref().map(|bearer| provider.for_account(bearer.email()));
        let provider = account.as_ref().unwrap_or(provider);
        let request = match rewrite::outbound(inbound, provider, bearer.as_ref(), payload) {
            Ok(request) => request,
            Err(missing) => {
                let message = format!("{}: {missing}", provider.key);
                return Error::new(StatusCode::UNAUTHORIZED, message).response(Some(entry));
            }
        };
        entry.attempts = 1;
        note_provider(&mut entry, provider);
        let dial = DialLimits { connect: timeouts.connect, tls: timeouts.tls };
        let sending = pin!(self.proxy.upstream.send(provider, request, dial));
        let sending = pin!(tokio::time::timeout(limit, sending));
        let Some(sent) = self.unless_over(sending).await else {
            return Error::shut_down().response(Some(entry));
        };
        let (status, message) = match sent {
            Ok(Ok(response)) => {
                if let Some(bearer) = bearer {
                    self.note_answer(bearer, response.status);
                }
                let flow = Flow { held: Vec::new(), rest: response.body, observer: None, settle: None };
                return self.relay(response.status, response.headers, flow, entry);
            }
            Ok(Err(error @ SendError::RequestBody { slow })) => {
                let status = if slow { StatusCode::REQUEST_TIMEOUT } else { StatusCode::BAD_REQUEST };
                (status, error.to_string())
            }
            Ok(Err(error)) => (StatusCode::BAD_GATEWAY, error.to_string()),
            Err(_) => (StatusCode::GATEWAY_TIMEOUT, "no answer in time".to_owned()),
        };
        Error::new(status, format!("{}: {message}", provider.key)).response(Some(entry))
    }

    /// The token for a provider's account, or for the next one in turn.
    async fn bearer(self, provider: &Provider) -> Result<Option<Bearer>, Lacking> {
        if provider.auth != Auth::OAuth {
            return Ok(None);
        }
        let accounts = &self.proxy.accounts;
        let _ = tokio::time::timeout(WAIT_LIMIT, accounts.settled()).await;
        let now = Now::read();
        let named = provider.key.account.clone();
        let mut account = named.clone().or_else(|| accounts.order(None, now, |_| true).into_iter().next());
        if account.is_none() && accounts.missing(None).await {
            account = accounts.order(None, now, |_| true).into_iter().next();
        }
        match account {
            Some(account) => accounts.access(&account, now).await.map(Some),
            None if accounts.is_open() => Err(Lacking::LoginRequired(Need::NotSignedIn)),
            None => Err(Lacking::StorageUnavailable),
        }
    }

    /// The body may have gone with the request, so it is not sent again; the next one finds a newer token.
    fn note_answer(self, bearer: Bearer, status: StatusCode) {
        let accounts = self.proxy.accounts.clone();
        if status == StatusCode::UNAUTHORIZED {
            self.proxy.tasks.spawn(async move {
                let _ = accounts.refused(bearer.email(), bearer.generation()).await;
            });
        } else {
            accounts.used(bearer.email(), SystemTime::now());
        }
    }
}
