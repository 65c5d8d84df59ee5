//! What a power cut may leave of a folder of ours. What is done to files is noted; then, for each moment, every folder is
//! rebuilt that a file system may be left with, and the store is opened in it.
//!
//! What was not synced may be there, or not, in any combination: data of a file whole, cut short, full of zeros, or as it
//! was; names made, renamed or removed, or not yet. A rename is never half done. (Pillai et al., "All File Systems Are Not
//! Created Equal", OSDI 2014.)

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Something that was done to a file or folder.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// A folder was made.
    Folder(PathBuf),
    /// A file was opened, and made if it was not there.
    Opened(PathBuf),
    /// A file has another content.
    Written(PathBuf),
    /// A file, or the names in a folder, are on the disk.
    Synced(PathBuf),
    Renamed(PathBuf, PathBuf),
    Removed(PathBuf),
}

/// What was done, and the content of what was written.
type Acts = Vec<(Act, Vec<u8>)>;

thread_local! {
    static NOTED: RefCell<Option<Acts>> = const { RefCell::new(None) };
}

/// Notes what was just done on this thread, if anybody wants to know.
pub(super) fn note(act: Act) {
    NOTED.with_borrow_mut(|noted| {
        if let Some(noted) = noted {
            let content = if let Act::Written(path) = &act { fs::read(path).unwrap_or_default() } else { Vec::new() };
            noted.push((act, content));
        }
    });
}

/// What is left, by path; none = a folder.
type State = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// A change of names that is not synced.
#[derive(Clone)]
enum Edit {
    Made(PathBuf, Node),
    Renamed(PathBuf, PathBuf, Node),
    Removed(PathBuf),
}

#[derive(Clone, Copy, PartialEq)]
enum Node {
    Folder,
    File(usize),
}

/// A file system without promises.
#[derive(Clone, Default)]
struct Model {
    /// Each file's contents since it was synced: the first is on the disk.
    files: Vec<Vec<Vec<u8>>>,
    /// The names on the disk …
    names: BTreeMap<PathBuf, Node>,
    /// … and as processes see them.
    seen: BTreeMap<PathBuf, Node>,
    edits: Vec<Edit>,
}

impl Edit {
    fn folder(&self) -> Option<&Path> {
        let (Self::Made(path, _) | Self::Renamed(path, ..) | Self::Removed(path)) = self;
        path.parent()
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Self::Made(path, node) => drop(names.insert(path.clone(), *node)),
            Self::Renamed(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
            Self::Removed(path) => drop(names.remove(path)),
        }
    }
}

impl Model {
    /// All of it is on the disk.
    fn of(state: State) -> Self {
        let mut model = Self::default();
        for (path, content) in state {
            let node = content.map_or(Node::Folder, |content| {
                model.files.push(vec![content]);
                Node::File(model.files.len() - 1)
            });
            model.names.insert(path, node);
        }
        model.seen = model.names.clone();
        model
    }

    fn edit(&mut self, edit: Edit) {
        edit.apply(&mut self.seen);
        self.edits.push(edit);
    }

    fn perform(&mut self, act: &Act, content: &[u8]) {
        match act {
            Act::Folder(path) => self.edit(Edit::Made(path.clone(), Node::Folder)),
            Act::Opened(path) if self.seen.contains_key(path) => {}
            Act::Opened(path) => {
                self.files.push(vec![Vec::new()]);
                self.edit(Edit::Made(path.clone(), Node::File(self.files.len() - 1)));
            }
            Act::Written(path) => {
                let Some(Node::File(file)) = self.seen.get(path) else { panic!("{path:?} was not opened") };
                self.files[*file].push(content.to_vec());
            }
            Act::Renamed(from, to) => {
                let node = self.seen[from];
                self.edit(Edit::Renamed(from.clone(), to.clone(), node));
            }
            Act::Removed(path) => self.edit(Edit::Removed(path.clone())),
            Act::Synced(path) => match self.seen.get(path) {
                Some(Node::File(file)) => {
                    let versions = &mut self.files[*file];
                    versions.drain(..versions.len() - 1);
                }
                _ => {
                    let (synced, left) = self.edits.drain(..).partition(|edit| edit.folder() == Some(path));
                    let synced: Vec<Edit> = synced;
                    synced.iter().for_each(|edit| edit.apply(&mut self.names));
                    self.edits = left;
                }
            },
        }
    }

    /// What a file may hold.
    fn contents(&self, file: usize) -> BTreeSet<Vec<u8>> {
        let versions = &self.files[file];
        let mut contents: BTreeSet<Vec<u8>> = versions.iter().cloned().collect();
        for pair in versions.windows(2) {
            let (old, new) = (&pair[0], &pair[1]);
            if new.len() > old.len() {
                contents.insert(new[..old.len() + (new.len() - old.len()) / 2].to_vec());
                contents.insert(new[..new.len() - 1].to_vec());
                contents.insert([&new[..old.len()], &vec![0; new.len() - old.len()]].concat());
            }
        }
        contents
    }

    /// Everything that a power cut may leave at this moment.
    fn states(&self) -> BTreeSet<State> {
        assert!(self.edits.len() < 12, "too many names are unsynced to try all combinations");
        let mut states = BTreeSet::new();
        for chosen in 0..1_u32 << self.edits.len() {
            let mut names = self.names.clone();
            let edits = self.edits.iter().enumerate().filter(|(at, _)| chosen >> at & 1 == 1);
            edits.for_each(|(_, edit)| edit.apply(&mut names));
            // What is in a folder that is not there is not there.
            let whole = names.clone();
            names.retain(|path, _| {
                path.ancestors().skip(1).all(|up| !self.seen.contains_key(up) || whole.contains_key(up))
            });
            let mut left = vec![State::new()];
            for (path, node) in &names {
                let contents = match node {
                    Node::Folder => vec![None],
                    Node::File(file) => self.contents(*file).into_iter().map(Some).collect(),
                };
                let with = |state: &State, content: &Option<Vec<u8>>| {
                    let mut state = state.clone();
                    state.insert(path.clone(), content.clone());
                    state
                };
                left = left.iter().flat_map(|state| contents.iter().map(move |content| with(state, content))).collect();
            }
            states.extend(left);
        }
        states
    }
}

/// Everything below a folder, and the folder.
fn snapshot(folder: &Path) -> State {
    let mut state = State::from([(folder.to_owned(), None)]);
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            state.append(&mut snapshot(&path));
        } else {
            let content = fs::read(&path).expect("a file");
            state.insert(path, Some(content));
        }
    }
    state
}

/// Makes a folder what was left of it.
fn rebuild(folder: &Path, state: &State) {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(folder).expect("a folder") {
        fs::remove_dir_all(entry.expect("an entry").path()).expect("removed");
    }
    for (path, content) in state.iter().filter(|(path, _)| *path != folder) {
        match content {
            None => fs::create_dir(path).expect("a folder"),
            Some(content) => fs::write(path, content).expect("a file"),
        }
        let mode = if content.is_none() { 0o700 } else { 0o600 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("private");
    }
}

/// Does something in a folder, then opens what a power cut may leave of it: `open` is told how many acts were performed.
/// Answers how many acts there were, and how many folders were tried.
fn cut_everywhere(place: &Path, act: impl FnOnce(), mut open: impl FnMut(usize)) -> (usize, usize) {
    let mut model = Model::of(snapshot(place));
    NOTED.set(Some(Vec::new()));
    act();
    let acts = NOTED.take().unwrap_or_default();
    let mut tried = 0;
    for performed in 0..=acts.len() {
        if let Some((act, content)) = performed.checked_sub(1).map(|at| &acts[at]) {
            model.perform(act, content);
        }
        for state in model.states() {
            rebuild(place, &state);
            open(performed);
            tried += 1;
        }
    }
    (acts.len(), tried)
}

mod tests {
    use std::cell::Cell;
    use std::time::{Duration, SystemTime};

    use super::super::file::Accounts;
    use super::super::journal;
    use super::super::private::Folder;
    use super::*;
    use crate::oauth::token::{Generation, Token};
    use crate::provider::Email;
    use crate::secret::Secret;

    const REPLY: &[u8] = b"{\"access_token\":\"new\"}";

    fn email(name: &str) -> Email {
        Email::parse(&format!("{name}@example.com")).expect("valid")
    }

    fn token(name: &str, generation: u64) -> Token {
        Token {
            email: email(name),
            access: Secret::new(format!("access-{generation}")),
            refresh: Some(Secret::new(format!("refresh-{generation}"))),
            expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            scopes: vec!["user:inference".into()],
            verified: true,
            created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            generation: Generation(generation),
        }
    }

    /// The acts so far.
    fn so_far() -> usize {
        NOTED.with_borrow(|noted| noted.as_ref().map_or(0, Vec::len))
    }

    fn generation(accounts: &Accounts, name: &str) -> Option<u64> {
        accounts.load(&email(name)).expect("a store that can be read").map(|token| token.generation.0)
    }

    #[test]
    fn a_power_cut_in_a_rotation_leaves_the_old_token_or_the_new_one() {
        for passphrase in [None, Some(Secret::new("correct horse"))] {
            let place = tempfile::tempdir().expect("folder");
            let folder = Folder::new(place.path().join("state"));
            let accounts = Accounts::new(folder.clone(), passphrase);
            for name in ["main", "other"] {
                accounts.save(&token(name, 1), None).expect("stored");
            }
            let key = accounts.journal_key().expect("key");
            let stored = Cell::new(usize::MAX);
            let rotate = || {
                let file = journal::open(&folder, &email("main")).expect("opened");
                let end = journal::append(&folder, file, key.as_ref(), &email("main"), Generation(1), REPLY);
                accounts.save(&token("main", 2), Some(Generation(1))).expect("stored");
                stored.set(so_far());
                journal::erase(&folder, &email("main"), Some(end.expect("written"))).expect("erased");
            };
            let mut seen = BTreeSet::new();
            let open = |performed: usize| {
                let found = generation(&accounts, "main");
                let expected = if performed < stored.get() { 1..=2 } else { 2..=2 };
                assert!(found.is_some_and(|found| expected.contains(&found)), "after {performed} acts: {found:?}");
                assert_eq!(generation(&accounts, "other"), Some(1), "after {performed} acts");
                let pending = journal::pending(&folder, key.as_ref()).expect("a journal that can be read");
                assert!(pending.iter().all(|pending| pending.reply.as_slice() == REPLY));
                seen.insert((found, pending.len()));
                // And the store takes the next one.
                let saved = accounts.save(&token("main", 3), found.map(Generation));
                assert!(saved.is_ok() && generation(&accounts, "main") == Some(3), "after {performed} acts: {saved:?}");
                let names = folder.names().expect("names");
                assert!(names.iter().all(|name| !name.ends_with(".new")), "after {performed} acts: {names:?}");
            };
            let (acts, tried) = cut_everywhere(place.path(), rotate, open);
            // With the reply in the journal and without, before the save and after it.
            assert_eq!(seen.len(), 4, "{seen:?}");
            assert!(acts >= 8 && tried >= 40, "{acts} acts, {tried} folders");
            println!("{acts} acts, {tried} folders");
        }
    }

    #[test]
    fn a_power_cut_in_the_first_sign_in_leaves_the_account_or_a_store_that_takes_it() {
        let place = tempfile::tempdir().expect("folder");
        let folder = Folder::new(place.path().join("deep/state"));
        let accounts = Accounts::new(folder, None);
        let stored = Cell::new(usize::MAX);
        let sign_in = || {
            accounts.save(&token("main", 1), None).expect("stored");
            stored.set(so_far());
        };
        let open = |performed: usize| {
            let found = generation(&accounts, "main");
            assert!(found == Some(1) || performed < stored.get(), "lost after {performed} acts, and said to be stored");
            accounts.save(&token("main", 2), found.map(Generation)).expect("stored");
        };
        let (acts, tried) = cut_everywhere(place.path(), sign_in, open);
        println!("{acts} acts, {tried} folders");
    }
}
