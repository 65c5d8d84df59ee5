//! The JSON Schema of a configuration (draft 2020-12), made from the table of keys. It knows keys and shapes; what
//! depends on two places of the file, or on the machine, only `check` knows.

use serde_json::{Map, Value, json};

use super::keys::{Key, Shape, TOP, Tolerated};
use super::legacy;

/// The schema as it is kept in `config/schema.json`.
pub fn schema() -> String {
    let mut root = Map::new();
    root.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    root.insert("title".into(), "Claude Code Provider Balancer".into());
    if let Value::Object(map) = object(&TOP, &legacy::TOP, Some("providers")) {
        root.extend(map);
    }
    // Only a map that JSON cannot hold would fail here, and there is none.
    serde_json::to_string_pretty(&Value::Object(root)).unwrap_or_default() + "\n"
}

fn object(keys: &[Key], tolerated: &[Tolerated], required: Option<&str>) -> Value {
    let mut properties = Map::new();
    for key in keys {
        let mut value = shape(key.shape);
        if let Value::Object(map) = &mut value {
            map.insert("description".into(), key.about.into());
        }
        properties.insert(key.name.into(), value);
    }
    for (name, why) in tolerated {
        properties.insert((*name).into(), json!({ "deprecated": true, "description": why }));
    }
    let mut object = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if let (Some(name), Value::Object(map)) = (required, &mut object) {
        map.insert("required".into(), json!([name]));
    }
    object
}

fn shape(shape: Shape) -> Value {
    let literal = || json!({ "type": ["string", "number", "boolean"] });
    match shape {
        Shape::Text => json!({ "type": "string" }),
        Shape::TextOrNothing => json!({ "type": ["string", "null"] }),
        Shape::Literal => literal(),
        Shape::Flag => json!({ "type": "boolean" }),
        Shape::Number(low, high) => number(low, high),
        Shape::Duration => json!({ "anyOf": [
            { "type": "number", "minimum": 0 },
            { "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)? *(ms|s|m|h)?$" },
        ] }),
        Shape::Word(words) => {
            let any_case: Vec<_> = words.iter().map(|word| pattern(word)).collect();
            json!({ "anyOf": [{ "enum": words }, { "type": "string", "pattern": format!("^({})$", any_case.join("|")) }] })
        }
        Shape::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Shape::Numbers(low, high) => json!({ "type": "array", "items": number(low, high) }),
        Shape::Literals => json!({ "anyOf": [literal(), { "type": "null" }, { "type": "array", "items": literal() }] }),
        Shape::Section(keys, tolerated) => json!({ "anyOf": [{ "type": "null" }, object(keys, tolerated, None)] }),
        Shape::Entries(keys, tolerated) => entries(keys, tolerated),
        Shape::Routes(keys) => json!({ "anyOf": [
            { "type": "null" },
            { "type": "object", "additionalProperties": { "anyOf": [{ "type": "null" }, entries(keys, &[])] } },
        ] }),
    }
}

fn entries(keys: &[Key], tolerated: &[Tolerated]) -> Value {
    json!({ "type": "array", "items": object(keys, tolerated, keys.first().map(|key| key.name)) })
}

fn number(low: i64, high: i64) -> Value {
    let mut number = Map::new();
    number.insert("type".into(), "integer".into());
    if low != i64::MIN {
        number.insert("minimum".into(), low.into());
    }
    if high != i64::MAX {
        number.insert("maximum".into(), high.into());
    }
    Value::Object(number)
}

/// The word in any case, for a dialect that has no flag for it.
fn pattern(word: &str) -> String {
    word.chars()
        .map(|character| match character.is_ascii_alphabetic() {
            true => format!("[{}{}]", character.to_ascii_uppercase(), character.to_ascii_lowercase()),
            false => character.to_string(),
        })
        .collect()
}
