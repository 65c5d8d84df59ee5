//! The plan is consumed here, one target after the other, until an answer is committed or nothing is left. Whoever
//! holds a [`Committed`] holds no plan any more: failover after the commit point cannot be written.

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::answer::note_provider;
use super::attempt::{self, Answer, AnswerBody, Arrival, Clock, Nature};
use super::ledger::Entry;
use super::limits;
use super::rewrite::{self, NoCredential};
use super::verdict::{self, Asked, Class, Fault, Outcome, Verdict};
use crate::config::Settings;
use crate::health::{self, Cause, Health, Now, Penalty, Permit, Scope, Standing};
use crate::metrics::AttemptKind;
use crate::oauth::{Accounts, Bearer, Lacking};
use crate::provider::{Auth, Provider, ProviderKey};
use crate::route::{Plan, Planned, Target};
use crate::upstream::{DialLimits, Payload, Request, Upstream};

/// The request, as every attempt needs it.
pub struct Job<'a> {
    /// The head that goes upstream.
    pub head: rewrite::Inbound<'a>,
    /// The body for a model name.
    pub body: &'a (dyn Fn(&str) -> Cow<'a, [Bytes]> + Sync),
    /// Whether there is a body at all.
    pub has_body: bool,
    /// The model that was asked for; empty where none is concerned.
    pub model: Arc<str>,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// Whether this is `count_tokens`.
    pub count_tokens: bool,
}

/// What the attempts work with.
#[derive(Clone, Copy)]
pub struct Tools<'a> {
    /// Connections.
    pub upstream: &'a Upstream,
    /// Records.
    pub health: &'a Health,
    /// Tokens.
    pub accounts: &'a Arc<Accounts>,
    /// Limits and switches.
    pub settings: &'a Settings,
}

/// An answer that belongs to the client.
#[derive(Debug)]
pub struct Committed {
    /// Who gave it.
    pub target: Target,
    /// From which route.
    pub pattern: Arc<str>,
    /// What health it concerns.
    pub scope: Scope,
    /// Held until the answer is complete.
    pub permit: Option<Permit>,
    /// The answer.
    pub answer: Answer,
    /// The status for the client: the answer's own, but for an error that came with 200.
    pub status: StatusCode,
    /// Whether it is a success; an error answer has no health effect.
    pub success: bool,
}

/// Nothing worked.
#[derive(Debug, Default)]
pub struct Exhausted {
    /// Tried, in order, and not tried, with the reason.
    pub failed: Vec<Failed>,
    /// The answer of the only candidate, where it was an HTTP error that may be shown.
    pub only_answer: Option<(StatusCode, HeaderMap, Vec<Bytes>)>,
    /// The time of the whole request was over.
    pub out_of_time: bool,
}

/// A target that did not answer.
#[derive(Debug)]
pub struct Failed {
    /// Who.
    pub label: String,
    /// What kind of failure.
    pub class: Class,
    /// In our own words.
    pub what: String,
    /// When it is worth asking again, where that is known.
    pub reset: Option<SystemTime>,
    /// Whether it was tried at all.
    pub tried: bool,
    /// The entry whose account must sign in, if that would help.
    pub sign_in: Option<ProviderKey>,
}

impl<'a> Job<'a> {
    fn request<'p>(
        &'p self,
        provider: &'p Provider,
        bearer: Option<&Bearer>,
        model: &str,
    ) -> Result<Request<'p>, NoCredential>
    where
        'a: 'p,
    {
        let payload = if self.has_body { Payload::Pieces((self.body)(model)) } else { Payload::Empty };
        rewrite::outbound(self.head, provider, bearer, payload)
    }
}

impl Tools<'_> {
    /// The token of a provider's account, if it has one; an expired one is renewed first.
    async fn bearer(&self, provider: &Provider, commit: Instant) -> Result<Option<Bearer>, Lacking> {
        let Some(account) = provider.key.account.as_ref().filter(|_| provider.auth == Auth::OAuth) else {
            return Ok(None);
        };
        let access = Box::pin(self.accounts.access(account, Now::read()));
        timeout_at(commit, access).await.unwrap_or(Err(Lacking::Busy)).map(Some)
    }

    /// A newer token than one that was refused.
    async fn renewed(&self, refused: &Bearer, commit: Instant) -> Result<Bearer, Lacking> {
        let newer = Box::pin(self.accounts.refused(refused.email(), refused.generation()));
        timeout_at(commit, newer).await.unwrap_or(Err(Lacking::Busy))
    }
}

/// What kind of failure the lack of a token is.
fn class(lacking: &Lacking) -> Class {
    match lacking {
        Lacking::LoginRequired(_) => Class::Login,
        Lacking::Busy => Class::Timeout,
        Lacking::StorageUnavailable | Lacking::Failing { .. } => Class::Failure,
    }
}

fn words(lacking: &Lacking) -> String {
    match lacking {
        Lacking::LoginRequired(need) => format!("login required: {need}"),
        other => other.to_string(),
    }
}

/// When a token that cannot be renewed now is tried again.
fn next_try(lacking: &Lacking, now: SystemTime) -> Option<SystemTime> {
    match lacking {
        Lacking::Failing { retry_in, .. } => now.checked_add(*retry_in),
        _ => None,
    }
}

/// Works through a plan.
pub async fn run(mut plan: Plan, job: &Job<'_>, tools: Tools<'_>, entry: &mut Entry) -> Result<Committed, Exhausted> {
    let started = Instant::now();
    let timeouts = &tools.settings.timeouts;
    let (head_limit, commit_limit) = if job.stream {
        (timeouts.first_byte_stream, timeouts.before_commit_stream)
    } else {
        (timeouts.first_byte, timeouts.before_commit)
    };
    let commit = started + commit_limit;
    let mut exhausted = Exhausted::default();
    for skipped in plan.skipped.drain(..) {
        exhausted.failed.extend(Failed::from_standing(&skipped.target, &skipped.standing));
    }
    let alone = plan.targets.len() == 1 && exhausted.failed.is_empty();
    let mut may_be_billed = false;

    while let Some(Planned { target, pattern, tier, permit, .. }) = plan.targets.pop_front() {
        let provider = target.provider.clone();
        let model = target.model.resolve(&job.model);
        let scope = Scope { model: model.clone(), count_tokens: job.count_tokens };
        let mut bearer = match tools.bearer(&provider, commit).await {
            Ok(bearer) => bearer,
            Err(lacking) => {
                exhausted.failed.push(Failed::without_token(&target, &lacking));
                continue;
            }
        };
        let Ok(mut request) = job.request(&provider, bearer.as_ref(), &model) else {
            exhausted.failed.push(Failed::without_credential(&target));
            continue;
        };
        entry.attempts += 1;
        // Noted before the answer, for the account of a request whose client leaves while it waits.
        note_provider(entry, &provider);
        if entry.attempts > 1 {
            entry.metrics().failovers.inc();
            if may_be_billed {
                entry.metrics().replays_after_send.inc();
                tracing::warn!(id = %entry.id, "sent again, although the provider before may have processed it");
            }
        }
        let began = Instant::now();
        let clock = Clock {
            dial: DialLimits { connect: timeouts.connect, tls: timeouts.tls },
            head: (!plan.targets.is_empty()).then(|| began + head_limit),
            commit,
            idle: timeouts.idle,
        };
        let asked = Asked {
            auth: &provider.auth,
            model: &model,
            unhealthy_codes: &tools.settings.unhealthy_http_codes,
            replay_after_send: tools.settings.replay_after_send,
        };
        let mut renewed = false;
        let mut lacking = None;
        let (now, verdict, arrival, refused) = loop {
            let arrival = pin!(attempt::send(tools.upstream, &provider, request, job.stream, clock)).await;
            let now = Now::read();
            let mut verdict = judge(asked, &arrival, now.wall);
            tracing::debug!(id = %entry.id, provider = %provider.key, attempt = entry.attempts, outcome = %describe(&arrival), ?verdict, "attempt");
            let refused = matches!(&verdict, Verdict::Next(fault) if fault.class == Class::Login);
            if let (Some(token), Verdict::Next(fault), true) = (&bearer, &mut verdict, refused) {
                if renewed {
                    tools.accounts.refused_again(token.email());
                } else {
                    match tools.renewed(token, commit).await {
                        // The same target once more, which is no attempt of its own.
                        Ok(fresh) => match job.request(&provider, Some(&fresh), &model) {
                            Ok(again) => {
                                (request, bearer, renewed) = (again, Some(fresh), true);
                                continue;
                            }
                            Err(NoCredential::Login | NoCredential::Client) => {}
                        },
                        Err(why) => {
                            *fault = Fault { class: class(&why), penalty: Penalty::None, ..fault.clone() };
                            lacking = Some(why);
                        }
                    }
                }
            }
            break (now, verdict, arrival, refused);
        };
        let what = |arrival: &Arrival| match &lacking {
            Some(lacking) => format!("{}; {}", describe(arrival), words(lacking)),
            None => describe(arrival),
        };
        if let (Some(bearer), Arrival::Answer(_), Verdict::Commit | Verdict::Forward(_)) = (&bearer, &arrival, &verdict)
        {
            tools.accounts.used(bearer.email(), now.wall);
        }
        match (verdict, arrival) {
            (Verdict::Commit, Arrival::Answer(answer)) => {
                entry.metrics().attempt(AttemptKind::Commit);
                let status = answer.status;
                return Ok(Committed { target, pattern, scope, permit, answer, status, success: true });
            }
            (Verdict::Forward(status), Arrival::Answer(answer)) => {
                entry.metrics().attempt(AttemptKind::Forward);
                let status = StatusCode::from_u16(status).unwrap_or(answer.status);
                return Ok(Committed { target, pattern, scope, permit, answer, status, success: false });
            }
            (Verdict::Next(mut fault) | Verdict::Stop(mut fault), arrival @ Arrival::OutOfTime) => {
                exhausted.out_of_time = true;
                if entry.attempts > 1 && now.monotonic.saturating_duration_since(began) < head_limit {
                    // The targets before it have used up the time that was due to this one.
                    fault.penalty = Penalty::None;
                }
                exhausted.note(&target, what(&arrival), fault, tools.health, &scope, now, entry);
                return Err(exhausted);
            }
            (Verdict::Stop(fault), arrival) => {
                exhausted.note(&target, what(&arrival), fault, tools.health, &scope, now, entry);
                return Err(exhausted);
            }
            (Verdict::Next(fault), arrival) => {
                may_be_billed = fault.maybe_processed;
                let overloaded = fault.class == Class::Overload;
                let told = match &arrival {
                    Arrival::Answer(answer) if fault.class == Class::RateLimit => {
                        limits::read(&answer.headers, now.wall)
                    }
                    _ => None,
                };
                let retry_at = lacking.as_ref().and_then(|lacking| next_try(lacking, now.wall));
                exhausted.note(&target, what(&arrival), fault, tools.health, &scope, now, entry);
                if let (Some(failed), Some(at)) =
                    (exhausted.failed.last_mut(), told.map(|limit| limit.until).or(retry_at))
                {
                    // Also of the client's own credential, where it costs the target nothing.
                    failed.reset = Some(at);
                }
                // A 401 to a token of ours is ours to explain: the client can do nothing about it.
                let present = alone && !(refused && bearer.is_some());
                exhausted.only_answer = if present { presentable(arrival) } else { None };
                drop(permit);
                if overloaded {
                    plan.demote(&provider, tier);
                }
            }
            // Only answers are committed or forwarded.
            (Verdict::Commit | Verdict::Forward(_), _) => {}
        }
    }
    Err(exhausted)
}

fn judge(asked: Asked<'_>, arrival: &Arrival, now: SystemTime) -> Verdict {
    let outcome = match arrival {
        Arrival::Answer(Answer { status, headers, nature, .. }) => {
            Outcome::Answer { status: status.as_u16(), headers, content: nature.content() }
        }
        Arrival::Failed(error) => Outcome::Failed(error),
        Arrival::HeadTimeout | Arrival::OutOfTime => Outcome::HeadTimeout,
        Arrival::Broken(_) | Arrival::Stalled => Outcome::BrokenBody,
    };
    verdict::judge(asked, &outcome, now)
}

/// An HTTP error that the client may see as it is.
fn presentable(arrival: Arrival) -> Option<(StatusCode, HeaderMap, Vec<Bytes>)> {
    match arrival {
        Arrival::Answer(Answer { status, headers, body: AnswerBody::Whole(pieces), nature })
            if status.as_u16() >= 400 && !matches!(nature, Nature::Html | Nature::Unusable(_)) =>
        {
            Some((status, headers, pieces))
        }
        _ => None,
    }
}

/// The outcome in our own words; of the provider's only the type of an error, where it is a plain word.
fn describe(arrival: &Arrival) -> String {
    match arrival {
        Arrival::Answer(Answer { status, nature, .. }) => {
            let status = status.as_u16();
            match nature {
                Nature::AsAsked => status.to_string(),
                Nature::Error { kind, .. } => {
                    let plain = !kind.is_empty()
                        && kind.len() <= 64
                        && kind.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
                    let kind = if plain { kind } else { "error" };
                    if status < 300 { format!("{kind} under status {status}") } else { format!("{status} {kind}") }
                }
                Nature::Html => format!("a web page under status {status}"),
                Nature::Unusable(why) => format!("{why} (status {status})"),
            }
        }
        Arrival::Failed(error) => error.to_string(),
        Arrival::HeadTimeout => "no answer in time".into(),
        Arrival::Broken(error) => error.to_string(),
        Arrival::Stalled => "the answer stalled".into(),
        Arrival::OutOfTime => "no answer before the time of the request was over".into(),
    }
}

impl Exhausted {
    #[expect(clippy::too_many_arguments, reason = "the facts of one failed attempt, used once")]
    fn note(
        &mut self,
        target: &Target,
        what: String,
        fault: Fault,
        records: &Health,
        scope: &Scope,
        now: Now,
        entry: &Entry,
    ) {
        let provider = &target.provider;
        entry.metrics().attempt(fault.class.metric());
        if records.penalise(provider, scope, &fault.penalty, &what, now) {
            entry.metrics().cooldowns.inc();
        }
        let reset = match fault.penalty {
            Penalty::Limited { until, .. } => Some(until),
            Penalty::Busy | Penalty::Overloaded => Some(now.wall + health::BRIEF_COOLDOWN),
            Penalty::Spent => Some(now.wall + health::SPENT_COOLDOWN),
            _ => None,
        };
        tracing::warn!(id = %entry.id, provider = %provider.key, attempt = entry.attempts, outcome = %what, "attempt failed");
        let sign_in = who_signs_in(provider, fault.class);
        self.failed.push(Failed { label: provider.label(), class: fault.class, what, reset, tried: true, sign_in });
    }
}

impl Failed {
    fn from_standing(target: &Target, standing: &Standing) -> Option<Self> {
        let (class, what, reset) = match standing {
            Standing::Disabled | Standing::Ready(_) => return None,
            Standing::LoginRequired => (Class::Login, "login required".to_owned(), None),
            Standing::StorageUnavailable => (Class::Failure, words(&Lacking::StorageUnavailable), None),
            Standing::Limited { until } => {
                (Class::RateLimit, format!("rate limited until {}", clock_time(*until)), Some(*until))
            }
            Standing::Cooling { cause, until } => {
                let left = until.saturating_duration_since(Instant::now());
                let class = match cause {
                    Cause::Failures => Class::Failure,
                    Cause::Refused | Cause::Unpaid => Class::Refused,
                    Cause::UnknownModel => Class::NotFound,
                    Cause::Overloaded => Class::Overload,
                    Cause::Busy | Cause::Spent => Class::RateLimit,
                };
                let reset = matches!(cause, Cause::Overloaded | Cause::Busy | Cause::Spent | Cause::Unpaid)
                    .then(|| SystemTime::now() + left);
                (class, format!("left alone for {} s more", left.as_secs() + 1), reset)
            }
        };
        let sign_in = who_signs_in(&target.provider, class);
        Some(Self { label: target.provider.label(), class, what, reset, tried: false, sign_in })
    }

    /// A `passthrough` provider, and a client without a credential.
    fn without_credential(target: &Target) -> Self {
        let (label, what) = (target.provider.label(), NoCredential::Client.to_string());
        Self { label, class: Class::Login, what, reset: None, tried: false, sign_in: None }
    }

    fn without_token(target: &Target, lacking: &Lacking) -> Self {
        let (label, what, class) = (target.provider.label(), words(lacking), class(lacking));
        let sign_in = who_signs_in(&target.provider, class);
        Self { label, class, what, reset: next_try(lacking, SystemTime::now()), tried: false, sign_in }
    }
}

fn who_signs_in(provider: &Provider, class: Class) -> Option<ProviderKey> {
    (class == Class::Login && provider.auth == Auth::OAuth).then(|| provider.key.clone())
}

/// UTC, to the second.
fn clock_time(at: SystemTime) -> String {
    httpdate::fmt_http_date(at)
}
