//! Files that nobody else may read: a folder of ours (0700), files of ours in it (0600), replaced whole or not at all.
//!
//! Our own folder is tightened where others could look in. Anything that is a link, is somebody else's, or is a file
//! that others may read is refused: what is in it may be known, or not be ours.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

#[cfg(all(test, unix))]
use super::crash::{Act, note};
use super::error::VaultError;

/// A folder of ours. Nothing is created before something is to be written.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

/// How our unfinished files are named: `.NAME.RANDOM.new`.
const UNFINISHED: &str = ".new";

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// A folder inside it.
    pub(super) fn inner(&self, name: &str) -> Self {
        Self(self.0.join(name))
    }

    /// Where a file of it is.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes sure that it is there, is ours, and is closed to others.
    pub(super) fn prepare(&self) -> Result<(), VaultError> {
        if !self.check()? {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            let missing: Vec<&Path> = self.0.ancestors().take_while(|path| !path.exists()).collect();
            for path in missing.into_iter().rev() {
                builder.create(path).map_err(VaultError::io("create the folder", path))?;
                #[cfg(all(test, unix))]
                note(Act::Folder(path.to_owned()));
                // Its name outlives a power cut too. Where we may not open the folder above, that is up to the system.
                if let Some(above) = path.parent() {
                    let _ = Self(above.to_owned()).flush();
                }
            }
            self.check()?;
        }
        Ok(())
    }

    /// Whether it is there; if so, it is ours and closed to others.
    fn check(&self) -> Result<bool, VaultError> {
        let found = match fs::symlink_metadata(&self.0) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(VaultError::io("look at the folder", &self.0)(error)),
        };
        let refuse = |why| Err(VaultError::Insecure { path: self.0.clone(), why });
        if found.is_symlink() {
            return refuse("is a symbolic link; tokens are kept in a real folder only");
        }
        if !found.is_dir() {
            return refuse("is not a folder");
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, PermissionsExt};
            if found.uid() != rustix::process::geteuid().as_raw() {
                return refuse("belongs to another user");
            }
            if found.mode() & 0o077 != 0 {
                fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700))
                    .map_err(VaultError::io("close to others the folder", &self.0))?;
                tracing::info!(folder = %self.0.display(), "a folder of tokens was open to others, and is closed now");
            }
        }
        Ok(true)
    }

    /// The whole of a file; `None` = there is no such file. At most `limit` bytes are read.
    pub(super) fn read(&self, name: &str, limit: usize) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        if !self.check()? {
            return Ok(None);
        }
        let path = self.path(name);
        let Some(file) = self.open(name, OpenOptions::new().read(true))? else { return Ok(None) };
        let length = file.metadata().map_or(0, |found| found.len());
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > limit {
            return Err(VaultError::TooLarge { bytes: length, limit });
        }
        // All at once: a buffer that grows would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(length + 1));
        file.take(limit as u64).read_to_end(&mut bytes).map_err(VaultError::io("read", &path))?;
        Ok(Some(bytes))
    }

    /// Opens a file of ours; `None` = it is not there (and was not to be created).
    pub(super) fn open(&self, name: &str, options: &mut OpenOptions) -> Result<Option<File>, VaultError> {
        let path = self.path(name);
        #[cfg(unix)]
        {
            use rustix::fs::OFlags;
            use std::os::unix::fs::OpenOptionsExt;
            // A pipe that somebody put there must not make us wait.
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            options.mode(0o600).custom_flags(i32::try_from(flags.bits()).unwrap_or_default());
        }
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            #[cfg(unix)]
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(VaultError::Insecure {
                    path,
                    why: "is a symbolic link; tokens are kept in real files only",
                });
            }
            Err(error) => return Err(VaultError::io("open", &path)(error)),
        };
        let found = file.metadata().map_err(VaultError::io("look at", &path))?;
        let refuse = |why| Err(VaultError::Insecure { path: path.clone(), why });
        #[cfg(all(test, unix))]
        note(Act::Opened(path.clone()));
        if !found.is_file() {
            return refuse("is not a regular file");
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            if found.uid() != rustix::process::geteuid().as_raw() {
                return refuse("belongs to another user");
            }
            if found.mode() & 0o077 != 0 {
                return refuse("can be read or written by others (`chmod 600` it, and consider its tokens known)");
            }
        }
        Ok(Some(file))
    }

    /// Puts a file in the place of what is there, whole or not at all, also when the power fails.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), VaultError> {
        self.prepare()?;
        let path = self.path(name);
        // What is there is looked at first: a file that would be refused is not replaced in silence.
        drop(self.open(name, OpenOptions::new().read(true))?);
        let unfinished = format!(".{name}.{:016x}{UNFINISHED}", random());
        let written = self.write(&unfinished, bytes).and_then(|()| {
            fs::rename(self.path(&unfinished), &path).map_err(VaultError::io("replace", &path))?;
            #[cfg(all(test, unix))]
            note(Act::Renamed(self.path(&unfinished), path.clone()));
            self.flush()
        });
        if written.is_err() {
            let _ = fs::remove_file(self.path(&unfinished));
        }
        written
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), VaultError> {
        let path = self.path(name);
        let file = self.open(name, OpenOptions::new().write(true).create_new(true))?;
        let mut file = file.ok_or_else(|| VaultError::Damaged { path: path.clone() })?;
        file.write_all(bytes).map_err(VaultError::io("write", &path))?;
        #[cfg(all(test, unix))]
        note(Act::Written(path.clone()));
        file.sync_all().map_err(VaultError::io("write", &path))?;
        #[cfg(all(test, unix))]
        note(Act::Synced(path));
        Ok(())
    }

    /// The names of its files outlive a power cut from here on.
    fn flush(&self) -> Result<(), VaultError> {
        if cfg!(unix) {
            let folder = File::open(&self.0).map_err(VaultError::io("open the folder", &self.0))?;
            folder.sync_all().map_err(VaultError::io("write the folder", &self.0))?;
            #[cfg(all(test, unix))]
            note(Act::Synced(self.0.clone()));
        }
        Ok(())
    }

    /// Names of its files, in order.
    pub(super) fn names(&self) -> Result<Vec<String>, VaultError> {
        if !self.check()? {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&self.0).map_err(VaultError::io("list the folder", &self.0))?;
        let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Removes what a killed process left unfinished. Only under the store's lock: nobody else is writing then.
    pub(super) fn sweep(&self, name: &str) {
        let prefix = format!(".{name}.");
        for left in self.names().unwrap_or_default() {
            if left.starts_with(&prefix) && left.ends_with(UNFINISHED) {
                let _ = fs::remove_file(self.path(&left));
                #[cfg(all(test, unix))]
                note(Act::Removed(self.path(&left)));
            }
        }
    }
}

impl AsRef<Path> for Folder {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

/// For names that are new. (Not a key: where there is no randomness, a name that exists is refused anyway.)
fn random() -> u64 {
    getrandom::u64().unwrap_or_default()
}
