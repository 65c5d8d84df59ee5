//! A terminal that a test can read.

use std::io::Write;
use std::sync::{Arc, Mutex};

use claude_code_balancer::log;
use prometheus_client::metrics::counter::Counter;
use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt;

#[derive(Clone, Default)]
pub struct Buffer(pub Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// From here on this thread's log goes to the buffer: everything, also what libraries say.
pub fn overhear() -> (Buffer, log::Log, (DefaultGuard, Dispatch)) {
    let buffer = Buffer::default();
    let options = log::Options {
        level: Some(tracing::Level::TRACE),
        libraries: true,
        terminal: Some((Box::new(buffer.clone()), false)),
        file: None,
        ..log::Options::default()
    };
    let (lines, writer) = log::start(options, Counter::default());
    // While there is only one, `tracing` asks the thread that comes first to an event whether anybody wants it; that
    // may be one of another test, where nobody does. With two, all are asked.
    let second = Dispatch::new(tracing_subscriber::registry());
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines));
    (buffer, writer, (guard, second))
}
