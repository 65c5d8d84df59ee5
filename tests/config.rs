//! What configurations say, mean and are refused for: a file for each case, with its report beside it.
//! `BLESS=1 cargo test --test main config` writes the reports anew; read each before it is committed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use claude_code_balancer::config::{
    self, Language, Live, OAuthStorage, Overrides, Problem, Report, Severity, Snapshot, Surroundings, check_any,
    difference,
};
use claude_code_balancer::provider::{Auth, Egress};
use claude_code_balancer::route::{ModelChoice, Strategy};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn yaml_files(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).expect(folder);
    let mut files: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(!files.is_empty(), "{folder} is empty");
    files
}

/// Reads a case as it would be read at home, in an environment of its own.
fn read(path: &Path) -> Result<(Snapshot, Vec<Problem>), Report> {
    let bytes = std::fs::read(path).expect("case");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let env = |name: &str| match name {
        "SET" => Some("a-value-of-the-environment".to_owned()),
        "EMPTY" => Some(String::new()),
        // `# env: NAME=value` in the first line of a case.
        _ => text.lines().next()?.strip_prefix("# env: ")?.strip_prefix(name)?.strip_prefix('=').map(str::to_owned),
    };
    let around = Surroundings {
        files: true,
        folder: path.parent().map(Path::to_owned),
        readable_by_others: text.starts_with("# others may read"),
        ..Surroundings::pure(&env)
    };
    config::parse(&bytes, &path.file_name().expect("name").to_string_lossy(), &around)
}

fn rendered(file: &Path, problems: &[Problem]) -> String {
    let file = file.file_name().expect("name").to_string_lossy().into_owned();
    Report { file, problems: problems.to_vec() }.to_string()
}

/// Compares with the report beside the case; none = no report is expected.
fn differs(path: &Path, found: &str) -> Option<String> {
    let beside = path.with_extension("report");
    if std::env::var_os("BLESS").is_some() {
        if found.is_empty() {
            let _ = std::fs::remove_file(&beside);
        } else {
            std::fs::write(&beside, found).expect("bless");
        }
        return None;
    }
    let expected = std::fs::read_to_string(&beside).unwrap_or_default();
    if expected == found {
        return None;
    }
    let mut text = format!("\n{}\n", path.display());
    for line in expected.lines().filter(|line| !found.lines().any(|other| other == *line)) {
        let _ = writeln!(text, "  expected: {line}");
    }
    for line in found.lines().filter(|line| !expected.lines().any(|other| other == *line)) {
        let _ = writeln!(text, "  found:    {line}");
    }
    Some(text)
}

#[test]
fn every_invalid_case_is_refused_with_its_report() {
    let mut wrong = String::new();
    for path in yaml_files("tests/cases/config/invalid") {
        match read(&path) {
            Ok(_) => wrong.push_str(&format!("\n{} was accepted\n", path.display())),
            Err(report) => wrong.extend(differs(&path, &report.to_string())),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_valid_case_loads_with_its_warnings() {
    let mut wrong = String::new();
    for path in yaml_files("tests/cases/config/valid") {
        match read(&path) {
            Ok((_, warnings)) => wrong.extend(differs(&path, &rendered(&path, &warnings))),
            Err(report) => wrong.push_str(&format!("\n{} was refused:\n{report}", path.display())),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_files_in_config_load() {
    for path in yaml_files("config") {
        let (_, warnings) = read(&path).unwrap_or_else(|report| panic!("{report}"));
        let odd: Vec<_> = warnings.iter().filter(|problem| !problem.message.contains("placeholder")).collect();
        assert!(odd.is_empty(), "{}: {odd:?}", path.display());
    }
}

#[test]
fn the_example_shows_every_key_with_its_default() {
    let (example, _) = read(&root().join("config/example.yaml")).expect("valid");
    let mut defaults = config::Settings::default();
    defaults.log_file_path.clone_from(&example.settings.log_file_path);
    assert_eq!(example.settings, defaults);
}

fn valid(name: &str) -> Snapshot {
    let path = root().join(format!("tests/cases/config/valid/{name}.yaml"));
    read(&path).unwrap_or_else(|report| panic!("{report}")).0
}

fn labels(snapshot: &Snapshot, model: &str) -> Vec<String> {
    let route = snapshot.routes.matching(model).next();
    route.map(|route| route.targets.iter().map(|target| target.provider.label()).collect()).unwrap_or_default()
}

#[test]
fn one_account_without_routes_answers_for_every_model() {
    let snapshot = valid("sample-a-one-account");
    assert_eq!(labels(&snapshot, "anything"), ["Claude Code Official"]);
    assert_eq!(snapshot.providers[0].auth, Auth::OAuth);
}

#[test]
fn two_accounts_of_one_provider_are_two_targets_and_the_second_goes_out_directly() {
    let snapshot = valid("sample-b-two-accounts");
    let (main, backup) = ("Claude Code Official (main@example.com)", "Claude Code Official (backup@example.com)");
    assert_eq!(labels(&snapshot, "claude-sonnet-4-5"), [main, backup, "Third Party"]);
    assert_eq!(labels(&snapshot, "claude-haiku-4-5"), [backup, main]);
    assert_eq!(labels(&snapshot, "claude-opus-4-1"), Vec::<String>::new());
    assert_eq!(snapshot.providers[0].egress.to_string(), "http://127.0.0.1:20171");
    assert_eq!(snapshot.providers[1].egress, Egress::Direct);
}

#[test]
fn abbreviated_entries_take_over_type_and_base_url() {
    let snapshot = valid("sample-c-abbreviated");
    let bases: Vec<_> = snapshot.providers.iter().map(|provider| provider.base.to_string()).collect();
    assert_eq!(bases, ["https://api.anthropic.com"; 3]);
    assert!(matches!(&snapshot.providers[2].auth, Auth::ApiKey(key) if key.expose() == "sk-ant-a-literal-key"));
    assert_eq!(labels(&snapshot, "m").len(), 3);
}

#[test]
fn scalars_are_taken_literally_where_a_name_or_a_key_is_expected() {
    let snapshot = valid("name-scalars");
    let names: Vec<_> = snapshot.providers.iter().map(|provider| provider.label()).collect();
    assert_eq!(names, ["no", "123", "2024-01-01"]);
    let keys = ["123", "true", "0x1F"];
    for (provider, key) in snapshot.providers.iter().zip(keys) {
        assert!(matches!(&provider.auth, Auth::ApiKey(secret) if secret.expose() == key), "{key}");
    }
    assert_eq!(snapshot.routes.routes()[0].targets[0].model, ModelChoice::Named("7".into()));
}

#[test]
fn credentials_come_from_the_environment_and_from_files() {
    for (case, key) in [("auth-env", "a-value-of-the-environment"), ("auth-file", "a-key-in-a-file-1")] {
        let snapshot = valid(case);
        assert!(matches!(&snapshot.providers[0].auth, Auth::ApiKey(secret) if secret.expose() == key), "{case}");
    }
}

#[test]
fn durations_and_the_nested_timeouts_of_the_predecessor_are_understood() {
    let settings = valid("durations").settings;
    let seconds = Duration::from_secs_f64;
    assert_eq!(settings.health.failure_cooldown, Duration::ZERO);
    assert_eq!(settings.sticky_provider_duration, seconds(0.5));
    assert!(settings.health.unhealthy_reset_timeout > seconds(86_400.0));
    let timeouts = settings.timeouts;
    assert_eq!((timeouts.connect, timeouts.tls, timeouts.idle), (seconds(0.15), seconds(5.0), seconds(120.0)));
    assert_eq!((timeouts.first_byte, timeouts.first_byte_stream), (seconds(3600.0), seconds(1.5)));

    let timeouts = valid("predecessor").settings.timeouts;
    assert_eq!((timeouts.connect, timeouts.idle, timeouts.first_byte), (seconds(30.0), seconds(120.0), seconds(120.0)));
}

#[test]
fn eight_mistakes_are_eight_problems() {
    let report = read(&root().join("tests/cases/config/invalid/eight-mistakes.yaml")).expect_err("eight mistakes");
    assert_eq!(report.problems.iter().filter(|problem| problem.severity == Severity::Error).count(), 8, "{report}");
}

/// Secrets of several shapes, on lines with all kinds of mistakes.
#[test]
fn no_credential_appears_in_a_report_or_in_debug_output() {
    let canaries = ["sk-ant-canary-1", "canary", "c4n4ryc4n4ryc4n4ry", "canary: x", "canary\\u0007", "\\x63anary\\q"];
    let templates = [
        "providers:\n  - {name: a, auth_value: \"@\"",
        "providers:\n  - name: a\n    auth_value: \"@",
        "providers:\n  - name: a\n    auth_value: \"@\" x\n",
        "providers:\n  - name: a\n    auth_value: [\"@\"]\n",
        "providers:\n  - name: a\n    auth_value: {\"@\": 1}\n",
        "providers:\n  - name: a\n    auth_value: {k: \"@\"}\n",
        "providers:\n  - name: a\n    auth_value: !tag \"@\"\n",
        "providers:\n  - name: a\n    auth_value: *\"@\"\n",
        "providers:\n  - name: a\n\tauth_value: \"@\"\n",
        "providers:\n  - name: a\n    auth_value: \"@\"\n    auth_value: \"@\"\n",
        "providers:\n  - name: a\n    auth_valeu: \"@\"\n",
        "providers:\n  - name: a\n    auth_value: \"${@}\"\n",
        "providers:\n  - name: a\n    auth_value: \"${@\"\n",
        "providers:\n  - name: a\n    auth_value: \" @\"\n",
        "providers:\n  - name: a\n    auth_value: \"Bearer @\"\n",
        "providers:\n  - name: a\n    auth_value: \"@\"\n    auth_type: oauth\n",
        "providers:\n  - name: a\n    auth_value: \"@\"\n    base_url: \"http://example.com\"\n",
        "providers:\n  - auth_value: \"@\"\n    enabled: 3\n",
        "providers:\n  - name: a\n    proxy: \"http://user:@@host\"\n",
        "providers:\n  - name: a\n    proxy: \"user:@@host:1\"\n",
        "providers:\n  - name: a\n    proxy: \"socks4://user:@@host:1\"\n",
        "providers:\n  - name: a\n    proxy: \"http://user:@@host:1/path\"\n",
        "providers:\n  - name: a\n    proxy: \"http://user:@@host:1\"\n",
        "providers:\n  - name: a\n    proxy: \"http://@\"\n",
        "providers:\n  - name: a\n    proxy: \"@\"\n",
        "providers:\n  - name: a\n    proxy: [\"http://user:@@host:1\"]\n",
        "providers:\n  - name: a\n    base_url: \"https://user:@@host\"\n    auth_value: x\n",
        "providers:\n  - name: a\n    base_url: \"https://host/?key=@\"\n    auth_value: x\n",
        "providers:\n  - name: a\n    auth_value: x\nsettings:\n  auth: {enabled: true, api_key: \" @\"}\n",
        "providers:\n  - name: a\n    auth_value: x\nsettings:\n  auth: {enabled: true, api_key: {a: \"@\"}}\n",
        "providers:\n  - name: a\n    auth_value: x\nsettings:\n  auth: {enabled: true, api_key: [[\"@\"]]}\n",
        "providers:\n  - name: a\n    auth_value: x\nsettings:\n  auth: {enabled: true, api-key: \"@\"}\n",
        "providers:\n  - name: a\n    auth_value: x\nsettings:\n  host: 0.0.0.0\n  auth: {enabled: true, api_key: \"@\"}\n",
        "providers:\n  - name: a\n    auth_value: x\nsettings:\n  auth: \"@\"\n",
        "providers:\n  - name: a\n    auth_value: x\nsettings:\n  oauth: {proxy: \"http://u:@@host\"}\n",
        "providers:\n  - name: a\n    auth_value: \"@\"\nmodel_routes: {\"*\": [{provider: b}]}\n",
        "providers:\n  - name: a\n    auth_value: \"@\"\n    proxy: \"http://user:@@host:1\"\n",
        "providers:\n  - name: a\n    auth_value:@\n    auth_type: oauth\nmodel_routes: {\"*\": [{provider: a}]}\n",
        "providers:\n  - name: a\n    enabled: true\n    auth_value:@\n",
        "providers:\n  - auth_value:@\n",
        "providers:\n  - name: a\n    base_url: \"https://user:@\"\n",
        "providers:\n  - {name: a, auth_value: x}\nsettings:\n  auth:\n    enabled: true\n    api_key:@\n",
        "auth: {api_key: \"@\"}\nproviders: 3\n",
    ];
    let env = |_: &str| None;
    for canary in canaries {
        for template in templates {
            let text = template.replacen("${@", &format!("${{{canary}"), 1);
            // A lone `@` stands for the secret; `@@` for the secret in front of a host.
            let text = text.replace("@@", "\u{1}@").replace('@', "\u{2}").replace("\u{1}\u{2}", &format!("{canary}@"));
            let text = text.replace('\u{2}', canary);
            let said = match config::parse(text.as_bytes(), "c.yaml", &Surroundings::pure(&env)) {
                Ok((snapshot, warnings)) => format!("{snapshot:?}{warnings:?}{}", rendered(Path::new("c"), &warnings)),
                Err(report) => format!("{report}{report:?}"),
            };
            // The name of an environment variable is not a secret, unless it looks like one.
            if text.contains("${canary}") {
                continue;
            }
            for part in ["canary", "c4n4ry"] {
                assert!(!said.contains(part), "{text}\n{said}");
            }
        }
    }
}

#[test]
fn hostile_files_are_refused_quickly() {
    let deep: String = (0..10_000).map(|level| format!("{}k:\n", " ".repeat(level.min(90)))).collect();
    let many = format!("providers:\n{}", "  - {name: a, auth_value: b}\n".repeat(36_000));
    let keys =
        format!("providers:\n  - name: a\n{}", (0..60_000).map(|i| format!("    k{i}: x\n")).collect::<String>());
    let cases: [(&str, Vec<u8>); 10] = [
        ("open brackets", "[".repeat(100_000).into()),
        ("open braces", "{a: ".repeat(100_000).into()),
        ("nested lists", format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)).into()),
        ("nested maps", deep.into()),
        ("nested dashes", format!("{}a", "- ".repeat(100_000)).into()),
        ("many providers", many.into()),
        ("many keys", keys.into()),
        ("2 MiB", vec![b'#'; 2 << 20]),
        ("long anchor", format!("a: &{} b", "x".repeat(500_000)).into()),
        ("one long text", format!("providers: \"{}\"", "x".repeat(900_000)).into()),
    ];
    for (name, bytes) in cases {
        let start = SystemTime::now();
        let env = |_: &str| None;
        let report = config::parse(&bytes, "hostile.yaml", &Surroundings::pure(&env)).expect_err(name);
        let took = start.elapsed().unwrap_or_default();
        assert!(took < Duration::from_secs(10), "{name} took {took:?}");
        assert!(report.to_string().len() < 64 * 1024, "{name} has a report of {} bytes", report.to_string().len());
    }
}

#[test]
fn what_holds_for_any_bytes_holds_for_every_case() {
    for folder in ["tests/cases/config/valid", "tests/cases/config/invalid", "config"] {
        for path in yaml_files(folder) {
            check_any(&std::fs::read(path).expect("case"));
        }
    }
}

#[test]
fn the_first_file_that_exists_is_used_but_what_was_asked_for_comes_first() {
    let home = tempfile::tempdir().expect("folder");
    let folder = home.path().join("claude-code-balancer");
    let env = |name: &str| (name == "XDG_CONFIG_HOME").then(|| home.path().to_string_lossy().into_owned());
    assert_eq!(config::locate(Some(Path::new("x.yaml")), &env), Some("x.yaml".into()));
    let named = |name: &str| (name == "CLAUDE_CODE_BALANCER_CONFIG").then(|| "y.yaml".to_owned());
    assert_eq!(config::locate(None, &named), Some("y.yaml".into()));
    if cfg!(not(windows)) {
        assert_eq!(config::locate(None, &env), None);
        std::fs::create_dir(&folder).expect("folder");
        std::fs::write(folder.join("config.yaml"), "").expect("file");
        assert_eq!(config::locate(None, &env), Some(folder.join("config.yaml")));
    }
}

#[test]
fn what_is_no_plain_file_is_refused_without_reading_it() {
    let folder = tempfile::tempdir().expect("folder");
    let env = |_: &str| None;
    let reason = |path: &Path| config::load_with(path, &Overrides::default(), &env).expect_err("refused").to_string();
    assert!(reason(&folder.path().join("none.yaml")).contains("there is no such file"));
    assert!(reason(folder.path()).contains("it is a directory"));
    #[cfg(unix)]
    {
        let pipe = folder.path().join("pipe.yaml");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
        assert!(reason(&pipe).contains("not a plain file"));
        assert!(reason(Path::new("/dev/zero")).contains("not a plain file"));
        let circle = folder.path().join("circle.yaml");
        std::os::unix::fs::symlink(&circle, &circle).expect("symlink");
        assert!(reason(&circle).contains("cannot read the file"));

        let file = folder.path().join("config.yaml");
        std::fs::write(&file, format!("providers:\n  - name: a\n    auth_value: \"file:{}\"\n", pipe.display()))
            .expect("write");
        assert!(reason(&file).contains("not a plain file"));
    }
}

#[cfg(unix)]
#[test]
fn a_literal_secret_in_a_file_that_others_may_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("config.yaml");
    std::fs::write(&file, "providers:\n  - name: a\n    auth_value: sk-ant-one\n").expect("write");
    for (mode, expected) in [(0o600, 0), (0o640, 1), (0o604, 1)] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("mode");
        let (_, warnings) = config::load_with(&file, &Overrides::default(), &|_| None).expect("valid");
        assert_eq!(warnings.len(), expected, "{mode:o}");
    }
}

#[test]
fn the_log_lies_beside_the_configuration_and_can_be_switched_off() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("config.yaml");
    let cases = [
        ("", Some(folder.path().join("logs/logs.jsonl"))),
        ("settings:\n  log_file_path: \"x/y.jsonl\"\n", Some(folder.path().join("x/y.jsonl"))),
        ("settings:\n  log_file_path: \"/z.jsonl\"\n", Some("/z.jsonl".into())),
        ("settings:\n  log_file_path: \"\"\n", None),
    ];
    for (settings, expected) in cases {
        std::fs::write(&file, format!("providers:\n  - {{name: a, auth_value: oauth}}\n{settings}")).expect("write");
        let (snapshot, _) = config::load_with(&file, &Overrides::default(), &|_| None).expect("valid");
        assert_eq!(snapshot.settings.log_file_path, expected, "{settings}");
    }
    assert_eq!(config::built_in().settings.log_file_path, None);
}

#[test]
fn the_language_is_that_of_the_environment_unless_the_file_says_otherwise() {
    let cases = [
        (None, "", Language::En),
        (Some("zh_CN.UTF-8"), "", Language::Zh),
        (Some("C"), "", Language::En),
        (Some("zh_TW"), "settings: {language: en}\n", Language::En),
        (None, "settings: {language: zh}\n", Language::Zh),
    ];
    for (lang, settings, expected) in cases {
        let env = |name: &str| lang.filter(|_| name == "LANG").map(str::to_owned);
        let text = format!("providers: [{{name: a, auth_value: oauth}}]\n{settings}");
        let (snapshot, _) = config::parse(text.as_bytes(), "l.yaml", &Surroundings::pure(&env)).expect("valid");
        assert_eq!(snapshot.settings.language, expected, "{lang:?} {settings}");
    }
}

#[test]
fn the_command_line_is_held_to_the_same_rules_as_the_file() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("config.yaml");
    std::fs::write(&file, "providers:\n  - {name: a, base_url: \"http://127.0.0.1:8080\", auth_value: oauth}\n")
        .expect("write");
    let load = |host: Option<&str>, port| {
        let overrides = Overrides { host: host.map(str::to_owned), port };
        config::load_with(&file, &overrides, &|_| None).map(|(snapshot, _)| snapshot.settings.port)
    };
    assert_eq!(load(None, Some(0)).expect("valid"), 0);
    assert!(load(None, Some(8080)).expect_err("circle").to_string().contains("in a circle"));
    assert!(load(Some("0.0.0.0"), None).expect_err("open").to_string().contains("no key of its own guards it"));
    let open = Live::open(None, Overrides { host: Some("0.0.0.0".into()), port: None });
    assert!(open.err().expect("open").to_string().contains("--host"));
}

#[test]
fn without_a_file_anthropic_answers_with_the_clients_own_credential() {
    let live = Live::open(None, Overrides { host: None, port: Some(0) }).expect("built in");
    let snapshot = live.load();
    assert_eq!(labels(&snapshot, "claude-sonnet-4-5"), ["Anthropic"]);
    assert_eq!((snapshot.providers[0].auth.clone(), snapshot.settings.port), (Auth::Passthrough, 0));
}

#[test]
fn a_valid_edit_comes_into_force_and_an_invalid_one_changes_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("config.yaml");
    let write = |settings: &str| {
        std::fs::write(&file, format!("providers:\n  - {{name: a, auth_value: oauth}}\n{settings}")).expect("write");
    };
    write("");
    let live = Live::open_in(Some(&file), Overrides::default(), Box::new(|_| None)).expect("valid");
    let first = live.load();
    assert_eq!(first.generation, 1);

    write("settings: {log_level: LOUD}\n");
    assert!(live.dry_run().is_err() && live.rejected().is_none());
    live.reload().expect_err("invalid");
    assert!(std::sync::Arc::ptr_eq(&first, &live.load()));
    assert!(live.rejected().expect("kept").report.to_string().contains("LOUD"));

    write("settings: {log_level: DEBUG, port: 9191}\n");
    let outcome = live.reload().expect("valid");
    let expected = ["settings.port: 9090 -> 9191 (needs a restart)", "settings.log_level: INFO -> DEBUG"];
    assert_eq!((outcome.difference, outcome.generation), (expected.map(str::to_owned).to_vec(), 2));
    assert!(live.rejected().is_none());
    assert_eq!(live.load().generation, 2);

    std::fs::remove_file(&file).expect("remove");
    live.reload().expect_err("gone");
    assert_eq!(live.load().generation, 2);
}

#[test]
fn the_difference_speaks_the_users_words_and_no_credential() {
    let env = |_: &str| None;
    let parse = |text: &str| config::parse(text.as_bytes(), "d.yaml", &Surroundings::pure(&env)).expect("valid").0;
    let old = parse(
        "providers:\n  - {name: A, auth_value: canary-one, proxy: \"http://u:canary@h:1\"}\n  - {name: B, auth_value: k}\n  - {name: C, auth_value: k}\n\
         model_routes:\n  \"*haiku*\": [{provider: A}, {provider: B}]\n  \"*\": [{provider: B}]\n",
    );
    let new = parse(
        "providers:\n  - {name: A, auth_value: canary-two, proxy: \"http://u:canari@h:1\", enabled: false}\n  - {name: Backup, auth_value: k}\n  - {name: B, auth_value: k}\n\
         model_routes:\n  \"*haiku*\": [{provider: B}, {provider: A}]\n  \"*\": [{provider: B, model: x}]\nsettings: {selection_strategy: random}\n",
    );
    let expected = [
        "provider \"C\" removed",
        "provider \"A\": enabled: true -> false, credential changed, credential of the proxy changed",
        "provider \"Backup\" added",
        "route \"*haiku*\": order changed",
        "route \"*\": \"B\" removed, \"B\" as \"x\" added",
        "settings.selection_strategy: priority -> random",
    ];
    assert_eq!(difference(&old, &new), expected);
    assert_eq!(difference(&old, &old), Vec::<String>::new());
    assert_eq!(new.settings.strategy, Strategy::Random);
    assert_eq!(new.settings.oauth.storage, OAuthStorage::Auto);
}
