//! F14, quotas: a day of virtual time with six accounts of two providers, whose windows of 5 h and 7 d fill up; bare
//! 429s, bursts of 529, and refused overage between. It is played over the real plan, verdicts and records of health.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use claude_code_balancer::health::{Cause, Health, Now, Policy, Scope, Standing};
use claude_code_balancer::provider::{Auth, BaseUrl, Egress, Email, Kind, Provider, ProviderKey};
use claude_code_balancer::proxy::verdict::{Asked, Content, ErrorBody, Outcome, Verdict, judge};
use claude_code_balancer::route::{ModelChoice, Plan, Route, Selection, Strategy, Target};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::report::Report;

/// Between two requests.
const STEP: Duration = Duration::from_secs(5);
const WINDOW: u64 = 5 * 3600;
const WEEK: u64 = 7 * 24 * 3600;
/// Requests that an account may make in a window of 5 h, and in a week. Together less than what is asked for.
const QUOTA: u64 = 300;
const WEEKLY: u64 = 6000;
const MODEL: &str = "claude-lab";
/// How long a bare 429 or a 529 may keep an account from being asked.
const BRIEF: Duration = Duration::from_secs(10);

/// An account as its provider sees it.
struct Account {
    provider: Arc<Provider>,
    /// When its windows begin, in seconds from the beginning.
    offset: u64,
    used: u64,
    weekly: u64,
    window: u64,
    /// What was used, and what there was, in windows that were seen from their beginning to their end.
    whole: (u64, u64),
    /// Until when the balancer knows that it is rejected.
    known: Option<SystemTime>,
}

/// A simulated answer.
enum Answer {
    Ok,
    /// With the reset, in seconds from the beginning.
    Rejected(u64),
    Busy,
    Overloaded,
}

impl Account {
    fn window(&self, at: u64) -> u64 {
        (at + WINDOW - self.offset) / WINDOW
    }

    fn answer(&mut self, at: u64, number: u64) -> Answer {
        if self.window(at) != self.window {
            if self.window > 1 {
                self.whole.0 += self.used;
                self.whole.1 += QUOTA.min(WEEKLY - (self.weekly - self.used));
            }
            (self.window, self.used) = (self.window(at), 0);
        }
        if self.provider.key.name.as_ref() == "P" && at % 3600 < 30 {
            return Answer::Overloaded;
        }
        if self.weekly == WEEKLY {
            return Answer::Rejected(WEEK);
        }
        if self.used == QUOTA {
            return Answer::Rejected(self.window * WINDOW + self.offset);
        }
        if number.is_multiple_of(211) {
            return Answer::Busy;
        }
        self.used += 1;
        self.weekly += 1;
        Answer::Ok
    }
}

fn headers(reset: SystemTime, weekly: bool) -> HeaderMap {
    let seconds = reset.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let window = if weekly { "7d" } else { "5h" };
    let mut headers = HeaderMap::new();
    // Overage is refused for longer, which is no matter.
    for (name, value) in [
        (format!("{window}-status"), "rejected".to_owned()),
        (format!("{window}-reset"), seconds.to_string()),
        ("overage-status".to_owned(), "rejected".to_owned()),
        ("overage-reset".to_owned(), (seconds + 90_000).to_string()),
    ] {
        let name = HeaderName::try_from(format!("anthropic-ratelimit-unified-{name}")).unwrap();
        headers.insert(name, HeaderValue::try_from(value).unwrap());
    }
    headers
}

fn accounts() -> Vec<Account> {
    let account = |number: u64| {
        let name = if number < 4 { "P" } else { "Q" };
        let key = ProviderKey { name: name.into(), account: Email::parse(&format!("{number}@example.com")) };
        let base = BaseUrl::parse(&format!("https://{}.test", name.to_lowercase())).unwrap();
        let provider = Arc::new(Provider::new(key, Kind::Anthropic, base, Auth::OAuth, Egress::Direct));
        Account { provider, offset: number * 2000, used: 0, weekly: 0, window: 0, whole: (0, 0), known: None }
    };
    (0..6).map(account).collect()
}

/// Plays so many hours; must be called where time stands still.
pub async fn run(hours: u64) -> Report {
    let mut report = Report::new("quota", format!("{hours} h of virtual time, 6 accounts of 2 providers"));
    let health = Health::new(Policy::default());
    let mut accounts = accounts();
    let target = |account: &Account| Target {
        provider: account.provider.clone(),
        model: ModelChoice::Passthrough,
        priority: 1,
        enabled: true,
    };
    let route = Route::new("*", accounts.iter().map(target).collect());
    let scope = Scope { model: MODEL.into(), count_tokens: false };
    let (begin, start) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000), Instant::now());
    let (mut asked, mut unserved) = (0, 0);
    for number in 0..hours * 3600 / STEP.as_secs() {
        tokio::time::advance(STEP).await;
        let elapsed = start.elapsed();
        let (now, at) = (Now { monotonic: Instant::now(), wall: begin + elapsed }, elapsed.as_secs());
        let selection = Selection { strategy: Strategy::RoundRobin, session: None };
        let mut plan = Plan::new(std::iter::once(&route), selection, |target, place| {
            let standing = health.standing(&target.provider, &scope, now);
            place(target, standing);
        });
        let mut served = false;
        while let Some(planned) = plan.targets.pop_front() {
            let provider = planned.target.provider.clone();
            let account = accounts.iter_mut().find(|account| account.provider.key == provider.key).unwrap();
            let hopeless = account.known.is_some_and(|until| now.wall < until);
            report.check("nobody known to be rejected is asked before the reset", !hopeless, || {
                format!("{} at {at} s", provider.key)
            });
            asked += 1;
            let answer = account.answer(at, number);
            let (status, fields) = match answer {
                Answer::Ok => (200, HeaderMap::new()),
                Answer::Rejected(reset) => (429, headers(begin + Duration::from_secs(reset), reset == WEEK)),
                Answer::Busy => (429, HeaderMap::new()),
                Answer::Overloaded => (529, HeaderMap::new()),
            };
            let asking = Asked { auth: &provider.auth, model: MODEL, unhealthy_codes: &[], replay_after_send: true };
            let kind = if status == 529 { "overloaded_error" } else { "rate_limit_error" };
            let content = match status {
                200 => Content::AsAsked,
                _ => Content::Error(ErrorBody { kind, ..ErrorBody::default() }),
            };
            let outcome = Outcome::Answer { status, headers: &fields, content };
            let Verdict::Next(fault) = judge(asking, &outcome, now.wall) else {
                health.succeeded(&provider, &scope);
                served = true;
                break;
            };
            health.penalise(&provider, &scope, &fault.penalty, "scripted", now);
            match answer {
                Answer::Rejected(reset) => account.known = Some(begin + Duration::from_secs(reset)),
                Answer::Overloaded => plan.demote(&provider, planned.tier),
                _ => {}
            }
            bench(&accounts, &health, &scope, now, &provider, &mut report);
        }
        unserved += u64::from(!served);
    }
    let (used, there) = accounts.iter().fold((0, 0), |sum, account| (sum.0 + account.whole.0, sum.1 + account.whole.1));
    let used_up = used as f64 * 100.0 / there as f64;
    report.check("≥ 98 % of the quota is used", used_up >= 98.0, || format!("{used} of {there}"));
    report.figure("of the quota used, %", used_up);
    report.figure("requests to providers", asked);
    report.ends.ok = accounts.iter().map(|account| account.weekly).sum();
    report.requests = report.ends.ok + unserved;
    report.ends.upstream_error = unserved;
    report.done()
}

/// Nobody may be benched by a bare 429 or a 529 for long, nor by another provider's.
fn bench(accounts: &[Account], health: &Health, scope: &Scope, now: Now, failed: &Provider, report: &mut Report) {
    for account in accounts {
        let Standing::Cooling { until, cause } = health.standing(&account.provider, scope, now) else { continue };
        let wait = until.saturating_duration_since(now.monotonic);
        report.check("a bare 429 or a 529 benches for 10 s at most", wait <= BRIEF, || format!("{wait:?}, {cause:?}"));
        let foreign = cause == Cause::Overloaded && account.provider.key.name.as_ref() != "P";
        report.check("a 529 benches no other provider", !foreign, || {
            format!("{} after {}", account.provider.key, failed.key)
        });
    }
}
