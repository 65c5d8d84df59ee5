//! From what failover came to, to the response for the client: the commit point lies here.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, Response, StatusCode};

use super::attempt::{self, AnswerBody};
use super::events::Observer;
use super::failover::{Committed, Exhausted};
use super::ledger::Entry;
use super::relay::{Outbound, Relay, Settle, Terms};
use super::{Call, reject, rewrite};
use crate::oauth::human;
use crate::provider::{Email, Provider};
use crate::upstream::Body;

/// A body that is to be relayed.
pub(super) struct Flow {
    /// Read before the commit point.
    pub(super) held: Vec<Bytes>,
    pub(super) rest: Body,
    pub(super) observer: Option<Box<Observer>>,
    /// Whose health its end decides.
    pub(super) settle: Option<Settle>,
}

impl Call<'_> {
    /// `room` is a map of fields that nobody needs any longer.
    pub(super) fn answer(
        self,
        outcome: Result<Committed, Exhausted>,
        mut entry: Entry,
        room: HeaderMap,
    ) -> Response<Outbound> {
        let committed = match outcome {
            Ok(committed) => committed,
            Err(exhausted) => return self.nothing_worked(exhausted, entry, room),
        };
        let Committed { target, pattern, scope, permit, answer, status, success } = committed;
        entry.route = Some(pattern);
        note_provider(&mut entry, &target.provider);
        match answer.body {
            AnswerBody::Whole(pieces) => {
                if success {
                    self.proxy.health.succeeded(&target.provider, &scope);
                }
                whole(status, rewrite::downstream(answer.headers, false, room), pieces, entry)
            }
            AnswerBody::Open { held, rest, observer } => {
                let settle = success.then(|| Settle {
                    health: self.proxy.health.clone(),
                    provider: target.provider.clone(),
                    scope,
                    permit,
                });
                self.relay(status, answer.headers, Flow { held, rest, observer, settle }, entry)
            }
        }
    }

    pub(super) fn relay(
        self,
        status: StatusCode,
        headers: HeaderMap,
        flow: Flow,
        mut entry: Entry,
    ) -> Response<Outbound> {
        let Flow { held, rest, observer, settle } = flow;
        let events = attempt::is_event_stream(&headers) && !headers.contains_key(CONTENT_ENCODING);
        // hyper keeps the map as long as the stream lasts: that of the request may have far more room.
        let room = HeaderMap::with_capacity(headers.len() + 2);
        // An error of ours may have to follow what the provider sent.
        let mut headers = rewrite::downstream(headers, !events, room);
        rewrite::sign(&mut headers, entry.used.clone(), entry.attempts);
        if held.is_empty() && rest.is_end() {
            // No body at all; what a head announces all the same is the answer to HEAD, and only there may it stay.
            if !entry.what.starts_with("HEAD ") {
                headers.remove(CONTENT_LENGTH);
            }
            entry.committed(status.as_u16(), false);
            return assemble(status, headers, Outbound::whole(Vec::new(), Some(entry)));
        }
        entry.committed(status.as_u16(), true);
        let terms =
            Terms { idle: self.snapshot.settings.timeouts.idle, drain: self.drain.clone(), entry, settle, events };
        assemble(status, headers, Outbound::Relay(Box::new(Relay::new(held, rest, observer, terms))))
    }

    fn nothing_worked(self, mut exhausted: Exhausted, mut entry: Entry, room: HeaderMap) -> Response<Outbound> {
        let now = SystemTime::now();
        if let Some((status, headers, pieces)) = exhausted.only_answer.take() {
            let reset = exhausted.failed.iter().filter_map(|failed| failed.reset).min();
            let mut response = whole(status, rewrite::downstream(headers, false, room), pieces, entry);
            reject::discourage(&mut response, reset, now);
            return response;
        }
        let login = exhausted.failed.iter().find_map(|failed| failed.sign_in.as_ref());
        let login = login.map(|key| self.login(key.account.as_ref())).unwrap_or_default();
        let attempts = entry.attempts;
        // The answer is nobody's but ours.
        (entry.provider, entry.account) = (None, None);
        let mut response = reject::all_failed(&exhausted, &login, now).response(Some(entry));
        rewrite::sign(response.headers_mut(), None, attempts);
        response
    }

    /// How to sign an account (or any) in.
    pub(super) fn login(self, account: Option<&Email>) -> String {
        human::login_steps(&self.proxy.endpoint, account)
    }
}

/// Who answers, for the account and for `x-provider-used`.
pub(super) fn note_provider(entry: &mut Entry, provider: &Provider) {
    entry.provider = Some(provider.key.name.clone());
    entry.account = provider.key.account.clone();
    entry.used = Some(provider.used.clone());
}

fn whole(status: StatusCode, mut headers: HeaderMap, pieces: Vec<Bytes>, mut entry: Entry) -> Response<Outbound> {
    rewrite::sign(&mut headers, entry.used.clone(), entry.attempts);
    entry.committed(status.as_u16(), false);
    assemble(status, headers, Outbound::whole(pieces, Some(entry)))
}

fn assemble(status: StatusCode, headers: HeaderMap, body: Outbound) -> Response<Outbound> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
