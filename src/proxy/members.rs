//! A few members of a small JSON object that is all here, without a tree of the rest.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of an object that have these names, as they are written; of several with one name, the last. None if
/// this is no object of valid JSON.
pub(super) fn members<'a, const N: usize>(json: &'a [u8], names: [&str; N]) -> Option<[Option<&'a RawValue>; N]> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let found = Names(names).deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    Some(found)
}

struct Names<'n, const N: usize>([&'n str; N]);

impl<'a, const N: usize> DeserializeSeed<'a> for Names<'_, N> {
    type Value = [Option<&'a RawValue>; N];

    fn deserialize<D: Deserializer<'a>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'a, const N: usize> Visitor<'a> for Names<'_, N> {
    type Value = [Option<&'a RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut found = [None; N];
        while let Some(place) = map.next_key_seed(Key(&self.0))? {
            match place.and_then(|place| found.get_mut(place)) {
                Some(member) => *member = Some(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

/// Which of the names a key is.
struct Key<'n>(&'n [&'n str]);

impl<'a> DeserializeSeed<'a> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'a>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|name| *name == key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_as_they_are_written() {
        let found = |json: &str| {
            let found = members(json.as_bytes(), ["a", "b"]);
            found.map(|found| found.map(|value| value.map(|value| value.get().to_owned())))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(found(r#"{"a": [1, {"b":2}], "c":3 }"#), Some([some(r#"[1, {"b":2}]"#), None]));
        assert_eq!(found(r#" {"\u0061":"x\n","b":null} "#), Some([some(r#""x\n""#), some("null")]));
        assert_eq!(found(r#"{"a":1,"b":2,"a":3}"#), Some([some("3"), some("2")]));
        assert_eq!(found("{}"), Some([None, None]));
        for no_object in ["", "[]", "null", "\"a\"", "{\"a\":1", "{\"a\":1}x", "{\"a\":}", "{\"b\":\"\\x\"}"] {
            assert_eq!(found(no_object), None, "{no_object}");
        }
    }
}
