//! Balancers whose store of accounts cannot be written: a small disk of memory that is full, or that can only be read;
//! a folder or a file that is closed to everybody.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use claude_code_balancer::oauth::Token;
use serde_json::Value;
use tokio::time::Instant;

use super::binary::ask;
use super::ordeal::{Kept, Ordeal, answered, number_of, who};

/// A disk of memory with 64 KiB, in a mount namespace that ends with this value, however that happens.
pub struct Small {
    shell: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    place: tempfile::TempDir,
}

impl Small {
    /// `None` = there is neither a user namespace nor root.
    pub fn mount() -> Option<Self> {
        [&["-Urm"][..], &["-m"]].into_iter().find_map(|namespaces| {
            let mut command = Command::new("unshare");
            command.args(namespaces).arg("sh").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut shell = command.spawn().ok()?;
            let (orders, answers) = (shell.stdin.take()?, BufReader::new(shell.stdout.take()?));
            let mut small = Self { shell, orders, answers, place: tempfile::tempdir().unwrap() };
            let mounted = small.order("mount -t tmpfs -o size=64k,mode=700 none");
            (mounted && std::fs::read_dir(small.folder()).is_ok()).then_some(small)
        })
    }

    /// Has the shell do something to the disk; whether that succeeded.
    fn order(&mut self, command: &str) -> bool {
        let mut answer = String::new();
        let said = writeln!(self.orders, "{command} '{}'; echo $?", self.place.path().display());
        said.is_ok() && self.answers.read_line(&mut answer).is_ok() && answer == "0\n"
    }

    /// Where it is seen from outside the namespace.
    pub fn folder(&self) -> PathBuf {
        let inside = self.place.path().strip_prefix("/").unwrap();
        PathBuf::from(format!("/proc/{}/root", self.shell.id())).join(inside)
    }

    /// `ro` or `rw`. The mount and not the disk, whose owner a namespace may not know. Refused while a file is open for
    /// writing, which is soon over.
    fn remount(&mut self, how: &str) {
        let done = (0..200).any(|_| {
            self.order(&format!("mount -o remount,bind,{how}")) || {
                std::thread::sleep(Duration::from_millis(10));
                false
            }
        });
        assert!(done, "remount {how}");
    }

    /// Leaves so many pages of 4 KiB.
    fn fill(&self, left: u64) {
        let mut file = std::fs::File::create(self.filler()).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(left * 4096)).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.folder().join("filler")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Full,
    ReadOnly,
    /// To its owner too.
    Closed,
}

/// Accounts whose store gets into trouble and out of it again.
pub struct Troubled {
    pub ordeal: Ordeal,
    trouble: Trouble,
    disk: Option<Small>,
    closed: Option<(PathBuf, u32)>,
}

/// Root is kept out of nothing while it has its capabilities.
const POWERLESS: [&str; 3] = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"];

impl Troubled {
    /// So many accounts, signed in; `None` = this machine does not let us make this trouble.
    pub async fn new(trouble: Trouble, kept: Kept, count: usize) -> Option<Self> {
        let (life, closed) = (28_800, None);
        if trouble != Trouble::Closed {
            let disk = Small::mount()?;
            let ordeal = Ordeal::at(count, kept, life, "", &disk.folder()).await;
            return Some(Self { ordeal, trouble, disk: Some(disk), closed });
        }
        let mut ordeal = Ordeal::new(count, kept, life, "").await;
        if rustix::process::geteuid().is_root() {
            let [program, options @ ..] = POWERLESS;
            Command::new(program).args(options).arg("true").status().ok().filter(|status| status.success())?;
            ordeal.binary = std::mem::take(&mut ordeal.binary).under(&POWERLESS);
        }
        Some(Self { ordeal, trouble, disk: None, closed })
    }

    /// The file of accounts.
    pub fn file(&self) -> PathBuf {
        self.ordeal.folder().join("accounts.json")
    }

    /// Nothing can be written from here on. With another `way` a full disk has so many pages left (too few for the
    /// file), one that can only be read has lost its locks, and it is the file that is closed, not the folder.
    pub fn begin(&mut self, way: usize) {
        let folder = self.ordeal.folder();
        match (self.trouble, &mut self.disk) {
            (Trouble::Full, Some(disk)) => disk.fill(way as u64),
            (Trouble::ReadOnly, Some(disk)) => {
                if way % 2 == 1 {
                    std::fs::remove_dir_all(folder.join("locks")).unwrap();
                }
                disk.remount("ro");
            }
            _ => {
                let closed = if way % 2 == 1 { (self.file(), 0o600) } else { (folder, 0o700) };
                permit(&closed.0, 0);
                self.closed = Some(closed);
            }
        }
    }

    /// It can be written again.
    pub fn end(&mut self) {
        match (self.trouble, &mut self.disk) {
            (Trouble::Full, Some(disk)) => std::fs::remove_file(disk.filler()).unwrap(),
            (Trouble::ReadOnly, Some(disk)) => disk.remount("rw"),
            _ => self.closed.take().iter().for_each(|(path, mode)| permit(path, *mode)),
        }
    }

    /// The number of an account's stored token; all records must be there and readable.
    pub async fn stored(&self, account: usize) -> usize {
        let stored: Vec<Token> = self.ordeal.stored(&self.ordeal.vault().await).await;
        number_of(stored[account].refresh.as_ref().unwrap().expose())
    }

    /// Files that were begun and are left.
    pub fn unfinished(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.ordeal.folder()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|name| name.ends_with(".new")).collect()
    }
}

fn permit(path: &Path, mode: u32) {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(path, permissions).unwrap();
}

/// What the balancer tells of an account.
pub async fn told(address: SocketAddr, account: usize) -> Value {
    let status = ask(address, "GET", "/oauth/status", &[], "").await.json();
    let found =
        status["tokens"].as_array().unwrap().iter().find(|token| token["account_email"] == who(account).as_str());
    found.unwrap_or_else(|| panic!("no account {account} in {status}")).clone()
}

/// Renews twice while nothing can be stored: both tokens serve, and the second is stored when it can be, although nobody
/// asks. Answers how long that took; `None` = this machine does not let us.
pub async fn stored_when_it_can_be(trouble: Trouble) -> Option<Duration> {
    let mut troubled = Troubled::new(trouble, Kept::Plain, 2).await?;
    let (mut service, address) = troubled.ordeal.serve().await;
    answered(address, "0").await;
    let before = std::fs::read(troubled.file()).unwrap();

    // Where the locks can be lost, not even they are left to be opened.
    troubled.begin(usize::from(trouble == Trouble::ReadOnly));
    for _ in 0..2 {
        troubled.ordeal.refuse(0);
        answered(address, "0").await;
        service.line("the new token is not stored").await;
        answered(address, "1").await;
    }
    assert_eq!(std::fs::read(troubled.file()).unwrap(), before, "{trouble:?}: the old file is as it was");
    assert_eq!((troubled.ordeal.newest(0), troubled.ordeal.authority.reuses()), (3, 0));

    troubled.end();
    let space = Instant::now();
    let stored = async {
        while troubled.stored(0).await != 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(35), stored).await.expect("it was not stored within 30 s");
    let took = space.elapsed();
    service.kill();
    // What the next process finds is the newest.
    let (_service, address) = troubled.ordeal.serve().await;
    troubled.ordeal.refuse(0);
    answered(address, "0").await;
    assert_eq!((troubled.ordeal.newest(0), troubled.ordeal.authority.reuses()), (4, 0));
    assert_eq!(troubled.unfinished(), [""; 0]);
    assert_eq!(troubled.stored(1).await, 1);
    Some(took)
}
