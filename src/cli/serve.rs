//! `serve`: configuration, log, sockets, until a signal ends it.

use std::process::ExitCode;
use std::sync::Arc;

use tokio::net::TcpListener;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::{CANNOT_BIND, ServeArgs, colour, complain, open, process, summary, unusable};
use crate::admin;
use crate::app::{self, App};
use crate::config::{Live, Overrides, Settings, Snapshot, Watch};
use crate::log;
use crate::memory;
use crate::metrics::Metrics;
use crate::oauth::Storage;
use crate::oauth::vault::{self, PassphraseFault};
use crate::server;
use crate::upstream::tls;

pub(super) async fn run(args: ServeArgs) -> ExitCode {
    let overrides = Overrides { host: args.host, port: args.port };
    let live = match open(args.config.as_deref(), overrides) {
        Ok(live) => live,
        Err(report) => return unusable(&report),
    };
    let snapshot = live.load();
    process::settle();
    memory::keep();
    let usual = server::Limits::default();
    let connections = process::connections(process::raise_descriptors(), usual.connections);
    let limits = server::Limits { connections, ..usual };
    let metrics = Arc::new(Metrics::default());
    let log = start_log(&snapshot, &metrics);
    process::quiet_panics(|text| tracing::error!("{text}"));
    let settings = &snapshot.settings;
    // From here on a signal ends us in order: whoever reads that we listen may send one at once.
    let signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            complain(&format!("cannot listen for signals: {error}"));
            return ExitCode::from(super::INTERNAL);
        }
    };
    let storage = match storage(settings) {
        Ok(storage) => storage,
        Err(error) => {
            tracing::error!("{error}");
            log.flush();
            return ExitCode::from(super::UNUSABLE);
        }
    };
    let listeners = match server::bind(&settings.host, settings.port) {
        Ok(listeners) => listeners,
        Err(error) => {
            tracing::error!("cannot listen on {}:{}: {error}", settings.host, settings.port);
            log.flush();
            return ExitCode::from(CANNOT_BIND);
        }
    };
    let workers = match server::Workers::start() {
        Ok(workers) => workers,
        Err(error) => {
            tracing::error!("cannot start: {error}");
            log.flush();
            return ExitCode::from(super::INTERNAL);
        }
    };
    let port = listeners.first().and_then(|first| first.local_addr().ok()).map_or(settings.port, |at| at.port());
    introduce(&live, &snapshot, &listeners, port, log.has_file());
    // The system's certificate store is read from disk: before the first request, not during it.
    let app = Arc::new(App::new(live, tls::system_roots(), metrics, port, Some(log.clone()), storage));
    let watch = watch(&app);
    let status = until_signal(signals, listeners, app, limits, workers.clone()).await;
    drop(watch);
    // What is still under way ends here, and says so in the log.
    drop(workers);
    tracing::info!("stopped");
    log.flush();
    status
}

/// Where accounts are kept; nothing is opened yet.
pub(super) fn storage(settings: &Settings) -> Result<Storage, PassphraseFault> {
    let env = |name: &str| std::env::var_os(name);
    let passphrase = vault::passphrase(env)?;
    let Some(folder) = vault::state_folder(env) else {
        tracing::warn!("there is no home and no XDG_STATE_HOME: accounts are not stored and end with the process");
        return Ok(Storage::memory());
    };
    Ok(Storage::Later(Box::new(vault::Options::new(&settings.oauth, folder, passphrase))))
}

/// Puts every saved edit into force, as long as what it answers lives.
fn watch(app: &App) -> Option<Watch> {
    let admin = app.admin.clone();
    let runtime = tokio::runtime::Handle::current();
    let started = Watch::start(admin.live.clone(), move |reading| {
        let _inside = runtime.enter();
        // The problems of a bad file are in the log already.
        let _ = admin.apply(reading);
    });
    started.unwrap_or_else(|error| {
        tracing::warn!("the configuration file is not watched, send SIGHUP after an edit: {error}");
        None
    })
}

fn start_log(snapshot: &Snapshot, metrics: &Metrics) -> Arc<log::Log> {
    let settings = &snapshot.settings;
    let options = log::Options {
        level: Some(admin::level(settings.log_level)),
        libraries: false,
        terminal: Some((Box::new(std::io::stderr()), colour(settings.log_color))),
        file: settings.log_file_path.clone(),
        rotation: log::Rotation::default(),
    };
    let (layer, log) = log::start(options, metrics.dropped_log_lines.clone());
    // Fails only where a subscriber is there already, which then gets the lines.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    Arc::new(log)
}

fn introduce(live: &Live, snapshot: &Snapshot, listeners: &[TcpListener], port: u16, to_file: bool) {
    tracing::info!("Claude Code Provider Balancer {}", env!("CARGO_PKG_VERSION"));
    match live.path() {
        Some(path) => tracing::info!("using {} ({})", path.display(), summary(snapshot)),
        None => {
            tracing::info!("no configuration file: using the built-in default, which passes your own login through")
        }
    }
    for provider in &snapshot.providers {
        let mark = if provider.enabled { "✓" } else { "✗" };
        tracing::info!("[{mark}] {} ({}): {}", provider.key, provider.kind, provider.base);
    }
    for warning in live.warnings().iter() {
        admin::warn(warning, &admin::file_name(snapshot));
    }
    if let Some(file) = snapshot.settings.log_file_path.as_ref().filter(|_| to_file) {
        tracing::info!("log file: {}", file.display());
    }
    for listener in listeners {
        if let Ok(address) = listener.local_addr() {
            tracing::info!("listening on http://{address}");
        }
    }
    let passwd = if cfg!(unix) { std::fs::read_to_string("/etc/passwd").unwrap_or_default() } else { String::new() };
    if let Some(text) = process::shared_port(!snapshot.settings.auth.keys.is_empty(), &passwd) {
        tracing::info!("{text}");
    }
    let url = app::endpoint(&snapshot.settings.host, port);
    tracing::info!("point Claude Code at it: export ANTHROPIC_BASE_URL={url}");
}

/// Serves until SIGTERM or SIGINT and through the drain; a second signal ends it at once. SIGHUP reloads.
async fn until_signal(
    mut signals: Signals,
    listeners: Vec<TcpListener>,
    app: Arc<App>,
    limits: server::Limits,
    workers: Arc<server::Workers>,
) -> ExitCode {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = async {
        let shutdown = async {
            let _ = stopped.await;
        };
        let _ = server::serve(listeners, app.clone(), shutdown, limits, workers).await;
        app.finish().await;
    };
    let mut serving = std::pin::pin!(serving);
    let mut background = std::pin::pin!(app.background());
    let mut stop = Some(stop);
    loop {
        tokio::select! {
            () = serving.as_mut() => return ExitCode::SUCCESS,
            () = background.as_mut() => {}
            signal = signals.next() => match (signal, stop.take()) {
                (Signal::Reload, kept) => {
                    stop = kept;
                    // The problems of a bad file are in the log already.
                    let admin = app.admin.clone();
                    if let Some(log) = &admin.log {
                        log.reopen();
                    }
                    drop(tokio::task::spawn_blocking(move || admin.reload()));
                }
                (Signal::End(name, _), Some(stop)) => {
                    tracing::info!("{name}: closing the listeners, finishing what is in flight");
                    let _ = stop.send(());
                }
                (Signal::End(name, status), None) => {
                    tracing::warn!("second {name}: ending at once");
                    return ExitCode::from(status);
                }
            },
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Signal {
    /// Its name, and the exit status by which shells know it.
    End(&'static str, u8),
    Reload,
}

#[cfg(unix)]
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::End("SIGTERM", 143),
            _ = self.interrupt.recv() => Signal::End("SIGINT", 130),
            _ = self.hangup.recv() => Signal::Reload,
        }
    }
}

#[cfg(not(unix))]
pub(super) struct Signals;

#[cfg(not(unix))]
impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    pub(super) async fn next(&mut self) -> Signal {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        Signal::End("Ctrl-C", 130)
    }
}
