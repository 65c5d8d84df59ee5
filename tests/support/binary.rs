//! The real program as a child process, in an environment and a home of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Client, Reply, soon};

/// A home folder, which is also the working folder, and an environment.
pub struct Binary {
    home: tempfile::TempDir,
    environment: Vec<(String, String)>,
    /// What it is started by, if anything.
    under: Vec<String>,
}

/// What a run that ends by itself said.
#[derive(Debug)]
pub struct Said {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A running balancer; dropping it kills it.
pub struct Service {
    child: Child,
    lines: UnboundedReceiver<String>,
    /// All lines so far that were waited for or passed over.
    pub seen: Vec<String>,
}

impl Default for Binary {
    fn default() -> Self {
        Self::new()
    }
}

impl Binary {
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), environment: Vec::new(), under: Vec::new() }
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Started by another program, which takes it and its arguments behind these words.
    pub fn under(mut self, words: &[&str]) -> Self {
        self.under = words.iter().map(ToString::to_string).collect();
        self
    }

    /// With so many file descriptors at most.
    pub fn with_descriptors(self, most: u32) -> Self {
        self.under(&["/bin/sh", "-c", &format!("ulimit -n {most}; exec \"$0\" \"$@\"")])
    }

    /// Writes a file below the home folder.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_claude-code-balancer");
        let mut command = match self.under.split_first() {
            None => Command::new(program),
            Some((first, words)) => {
                let mut command = Command::new(first);
                command.args(words).arg(program);
                command
            }
        };
        command.args(arguments).current_dir(self.home()).env_clear().env("HOME", self.home());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub async fn run(&self, arguments: &[&str]) -> Said {
        let child = self.command(arguments).spawn().unwrap();
        // One that serves although it should have ended must not keep the test from failing.
        let mut unending = Unending(Some(child.id()));
        let output = tokio::task::spawn_blocking(move || child.wait_with_output());
        let output = soon(&format!("the end of {arguments:?}"), output).await.unwrap().unwrap();
        unending.0 = None;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { status: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Starts it; the caller waits for what it says.
    pub fn start(&self, arguments: &[&str]) -> Service {
        Self::follow(self.command(arguments))
    }

    /// The same, for a program that reads what somebody types: see [`Service::say`].
    pub fn converse(&self, arguments: &[&str]) -> Service {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped());
        Self::follow(command)
    }

    fn follow(mut command: Command) -> Service {
        let mut child = command.spawn().unwrap();
        let (sender, lines) = unbounded_channel();
        follow(child.stdout.take().unwrap(), sender.clone());
        follow(child.stderr.take().unwrap(), sender);
        Service { child, lines, seen: Vec::new() }
    }

    /// Starts it on a free port, and waits until it serves.
    pub async fn serve(&self, arguments: &[&str]) -> (Service, SocketAddr) {
        Self::serving(self.start(&[arguments, &["--port", "0"]].concat())).await
    }

    /// The same, with so many descriptors and no more.
    #[cfg(unix)]
    pub async fn serve_within(&self, descriptors: u32) -> (Service, SocketAddr) {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {descriptors}; exec \"$0\" --port 0");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_claude-code-balancer")]).current_dir(self.home());
        command.env_clear().env("HOME", self.home());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::serving(Self::follow(command)).await
    }

    async fn serving(mut service: Service) -> (Service, SocketAddr) {
        let line = service.line("listening on http://127.0.0.1:").await;
        service.line("export ANTHROPIC_BASE_URL=").await;
        let address = line.rsplit("http://").next().unwrap().trim().parse().unwrap();
        (service, address)
    }
}

fn follow(stream: impl Read + Send + 'static, lines: UnboundedSender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
}

/// A child that was not waited for to its end; it is killed.
struct Unending(Option<u32>);

impl Drop for Unending {
    fn drop(&mut self) {
        if let (Some(id), true) = (self.0, cfg!(unix)) {
            let _ = Command::new("kill").args(["-s", "KILL", &id.to_string()]).status();
        }
    }
}

impl Service {
    /// Waits for a line that holds this text.
    pub async fn line(&mut self, text: &str) -> String {
        let wait = async {
            while let Some(line) = self.lines.recv().await {
                self.seen.push(line.clone());
                if line.contains(text) {
                    return Some(line);
                }
            }
            None
        };
        let found = tokio::time::timeout(std::time::Duration::from_secs(10), wait).await;
        found.ok().flatten().unwrap_or_else(|| panic!("no line with {text:?}:\n{}", self.seen.join("\n")))
    }

    /// Types a line.
    pub fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Types nothing more.
    pub fn hang_up(&mut self) {
        self.child.stdin = None;
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All lines so far.
    pub fn said(&mut self) -> &[String] {
        while let Ok(line) = self.lines.try_recv() {
            self.seen.push(line);
        }
        &self.seen
    }

    /// Sends a signal by its short name.
    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill -s {name}");
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end; answers the exit status, and has all its lines in `seen`.
    pub async fn end(&mut self) -> Option<i32> {
        let rest = async {
            while let Some(line) = self.lines.recv().await {
                self.seen.push(line);
            }
        };
        soon("the end of its output", rest).await;
        // Its output is closed: it is over, or about to be.
        self.child.wait().unwrap().code()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request to a balancer at an address.
pub async fn ask(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let host = address.to_string();
    let mut client = Client::connect(address).await.unwrap();
    let headers = [&[("host", host.as_str()), ("connection", "close")], headers].concat();
    client.send(method, target, &headers, body).await.unwrap();
    soon(target, client.read_to_end()).await.unwrap()
}
