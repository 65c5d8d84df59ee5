use super::*;
use crate::provider::{Auth, BaseUrl, Egress, Email, Kind, ProviderKey};
use crate::secret::Secret;

fn provider(name: &str, account: Option<&str>, key: &str) -> Provider {
    let key_of = ProviderKey { name: name.into(), account: account.and_then(Email::parse) };
    let base = BaseUrl::parse("https://h.test").expect("url");
    Provider::new(key_of, Kind::Anthropic, base, Auth::ApiKey(Secret::new(key)), Egress::Direct)
}

fn scope(model: &str) -> Scope {
    Scope { model: model.into(), count_tokens: false }
}

fn health(threshold: u32) -> Health {
    Health::new(Policy { unhealthy_threshold: threshold, ..Policy::default() })
}

fn word(standing: &Standing) -> &'static str {
    match standing {
        Standing::Ready(None) => "ready",
        Standing::Ready(Some(_)) => "permit",
        Standing::Cooling { .. } => "cooling",
        Standing::Limited { .. } => "limited",
        Standing::LoginRequired | Standing::StorageUnavailable => "login",
        Standing::Disabled => "disabled",
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Moves both clocks; the monotonic one is tokio's paused clock.
struct Clock(SystemTime);

impl Clock {
    fn start() -> Self {
        Self(SystemTime::UNIX_EPOCH + seconds(1_800_000_000))
    }

    async fn pass(&mut self, time: Duration) {
        tokio::time::advance(time).await;
        self.0 += time;
    }

    fn now(&self) -> Now {
        Now { monotonic: Instant::now(), wall: self.0 }
    }
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_lead_to_a_cooldown_that_doubles_up_to_five_minutes() {
    let (health, a, sonnet, mut clock) = (health(2), provider("A", None, "k"), scope("sonnet"), Clock::start());
    let fail = |now| health.penalise(&a, &sonnet, &Penalty::Failure, "500", now);
    assert!(!fail(clock.now()), "one failure is none");
    assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "ready");
    for (least, most) in [(48, 72), (96, 144), (192, 288), (240, 300), (240, 300)] {
        assert!(fail(clock.now()), "a cooldown begins");
        assert!(!fail(clock.now()), "what fails while it cools lengthens nothing");
        clock.pass(seconds(least) - Duration::from_millis(1)).await;
        assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "cooling", "{least} s");
        clock.pass(seconds(most - least) + Duration::from_millis(2)).await;
        assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "permit", "{most} s");
    }
    assert_eq!(word(&health.standing(&a, &scope("haiku"), clock.now())), "permit", "failures concern every model");
}

#[tokio::test(start_paused = true)]
async fn a_success_zeroes_the_counters_and_old_failures_are_forgotten() {
    let (health, a, sonnet, mut clock) = (health(2), provider("A", None, "k"), scope("sonnet"), Clock::start());
    health.penalise(&a, &sonnet, &Penalty::Failure, "500", clock.now());
    health.succeeded(&a, &sonnet);
    assert!(!health.penalise(&a, &sonnet, &Penalty::Failure, "500", clock.now()));
    clock.pass(seconds(301)).await;
    assert_eq!(health.report(&a, clock.now()).failures, 0);
    assert!(!health.penalise(&a, &sonnet, &Penalty::Failure, "500", clock.now()), "the old one does not count");
    assert!(health.penalise(&a, &sonnet, &Penalty::Failure, "500", clock.now()));
    let report = health.report(&a, clock.now());
    assert_eq!((report.failures, report.last_error.as_deref(), report.is_well()), (2, Some("500"), false));
    health.succeeded(&a, &sonnet);
    assert!(health.report(&a, clock.now()).is_well());
}

#[tokio::test(start_paused = true)]
async fn counting_tokens_neither_vouches_for_messages_nor_accuses_them() {
    let (health, a, sonnet, clock) = (health(2), provider("A", None, "k"), scope("sonnet"), Clock::start());
    let tokens = Scope { model: "sonnet".into(), count_tokens: true };
    for _ in 0..2 {
        health.penalise(&a, &tokens, &Penalty::Failure, "500", clock.now());
    }
    assert_eq!(word(&health.standing(&a, &tokens, clock.now())), "cooling");
    assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "ready");
    for _ in 0..2 {
        health.penalise(&a, &sonnet, &Penalty::Failure, "500", clock.now());
        health.succeeded(&a, &tokens);
    }
    assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "cooling");
}

#[tokio::test(start_paused = true)]
async fn names_of_models_do_not_become_a_heap() {
    let (health, a, clock) = (health(2), provider("A", None, "k"), Clock::start());
    for number in 0..10_000 {
        health.penalise(&a, &scope(&format!("model-{number}")), &Penalty::UnknownModel, "404", clock.now());
    }
    assert_eq!(word(&health.standing(&a, &scope("model-9999"), clock.now())), "cooling");
    assert_eq!(word(&health.standing(&a, &scope("model-0"), clock.now())), "ready", "long forgotten");
}

#[tokio::test(start_paused = true)]
async fn after_a_cooldown_one_request_at_a_time_may_prefer_the_target() {
    let (health, a, sonnet, mut clock) = (health(1), provider("A", None, "k"), scope("sonnet"), Clock::start());
    health.penalise(&a, &sonnet, &Penalty::Failure, "500", clock.now());
    clock.pass(seconds(73)).await;
    let first = health.standing(&a, &sonnet, clock.now());
    assert_eq!(word(&first), "permit");
    assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "cooling", "the others wait behind it");
    drop(first);
    let second = health.standing(&a, &sonnet, clock.now());
    assert_eq!(word(&second), "permit", "a client that leaves gives the permit back");
    health.succeeded(&a, &sonnet);
    assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "ready");
    drop(second);
    assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "ready");
}

#[tokio::test(start_paused = true)]
async fn each_penalty_reaches_as_far_as_its_cause() {
    let later = |clock: &Clock| clock.0 + seconds(3600);
    let (main, backup, other) =
        (provider("A", Some("m@x"), "k"), provider("A", Some("b@x"), "l"), provider("B", None, "k"));
    let (sonnet, haiku) = (scope("sonnet"), scope("haiku"));
    let tokens = Scope { model: "sonnet".into(), count_tokens: true };
    let limited = |until, model_only| Penalty::Limited { until, model_only };
    let mut clock = Clock::start();
    // (penalty, its length, main sonnet, main haiku, main count_tokens, backup sonnet)
    let rows = [
        (Penalty::Refused, 300, "cooling", "cooling", "cooling", "ready"),
        (Penalty::RefusedModel, 600, "cooling", "ready", "ready", "ready"),
        (Penalty::UnknownModel, 600, "cooling", "ready", "ready", "cooling"),
        (Penalty::Overloaded, 10, "cooling", "ready", "ready", "cooling"),
        (Penalty::Busy, 10, "cooling", "ready", "ready", "ready"),
        (Penalty::Spent, 3600, "cooling", "cooling", "cooling", "ready"),
        (limited(later(&clock), false), 3600, "limited", "limited", "limited", "ready"),
        (limited(later(&clock), true), 3600, "limited", "ready", "ready", "ready"),
    ];
    for (penalty, length, of_sonnet, of_haiku, of_tokens, of_backup) in rows {
        let (health, row) = (health(2), format!("{penalty:?}"));
        let at = clock.now();
        assert!(health.penalise(&main, &sonnet, &penalty, "x", at), "{row}");
        let standing = |provider: &Provider, scope: &Scope| word(&health.standing(provider, scope, at));
        let seen =
            (standing(&main, &sonnet), standing(&main, &haiku), standing(&main, &tokens), standing(&backup, &sonnet));
        assert_eq!(seen, (of_sonnet, of_haiku, of_tokens, of_backup), "{row}");
        assert_eq!(standing(&other, &sonnet), "ready", "{row}");
        let until = Now { monotonic: at.monotonic + seconds(length), wall: at.wall + seconds(length) };
        assert!(matches!(word(&health.standing(&main, &sonnet, until)), "ready" | "permit"), "{row} ends");
    }
    // What count_tokens runs into says nothing of messages.
    for penalty in
        [Penalty::Busy, Penalty::Spent, limited(later(&clock), false), Penalty::UnknownModel, Penalty::Overloaded]
    {
        let health = health(2);
        health.penalise(&main, &tokens, &penalty, "x", clock.now());
        assert_ne!(word(&health.standing(&main, &tokens, clock.now())), "ready", "{penalty:?}");
        assert_eq!(word(&health.standing(&main, &sonnet, clock.now())), "ready", "{penalty:?}");
    }
    clock.pass(seconds(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_waits_five_minutes_doubling_to_an_hour() {
    let (health, a, sonnet, mut clock) = (health(2), provider("A", None, "k"), scope("sonnet"), Clock::start());
    for minutes in [5, 10, 20, 40, 60, 60] {
        health.penalise(&a, &sonnet, &Penalty::Refused, "401", clock.now());
        clock.pass(seconds(minutes * 60 - 1)).await;
        assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "cooling", "{minutes} min");
        clock.pass(seconds(1)).await;
        assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "permit", "{minutes} min");
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_in_flight_does_not_lift_a_limit() {
    let (health, a, sonnet, clock) = (health(2), provider("A", None, "k"), scope("sonnet"), Clock::start());
    for model_only in [false, true] {
        health.penalise(
            &a,
            &sonnet,
            &Penalty::Limited { until: clock.0 + seconds(60), model_only },
            "429",
            clock.now(),
        );
        health.succeeded(&a, &sonnet);
        assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "limited");
    }
}

#[tokio::test(start_paused = true)]
async fn an_edit_that_mends_an_entry_starts_it_clean_and_one_that_removes_it_releases_its_record() {
    let (health, sonnet, clock) = (health(1), scope("sonnet"), Clock::start());
    let (old, new) = (provider("A", None, "old"), provider("A", None, "new"));
    health.penalise(&old, &sonnet, &Penalty::Failure, "500", clock.now());
    assert_eq!(word(&health.standing(&new, &sonnet, clock.now())), "ready");
    let same = Arc::new(provider("A", None, "old"));
    health.retain(Policy::default(), std::slice::from_ref(&same));
    assert_eq!(word(&health.standing(&same, &sonnet, clock.now())), "cooling", "records outlive a reload");
    health.retain(Policy::default(), &[Arc::new(new)]);
    assert_eq!(word(&health.standing(&same, &sonnet, clock.now())), "ready", "and are released with their entry");
}

#[tokio::test(start_paused = true)]
async fn without_a_cooldown_in_the_settings_failures_are_only_counted() {
    let policy = Policy { failure_cooldown: Duration::ZERO, ..Policy::default() };
    let (health, a, sonnet, clock) = (Health::new(policy), provider("A", None, "k"), scope("sonnet"), Clock::start());
    for _ in 0..5 {
        assert!(!health.penalise(&a, &sonnet, &Penalty::Failure, "500", clock.now()));
    }
    assert_eq!(word(&health.standing(&a, &sonnet, clock.now())), "ready");
    assert_eq!(health.report(&a, clock.now()).failures, 5);
}
