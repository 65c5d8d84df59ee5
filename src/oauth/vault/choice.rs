//! Which store it is to be. Once accounts are stored, a note in the state folder says where: `auto` keeps to it, and
//! does not fall back to a file because a keyring is silent, for then accounts would be in two places.

use std::path::PathBuf;
use std::sync::Arc;

use super::disk::Disk;
use super::entries::Entries;
use super::error::VaultError;
use super::file::{self, Accounts};
use super::keyring::Keyring;
use super::marker::Marker;
use super::memory::Memory;
use super::options::Options;
use super::{FileStore, Vault};
use crate::config::OAuthStorage;

pub(super) async fn open(options: Options) -> Vault {
    if !options.persistence || options.storage == OAuthStorage::Memory {
        return Vault::Memory(Memory::default());
    }
    let disk = Arc::new(Disk::new(options.state_folder.clone()));
    let marker = disk.run(Marker::read).await;
    let file = |disk: Arc<Disk>| {
        let accounts = Accounts::new(disk.folder().clone(), options.passphrase.clone());
        Vault::File(FileStore { accounts: Arc::new(accounts), disk })
    };
    match (options.storage, marker) {
        (OAuthStorage::File, marker) => {
            if let Ok(Some(Marker::Keyring { service })) = marker {
                tracing::warn!(service, "accounts were kept in the keyring so far; those are not read");
            }
            file(disk)
        }
        (OAuthStorage::Keyring, Ok(Some(Marker::File))) => {
            tracing::warn!(file = %shown(&disk), "accounts were kept in a file so far; those are not read");
            Vault::Keyring(Keyring::new(&options, disk))
        }
        (_, Ok(Some(Marker::Keyring { service }))) => {
            if service != options.service {
                tracing::warn!(was = service, is = options.service, "accounts of another keyring service are not read");
            }
            Vault::Keyring(Keyring::new(&options, disk))
        }
        (OAuthStorage::Keyring, _) => Vault::Keyring(Keyring::new(&options, disk)),
        (_, Ok(Some(Marker::File))) => file(disk),
        (_, Ok(None)) if !there(&disk).await => {
            let keyring = Keyring::new(&options, disk.clone());
            match keyring.run(Entries::probe).await {
                Ok(()) => Vault::Keyring(keyring),
                Err(error) => {
                    let sealed = options.passphrase.is_some();
                    tracing::warn!(
                        reason = %reason(&error), file = %shown(&disk), sealed,
                        "the keyring cannot be used; accounts are kept in a file"
                    );
                    file(disk)
                }
            }
        }
        (_, Ok(None)) => file(disk),
        // The note cannot be read. What can be seen decides; where nothing can, waiting for the keyring loses nothing.
        (_, Err(error)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot read where the accounts are kept");
            if there(&disk).await { file(disk) } else { Vault::Keyring(Keyring::new(&options, disk)) }
        }
    }
}

fn reason(error: &VaultError) -> String {
    match error {
        VaultError::Unavailable(reason) => reason.clone(),
        other => other.to_string(),
    }
}

fn shown(disk: &Disk) -> String {
    disk.folder().path(file::NAME).display().to_string()
}

/// Whether there is a file of accounts, or anything in its place.
async fn there(disk: &Disk) -> bool {
    let path: PathBuf = disk.folder().path(file::NAME);
    disk.run(move |_| Ok(path.symlink_metadata().is_ok())).await.unwrap_or(true)
}
