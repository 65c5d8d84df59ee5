//! The state folder, and the threads that everything in it is done on: one for locks, usage and the file of accounts,
//! whose saves wait for the disk; and one for what must not wait behind them.

use std::path::PathBuf;
use std::time::Duration;

use super::error::VaultError;
use super::private::Folder;
use super::usage::Usages;
use super::worker::{Pulse, Worker};

/// Longest single job: a disk that does not answer (a network share) must not hold up everything else.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Disk {
    folder: Folder,
    worker: Worker<Pulse>,
    journal: Worker<Pulse>,
    pub(super) usages: Usages,
}

impl Disk {
    pub(super) fn new(path: PathBuf) -> Self {
        let folder = Folder::new(path);
        let usages = Usages::new(folder.clone());
        let [worker, journal] = ["state folder", "journal"].map(|name| Worker::start(name, LIMIT, |pulse| pulse));
        Self { folder, worker, journal, usages }
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Does something in the folder, when its turn comes.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Folder) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let folder = self.folder.clone();
        self.worker.run(move |pulse| pulse.call(|| job(&folder))).await?
    }

    /// The same at once, for a job that does not wait for the disk: a reply that was read must not be lost because
    /// another account is just being saved.
    pub(super) async fn run_now<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Folder) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let folder = self.folder.clone();
        self.journal.run(move |pulse| pulse.call(|| job(&folder))).await?
    }
}
