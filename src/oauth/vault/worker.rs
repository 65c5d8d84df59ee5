//! A thread for calls that may block, or hang: the keyring's, and the disk's. Not the runtime's own blocking threads,
//! because the end of a runtime waits for those, and a desktop's keyring may wait for a human.
//!
//! Jobs run one after the other. Who waits for a job gives up as soon as one single call inside any job has taken
//! longer than the limit: so a hanging call makes everything behind it fail at once instead of piling up, until it
//! returns. A job that was given up before its turn is left out; one that has begun runs to its end.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::error::VaultError;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// The near end of a thread that owns an `S`. The thread ends after its last job when this is dropped; nobody waits.
pub(super) struct Worker<S> {
    name: &'static str,
    limit: Duration,
    queue: Option<mpsc::Sender<Job<S>>>,
    /// Since when the thread has been inside a call.
    pulse: watch::Receiver<Option<Instant>>,
}

impl<S> fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The far end: marks each call that may hang.
#[derive(Debug)]
pub(super) struct Pulse(watch::Sender<Option<Instant>>);

impl Pulse {
    /// Makes one call that may hang.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> T) -> T {
        struct End<'a>(&'a Pulse);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.0.send_replace(None);
            }
        }
        self.0.send_replace(Some(Instant::now()));
        let _end = End(self);
        call()
    }
}

impl<S: 'static> Worker<S> {
    /// Starts the thread; `limit` is for each call inside a job.
    pub(super) fn start(name: &'static str, limit: Duration, state: impl FnOnce(Pulse) -> S + Send + 'static) -> Self {
        let (queue, jobs) = mpsc::channel::<Job<S>>();
        let (sender, pulse) = watch::channel(None);
        let body = move || {
            let mut state = state(Pulse(sender));
            while let Ok(job) = jobs.recv() {
                // A library that panics costs its own call; who waits for it hears that no reply came.
                let _ = catch_unwind(AssertUnwindSafe(|| job(&mut state)));
            }
        };
        let started = std::thread::Builder::new().name(name.into()).spawn(body);
        Self { name, limit, queue: started.is_ok().then_some(queue), pulse }
    }

    /// Runs a job when its turn comes.
    ///
    /// # Errors
    /// [`VaultError::Unavailable`]: a call, this job's or an earlier one's, has taken longer than the limit. If this
    /// job has begun, it still runs to its end when the call returns.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, VaultError> {
        let silent = |what| VaultError::Unavailable(format!("the {} {what}", self.name));
        let (reply, mut answer) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            if !reply.is_closed() {
                let _ = reply.send(job(state));
            }
        });
        let queue = self.queue.as_ref().ok_or_else(|| silent("has no thread"))?;
        queue.send(job).map_err(|_| silent("has ended"))?;
        let mut pulse = self.pulse.clone();
        loop {
            let since = *pulse.borrow_and_update();
            tokio::select! {
                biased;
                reply = &mut answer => return reply.map_err(|_| silent("failed inside")),
                _ = pulse.changed() => {}
                () = tokio::time::sleep_until(since.unwrap_or_else(Instant::now) + self.limit), if since.is_some() => {
                    return Err(silent("does not answer"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn worker() -> Worker<Pulse> {
        Worker::start("test store", Duration::from_millis(200), |pulse| pulse)
    }

    #[tokio::test]
    async fn a_call_that_hangs_fails_all_behind_it_at_once_until_it_returns() {
        let (worker, began) = (worker(), Instant::now());
        let (release, wait) = mpsc::channel::<()>();
        let hanging = worker.run(move |pulse| pulse.call(|| wait.recv().is_ok()));
        let error = hanging.await.expect_err("hangs");
        assert_eq!(error.to_string(), "the store of tokens is unavailable: the test store does not answer");
        assert!((200..2000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        // The next one need not wait for the limit again, and is left out.
        let (count, began) = (Arc::new(AtomicU32::new(0)), Instant::now());
        for _ in 0..100 {
            let count = count.clone();
            worker.run(move |_| count.fetch_add(1, Ordering::SeqCst)).await.expect_err("behind it");
        }
        assert!(began.elapsed() < Duration::from_millis(190), "{:?}", began.elapsed());
        release.send(()).expect("it waits");
        while worker.run(|_| ()).await.is_err() {}
        assert_eq!(count.load(Ordering::SeqCst), 0, "what was given up was done all the same");
    }

    #[tokio::test]
    async fn many_calls_may_take_longer_together_than_one_may() {
        let slow =
            |pulse: &mut Pulse| (0..8).map(|_| pulse.call(|| std::thread::sleep(Duration::from_millis(60)))).count();
        assert_eq!(worker().run(slow).await.expect("no single one is too slow"), 8);
    }

    #[tokio::test]
    async fn a_job_that_panics_costs_only_itself() {
        let worker = worker();
        // Without the hook, which may take longer over a backtrace than the worker has.
        let job = |pulse: &mut Pulse| pulse.call(|| -> u8 { std::panic::resume_unwind(Box::new("meant")) });
        let failed = worker.run(job).await;
        assert!(matches!(failed, Err(VaultError::Unavailable(_))), "{failed:?}");
        assert_eq!(worker.run(|_| 7).await.expect("it lives"), 7);
    }

    #[test]
    fn the_end_of_a_runtime_does_not_wait_for_a_call_that_hangs() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
        let (worker, (_never, wait)) = (worker(), mpsc::channel::<()>());
        runtime
            .block_on(async { worker.run(move |pulse| pulse.call(|| wait.recv().is_ok())).await })
            .expect_err("hangs");
        let began = Instant::now();
        drop((runtime, worker));
        assert!(began.elapsed() < Duration::from_secs(1));
    }
}
