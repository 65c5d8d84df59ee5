//! The data path: the life of a request on one screen, in [`Proxy::handle`].
//!
//! `intake` reads a routed body once · the route table gives a plan · `failover` consumes it, target by target:
//! `rewrite` makes the head, `attempt` sends and reads what the verdict needs, `verdict` judges · **commit point** ·
//! `relay` moves the rest · `ledger` closes the account. `reject` words our own errors.

mod answer;
pub mod attempt;
mod choose;
pub mod events;
pub mod failover;
pub mod intake;
pub mod ledger;
pub mod limits;
mod members;
mod pass;
pub mod reject;
pub mod relay;
pub mod rewrite;
pub mod scan;
pub mod verdict;

use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use tokio_util::task::TaskTracker;

use crate::config::Snapshot;
use crate::gate::Admitted;
use crate::health::{Health, Now};
use crate::inflow::Body;
use crate::memory::Budget;
use crate::metrics::Metrics;
use crate::oauth::Accounts;
use crate::route::Sticky;
use crate::upstream::Upstream;
use failover::{Job, Tools};
use intake::Inbound;
use ledger::Entry;
use reject::Error;
use relay::Outbound;

/// What the data path works with; all of it outlives a reload.
#[derive(Debug)]
pub struct Proxy {
    /// Records of providers and accounts.
    pub health: Arc<Health>,
    /// Connections to providers.
    pub upstream: Arc<Upstream>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Tokens of accounts.
    pub accounts: Arc<Accounts>,
    /// Choices of sessions.
    pub sticky: Sticky,
    /// Room for request bodies that are held.
    pub buffers: Arc<Budget>,
    /// The tasks that outlive the future which started them.
    pub tasks: TaskTracker,
    /// This balancer's mark on what it sends, by which it knows its own requests.
    pub hop: HeaderValue,
    /// `http://host:port` of this balancer, for instructions.
    pub endpoint: String,
}

/// Whether the service has no time left, so that what still waits and what still streams must end. Whoever asks is polled
/// by the task of its client's connection, which is woken when that happens.
#[derive(Clone, Debug, Default)]
pub struct Drain(Arc<AtomicBool>);

impl Drain {
    /// The time is over.
    pub fn end(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is.
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One request on its way: what every station needs beside the request itself.
#[derive(Clone, Copy)]
struct Call<'a> {
    proxy: &'a Proxy,
    /// The configuration from start to end.
    snapshot: &'a Snapshot,
    admitted: &'a Admitted,
    /// Ends what still waits and what still streams when the drain time is over.
    drain: &'a Drain,
}

/// What a path under `/v1/` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// `POST /v1/messages`
    Messages,
    /// `POST /v1/messages/count_tokens`
    CountTokens,
    /// `GET /v1/models`, `GET /v1/models/{id}`
    Models,
    /// Anything else: ids there belong to one account.
    Other,
}

impl Ask {
    fn of(method: &Method, path: &str) -> Result<Self, Error> {
        match path {
            "/v1/messages" if *method == Method::POST => Ok(Self::Messages),
            "/v1/messages/count_tokens" if *method == Method::POST => Ok(Self::CountTokens),
            "/v1/messages" | "/v1/messages/count_tokens" => Err(Error::method(methods(path))),
            "/v1/models" if *method == Method::GET => Ok(Self::Models),
            _ if *method == Method::GET && is_model(path) => Ok(Self::Models),
            _ => Ok(Self::Other),
        }
    }
}

/// The methods of a path under `/v1/`, for `Allow`.
pub fn methods(path: &str) -> &'static str {
    match path {
        "/v1/messages" | "/v1/messages/count_tokens" => "POST",
        _ => "GET, HEAD, POST, DELETE",
    }
}

fn is_model(path: &str) -> bool {
    path.strip_prefix("/v1/models/").is_some_and(|id| !id.is_empty() && !id.contains('/'))
}

impl Proxy {
    /// Answers a request under `/v1/`. Reads the snapshot that it is given and no other; `drain` ends it when the
    /// service has no time left.
    pub async fn handle(
        &self,
        snapshot: &Snapshot,
        admitted: &Admitted,
        request: Request<Body>,
        drain: &Drain,
    ) -> Response<Outbound> {
        let (head, body) = request.into_parts();
        let mut entry = Entry::open(self.metrics.clone(), &head.method, head.uri.path());
        entry.key = admitted.key.clone();
        if head.headers.get_all(rewrite::X_PROXY_HOP).iter().any(|mark| *mark == self.hop) {
            return Error::loops().response(Some(entry));
        }
        let call = Call { proxy: self, snapshot, admitted, drain };
        match Ask::of(&head.method, head.uri.path()) {
            Ok(Ask::Messages) => pin!(call.routed(head, body, entry, false)).await,
            Ok(Ask::CountTokens) => pin!(call.routed(head, body, entry, true)).await,
            // Not in the room that every request takes.
            Ok(Ask::Models) => Box::pin(call.listed(head, entry)).await,
            Ok(Ask::Other) => Box::pin(call.passed(head, body, entry)).await,
            Err(error) => error.response(Some(entry)),
        }
    }
}

impl Call<'_> {
    /// Routed by model, with failover.
    async fn routed(self, head: Parts, mut body: Body, mut entry: Entry, count_tokens: bool) -> Response<Outbound> {
        let read = {
            let reading = pin!(Inbound::read(&mut body, &self.proxy.buffers));
            self.unless_over(reading).await
        };
        let inbound = match read {
            Some(Ok(inbound)) => inbound,
            Some(Err(error)) => return Error::from(error).response(Some(entry)),
            None => return Error::shut_down().response(Some(entry)),
        };
        entry.model = Some(inbound.model.clone());
        let session = self.session(&head.headers);
        let planned = {
            let planning = pin!(self.with_accounts(|| self.plan(&inbound, count_tokens, session)));
            self.unless_over(planning).await
        };
        let plan = match planned {
            Some(Ok(plan)) => plan,
            Some(Err(error)) => return error.response(Some(entry)),
            None => return Error::shut_down().response(Some(entry)),
        };
        entry.route = plan.first_pattern();
        let job = Job {
            head: self.outgoing(&head),
            body: &|model| inbound.body(model),
            has_body: true,
            model: inbound.model.clone(),
            stream: inbound.stream && !count_tokens,
            count_tokens,
        };
        let outcome = {
            let trying = pin!(failover::run(plan, &job, self.tools(), &mut entry));
            self.unless_over(trying).await
        };
        let Some(outcome) = outcome else { return Error::shut_down().response(Some(entry)) };
        if let (Ok(committed), Some(session)) = (&outcome, session)
            && committed.success
        {
            session.choose(&committed.pattern, &committed.target);
            let provider = &committed.target.provider;
            if let Some(account) = provider.key.account.as_ref().filter(|_| provider.entry != provider.identity) {
                self.proxy.accounts.keep(session.id, account, Now::read());
            }
        }
        // Here the request body is released: no attempt will need it any more.
        drop(inbound);
        self.answer(outcome, entry, head.headers)
    }

    /// To the first usable provider in file order, with failover.
    async fn listed(self, head: Parts, mut entry: Entry) -> Response<Outbound> {
        let job = Job {
            head: self.outgoing(&head),
            body: &|_| Cow::Borrowed(&[]),
            has_body: false,
            model: "".into(),
            stream: false,
            count_tokens: false,
        };
        let tools = self.tools();
        let outcome = {
            let trying = pin!(async {
                let Ok(plan) = self.with_accounts(|| Ok::<_, Infallible>(self.plan_in_file_order())).await;
                failover::run(plan, &job, tools, &mut entry).await
            });
            self.unless_over(trying).await
        };
        match outcome {
            Some(outcome) => self.answer(outcome, entry, head.headers),
            None => Error::shut_down().response(Some(entry)),
        }
    }

    /// Waits for `work` as long as the drain time is not over. It is pinned where it was made: moving it costs.
    async fn unless_over<T>(self, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        let done = std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if self.drain.is_over() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        done.await
    }

    fn tools(&self) -> Tools<'_> {
        Tools {
            upstream: &self.proxy.upstream,
            health: &self.proxy.health,
            accounts: &self.proxy.accounts,
            settings: &self.snapshot.settings,
        }
    }

    fn outgoing<'h>(&'h self, head: &'h Parts) -> rewrite::Inbound<'h> {
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        rewrite::Inbound {
            method: &head.method,
            target,
            headers: &head.headers,
            admitted: self.admitted,
            hop: &self.proxy.hop,
            identity_only: true,
        }
    }
}
