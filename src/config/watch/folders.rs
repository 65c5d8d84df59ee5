//! Where a change can alter what a path leads to.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// More symlinks than this are a circle, as they are for the system.
const LINK_LIMIT: usize = 40;

/// A folder, and which one of all that ever had this name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Folder {
    fn of(path: PathBuf) -> Self {
        let identity = identity(&path);
        Self { path, identity }
    }
}

/// The folder of the file itself, and those that hold a symlink on the way to it. Where something on the way is
/// missing, the folder in which it would appear.
pub(super) fn folders(path: &Path) -> BTreeSet<Folder> {
    let mut found = BTreeSet::new();
    let Ok(whole) = std::path::absolute(path) else { return found };
    let mut at = PathBuf::new();
    let mut todo: VecDeque<OsString> = parts(&whole).collect();
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        let next = at.join(&part);
        if part == ".." {
            at.pop();
            continue;
        }
        match std::fs::symlink_metadata(&next) {
            Ok(metadata) if metadata.is_symlink() => {
                found.insert(Folder::of(at.clone()));
                links += 1;
                let Ok(target) = std::fs::read_link(&next) else { break };
                if links > LINK_LIMIT {
                    break;
                }
                // An absolute target begins anew, and its root says so.
                parts(&target).collect::<Vec<_>>().into_iter().rev().for_each(|part| todo.push_front(part));
            }
            Ok(_) => {
                if todo.is_empty() {
                    found.insert(Folder::of(at.clone()));
                }
                at = next;
            }
            Err(_) => {
                found.insert(Folder::of(at));
                break;
            }
        }
    }
    found
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter(|part| *part != Component::CurDir).map(|part| part.as_os_str().to_owned())
}

#[cfg(unix)]
fn identity(folder: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(folder).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Path) -> Option<(u64, u64)> {
    None
}
