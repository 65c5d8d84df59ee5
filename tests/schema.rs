//! The schema for editors knows the keys that the loader knows.

use std::path::{Path, PathBuf};

use claude_code_balancer::config::{self, Surroundings};
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn schema() -> Value {
    serde_json::from_str(&config::schema()).unwrap()
}

fn cases(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|kind| kind == "yaml")).collect()
}

/// The part of the standard that our schema uses; another keyword ends the test.
fn fits(schema: &Value, value: &Value) -> bool {
    let kind = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "null" => value.is_null(),
        other => panic!("the type {other}"),
    };
    schema.as_object().unwrap().iter().all(|(keyword, rule)| match keyword.as_str() {
        "type" => match rule {
            Value::String(name) => kind(name),
            names => names.as_array().unwrap().iter().any(|name| kind(name.as_str().unwrap())),
        },
        "anyOf" => rule.as_array().unwrap().iter().any(|rule| fits(rule, value)),
        "enum" => rule.as_array().unwrap().contains(value),
        "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
        "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
        "pattern" => value.as_str().is_none_or(|text| matches(rule.as_str().unwrap(), text)),
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| fits(rule, item))),
        "required" => value
            .as_object()
            .is_none_or(|map| rule.as_array().unwrap().iter().all(|k| map.contains_key(k.as_str().unwrap()))),
        "properties" => value
            .as_object()
            .is_none_or(|map| map.iter().all(|(key, value)| rule.get(key).is_none_or(|rule| fits(rule, value)))),
        "additionalProperties" => value.as_object().is_none_or(|map| {
            let known = |key: &str| schema.get("properties").is_some_and(|known| known.get(key).is_some());
            map.iter().all(|(key, value)| known(key) || (rule.is_object() && fits(rule, value)))
        }),
        "$schema" | "title" | "description" | "deprecated" => true,
        other => panic!("the keyword {other}"),
    })
}

/// Words in any case, and durations: there are no other patterns.
fn matches(pattern: &str, text: &str) -> bool {
    if pattern.contains("ms|s|m|h") {
        let amount = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        return amount.trim_end().parse::<f64>().is_ok() && ["", "ms", "s", "m", "h"].contains(&&text[amount.len()..]);
    }
    let words: Vec<String> = pattern.trim_matches(['^', '$', '(', ')']).split('|').map(first_of_pairs).collect();
    words.iter().any(|word| word.eq_ignore_ascii_case(text))
}

/// `[Aa][Bb]_` → `AB_`
fn first_of_pairs(pattern: &str) -> String {
    let mut word = String::new();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '[' => {
                word.extend(letters.next());
                assert!(letters.next().is_some() && letters.next() == Some(']'), "{pattern}");
            }
            other => word.push(other),
        }
    }
    word
}

fn loads(value: &Value) -> Result<(), String> {
    // JSON is YAML.
    let text = serde_json::to_string(value).unwrap();
    config::parse(text.as_bytes(), "s.yaml", &Surroundings::pure(&|_| None))
        .map(drop)
        .map_err(|report| report.to_string())
}

#[test]
fn the_file_for_editors_is_what_schema_prints() {
    let kept = root().join("config/schema.json");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&kept, config::schema()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(kept).unwrap(), config::schema(), "BLESS=1 writes it anew");
    let example = std::fs::read_to_string(root().join("config/example.yaml")).unwrap();
    assert!(example.starts_with("# yaml-language-server: $schema=schema.json\n"));
}

#[test]
fn every_valid_file_fits_the_schema() {
    let schema = schema();
    for path in cases("tests/cases/config/valid").into_iter().chain(cases("config")) {
        let text = std::fs::read_to_string(&path).unwrap();
        let value: Value = serde_saphyr::from_str(text.trim_start_matches('\u{feff}')).unwrap();
        assert!(fits(&schema, &value), "{}: {value}", path.display());
    }
}

/// Puts keys into a file that is valid without them.
type Around = Box<dyn Fn(Value) -> Value>;

/// Every map of the schema with the path that leads to it, in a file that is valid around it.
fn maps() -> Vec<(&'static str, Value, Around)> {
    let provider = json!({ "name": "A", "auth_value": "passthrough" });
    let whole = schema();
    let at = |pointer: &str| whole.pointer(pointer).unwrap_or_else(|| panic!("{pointer}")).clone();
    let settings = "/properties/settings/anyOf/1";
    let merged = |base: Value, more: Value| -> Value {
        let mut base = base;
        base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        base
    };
    let list = json!([provider]);
    let beside = move |key: &str, value: Value| {
        let mut file = json!({ "providers": list.clone() });
        file[key] = value;
        file
    };
    let section = {
        let beside = beside.clone();
        move |name: &'static str| {
            let beside = beside.clone();
            Box::new(move |more: Value| beside("settings", json!({ name: more }))) as Around
        }
    };
    let (one, two, three) = (provider.clone(), beside.clone(), beside.clone());
    vec![
        ("", at(""), Box::new(move |more| merged(json!({ "providers": [one.clone()] }), more))),
        (
            "providers",
            at("/properties/providers/items"),
            Box::new(move |more| json!({ "providers": [merged(provider.clone(), more)] })),
        ),
        (
            "routes",
            at("/properties/model_routes/anyOf/1/additionalProperties/anyOf/1/items"),
            Box::new(move |more| two("model_routes", json!({ "*": [merged(json!({ "provider": "A" }), more)] }))),
        ),
        ("settings", at(settings), Box::new(move |more| three("settings", more))),
        ("timeouts", at(&format!("{settings}/properties/timeouts/anyOf/1")), section("timeouts")),
        ("auth", at(&format!("{settings}/properties/auth/anyOf/1")), section("auth")),
        ("oauth", at(&format!("{settings}/properties/oauth/anyOf/1")), section("oauth")),
    ]
}

#[test]
fn schema_and_loader_know_the_same_keys() {
    let schema = schema();
    for (name, map, file) in maps() {
        let keys = map["properties"].as_object().unwrap();
        assert!(keys.len() >= 3, "{name}");
        for key in keys.keys() {
            // Whatever the loader says of such a value, it knows the key.
            let said = loads(&file(json!({ key: [[["no"]]] }))).err().unwrap_or_default();
            assert!(!said.contains("unknown key"), "{name}.{key}: {said}");
            let wrong = file(json!({ format!("{key}x"): 1 }));
            let said = loads(&wrong).expect_err(key);
            assert!(said.contains(&format!("unknown key \"{key}x\"")), "{name}.{key}x: {said}");
            assert!(!fits(&schema, &wrong), "{name}.{key}x");
        }
    }
}

#[test]
fn schema_and_loader_know_the_same_words_and_numbers() {
    let schema = schema();
    let mut words = 0;
    for (name, map, file) in maps() {
        for (key, rule) in map["properties"].as_object().unwrap() {
            let agree = |value: Value| {
                let text = file(json!({ key: value }));
                let (fits, loads) = (fits(&schema, &text), loads(&text));
                // A word that leans on another key is told apart by the message.
                let loads = loads
                    .err()
                    .is_none_or(|said| ["contradicts", "no key is given"].iter().any(|words| said.contains(words)));
                assert_eq!(fits, loads, "{name}.{key}: {text}");
            };
            for word in rule["anyOf"][0]["enum"].as_array().into_iter().flatten() {
                words += 1;
                agree(word.clone());
                agree(word.as_str().unwrap().to_uppercase().into());
                agree(format!("{}x", word.as_str().unwrap()).into());
            }
            if rule["type"] == "integer" {
                for edge in [&rule["minimum"], &rule["maximum"]].into_iter().filter_map(Value::as_i64) {
                    [edge - 1, edge, edge + 1].into_iter().for_each(|number| agree(number.into()));
                }
            }
            if rule["type"] == "boolean" {
                agree(true.into());
                agree("true".into());
            }
            if rule.to_string().contains("ms|s|m|h") {
                for value in [json!("5s"), json!("150ms"), json!(7), json!(-1), json!("5 weeks"), json!("s")] {
                    agree(value);
                }
            }
        }
    }
    assert_eq!(words, 19);
}
