#![cfg(unix)]

use std::os::unix::fs::symlink;

use super::*;

fn watched(path: &Path) -> Vec<PathBuf> {
    folders(path).into_iter().map(|folder| folder.path).collect()
}

/// A folder whose own path has no symlink.
fn home() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().canonicalize().expect("path");
    (folder, path)
}

#[test]
fn a_plain_file_is_watched_through_its_folder() {
    let (_folder, home) = home();
    std::fs::write(home.join("config.yaml"), "").expect("write");
    let only = std::slice::from_ref(&home);
    assert_eq!(watched(&home.join("config.yaml")), only);
    assert_eq!(watched(&home.join("not-yet.yaml")), only);
    assert_eq!(watched(&home.join("no/such/folder.yaml")), only);
}

#[test]
fn every_symlink_on_the_way_is_watched_and_the_folder_of_the_target() {
    let (_folder, home) = home();
    // A ConfigMap: config.yaml -> ..data/config.yaml, ..data -> ..1.
    let volume = home.join("volume");
    std::fs::create_dir_all(volume.join("..1")).expect("folder");
    std::fs::write(volume.join("..1/config.yaml"), "").expect("write");
    symlink("..1", volume.join("..data")).expect("link");
    symlink("..data/config.yaml", volume.join("config.yaml")).expect("link");
    assert_eq!(watched(&volume.join("config.yaml")), [volume.clone(), volume.join("..1")]);

    // The folder itself behind a link, and an absolute target with `..` in it.
    let other = home.join("other");
    std::fs::create_dir(&other).expect("folder");
    symlink(home.join("other/../volume"), other.join("link")).expect("link");
    assert_eq!(watched(&other.join("link/config.yaml")), [other, volume.clone(), volume.join("..1")]);
}

#[test]
fn a_circle_of_symlinks_ends() {
    let (_folder, home) = home();
    symlink(home.join("b"), home.join("a")).expect("link");
    symlink(home.join("a"), home.join("b")).expect("link");
    assert_eq!(watched(&home.join("a")), [home]);
}

#[test]
fn a_folder_that_was_made_anew_is_another_one() {
    let (_folder, home) = home();
    let inner = home.join("inner");
    std::fs::create_dir(&inner).expect("folder");
    let before = folders(&inner.join("config.yaml"));
    // The number of the first must not be given to the second.
    std::fs::rename(&inner, home.join("away")).expect("rename");
    std::fs::create_dir(&inner).expect("folder");
    assert_ne!(before, folders(&inner.join("config.yaml")));
}

#[test]
fn reading_is_no_change_but_the_end_of_writing_is() {
    assert!(is_reading(EventKind::Access(AccessKind::Open(AccessMode::Any))));
    assert!(is_reading(EventKind::Access(AccessKind::Close(AccessMode::Read))));
    assert!(!is_reading(EventKind::Access(AccessKind::Close(AccessMode::Write))));
    assert!(!is_reading(EventKind::Any));
}
