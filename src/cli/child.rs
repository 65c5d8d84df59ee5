//! Our own program as a child process, for the judge: a configuration of its own, no environment, and its log in our
//! hands.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::conformance::{CANARY, Plan, SCENES, model_for};
use crate::lab::{Authority, Lab, closed_port};

/// How long it may take until it serves.
const START: Duration = Duration::from_secs(20);
/// What stands before its address in its log.
const ADDRESS: &str = "export ANTHROPIC_BASE_URL=";
/// The account of the scene that needs one.
pub(super) const EMAIL: &str = "conformance@example.com";

/// A running balancer. Dropping it ends it, and removes its folder.
pub(super) struct Own {
    child: Child,
    folder: PathBuf,
    log: Log,
    /// Where it serves.
    pub(super) url: String,
}

/// What it has said so far.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<(Mutex<Said>, Notify)>);

#[derive(Default)]
struct Said {
    text: String,
    ended: bool,
}

impl Log {
    pub(super) fn text(&self) -> String {
        self.said().text.clone()
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, stream: impl io::Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                log.said().text.push_str(&format!("{line}\n"));
                log.0.1.notify_one();
            }
            log.said().ended = true;
            log.0.1.notify_one();
        });
    }

    /// The address, once it is there.
    async fn address(&self) -> io::Result<String> {
        loop {
            let told = self.0.1.notified();
            {
                let said = self.said();
                let address = said.text.split_once(ADDRESS).and_then(|(_, rest)| rest.split_once('\n'));
                if let Some((address, _)) = address {
                    return Ok(address.trim().to_owned());
                }
                if said.ended {
                    return Err(io::Error::other(format!("the balancer did not start:\n{}", said.text)));
                }
            }
            told.await;
        }
    }
}

impl Own {
    /// Starts it in front of the two labs, with every scene.
    pub(super) async fn start(first: &Lab, second: &Lab, authority: &Authority) -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("claude-code-balancer-conformance-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let file = folder.join("config.yaml");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(&file)?.write_all(configuration(first, second, authority)?.as_bytes())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--port", "0", "--config"]).arg(&file);
        command.current_dir(&folder).env_clear().env("HOME", &folder).env("NO_COLOR", "1");
        // Windows cannot open a socket without it.
        command.envs(std::env::var_os("SystemRoot").map(|root| ("SystemRoot", root)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let log = Log::default();
        if let Some(stream) = child.stderr.take() {
            log.follow(stream);
        }
        let mut own = Self { child, folder, log, url: String::new() };
        own.url =
            timeout(START, own.log.address()).await.map_err(|_| io::Error::other("the balancer does not serve"))??;
        Ok(own)
    }

    pub(super) fn log(&self) -> Log {
        self.log.clone()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A configuration with providers and a route for every scene.
fn configuration(first: &Lab, second: &Lab, authority: &Authority) -> io::Result<String> {
    let (one, two, closed) = (first.url(), second.url(), closed_port()?);
    let (mut providers, mut routes) = (String::new(), String::new());
    for (scene, plan) in SCENES {
        let key = |lab: &str| format!("auth_value: \"{CANARY}-of-the-{lab}-{scene}\"");
        let own = "auth_value: passthrough".to_owned();
        let bearer = format!("auth_type: auth_token, {}", key("first"));
        let (first, second) = match plan {
            Plan::One => ((one.clone(), key("first")), None),
            Plan::Bearer => ((one.clone(), bearer), None),
            Plan::Own => ((one.clone(), own), None),
            Plan::Prefixed => ((format!("{one}/pre/fix/"), key("first")), None),
            Plan::Account => ((one.clone(), format!("auth_value: oauth, account_email: {EMAIL}")), None),
            Plan::Pair => ((one.clone(), key("first")), Some(key("second"))),
            Plan::OwnPair => ((one.clone(), own), Some(key("second"))),
            Plan::Refused => ((format!("http://{closed}"), key("first")), Some(key("second"))),
        };
        let (url, auth) = first;
        let _ = writeln!(providers, "  - {{ name: \"first-{scene}\", base_url: \"{url}\", {auth} }}");
        let _ = writeln!(routes, "  \"{}\":\n    - {{ provider: \"first-{scene}\", priority: 1 }}", model_for(scene));
        if let Some(auth) = second {
            let _ = writeln!(providers, "  - {{ name: \"second-{scene}\", base_url: \"{two}\", {auth} }}");
            let _ = writeln!(routes, "    - {{ provider: \"second-{scene}\", priority: 2 }}");
        }
    }
    Ok(format!(
        "providers:\n{providers}model_routes:\n{routes}settings:\n  log_level: DEBUG\n  log_file_path: \"\"\n  \
         log_color: false\n  oauth: {{ storage: memory, authorize_url: \"{}\", token_url: \"{}\" }}\n",
        authority.authorize_url(),
        authority.token_url()
    ))
}
