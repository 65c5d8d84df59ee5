//! Where a credential is: in the file itself, in the environment (`${NAME}`), or in a file of its own (`file:/path`).
//!
//! Nothing that is read here is ever quoted; the name of a variable and the path of a file are.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::secret::{Secret, is_placeholder};

use super::Surroundings;
use super::fields::At;
use super::problem::{Problems, quote};

/// The largest credential file, in bytes.
const FILE_LIMIT: u64 = 64 * 1024;
/// The longest credential: it must fit into a header.
const LENGTH_LIMIT: usize = 16 * 1024;

/// Looks a credential up and checks that it can go into a header. `None` = its problem has been reported.
pub(super) fn look_up(given: &At<Secret>, around: &Surroundings<'_>, problems: &mut Problems) -> Option<Secret> {
    let At { value, place, path } = given;
    let text = value.expose();
    let mut fail = |message: String, cure: &str| problems.error(Some(*place), path, message, cure);
    let found = if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
        if !is_variable(name) {
            fail("has a malformed variable".into(), "write ${NAME} with letters, digits and _, and nothing around it");
            return None;
        }
        match (around.env)(name) {
            Some(found) if !found.trim().is_empty() => found,
            Some(_) => {
                fail(format!("the environment variable {} is empty", quote(name)), "set it before the start");
                return None;
            }
            None => {
                let cure = "set it where the balancer is started, or write the value another way";
                fail(format!("the environment variable {} is not set", quote(name)), cure);
                return None;
            }
        }
    } else if text.contains("${") {
        let cure = "${NAME} must be the whole value, with letters, digits and _ in the name";
        fail("has a malformed variable".into(), cure);
        return None;
    } else if let Some(file) = text.strip_prefix("file:") {
        if file.is_empty() {
            fail("names no file".into(), "write file:/absolute/path");
            return None;
        }
        let place_of_file = around.folder.as_deref().map_or_else(|| PathBuf::from(file), |folder| folder.join(file));
        match if around.files { read(&place_of_file) } else { Err("files are not read here".into()) } {
            Ok(found) => found,
            Err(why) => {
                let cure = "name a plain file that this user may read, with nothing but the credential in it";
                fail(format!("cannot read {}: {why}", quote(file)), cure);
                return None;
            }
        }
    } else {
        if text.strip_prefix('$').is_some_and(is_variable) {
            problems.warning(Some(*place), path, "looks like a variable, but is taken literally", "write ${NAME}");
        }
        literal(given, around, problems);
        text.to_owned()
    };
    let found = found.strip_suffix('\n').map_or(found.as_str(), |found| found.strip_suffix('\r').unwrap_or(found));
    check(found, given, problems).then(|| Secret::new(found))
}

fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && name.len() <= 128
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Warnings about a credential that stands in the configuration itself.
fn literal(given: &At<Secret>, around: &Surroundings<'_>, problems: &mut Problems) {
    let At { value, place, path } = given;
    if is_placeholder(value.expose()) {
        let cure = "put your own key there, or remove the entry";
        problems.warning(Some(*place), path, "is the placeholder of an example, and opens nothing", cure);
    } else if around.readable_by_others {
        let cure = "chmod 600 the file, or use ${NAME} or file:/path";
        problems.warning(Some(*place), path, "holds a secret, in a file that other users may read", cure);
    }
}

fn check(found: &str, given: &At<Secret>, problems: &mut Problems) -> bool {
    let (message, cure) = if found.is_empty() {
        ("is empty", "write a key, \"passthrough\", \"oauth\", ${NAME} or file:/path")
    } else if found.len() > LENGTH_LIMIT {
        ("is longer than a header may be", "is this the right value?")
    } else if !found.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        (
            "has characters that cannot go into a header",
            "only visible ASCII can; was something else pasted along with it?",
        )
    } else if found.trim() != found {
        ("begins or ends with a space", "remove the space")
    } else if found.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("bearer ")) {
        ("begins with the word Bearer", "leave it out: auth_type: auth_token puts it there")
    } else {
        return true;
    };
    problems.error(Some(given.place), &given.path, message, cure);
    false
}

/// Only plain files, and never much: a pipe would block, a device would not end.
fn read(path: &Path) -> Result<String, String> {
    let plain = |metadata: std::fs::Metadata| match metadata.is_file() {
        true if metadata.len() <= FILE_LIMIT => Ok(()),
        true => Err("it is larger than 64 KiB".to_owned()),
        false if metadata.is_dir() => Err("it is a directory".to_owned()),
        false => Err("it is not a plain file".to_owned()),
    };
    plain(std::fs::metadata(path).map_err(|error| kind(&error))?)?;
    let file = std::fs::File::open(path).map_err(|error| kind(&error))?;
    // It may have been replaced in between.
    plain(file.metadata().map_err(|error| kind(&error))?)?;
    let mut text = zeroize::Zeroizing::new(Vec::new());
    file.take(FILE_LIMIT).read_to_end(&mut text).map_err(|error| kind(&error))?;
    std::str::from_utf8(&text).map(str::to_owned).map_err(|_| "it is not text".to_owned())
}

/// The same words on every system.
pub(super) fn kind(error: &std::io::Error) -> String {
    use std::io::ErrorKind as K;
    match error.kind() {
        K::NotFound => "there is no such file".to_owned(),
        K::PermissionDenied => "permission denied".to_owned(),
        K::IsADirectory => "it is a directory".to_owned(),
        _ if error.raw_os_error().is_some() => error.to_string(),
        other => other.to_string(),
    }
}
