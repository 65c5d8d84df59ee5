//! The shape of the tree: arrows between rooms point downward only, sideways ones in one direction only, and files
//! stay small enough to read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The layers, as the design has them. `lab` and the judge stand beside them and are checked on their own.
const RANKS: [(&str, u8); 21] = [
    ("main", 7),
    ("cli", 7),
    ("app", 6),
    ("server", 6),
    ("admin", 5),
    ("proxy", 4),
    ("oauth", 3),
    ("upstream", 2),
    ("config", 2),
    ("health", 1),
    ("route", 1),
    ("inflow", 1),
    ("provider", 0),
    ("secret", 0),
    ("gate", 0),
    ("log", 0),
    ("metrics", 0),
    ("memory", 0),
    ("chunked", 0),
    ("lab", 0),
    ("conformance", 1),
];
/// Ranks whose rooms may use each other, in one direction.
const SIDEWAYS: [u8; 4] = [0, 1, 6, 7];
const LINES: usize = 450;

/// Room → rooms that it names → the first place where it does.
type Arrows = BTreeMap<String, BTreeMap<String, String>>;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every file of `src`, by its path below it.
fn files() -> Vec<(String, String)> {
    let (mut folders, mut files) = (vec![source()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let name = path.strip_prefix(source()).unwrap().to_string_lossy().replace('\\', "/");
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(files.len() > 40, "this does not look like the source: {}", files.len());
    files.sort();
    files
}

fn room(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

fn rank(room: &str) -> u8 {
    let found = RANKS.iter().find(|(name, _)| *name == room);
    found.unwrap_or_else(|| panic!("the room `{room}` has no rank: give it one here and in the design")).1
}

/// The text without comments: what is only spoken of is not used. (No string in `src` holds `//` but URLs.)
fn code(text: &str) -> String {
    let line = |line: &str| {
        let end = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':')).map_or(line.len(), |(at, _)| at);
        line[..end].to_owned()
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The rooms that a text names by `crate::room` or `crate::{room, room::x}`.
fn named(text: &str) -> Vec<(usize, String)> {
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        // `claude_code_balancer::` would be another crate; here `$crate::` and `crate::` mean this one.
        let line = text[..at].lines().count().max(1);
        let rest = text[at + "crate::".len()..].trim_start();
        let Some(list) = rest.strip_prefix('{') else {
            found.push((line, word(rest)));
            continue;
        };
        let (mut depth, mut item) = (1, String::new());
        for character in list.chars() {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => found.push((line, word(std::mem::take(&mut item).trim()))),
                _ if depth == 1 => item.push(character),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        found.push((line, word(item.trim())));
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

fn arrows() -> Arrows {
    let mut arrows = Arrows::new();
    for (file, text) in files() {
        let from = room(&file).to_owned();
        if from == "lib" {
            continue;
        }
        for (line, to) in named(&code(&text)) {
            if to != from {
                arrows.entry(from.clone()).or_default().entry(to).or_insert_with(|| format!("src/{file}:{line}"));
            }
        }
    }
    arrows
}

#[test]
fn arrows_between_rooms_point_downward() {
    let mut wrong = Vec::new();
    for (from, targets) in arrows() {
        for (to, place) in targets {
            let why = match (rank(&from), rank(&to)) {
                _ if from == "lab" => "the lab stands beside the rooms and uses none",
                _ if from == "conformance" && to != "lab" => "the judge works from outside: it uses the lab alone",
                _ if to == "conformance" && from != "cli" => "only its command and tests use the judge",
                _ if to == "lab" && from != "cli" && from != "conformance" => {
                    "only the demo, the judge, tests and benches use the lab"
                }
                (from, to) if from < to => "this points upward",
                (from, to) if from == to && !SIDEWAYS.contains(&from) => "these two do not know each other",
                _ => continue,
            };
            wrong.push(format!("{place}: {from} (rank {}) uses {to} (rank {}): {why}", rank(&from), rank(&to)));
        }
    }
    assert!(wrong.is_empty(), "arrows that must not be:\n  {}", wrong.join("\n  "));
}

#[test]
fn rooms_of_one_rank_use_each_other_in_one_direction_only() {
    let arrows = arrows();
    // Rooms from which nothing leads on are taken away until none is left: what stays goes round in a circle.
    let mut left: BTreeSet<&str> = RANKS.iter().map(|(name, _)| *name).collect();
    loop {
        let ends: Vec<&str> = left
            .iter()
            .filter(|room| {
                !arrows.get(**room).is_some_and(|targets| targets.keys().any(|to| left.contains(to.as_str())))
            })
            .copied()
            .collect();
        if ends.is_empty() {
            break;
        }
        left.retain(|room| !ends.contains(room));
    }
    let mut places = Vec::new();
    for room in &left {
        let circle = arrows[*room].iter().filter(|(to, _)| left.contains(to.as_str()));
        places.extend(circle.map(|(to, place)| format!("{place}: {room} uses {to}")));
    }
    assert!(left.is_empty(), "these rooms use each other in a circle:\n  {}", places.join("\n  "));
}

#[test]
fn rooms_do_not_name_what_is_not_theirs() {
    let forbidden = [
        ("proxy", &["saphyr", "serde_yaml", "notify"][..]),
        ("config", &["hyper", "httparse", "tokio::net"][..]),
        ("route", &["hyper", ".await", "async fn", "serde_json"][..]),
        ("health", &["hyper", ".await", "async fn", "serde_json"][..]),
        ("upstream", &["hyper::", "saphyr"][..]),
        ("gate", &["hyper", ".await"][..]),
    ];
    let mut wrong = Vec::new();
    for (file, text) in files() {
        for (owner, words) in forbidden {
            // Tests of paused time await, whatever they test.
            if room(&file) != owner || file.ends_with("tests.rs") {
                continue;
            }
            for (number, line) in code(&text).lines().enumerate() {
                for word in words.iter().filter(|word| line.contains(**word)) {
                    wrong.push(format!("src/{file}:{}: `{owner}` must not know `{word}`: {}", number + 1, line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What would open a hole, wherever it stood: certificates that are not checked (T21), keys of sessions on a disk (T22),
/// whole requests in the log (T16), an environment that changes under threads, and the store of Claude Code (T57).
#[test]
fn some_words_are_said_nowhere() {
    let words = [
        "dangerous()",
        "ServerCertVerifier",
        "KeyLogFile",
        "tracing::instrument",
        "#[instrument",
        "?request",
        "?headers",
        "?response",
        "set_var",
        "remove_var",
        ".credentials.json",
        "Claude Code-credentials",
    ];
    let said: Vec<_> = files()
        .into_iter()
        .flat_map(|(file, text)| {
            let found = words.iter().filter(move |word| code(&text).contains(**word));
            found.map(|word| format!("src/{file} says {word}")).collect::<Vec<_>>()
        })
        .collect();
    assert!(said.is_empty(), "{}", said.join("\n"));
}

/// T23: what is built is what the lock file says, byte for byte, from one registry and no repository or folder.
#[test]
fn every_dependency_is_locked_to_its_contents() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).unwrap();
    let packages: Vec<_> = lock.split("[[package]]").skip(1).collect();
    let field = |package: &str, name: &str| {
        let mut lines = package.lines();
        lines.find_map(|line| Some(line.strip_prefix(&format!("{name} = \""))?.trim_end_matches('"').to_owned()))
    };
    let sources: BTreeSet<_> = packages.iter().filter_map(|package| field(package, "source")).collect();
    assert!(sources.len() == 1 && sources.iter().all(|source| source.starts_with("registry+")), "{sources:?}");
    let unproved: Vec<_> = packages.iter().filter(|package| field(package, "checksum").is_none()).collect();
    let own: Vec<_> = unproved.iter().filter_map(|package| field(package, "name")).collect();
    assert_eq!(own, [env!("CARGO_PKG_NAME")]);
    let script = std::fs::read_to_string(root.join(".ci/run")).unwrap();
    let builds =
        script.lines().filter(|line| ["cargo test", "cargo build", "cargo doc"].iter().any(|b| line.contains(b)));
    for line in builds {
        assert!(line.contains("--locked"), "{line}");
    }
}

#[test]
fn files_are_short_enough_to_read() {
    let long: Vec<_> = files()
        .into_iter()
        .map(|(file, text)| (text.lines().count(), file))
        .filter(|(lines, _)| *lines > LINES)
        .map(|(lines, file)| format!("src/{file} has {lines} lines; split it by job (limit {LINES})"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn names_of_rooms_are_found_in_every_form() {
    let text = "use crate::config::Live;\nuse crate::{app, health::{Now, Scope}, log};\nlet x = crate::gate::admit();\n\
                // crate::cli is only spoken of\nlet url = \"http://crate\";\n";
    let names: Vec<_> = named(&code(text)).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["config", "app", "health", "log", "gate"]);
}
