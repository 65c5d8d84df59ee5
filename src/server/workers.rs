//! The threads that serve connections. Each has a runtime of its own: a connection, its requests and the connections to
//! providers that they use stay on one of them, and wake no other.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Most threads: what this program does is mostly the kernel's work.
const MOST: usize = 16;

/// See the module. Dropping the last reference ends the threads, and with them whatever is still on one.
#[derive(Debug)]
pub struct Workers(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    handle: Handle,
    connections: Arc<AtomicUsize>,
    /// The thread runs until this is gone.
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

/// A connection's place on a worker, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place(Option<Arc<AtomicUsize>>);

impl Workers {
    /// One for each core.
    ///
    /// # Errors
    /// The system gives no thread, or no descriptors for one.
    pub fn start() -> io::Result<Arc<Self>> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(MOST);
        Ok(Arc::new(Self((0..count).map(Worker::start).collect::<io::Result<_>>()?)))
    }

    /// None of their own: connections are served by the runtime that accepts them.
    pub fn here() -> Arc<Self> {
        Arc::new(Self(Vec::new()))
    }

    /// A place on the worker that has the fewest connections.
    pub(super) fn place(&self) -> (Handle, Place) {
        match self.0.iter().min_by_key(|worker| worker.connections.load(Ordering::Relaxed)) {
            Some(worker) => {
                worker.connections.fetch_add(1, Ordering::Relaxed);
                (worker.handle.clone(), Place(Some(worker.connections.clone())))
            }
            None => (Handle::current(), Place(None)),
        }
    }
}

impl Worker {
    fn start(index: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("worker {index}")).spawn(move || {
            let _ = runtime.block_on(stopped);
            // What still waits for a resolver or a disk must not hold up the end.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, connections: Arc::default(), stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // All are told before one is waited for.
        self.0.iter_mut().for_each(|worker| drop(worker.stop.take()));
        for worker in &mut self.0 {
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(connections) = &self.0 {
            connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_go_where_the_fewest_are() {
        let workers = Workers(vec![Worker::start(0).expect("a thread"), Worker::start(1).expect("a thread")]);
        let counts = || -> Vec<usize> { workers.0.iter().map(|w| w.connections.load(Ordering::Relaxed)).collect() };
        let (first, second, third) = (workers.place(), workers.place(), workers.place());
        assert_eq!(counts(), [2, 1]);
        drop(first);
        drop(third);
        assert_eq!(counts(), [0, 1]);
        let name = first_name(&workers.place().0).await;
        assert_eq!(name.as_deref(), Some("worker 0"));
        drop(second);
    }

    async fn first_name(handle: &Handle) -> Option<String> {
        handle.spawn(async { std::thread::current().name().map(str::to_owned) }).await.expect("a name")
    }
}
