//! The command line: one function for each subcommand that is more than a line. What is printed for the user goes
//! through `say` and `complain`; everything else is the log's.

mod accounts;
mod check;
mod child;
mod client;
mod conformance;
mod demo;
mod login;
mod process;
mod serve;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use http::Method;

use crate::admin::explain::{self, LiveView};
use crate::config::{self, Live, Overrides, Report, Snapshot};
use crate::log;
use client::Server;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// `EX_USAGE`: the configuration cannot be used.
const UNUSABLE: u8 = 64;
/// `EX_UNAVAILABLE`: the address cannot be bound.
const CANNOT_BIND: u8 = 69;
/// `EX_SOFTWARE`: our own fault.
const INTERNAL: u8 = 70;

/// One local endpoint in front of every way to reach Claude: routing by model, failover before the first byte,
/// streaming untouched.
#[derive(Debug, Parser)]
#[command(name = "claude-code-balancer", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the balancer (the default)
    Serve(ServeArgs),
    /// Report every problem of a configuration file at once
    Check {
        /// The file; without it, the one that `serve` would use
        path: Option<PathBuf>,
        /// For people, or for programs
        #[arg(long, value_enum, default_value = "human")]
        format: check::Format,
    },
    /// Print the JSON Schema of the configuration, for editors
    Schema,
    /// Show the ordered targets for a model, with the reason for each place
    Explain {
        /// The model name as a client sends it
        model: String,
        /// The configuration file
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
    /// Sign an account in
    Login {
        /// The account's e-mail; without it, the only one in the configuration, or one that is asked for
        email: Option<String>,
        /// The configuration file
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
    /// Show the accounts and their state
    Accounts {
        /// The configuration file
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
    /// Judge a gateway, or this very program, by the checklist of the public gateway contract
    Conformance(conformance::Args),
    /// A self-contained rehearsal: scripted providers, the real balancer, a few requests
    Demo {
        /// Leave it running for your own requests
        #[arg(long)]
        serve: bool,
    },
}

#[derive(Clone, Debug, Default, clap::Args)]
struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Instead of settings.host
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Instead of settings.port; 0 = any free one
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
}

/// Runs the program to its exit status.
pub fn run(cli: Cli) -> ExitCode {
    process::seal();
    process::quiet_panics(complain);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return ExitCode::from(INTERNAL);
        }
    };
    let status = runtime.block_on(async {
        match cli.command {
            None => serve::run(cli.serve).await,
            Some(Command::Serve(args)) => serve::run(args).await,
            Some(Command::Check { path, format }) => check::run(path.as_deref(), format),
            Some(Command::Schema) => {
                say(config::schema().trim_end());
                ExitCode::SUCCESS
            }
            Some(Command::Explain { model, config }) => explain(&model, config.as_deref()).await,
            Some(Command::Login { email, config }) => login::run(email.as_deref(), config.as_deref()).await,
            Some(Command::Accounts { config }) => accounts::run(config.as_deref()).await,
            Some(Command::Conformance(args)) => conformance::run(args).await,
            Some(Command::Demo { serve }) => demo::run(serve).await,
        }
    });
    // What still waits for a resolver or a disk must not hold up the end.
    runtime.shutdown_background();
    status
}

async fn explain(model: &str, path: Option<&Path>) -> ExitCode {
    let live = match open(path, Overrides::default()) {
        Ok(live) => live,
        Err(report) => return unusable(&report),
    };
    let snapshot = live.load();
    let answer = Server::of(&snapshot).ask(Method::GET, "/providers", None).await;
    let view = answer.and_then(|answer| LiveView::parse(&answer.body));
    match explain::explain(&snapshot, model, view.as_ref()) {
        Ok(text) => {
            say(text.trim_end());
            say(match view.as_ref().map(LiveView::file) {
                None => "  (from the file; no server answered)",
                Some(file) if same_file(file, live.path()) => "  (with the health of the running server)",
                Some(_) => "  (with the health of the running server, which uses another file)",
            });
            ExitCode::SUCCESS
        }
        Err(message) => {
            complain(&message);
            ExitCode::from(1)
        }
    }
}

fn same_file(theirs: Option<&str>, ours: Option<&Path>) -> bool {
    match (theirs, ours) {
        (None, None) => true,
        (Some(theirs), Some(ours)) => {
            let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
            real(Path::new(theirs)) == real(ours)
        }
        _ => false,
    }
}

fn open(path: Option<&Path>, overrides: Overrides) -> Result<Arc<Live>, Box<Report>> {
    let path = config::locate(path, &config::process_env);
    Live::open(path.as_deref(), overrides).map(Arc::new).map_err(Box::new)
}

fn unusable(report: &Report) -> ExitCode {
    complain(&report.to_string());
    complain("the configuration cannot be used");
    ExitCode::from(UNUSABLE)
}

fn summary(snapshot: &Snapshot) -> String {
    let enabled = snapshot.providers.iter().filter(|provider| provider.enabled).count();
    format!("{enabled} of {} providers enabled, {} routes", snapshot.providers.len(), snapshot.routes.routes().len())
}

/// A line for the user. A closed pipe is not worth an error.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// The log of a subcommand: warnings, on the terminal.
fn quiet_log() -> log::Log {
    let terminal: Option<(Box<dyn Write + Send>, bool)> = Some((Box::new(std::io::stderr()), colour(true)));
    let options = log::Options { level: Some(tracing::Level::WARN), terminal, ..log::Options::default() };
    let (layer, log) = log::start(options, Default::default());
    let _ = tracing_subscriber::registry().with(layer).try_init();
    log
}

/// A line for the user about what went wrong.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Waits for SIGTERM or SIGINT.
async fn until_end() {
    if let Ok(mut signals) = serve::Signals::new() {
        while matches!(signals.next().await, serve::Signal::Reload) {}
    }
}

fn colour(wanted: bool) -> bool {
    wanted && std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}
