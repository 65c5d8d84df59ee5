//! What a lab has been told to do and what it has seen, shared by its connections.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::http2::Allowance;
use super::request::Received;
use super::script::Script;
use super::temper::{IdleClose, Temper, Welcome};

/// The memory of one lab.
pub(super) struct Record {
    orders: Mutex<Orders>,
    requests: Mutex<Vec<Received>>,
    complaints: Mutex<Vec<String>>,
    pub(super) received: watch::Sender<usize>,
    pub(super) departures: watch::Sender<usize>,
    pub(super) unread: watch::Sender<usize>,
    pub(super) connections: watch::Sender<usize>,
    pub(super) open: watch::Sender<usize>,
    pub(super) turned_away: watch::Sender<usize>,
}

struct Orders {
    queue: VecDeque<Script>,
    standing: Standing,
    temper: Temper,
    welcome: Welcome,
    allowance: Allowance,
    remember: bool,
}

/// What is answered when the queue is empty.
enum Standing {
    Always(Box<Script>),
    Answer(Answer),
}

type Answer = Arc<dyn Fn(&Received) -> Script + Send + Sync>;

impl Record {
    pub(super) fn new() -> Self {
        let orders = Orders {
            queue: VecDeque::new(),
            standing: Standing::Answer(Arc::new(Script::as_asked)),
            temper: Temper::new(IdleClose::Never),
            welcome: Welcome::Serve,
            allowance: Allowance::default(),
            remember: true,
        };
        Self {
            orders: Mutex::new(orders),
            requests: Mutex::default(),
            complaints: Mutex::default(),
            received: watch::Sender::new(0),
            departures: watch::Sender::new(0),
            unread: watch::Sender::new(0),
            connections: watch::Sender::new(0),
            open: watch::Sender::new(0),
            turned_away: watch::Sender::new(0),
        }
    }

    pub(super) fn always(&self, script: Script) {
        locked(&self.orders).standing = Standing::Always(Box::new(script));
    }

    pub(super) fn answer(&self, answer: Answer) {
        locked(&self.orders).standing = Standing::Answer(answer);
    }

    pub(super) fn next(&self, script: Script) {
        locked(&self.orders).queue.push_back(script);
    }

    pub(super) fn set_temper(&self, policy: IdleClose) {
        locked(&self.orders).temper = Temper::new(policy);
    }

    pub(super) fn set_welcome(&self, welcome: Welcome) {
        locked(&self.orders).welcome = welcome;
    }

    pub(super) fn set_allowance(&self, allowance: Allowance) {
        locked(&self.orders).allowance = allowance;
    }

    pub(super) fn allowance(&self) -> Allowance {
        locked(&self.orders).allowance
    }

    pub(super) fn set_remember(&self, remember: bool) {
        locked(&self.orders).remember = remember;
    }

    pub(super) fn welcome(&self) -> Welcome {
        locked(&self.orders).welcome
    }

    pub(super) fn fate(&self) -> IdleClose {
        locked(&self.orders).temper.fate()
    }

    /// The script for a request whose body has not been read, if that script wants no body.
    pub(super) fn early_script(&self) -> Option<Script> {
        let mut orders = locked(&self.orders);
        if let Some(script) = orders.queue.front() {
            return if script.early { orders.queue.pop_front() } else { None };
        }
        match &orders.standing {
            Standing::Always(script) if script.early => Some(Script::clone(script)),
            _ => None,
        }
    }

    pub(super) fn script_for(&self, request: &Received) -> Script {
        let answer = {
            let mut orders = locked(&self.orders);
            if let Some(script) = orders.queue.pop_front() {
                return script;
            }
            match &orders.standing {
                Standing::Always(script) => return Script::clone(script),
                Standing::Answer(answer) => Arc::clone(answer),
            }
        };
        // Outside the lock: the test's closure may ask the lab what it has seen.
        answer(request)
    }

    pub(super) fn receive(&self, request: &Received) {
        if locked(&self.orders).remember {
            locked(&self.requests).push(request.clone());
        }
        add(&self.received);
    }

    pub(super) fn requests(&self) -> Vec<Received> {
        locked(&self.requests).clone()
    }

    pub(super) fn complain(&self, what: String) {
        locked(&self.complaints).push(what);
    }

    pub(super) fn complaints(&self) -> Vec<String> {
        locked(&self.complaints).clone()
    }

    pub(super) fn depart(&self) {
        add(&self.departures);
    }

    pub(super) fn unread(&self) {
        add(&self.unread);
    }

    pub(super) fn turn_away(&self) {
        add(&self.turned_away);
    }

    /// Counts a connection as open for as long as the guard lives.
    pub(super) fn opened(self: &Arc<Self>) -> Open {
        add(&self.open);
        Open(Arc::clone(self))
    }
}

/// An open connection.
pub(super) struct Open(Arc<Record>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open = open.saturating_sub(1));
    }
}

pub(super) fn add(count: &watch::Sender<usize>) {
    count.send_modify(|count| *count += 1);
}

/// Waits until a count has what it takes.
pub(super) async fn until(count: &watch::Sender<usize>, enough: impl FnMut(&usize) -> bool) {
    let mut count = count.subscribe();
    // Cannot fail: the sender outlives the borrow.
    let _ = count.wait_for(enough).await;
}

/// A test that panicked elsewhere must not hide what was recorded.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
