//! The configuration: from YAML text to an immutable [`Snapshot`].
//!
//! `tree` reads text into nodes that know where they stand, `file` knows what they say, `resolve` what it means; all
//! collect every problem with its place and a cure. [`Live`] holds the snapshot in force. Nothing here knows HTTP.
//!
//! Decisions on what a file may say, beyond the tables of the README:
//!
//! * `yes`/`no`/`on`/`off` are flags, as YAML 1.1 has them; `"true"` in quotes is an error.
//! * `name`, `provider`, `model`, `auth_value` and `api_key` take a number or a flag as the text that was written.
//! * A key without a value is an error, except `account_email`, `proxy` and `log_file_path` (not given) and the
//!   sections (empty).
//! * Aliases work inside bounds; merge keys (`<<`) and tags do not.
//! * `unhealthy_reset_timeout: 0` means that failures are never forgotten, as in the predecessor.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::provider::{Auth, BaseUrl, Egress, Kind, Provider, ProviderKey};
use crate::route::RouteTable;

mod credential;
mod difference;
mod entry;
mod fields;
mod file;
mod keys;
mod legacy;
mod live;
mod print;
mod problem;
mod reading;
mod resolve;
mod schema;
mod settings;
mod shadow;
mod snapshot;
mod syntax;
mod tree;
mod watch;

pub use difference::{NEEDS_RESTART, difference};
pub use live::{Live, Outcome, Overrides, Rejected};
pub use problem::{Place, Problem, Report, Severity};
pub use reading::Reading;
pub use schema::schema;
pub use snapshot::{ClientAuth, Language, LogLevel, OAuthSettings, OAuthStorage, Settings, Snapshot, Timeouts};
pub use tree::FILE_LIMIT;
pub use watch::Watch;

use problem::Problems;

/// What the meaning of a file depends on besides its text.
pub struct Surroundings<'a> {
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Whether `file:` credentials are read.
    pub files: bool,
    /// Where relative paths begin: the folder of the file.
    pub folder: Option<PathBuf>,
    /// Whether other users of this machine may read the file.
    pub readable_by_others: bool,
    /// What the command line says instead of `settings.host`.
    pub host: Option<String>,
    /// What the command line says instead of `settings.port`.
    pub port: Option<u16>,
}

impl<'a> Surroundings<'a> {
    /// Nothing but an environment: no file is read.
    pub fn pure(env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { env, files: false, folder: None, readable_by_others: false, host: None, port: None }
    }
}

/// The environment of this process.
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The file to use, the first of: the one that was asked for; `$CLAUDE_CODE_BALANCER_CONFIG`; `./config.yaml`;
/// `./config/config.yaml`; that of the user. The first two need not exist: that is for [`load`] to report.
pub fn locate(explicit: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    if let Some(path) = explicit {
        return Some(path.to_owned());
    }
    let given = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = given("CLAUDE_CODE_BALANCER_CONFIG") {
        return Some(path);
    }
    let user = if cfg!(windows) {
        given("APPDATA")
    } else if cfg!(target_os = "macos") {
        given("XDG_CONFIG_HOME").or_else(|| given("HOME").map(|home| home.join("Library/Application Support")))
    } else {
        given("XDG_CONFIG_HOME").or_else(|| given("HOME").map(|home| home.join(".config")))
    };
    let user = user.map(|folder| folder.join("claude-code-balancer").join("config.yaml"));
    [Some("config.yaml".into()), Some("config/config.yaml".into()), user]
        .into_iter()
        .flatten()
        .find(|path| path.exists())
}

/// Reads a file with the environment of this process.
///
/// # Errors
/// Every problem of the file.
pub fn load(path: &Path) -> Result<(Snapshot, Vec<Problem>), Report> {
    load_with(path, &Overrides::default(), &process_env)
}

/// Reads a file; [`load`] with everything given.
///
/// # Errors
/// Every problem of the file.
pub fn load_with(
    path: &Path,
    overrides: &Overrides,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Snapshot, Vec<Problem>), Report> {
    judge(path, Reading::of(path), overrides, env)
}

/// What a file that has been read means.
fn judge(
    path: &Path,
    reading: Reading,
    overrides: &Overrides,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Snapshot, Vec<Problem>), Report> {
    let name = problem::printable_path(&path.to_string_lossy());
    let bytes = reading.bytes.map_err(|why| {
        let message = format!("cannot read the file: {why}");
        Report { file: name.clone(), problems: vec![syntax::problem(None, message, "name another file with --config")] }
    })?;
    let around = Surroundings {
        env,
        files: true,
        folder: Some(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()),
        readable_by_others: reading.readable_by_others,
        host: overrides.host.clone(),
        port: overrides.port,
    };
    let (mut snapshot, warnings) = parse(&bytes, &name, &around)?;
    snapshot.file = Some(path.to_owned());
    Ok((snapshot, warnings))
}

/// Reads a text; `file` is what the report calls it. Touches nothing outside but `file:` credentials, where
/// [`Surroundings::files`] allows it.
///
/// # Errors
/// Every problem of the text.
pub fn parse(text: &[u8], file: &str, around: &Surroundings<'_>) -> Result<(Snapshot, Vec<Problem>), Report> {
    let report = |problems| Report { file: file.to_owned(), problems };
    let root = tree::parse(text).map_err(|problem| report(vec![problem]))?;
    let mut problems = Problems::default();
    let snapshot =
        file::File::read(&root, &mut problems).and_then(|file| resolve::resolve(file, None, around, &mut problems));
    match snapshot {
        Some(snapshot) => Ok((snapshot, problems.into_list())),
        None => Err(report(problems.into_list())),
    }
}

/// The configuration of those who have none: Anthropic, with the client's own credential, for every model.
pub fn built_in() -> Snapshot {
    let base = BaseUrl { tls: true, host: "api.anthropic.com".into(), port: 443, prefix: "".into() };
    let key = ProviderKey { name: "Anthropic".into(), account: None };
    let provider = Arc::new(Provider::new(key, Kind::Anthropic, base, Auth::Passthrough, Egress::Direct));
    Snapshot {
        generation: 1,
        file: None,
        loaded_at: SystemTime::now(),
        routes: RouteTable::new(vec![resolve::implicit_route(std::iter::once(&provider))]),
        providers: vec![provider],
        settings: Settings::default(),
    }
}

/// What must hold for any bytes: no panic, every place inside the file, nothing on a terminal that it should not show, a
/// refusal with a reason, the same answer when asked again, and the same meaning when what was understood is printed and
/// read. For fuzzing and for the replay of its corpus.
pub fn check_any(bytes: &[u8]) {
    let env = |name: &str| (name == "SET").then(|| "a-value-of-the-environment".to_owned());
    let around = Surroundings::pure(&env);
    let inside = |problems: &[Problem]| {
        let text = String::from_utf8_lossy(bytes);
        let lines = syntax::lines(text.strip_prefix('\u{feff}').unwrap_or(&text));
        for place in problems.iter().filter_map(|problem| problem.place) {
            let line = usize::try_from(place.line).unwrap_or(usize::MAX);
            let column = usize::try_from(place.column).unwrap_or(usize::MAX);
            let found = lines.get(line - 1);
            assert!(found.is_some_and(|found| column <= found.chars().count() + 1), "{place:?} is outside the file");
        }
        for line in problems
            .iter()
            .flat_map(|problem| problem.render("any.yaml").lines().map(str::to_owned).collect::<Vec<_>>())
        {
            assert!(!line.chars().any(problem::is_unprintable), "{line:?} could move a terminal's cursor");
        }
    };
    match parse(bytes, "any.yaml", &around) {
        Ok((snapshot, warnings)) => {
            inside(&warnings);
            assert!(warnings.iter().all(|problem| problem.severity == Severity::Warning), "an error was accepted");
            let again = parse(bytes, "any.yaml", &around);
            assert!(
                again.is_ok_and(|(other, _)| difference(&snapshot, &other).is_empty()),
                "read twice, meant two things"
            );
            let printed = print::print(&snapshot);
            let reread = parse(printed.as_bytes(), "any.yaml", &around);
            let changes = reread.map(|(other, _)| difference(&snapshot, &other)).map_err(|report| report.to_string());
            assert_eq!(changes, Ok(Vec::new()), "printed, it means another thing");
        }
        Err(report) => {
            inside(&report.problems);
            assert!(
                report.problems.iter().any(|problem| problem.severity == Severity::Error),
                "refused without a reason"
            );
        }
    }
}
