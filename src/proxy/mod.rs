//! The data path: the life of a request on one screen, in [`Proxy::handle`].
//!
//! `intake` reads a routed body once · the route table gives a plan · `failover` consumes it, target by target:
//! `rewrite` makes the head, `attempt` sends and reads what the verdict needs, `verdict` judges · **commit point** ·
//! `relay` moves the rest · `ledger` closes the account. `reject` words our own errors.

pub mod attempt;
pub mod events;
pub mod failover;
pub mod intake;
pub mod ledger;
pub mod limits;
pub mod reject;
pub mod relay;
pub mod rewrite;
pub mod scan;
pub mod verdict;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Snapshot;
use crate::gate::Admitted;
use crate::health::{Health, Now, Scope, Standing};
use crate::metrics::Metrics;
use crate::provider::{Auth, Provider};
use crate::route::{ModelChoice, Plan, Route, Selection, Session, Sticky, Strategy, Target};
use crate::upstream::{DialLimits, Payload, SendError, Upstream};
use attempt::AnswerBody;
use failover::{Committed, Exhausted, Job, Tools};
use intake::Inbound;
use ledger::Entry;
use reject::Error;
use relay::{Outbound, Relay, Settle, Terms};

/// Longest upload to a path that is passed through.
const UPLOAD_TIME: Duration = Duration::from_secs(60 * 60);

/// What the data path works with; all of it outlives a reload.
#[derive(Debug)]
pub struct Proxy {
    /// Records of providers and accounts.
    pub health: Arc<Health>,
    /// Connections to providers.
    pub upstream: Arc<Upstream>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Choices of sessions.
    pub sticky: Sticky,
    /// Ends open streams, and what still waits for an answer, when the drain time is over.
    pub drain: CancellationToken,
    /// The tasks that outlive the future which started them.
    pub tasks: TaskTracker,
    /// `http://host:port` of this balancer, for instructions.
    pub endpoint: String,
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
    /// Answers a request under `/v1/`. Reads the snapshot that it is given and no other.
    pub async fn handle(
        &self,
        snapshot: Arc<Snapshot>,
        admitted: Admitted,
        request: Request<Incoming>,
    ) -> Response<Outbound> {
        let (head, body) = request.into_parts();
        let entry = Entry::open(self.metrics.clone(), &head.method, head.uri.path());
        match Ask::of(&head.method, head.uri.path()) {
            Ok(Ask::Messages) => self.routed(&snapshot, &admitted, head, body, entry, false).await,
            Ok(Ask::CountTokens) => self.routed(&snapshot, &admitted, head, body, entry, true).await,
            Ok(Ask::Models) => self.listed(&snapshot, &admitted, head, entry).await,
            Ok(Ask::Other) => self.passed(&snapshot, &admitted, head, body, entry).await,
            Err(error) => {
                self.linger(&head.headers, body);
                error.response(Some(entry))
            }
        }
    }

    /// Lets a client whose request was refused finish sending it, beside the answer.
    pub fn linger(&self, headers: &HeaderMap, body: Incoming) {
        // Who asked first gets the answer instead of the permission.
        if !body.is_end_stream() && !headers.contains_key(EXPECT) {
            self.tasks.spawn(intake::linger(body));
        }
    }

    /// Routed by model, with failover.
    async fn routed(
        &self,
        snapshot: &Snapshot,
        admitted: &Admitted,
        head: Parts,
        mut body: Incoming,
        mut entry: Entry,
        count_tokens: bool,
    ) -> Response<Outbound> {
        let inbound = match self.unless_over(Inbound::read(&head, &mut body)).await {
            Some(Ok(inbound)) => inbound,
            Some(Err(error)) => {
                self.linger(&head.headers, body);
                return Error::from(error).response(Some(entry));
            }
            None => return Error::shut_down().response(Some(entry)),
        };
        entry.model = Some(inbound.model.clone());
        let session = self.session(snapshot, &head.headers);
        let plan = match self.plan(snapshot, &inbound, count_tokens, session) {
            Ok(plan) => plan,
            Err(error) => return error.response(Some(entry)),
        };
        let body = |model: &str| inbound.body(model);
        let stream = inbound.stream && !count_tokens;
        let job = Job {
            head: rewrite_head(&head, admitted),
            body: &body,
            has_body: true,
            model: inbound.model.clone(),
            stream,
            count_tokens,
        };
        let running = failover::run(plan, &job, self.tools(snapshot), &mut entry);
        let Some(outcome) = self.unless_over(running).await else {
            return Error::shut_down().response(Some(entry));
        };
        if let (Ok(committed), Some(session)) = (&outcome, session)
            && committed.success
        {
            session.choose(&committed.pattern, &committed.target);
        }
        // Here the request body is released: no attempt will need it any more.
        drop(inbound);
        self.answer(snapshot, outcome, entry)
    }

    /// To the first usable provider in file order, with failover.
    async fn listed(
        &self,
        snapshot: &Snapshot,
        admitted: &Admitted,
        head: Parts,
        mut entry: Entry,
    ) -> Response<Outbound> {
        let route = Route::new("/v1/models", entries(&snapshot.providers, |_| true));
        let selection = Selection { strategy: Strategy::Priority, session: None };
        let plan = self.plan_of(std::iter::once(&route), selection, &"".into(), false);
        let job = Job {
            head: rewrite_head(&head, admitted),
            body: &|_| Vec::new(),
            has_body: false,
            model: "".into(),
            stream: false,
            count_tokens: false,
        };
        let running = failover::run(plan, &job, self.tools(snapshot), &mut entry);
        match self.unless_over(running).await {
            Some(outcome) => self.answer(snapshot, outcome, entry),
            None => Error::shut_down().response(Some(entry)),
        }
    }

    /// Streamed both ways to the first enabled provider in file order, without failover.
    async fn passed(
        &self,
        snapshot: &Snapshot,
        admitted: &Admitted,
        head: Parts,
        body: Incoming,
        mut entry: Entry,
    ) -> Response<Outbound> {
        let Some(provider) = snapshot.providers.iter().find(|provider| provider.enabled) else {
            return reject::all_failed(&Exhausted::default(), "", SystemTime::now()).response(Some(entry));
        };
        let length = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let (payload, limit) = if body.is_end_stream() && length.unwrap_or(0) == 0 && head.method != Method::POST {
            (Payload::Empty, snapshot.settings.timeouts.before_commit)
        } else {
            (Payload::Stream { body, length }, UPLOAD_TIME)
        };
        let inbound = rewrite::Inbound { identity_only: false, ..rewrite_head(&head, admitted) };
        let request = match rewrite::outbound(inbound, provider, payload) {
            Ok(request) => request,
            Err(missing) => {
                let message = format!("{}: {missing}. {}", provider.key, self.login(provider));
                return Error::new(StatusCode::UNAUTHORIZED, message).response(Some(entry));
            }
        };
        entry.attempts = 1;
        note_provider(&mut entry, provider);
        let timeouts = &snapshot.settings.timeouts;
        let dial = DialLimits { connect: timeouts.connect, tls: timeouts.tls };
        let sending = tokio::time::timeout(limit, self.upstream.send(provider, request, dial));
        let Some(sent) = self.unless_over(sending).await else {
            return Error::shut_down().response(Some(entry));
        };
        let (status, message) = match sent {
            Ok(Ok(response)) => {
                return self.relay(
                    snapshot,
                    response.status,
                    response.headers,
                    Vec::new(),
                    response.body,
                    None,
                    None,
                    entry,
                );
            }
            Ok(Err(SendError::RequestBody)) => (StatusCode::BAD_REQUEST, SendError::RequestBody.to_string()),
            Ok(Err(error)) => (StatusCode::BAD_GATEWAY, error.to_string()),
            Err(_) => (StatusCode::GATEWAY_TIMEOUT, "no answer in time".to_owned()),
        };
        Error::new(status, format!("{}: {message}", provider.key)).response(Some(entry))
    }

    /// Waits for `work` as long as the drain time is not over.
    async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.drain.cancelled() => None,
        }
    }

    fn tools<'a>(&'a self, snapshot: &'a Snapshot) -> Tools<'a> {
        Tools { upstream: &self.upstream, health: &self.health, settings: &snapshot.settings }
    }

    fn session<'a>(&'a self, snapshot: &Snapshot, headers: &'a HeaderMap) -> Option<Session<'a>> {
        let lasts = snapshot.settings.sticky_provider_duration;
        let id = headers.get("x-claude-code-session-id").filter(|_| !lasts.is_zero())?;
        Some(Session { sticky: &self.sticky, id: id.as_bytes(), lasts, now: Instant::now() })
    }

    fn plan(
        &self,
        snapshot: &Snapshot,
        inbound: &Inbound,
        count_tokens: bool,
        session: Option<Session<'_>>,
    ) -> Result<Plan, Error> {
        let selection = Selection { strategy: snapshot.settings.strategy, session };
        let model = &inbound.model;
        let matching = snapshot.routes.matching(model);
        if let Some(name) = &inbound.pin {
            let route = pinned(snapshot, name, model)?;
            return Ok(self.plan_of(std::iter::once(&route), selection, model, count_tokens));
        }
        let mut routes = matching.peekable();
        if routes.peek().is_none() {
            let patterns: Vec<_> =
                snapshot.routes.routes().iter().map(|route| format!("\"{}\"", route.pattern)).collect();
            let message = format!("no route for model \"{model}\"; model_routes has {}", patterns.join(", "));
            return Err(Error::new(StatusCode::NOT_FOUND, message));
        }
        Ok(self.plan_of(routes, selection, model, count_tokens))
    }

    fn plan_of<'a>(
        &self,
        routes: impl Iterator<Item = &'a Route>,
        selection: Selection<'_>,
        model: &Arc<str>,
        count_tokens: bool,
    ) -> Plan {
        let now = Now::read();
        Plan::new(routes, selection, |target| {
            let scope = Scope { model: target.model.resolve(model), count_tokens };
            self.standing(&target.provider, &scope, now)
        })
    }

    fn standing(&self, provider: &Provider, scope: &Scope, now: Now) -> Standing {
        if !provider.enabled {
            Standing::Disabled
        } else if provider.auth == Auth::OAuth {
            Standing::LoginRequired
        } else {
            self.health.standing(provider, scope, now)
        }
    }

    /// How to sign an account in.
    fn login(&self, provider: &Provider) -> String {
        let query = provider.key.account.as_ref().map(|account| format!("?account_email={account}"));
        format!("To sign in, open {}/oauth/generate-url{}", self.endpoint, query.unwrap_or_default())
    }

    fn answer(
        &self,
        snapshot: &Snapshot,
        outcome: Result<Committed, Exhausted>,
        mut entry: Entry,
    ) -> Response<Outbound> {
        let committed = match outcome {
            Ok(committed) => committed,
            Err(exhausted) => return self.nothing_worked(snapshot, exhausted, entry),
        };
        let Committed { target, pattern, scope, permit, answer, status, success } = committed;
        entry.route = Some(pattern);
        note_provider(&mut entry, &target.provider);
        match answer.body {
            AnswerBody::Whole(pieces) => {
                if success {
                    self.health.succeeded(&target.provider, &scope);
                }
                whole(status, answer.headers, pieces, entry)
            }
            AnswerBody::Open { held, rest, observer } => {
                let settle = success.then(|| Settle {
                    health: self.health.clone(),
                    provider: target.provider.clone(),
                    scope,
                    permit,
                });
                self.relay(snapshot, status, answer.headers, held, rest, observer, settle, entry)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "an answer in its parts, and whom its end concerns")]
    fn relay(
        &self,
        snapshot: &Snapshot,
        status: StatusCode,
        headers: HeaderMap,
        held: Vec<Bytes>,
        rest: crate::upstream::Body,
        observer: Option<Box<events::Observer>>,
        settle: Option<Settle>,
        mut entry: Entry,
    ) -> Response<Outbound> {
        let encoded = headers.contains_key(http::header::CONTENT_ENCODING);
        let events = attempt::is_event_stream(&headers) && !encoded;
        // An error of ours may have to follow what the provider sent.
        let mut headers = rewrite::downstream(&headers, !events);
        rewrite::sign(&mut headers, label(&entry).as_deref(), entry.attempts);
        if held.is_empty() && rest.is_end() {
            // No body at all; what a head announces all the same is the answer to HEAD, and only there may it stay.
            if !entry.what.starts_with("HEAD ") {
                headers.remove(CONTENT_LENGTH);
            }
            entry.committed(status.as_u16(), false);
            return assemble(status, headers, Outbound::whole(Vec::new(), Some(entry)));
        }
        entry.committed(status.as_u16(), true);
        let terms = Terms {
            idle: snapshot.settings.timeouts.idle,
            drain: self.drain.clone().cancelled_owned(),
            entry,
            settle,
            events,
        };
        assemble(status, headers, Outbound::Relay(Box::new(Relay::new(held, rest, observer, terms))))
    }

    fn nothing_worked(&self, snapshot: &Snapshot, mut exhausted: Exhausted, mut entry: Entry) -> Response<Outbound> {
        let now = SystemTime::now();
        if let Some((status, headers, pieces)) = exhausted.only_answer.take() {
            let reset = exhausted.failed.iter().filter_map(|failed| failed.reset).min();
            let only = exhausted.failed.first().map(|failed| failed.label.as_str());
            entry.provider = only.map(Into::into);
            let mut response = whole(status, headers, pieces, entry);
            reject::discourage(&mut response, reset, now);
            return response;
        }
        let account = snapshot.providers.iter().find(|provider| {
            provider.auth == Auth::OAuth && exhausted.failed.iter().any(|failed| failed.label == provider.label())
        });
        let login = account.map(|provider| self.login(provider)).unwrap_or_default();
        let attempts = entry.attempts;
        let mut response = reject::all_failed(&exhausted, &login, now).response(Some(entry));
        rewrite::sign(response.headers_mut(), None, attempts);
        response
    }
}

fn rewrite_head<'a>(head: &'a Parts, admitted: &'a Admitted) -> rewrite::Inbound<'a> {
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    rewrite::Inbound { method: &head.method, target, headers: &head.headers, admitted, identity_only: true }
}

fn note_provider(entry: &mut Entry, provider: &Provider) {
    entry.provider = Some(provider.key.name.clone());
    entry.account = provider.key.account.as_ref().map(ToString::to_string);
}

fn label(entry: &Entry) -> Option<String> {
    let name = entry.provider.as_ref()?;
    Some(match &entry.account {
        Some(account) => format!("{name} ({account})"),
        None => name.to_string(),
    })
}

fn whole(status: StatusCode, headers: HeaderMap, pieces: Vec<Bytes>, mut entry: Entry) -> Response<Outbound> {
    let mut headers = rewrite::downstream(&headers, false);
    rewrite::sign(&mut headers, label(&entry).as_deref(), entry.attempts);
    entry.committed(status.as_u16(), false);
    assemble(status, headers, Outbound::whole(pieces, Some(entry)))
}

fn assemble(status: StatusCode, headers: HeaderMap, body: Outbound) -> Response<Outbound> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Entries as targets, in file order.
fn entries(providers: &[Arc<Provider>], wanted: impl Fn(&Provider) -> bool) -> Vec<Target> {
    let target = |provider: &Arc<Provider>| Target {
        provider: provider.clone(),
        model: ModelChoice::Passthrough,
        priority: 1,
        enabled: true,
    };
    providers.iter().filter(|provider| wanted(provider)).map(target).collect()
}

/// The route of a request that insists on a provider: its targets in the matching routes, else its entries.
fn pinned(snapshot: &Snapshot, name: &str, model: &str) -> Result<Route, Error> {
    let own = |target: &&Target| &*target.provider.key.name == name;
    let mut targets: Vec<Target> =
        snapshot.routes.matching(model).flat_map(|route| route.targets.iter().filter(own)).cloned().collect();
    if targets.is_empty() {
        targets = entries(&snapshot.providers, |provider| &*provider.key.name == name);
    }
    if targets.is_empty() {
        let message = format!("the request insists on a provider \"{name}\", which the configuration does not have");
        return Err(Error::new(StatusCode::NOT_FOUND, message));
    }
    Ok(Route::new(name, targets))
}
