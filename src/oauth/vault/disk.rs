//! The state folder, and the thread that everything in it is done on: locks, usage, the file of accounts, and the journal
//! but for the write of a reply, which must not wait behind the saves of other accounts.

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
    pub(super) usages: Usages,
}

impl Disk {
    pub(super) fn new(path: PathBuf) -> Self {
        let folder = Folder::new(path);
        let usages = Usages::new(folder.clone());
        Self { folder, worker: Worker::start("state folder", LIMIT, |pulse| pulse), usages }
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
}
