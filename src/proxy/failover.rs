//! The plan is consumed here, one target after the other, until an answer is committed or nothing is left. Whoever
//! holds a [`Committed`] holds no plan any more: failover after the commit point cannot be written.

use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::answer::note_provider;
use super::attempt::{self, Answer, AnswerBody, Arrival, Clock, Nature};
use super::ledger::Entry;
use super::limits;
use super::rewrite::{self, NoCredential};
use super::verdict::{self, Asked, Class, Fault, Outcome, Verdict};
use crate::config::Settings;
use crate::health::{self, Cause, Health, Now, Penalty, Permit, Scope, Standing};
use crate::metrics::AttemptKind;
use crate::route::{Plan, Planned, Target};
use crate::upstream::{DialLimits, Payload, Upstream};

/// The request, as every attempt needs it.
pub struct Job<'a> {
    /// The head that goes upstream.
    pub head: rewrite::Inbound<'a>,
    /// The body for a model name.
    pub body: &'a (dyn Fn(&str) -> Vec<Bytes> + Sync),
    /// Whether there is a body at all.
    pub has_body: bool,
    /// The model that was asked for; empty where none is concerned.
    pub model: std::sync::Arc<str>,
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
    /// Limits and switches.
    pub settings: &'a Settings,
}

/// An answer that belongs to the client.
#[derive(Debug)]
pub struct Committed {
    /// Who gave it.
    pub target: Target,
    /// From which route.
    pub pattern: std::sync::Arc<str>,
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
        let payload = if job.has_body { Payload::Pieces((job.body)(&model)) } else { Payload::Empty };
        let request = match rewrite::outbound(job.head, &provider, payload) {
            Ok(request) => request,
            Err(missing) => {
                exhausted.failed.push(Failed::without_credential(&target, missing));
                continue;
            }
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
        let arrival = attempt::send(tools.upstream, &provider, request, job.stream, clock).await;
        let now = Now::read();
        let what = describe(&arrival);
        let asked = Asked {
            auth: &provider.auth,
            model: &model,
            unhealthy_codes: &tools.settings.unhealthy_http_codes,
            replay_after_send: tools.settings.replay_after_send,
        };
        let verdict = judge(asked, &arrival, now.wall);
        tracing::debug!(id = %entry.id, provider = %provider.key, attempt = entry.attempts, outcome = %what, ?verdict, "attempt");
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
            (Verdict::Next(mut fault) | Verdict::Stop(mut fault), Arrival::OutOfTime) => {
                exhausted.out_of_time = true;
                if entry.attempts > 1 && now.monotonic.saturating_duration_since(began) < head_limit {
                    // The targets before it have used up the time that was due to this one.
                    fault.penalty = Penalty::None;
                }
                exhausted.note(&target, what, fault, tools.health, &scope, now, entry);
                return Err(exhausted);
            }
            (Verdict::Stop(fault), _) => {
                exhausted.note(&target, what, fault, tools.health, &scope, now, entry);
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
                exhausted.note(&target, what, fault, tools.health, &scope, now, entry);
                if let (Some(failed), Some(limit)) = (exhausted.failed.last_mut(), told) {
                    // Also of the client's own credential, where it costs the target nothing.
                    failed.reset = Some(limit.until);
                }
                exhausted.only_answer = if alone { presentable(arrival) } else { None };
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
        self.failed.push(Failed { label: provider.label(), class: fault.class, what, reset, tried: true });
    }
}

impl Failed {
    fn from_standing(target: &Target, standing: &Standing) -> Option<Self> {
        let (class, what, reset) = match standing {
            Standing::Disabled | Standing::Ready(_) => return None,
            Standing::LoginRequired => (Class::Login, "login required".to_owned(), None),
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
        Some(Self { label: target.provider.label(), class, what, reset, tried: false })
    }

    fn without_credential(target: &Target, missing: NoCredential) -> Self {
        let label = target.provider.label();
        Self { label, class: Class::Login, what: missing.to_string(), reset: None, tried: false }
    }
}

/// UTC, to the second.
fn clock_time(at: SystemTime) -> String {
    httpdate::fmt_http_date(at)
}
