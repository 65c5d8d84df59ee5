//! The journal of rotations. A refresh token is void as soon as the authorization server has answered, so the raw answer
//! goes to the disk, in one write, before anything else is done with it; after the save it is erased. A process that is
//! killed in between finds it at its next start.
//!
//! One file for each account, so that erasing one account's entries cannot touch another's. A record is one line,
//! `\n` tag base64 `.`: what a torn write has left lacks the `.` and is passed over.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use zeroize::Zeroizing;

#[cfg(all(test, unix))]
use super::crash::{Act, note};
use super::disk::Disk;
use super::error::VaultError;
use super::file::no_randomness;
use super::lock::account_name;
use super::private::Folder;
use super::seal::Key;
use crate::oauth::token::Generation;
use crate::provider::Email;

/// Longest reply that is journalled, in bytes. A token reply has about one thousand.
pub const REPLY_LIMIT: usize = 64 * 1024;
/// Longest file; older entries, which newer ones have made void, give way.
const FILE_LIMIT: u64 = 512 * 1024;
const FOLDER: &str = "journal";
const SEALED: u8 = b'S';
const PLAIN: u8 = b'P';

/// A reply that was journalled and not erased: its token may be the only one that still works.
#[derive(Clone, PartialEq, Eq)]
pub struct Pending {
    /// Whose.
    pub email: Email,
    /// The generation that the reply replaces.
    pub generation: Generation,
    /// When it came: what it says of its age counts from here.
    pub received_at: SystemTime,
    /// The reply's body, as it came.
    pub reply: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending")
            .field("email", &self.email)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// The journal of an account, open and with its key at hand: what is left to do when a reply comes is one write.
#[derive(Debug)]
#[must_use = "it is for the reply that is about to come"]
pub struct Pen(pub(super) Option<Ready>);

#[derive(Debug)]
pub(super) struct Ready {
    pub(super) disk: Arc<Disk>,
    pub(super) key: Option<Key>,
    pub(super) email: Email,
    pub(super) file: File,
}

impl Pen {
    /// Appends the raw reply of a rotation, before anything else is done with it. `generation` is that of the token that
    /// the reply replaces.
    ///
    /// # Errors
    /// The reply is not in the journal: go on, and save what it holds all the sooner.
    pub fn write(self, generation: Generation, reply: &[u8]) -> Result<JournalEntry, VaultError> {
        let Some(Ready { disk, key, email, file }) = self.0 else { return Ok(JournalEntry { place: None }) };
        // Here and now, although it blocks: until another thread has its turn, a kill would lose what was read. It is one
        // write of a small text into the page cache of a disk that has answered a moment ago.
        let end = append(disk.folder(), file, key.as_ref(), &email, generation, reply)?;
        Ok(JournalEntry { place: Some((disk, email, end)) })
    }
}

/// A journalled reply. Dropped, it stays and is found at the next start; erase it when what it held is stored.
#[derive(Debug)]
#[must_use = "erase it after the save"]
pub struct JournalEntry {
    /// Where it is, and how long the file was with it; none = no journal is kept.
    pub(super) place: Option<(Arc<Disk>, Email, u64)>,
}

impl JournalEntry {
    /// Forgets the account's replies up to this one.
    ///
    /// # Errors
    /// The file cannot be written; the entry is then found at the next start, and is stale.
    pub async fn erase(self) -> Result<(), VaultError> {
        let Some((disk, email, end)) = self.place else { return Ok(()) };
        disk.run(move |folder| erase(folder, &email, Some(end))).await
    }
}

fn name(email: &Email) -> String {
    format!("{}.log", account_name(email))
}

/// Opens an account's file, for one reply.
pub(super) fn open(folder: &Folder, email: &Email) -> Result<File, VaultError> {
    folder.prepare()?;
    let (folder, name) = (folder.inner(FOLDER), name(email));
    folder.prepare()?;
    let file = folder.open(&name, OpenOptions::new().append(true).create(true))?;
    file.ok_or_else(|| VaultError::Damaged { path: folder.path(&name) })
}

/// Appends a reply; gives the file's new length.
pub(super) fn append(
    folder: &Folder,
    mut file: File,
    key: Option<&Key>,
    email: &Email,
    generation: Generation,
    reply: &[u8],
) -> Result<u64, VaultError> {
    if reply.len() > REPLY_LIMIT {
        return Err(VaultError::TooLarge { bytes: reply.len(), limit: REPLY_LIMIT });
    }
    let line = encode(key, email, generation, SystemTime::now(), reply)?;
    let (folder, name) = (folder.inner(FOLDER), name(email));
    let path = folder.path(&name);
    let length = file.metadata().map_err(VaultError::io("look at", &path))?.len();
    if length + line.len() as u64 > FILE_LIMIT {
        // Not emptied and then written: between the two a kill would lose both.
        folder.replace(&name, line.as_bytes())?;
        return Ok(line.len() as u64);
    }
    // One call: the kernel has all of it, or it is torn and says so.
    let written = file.write(line.as_bytes()).map_err(VaultError::io("write", &path))?;
    #[cfg(all(test, unix))]
    note(Act::Written(path.clone()));
    if written < line.len() {
        let _ = file.set_len(length);
        return Err(VaultError::io("write all of", &path)(std::io::ErrorKind::StorageFull.into()));
    }
    Ok(length + line.len() as u64)
}

/// Empties an account's file; with `end`, only if nothing was added behind it.
pub(super) fn erase(folder: &Folder, email: &Email, end: Option<u64>) -> Result<(), VaultError> {
    let (folder, name) = (folder.inner(FOLDER), name(email));
    let path = folder.path(&name);
    let Some(file) = folder.open(&name, OpenOptions::new().write(true))? else { return Ok(()) };
    let length = file.metadata().map_err(VaultError::io("look at", &path))?.len();
    if end.is_none_or(|end| end == length) {
        file.set_len(0).map_err(VaultError::io("empty", &path))?;
        #[cfg(all(test, unix))]
        note(Act::Written(path));
    }
    Ok(())
}

/// Whether anything is in the journal that only a key can open.
pub(super) fn is_sealed(folder: &Folder) -> Result<bool, VaultError> {
    Ok(lines(folder)?.iter().any(|line| line.first() == Some(&SEALED)))
}

/// Every whole entry, oldest first within an account. What is torn, or was sealed with another key, is passed over.
pub(super) fn pending(folder: &Folder, key: Option<&Key>) -> Result<Vec<Pending>, VaultError> {
    let mut passed = 0_u32;
    let mut found = Vec::new();
    for line in lines(folder)? {
        match decode(key, &line) {
            Some(pending) => found.push(pending),
            None => passed += 1,
        }
    }
    if passed > 0 {
        tracing::warn!(
            entries = passed,
            "the journal has entries that are torn or sealed with another key; passed over"
        );
    }
    Ok(found)
}

fn lines(folder: &Folder) -> Result<Vec<Zeroizing<Vec<u8>>>, VaultError> {
    let folder = folder.inner(FOLDER);
    let mut lines = Vec::new();
    for name in folder.names()?.iter().filter(|name| name.ends_with(".log") && !name.starts_with('.')) {
        let bytes = folder.read(name, FILE_LIMIT as usize)?.unwrap_or_default();
        let whole = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.extend(whole.map(|line| Zeroizing::new(line.to_vec())));
    }
    Ok(lines)
}

fn encode(
    key: Option<&Key>,
    email: &Email,
    generation: Generation,
    at: SystemTime,
    reply: &[u8],
) -> Result<Zeroizing<String>, VaultError> {
    let email = email.as_str().as_bytes();
    let at = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut body = Zeroizing::new(Vec::with_capacity(18 + email.len() + reply.len()));
    body.extend_from_slice(&generation.0.to_be_bytes());
    body.extend_from_slice(&at.to_be_bytes());
    body.extend_from_slice(&u16::try_from(email.len()).unwrap_or_default().to_be_bytes());
    body.extend_from_slice(email);
    body.extend_from_slice(reply);
    let tag = if key.is_some() { SEALED } else { PLAIN };
    let body = match key {
        Some(key) => Zeroizing::new(key.seal(&body).map_err(no_randomness)?),
        None => body,
    };
    let mut line = Zeroizing::new(String::with_capacity(body.len() * 4 / 3 + 8));
    line.push('\n');
    line.push(char::from(tag));
    BASE64.encode_string(&*body, &mut line);
    line.push('.');
    Ok(line)
}

fn decode(key: Option<&Key>, line: &[u8]) -> Option<Pending> {
    let (tag, rest) = line.split_first()?;
    let body = Zeroizing::new(BASE64.decode(rest.strip_suffix(b".")?).ok()?);
    let body = match *tag {
        SEALED => key?.open(&body)?,
        PLAIN => body,
        _ => return None,
    };
    let (generation, rest) = body.split_first_chunk::<8>()?;
    let (at, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (email, reply) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    let at = std::time::Duration::from_secs(u64::from_be_bytes(*at).min(253_402_300_799));
    Some(Pending {
        email: Email::parse(std::str::from_utf8(email).ok()?)?,
        generation: Generation(u64::from_be_bytes(*generation)),
        received_at: SystemTime::UNIX_EPOCH + at,
        reply: Zeroizing::new(reply.to_vec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(
        folder: &Folder,
        key: Option<&Key>,
        email: &Email,
        generation: Generation,
        reply: &[u8],
    ) -> Result<u64, VaultError> {
        super::append(folder, open(folder, email)?, key, email, generation, reply)
    }

    #[test]
    fn every_prefix_of_the_journal_gives_the_whole_entries_before_it() {
        let place = tempfile::tempdir().expect("folder");
        let folder = Folder::new(place.path().join("state"));
        let email = Email::parse("main@example.com").expect("valid");
        for key in [None, Some(Key::random().expect("randomness"))] {
            erase(&folder, &email, None).ok();
            let replies: [&[u8]; 3] = [b"{\"access_token\":\"one\"}", b"", b"two\nlines \xff."];
            let mut ends = Vec::new();
            for (at, reply) in replies.iter().enumerate() {
                ends.push(append(&folder, key.as_ref(), &email, Generation(at as u64), reply).expect("appended"));
            }
            let file = folder.inner(FOLDER);
            let whole = file.read(&name(&email), 10_000).expect("read").expect("there");
            assert_eq!(key.is_some(), is_sealed(&folder).expect("read"));
            for cut in 0..=whole.len() {
                file.replace(&name(&email), &whole[..cut]).expect("cut");
                let found = pending(&folder, key.as_ref()).expect("a torn entry is no error");
                let expected = ends.iter().filter(|end| **end as usize <= cut).count();
                assert_eq!(found.len(), expected, "cut at {cut} of {}", whole.len());
                for (found, reply) in found.iter().zip(replies) {
                    assert_eq!((found.reply.as_slice(), &found.email), (reply, &email));
                }
            }
            // What comes after a torn entry is whole again.
            file.replace(&name(&email), &whole[..whole.len() - 3]).expect("torn");
            append(&folder, key.as_ref(), &email, Generation(9), b"after").expect("appended");
            let found = pending(&folder, key.as_ref()).expect("read");
            assert_eq!(found.iter().map(|found| found.generation.0).collect::<Vec<_>>(), [0, 1, 9]);
        }
    }

    #[test]
    fn the_file_is_bounded_and_the_newest_entry_stays() {
        let place = tempfile::tempdir().expect("folder");
        let folder = Folder::new(place.path().join("state"));
        let email = Email::parse("main@example.com").expect("valid");
        for generation in 0..40 {
            append(&folder, None, &email, Generation(generation), &vec![b'x'; 60_000]).expect("appended");
            let length = folder.inner(FOLDER).path(&name(&email)).metadata().expect("there").len();
            assert!(length <= FILE_LIMIT, "{length}");
            let found = pending(&folder, None).expect("read");
            assert_eq!(found.last().map(|found| found.generation.0), Some(generation));
        }
        let long = append(&folder, None, &email, Generation(1), &vec![0; REPLY_LIMIT + 1]);
        assert!(matches!(long, Err(VaultError::TooLarge { .. })));
    }

    #[test]
    fn erasing_leaves_what_came_later_and_other_accounts() {
        let place = tempfile::tempdir().expect("folder");
        let folder = Folder::new(place.path().join("state"));
        let [one, two] = ["one@example.com", "two@example.com"].map(|text| Email::parse(text).expect("valid"));
        let first = append(&folder, None, &one, Generation(1), b"a").expect("appended");
        append(&folder, None, &two, Generation(1), b"b").expect("appended");
        let second = append(&folder, None, &one, Generation(2), b"c").expect("appended");
        erase(&folder, &one, Some(first)).expect("not the last");
        assert_eq!(pending(&folder, None).expect("read").len(), 3);
        erase(&folder, &one, Some(second)).expect("erased");
        let left = pending(&folder, None).expect("read");
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].email, two);
        assert!(!format!("{left:?}").contains("reply"));
    }
}
