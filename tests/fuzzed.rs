//! The corpora of the fuzz targets: every input that was ever of interest still holds.

use std::path::PathBuf;

use super::invariants;

fn fuzz() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

#[test]
fn the_corpora_of_the_fuzzer_hold() {
    let mut broken = Vec::new();
    for (target, _) in invariants::TARGETS {
        let inputs: Vec<_> = std::fs::read_dir(fuzz().join("corpus").join(target)).expect(target).collect();
        assert!(inputs.len() >= 10, "{target} has {} inputs", inputs.len());
        for input in inputs {
            let path = input.expect("entry").path();
            let bytes = std::fs::read(&path).expect("input");
            if std::panic::catch_unwind(|| invariants::check(target, &bytes)).is_err() {
                broken.push(path);
            }
        }
    }
    assert!(broken.is_empty(), "these no longer hold: {broken:#?}");
}

#[test]
fn every_check_is_a_target_and_every_target_has_its_corpus_and_words() {
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).expect("manifest");
    let mut names: Vec<_> = invariants::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let in_manifest =
        manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""));
    assert_eq!(in_manifest.collect::<Vec<_>>(), names);
    for name in &names {
        let main = std::fs::read_to_string(fuzz().join("fuzz_targets").join(format!("{name}.rs"))).expect(name);
        assert!(main.contains(&format!("check({name:?}, bytes)")), "{main}");
    }
    let mut corpora: Vec<_> = std::fs::read_dir(fuzz().join("corpus"))
        .expect("corpora")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("name"))
        .collect();
    corpora.sort();
    names.sort();
    assert_eq!(corpora, names);
    let mut without: Vec<_> = names.iter().filter(|name| !fuzz().join(format!("dict/{name}.dict")).exists()).collect();
    without.retain(|name| *name != "glob");
    assert!(without.is_empty(), "no dictionary for {without:?}");
}
