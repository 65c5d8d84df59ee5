//! The two programs that are compared, and what the system tells of their processes.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::copy;
use crate::upstream::Upstream;

/// Longest wait for a program to say where it listens.
const START: Duration = Duration::from_secs(10);
/// A process that uses no processor for so long has nothing left to do. The log is written behind the answers.
const QUIET: Duration = Duration::from_millis(4);

/// A running program between client and provider; dropping it kills it.
pub(crate) struct Subject {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Its home and working folder, which goes with it.
    _home: tempfile::TempDir,
}

impl Subject {
    /// The balancer, as a user has it, in front of this provider. Models named `faulty…` meet an overloaded one first.
    pub(crate) fn balancer(upstream: &Upstream) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let config = format!(
            "providers:\n\
             \x20 - {{ name: Well, base_url: \"http://{}\", auth_value: a-key-of-the-bench }}\n\
             \x20 - {{ name: Overloaded, base_url: \"http://{}\", auth_value: another-key-of-the-bench }}\n\
             model_routes:\n\
             \x20 \"faulty*\":\n\
             \x20   - {{ provider: Overloaded, priority: 1 }}\n\
             \x20   - {{ provider: Well, priority: 2 }}\n\
             \x20 \"*\":\n\
             \x20   - {{ provider: Well }}\n",
            upstream.well, upstream.overloaded
        );
        std::fs::write(home.path().join("config.yaml"), config).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_claude-code-balancer"));
        command.args(["--port", "0"]);
        Self::start(command, home)
    }

    /// The baseline.
    pub(crate) fn copy(upstream: &Upstream) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([copy::ORDER, &upstream.well.to_string()]);
        Self::start(command, tempfile::tempdir().expect("a folder"))
    }

    fn start(mut command: Command, home: tempfile::TempDir) -> Self {
        command.current_dir(home.path()).env_clear().env("HOME", home.path());
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a program");
        let terminal = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, listening) = mpsc::channel();
        // Read to its end: a terminal that nobody reads would hold up the log.
        std::thread::spawn(move || {
            for line in terminal.lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("listening on http://") {
                    let _ = sender.send(address.trim().parse::<SocketAddr>());
                }
            }
        });
        let said = listening.recv_timeout(START);
        if said.is_err() {
            let _ = child.kill();
        }
        let address = said.expect("it says where it listens").expect("an address");
        Self { child, address, _home: home }
    }

    /// Processor time so far, of all its threads, to the nanosecond (a tick of `/proc/PID/stat` is 10 ms).
    pub(crate) fn processor_time(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a process");
        let times = threads.flatten().filter_map(|thread| {
            // A thread may end meanwhile.
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
        });
        times.sum()
    }

    /// The same, once it has nothing left to do.
    pub(crate) async fn processor_time_at_rest(&self) -> Duration {
        let mut before = self.processor_time();
        loop {
            tokio::time::sleep(QUIET).await;
            let now = self.processor_time();
            if now == before {
                return now;
            }
            before = now;
        }
    }

    /// Memory of its own, in KiB.
    pub(crate) fn memory(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a process");
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect("RssAnon")
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Client and provider are in this process, and a stream takes two descriptors of each program.
pub(crate) fn raise_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Puts this thread, and all threads and processes that it starts, on one core. To wake another core costs more than to
/// copy a message, and whether it has to be woken is chance: with two, the same program costs once this and once half
/// as much again.
pub(crate) fn stay_on_one_core() {
    let allowed = sched_getaffinity(None).expect("the cores of this process");
    let last = (0..CpuSet::MAX_CPU).rev().find(|core| allowed.is_set(*core)).expect("a core");
    let mut one = CpuSet::new();
    one.set(last);
    sched_setaffinity(None, &one).expect("a core");
}
