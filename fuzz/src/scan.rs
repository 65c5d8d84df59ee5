//! The scan of a request body: it accepts what a full parser accepts, finds what that finds, in any pieces, and a
//! splice leaves all other bytes alone.

use bytes::Bytes;
use claude_code_balancer::proxy::scan::{Found, Malformed, Scan, Value, splice};
use serde_json::Value as Json;

const WATCH: &[&str; 3] = &["model", "stream", "ключ"];

pub fn check(bytes: &[u8]) {
    let scan = |pieces: &[&[u8]]| {
        let mut scan = Scan::new(WATCH);
        let outcome = pieces.iter().try_for_each(|piece| scan.feed(piece));
        let end: Result<Found, Malformed> = scan.finish().cloned();
        assert!(outcome.is_ok() || end == outcome.map(|()| Found::default()), "an error does not stay");
        end
    };
    let whole = scan(&[bytes]);
    for pieces in super::cuts(bytes) {
        assert_eq!(scan(&pieces), whole, "in {} pieces", pieces.len());
    }
    let json = match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        Err(_) => return assert!(matches!(whole, Err(Malformed::Syntax { .. } | Malformed::Incomplete)), "{whole:?}"),
        Ok(_) => serde_json::from_slice::<Json>(bytes),
    };
    match (json, whole) {
        (Ok(Json::Object(members)), whole) => agree(bytes, &whole.expect("an object"), &members),
        (Ok(_), whole) => assert_eq!(whole, Err(Malformed::NotAnObject)),
        // Unicode, huge numbers and depth are judged only by the reading into a tree.
        (Err(_), Err(Malformed::Syntax { at })) => assert_eq!(bytes[at], b'"'),
        (Err(_), whole) => assert_ne!(whole, Err(Malformed::Incomplete)),
    }
}

fn agree(bytes: &[u8], found: &Found, members: &serde_json::Map<String, Json>) {
    let body = [Bytes::copy_from_slice(&bytes[..bytes.len() / 2]), Bytes::copy_from_slice(&bytes[bytes.len() / 2..])];
    for &key in WATCH {
        let (member, json) = (found.member(key), members.get(key));
        assert_eq!(member.is_some(), json.is_some(), "{key}");
        let (Some(member), Some(json)) = (member, json) else { continue };
        let same = match (&member.value, json) {
            (Value::Text(ours), Json::String(theirs)) => **ours == **theirs,
            (Value::Bool(ours), Json::Bool(theirs)) => ours == theirs,
            (Value::TooLong, Json::String(theirs)) => member.span.len() > 4096 && theirs.len() * 6 > 4096,
            (Value::Number, Json::Number(_)) | (Value::Null, Json::Null) => true,
            (Value::Object, Json::Object(_)) | (Value::Array, Json::Array(_)) => true,
            _ => false,
        };
        assert!(same, "{:?} is not {json}", member.value);
        let span = member.span.clone();
        assert_eq!(&serde_json::from_slice::<Json>(&bytes[span.clone()]).expect("a value"), json);

        let new = Bytes::from_static(b"\"another\"");
        let spliced = splice(&body, &[(span.clone(), new.clone())]).concat();
        assert_eq!(spliced, [&bytes[..span.start], &new, &bytes[span.end..]].concat());
        let replaced: Json = serde_json::from_slice(&spliced).expect("still JSON");
        assert_eq!(replaced[key], "another");

        let left = splice(&body, &[(member.cut.clone(), Bytes::new())]).concat();
        let left: Json = serde_json::from_slice(&left).expect("still JSON");
        if !member.repeated {
            let mut without = members.clone();
            without.shift_remove(key);
            assert_eq!(left, Json::Object(without), "without {key}");
        }
    }
}
