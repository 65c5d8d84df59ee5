//! What the gate asks about the fields of a request, found in one walk over all of them.

use http::{HeaderMap, HeaderValue};

/// A field of which there must not be two.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Lone<'a> {
    #[default]
    Absent,
    Once(&'a HeaderValue),
    Repeated,
}

impl<'a> Lone<'a> {
    fn add(&mut self, value: &'a HeaderValue) {
        *self = if *self == Self::Absent { Self::Once(value) } else { Self::Repeated };
    }
}

/// What was found.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Fields<'a> {
    /// Bytes of all of them, as they are on the wire.
    pub(super) size: usize,
    pub(super) host: Lone<'a>,
    pub(super) length: Lone<'a>,
    pub(super) coding: Lone<'a>,
    pub(super) has_origin: bool,
    /// A page of another origin asks.
    pub(super) from_page: bool,
    /// The body is compressed.
    pub(super) is_encoded: bool,
    /// Something but `100-continue` is expected.
    pub(super) expects_more: bool,
}

impl<'a> Fields<'a> {
    pub(super) fn of(headers: &'a HeaderMap) -> Self {
        let mut found = Self::default();
        for (name, value) in headers {
            let name = name.as_str();
            found.size += name.len() + value.len() + 4;
            let is_not = |only: &[u8]| !value.as_bytes().eq_ignore_ascii_case(only);
            match name {
                "host" => found.host.add(value),
                "content-length" => found.length.add(value),
                "transfer-encoding" => found.coding.add(value),
                "origin" => found.has_origin = true,
                "sec-fetch-site" => found.from_page |= !matches!(value.as_bytes(), b"none" | b"same-origin"),
                "content-encoding" => found.is_encoded |= is_not(b"identity"),
                "expect" => found.expects_more |= is_not(b"100-continue"),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HeaderName;
    use proptest::prelude::*;

    const NAMES: [&str; 11] = [
        "host",
        "content-length",
        "transfer-encoding",
        "origin",
        "sec-fetch-site",
        "content-encoding",
        "expect",
        "accept",
        "anthropic-beta",
        "hosts",
        "x-host",
    ];
    const VALUES: [&str; 10] =
        ["", "0", "chunked", "none", "same-origin", "cross-site", "identity", "IDENTITY", "gzip", "100-Continue"];

    proptest! {
        #[test]
        fn the_walk_finds_what_look_ups_find(
            fields in prop::collection::vec((prop::sample::select(&NAMES), prop::sample::select(&VALUES)), 0..8),
        ) {
            let headers: HeaderMap = fields
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            let all = |name: &str| headers.get_all(name).iter().collect::<Vec<_>>();
            let lone = |name: &str| match all(name)[..] {
                [] => Lone::Absent,
                [value] => Lone::Once(value),
                _ => Lone::Repeated,
            };
            let any_but = |name: &str, good: &[&str]| all(name).iter().any(|value| !good.contains(&value.to_str().unwrap()));
            prop_assert_eq!(Fields::of(&headers), Fields {
                size: fields.iter().map(|(name, value)| format!("{name}: {value}\r\n").len()).sum(),
                host: lone("host"),
                length: lone("content-length"),
                coding: lone("transfer-encoding"),
                has_origin: headers.contains_key("origin"),
                from_page: any_but("sec-fetch-site", &["none", "same-origin"]),
                is_encoded: any_but("content-encoding", &["identity", "IDENTITY"]),
                expects_more: any_but("expect", &["100-Continue"]),
            });
        }
    }
}
