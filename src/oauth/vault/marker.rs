//! A note in the state folder that says where the accounts live, so that a keyring that does not answer today is not
//! taken for one that was never there.

use serde::{Deserialize, Serialize};

use super::error::VaultError;
use super::private::Folder;

const NAME: &str = "storage.json";
const LIMIT: usize = 4096;

/// Where the accounts live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "storage", rename_all = "snake_case")]
pub(super) enum Marker {
    Keyring { service: String },
    File,
}

impl Marker {
    /// What the note says; `None` = nothing was ever stored.
    pub(super) fn read(folder: &Folder) -> Result<Option<Self>, VaultError> {
        let Some(bytes) = folder.read(NAME, LIMIT)? else { return Ok(None) };
        let marker = serde_json::from_slice(&bytes).map_err(|_| VaultError::Damaged { path: folder.path(NAME) })?;
        Ok(Some(marker))
    }

    /// Leaves the note, before the first account is stored. Where that fails the account is stored all the same: to
    /// lose it would be worse.
    pub(super) fn leave(&self, folder: &Folder) {
        if matches!(Self::read(folder), Ok(Some(found)) if found == *self) {
            return;
        }
        let text = serde_json::to_string(self).unwrap_or_default();
        if let Err(error) = folder.replace(NAME, text.as_bytes()) {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot note where the accounts are kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_is_read_as_it_was_left_and_a_damaged_one_is_not_guessed() {
        let place = tempfile::tempdir().expect("folder");
        let folder = Folder::new(place.path().join("state"));
        assert_eq!(Marker::read(&folder).expect("no folder"), None);
        for marker in [Marker::Keyring { service: "a \"b\"".into() }, Marker::File] {
            marker.leave(&folder);
            assert_eq!(Marker::read(&folder).expect("read"), Some(marker));
        }
        folder.replace(NAME, b"{\"storage\":\"clo").expect("written");
        assert!(matches!(Marker::read(&folder), Err(VaultError::Damaged { .. })));
    }
}
