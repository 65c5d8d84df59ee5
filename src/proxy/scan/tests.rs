use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use serde::de::IgnoredAny;
use serde_json::Value as Json;

const WATCH: &[&str; 3] = &["model", "stream", "ключ"];

fn scan(body: &[u8]) -> Result<Found, Malformed> {
    scan_split(body, &[])
}

/// Feeds the body in pieces of these sizes (repeated), or whole.
fn scan_split(body: &[u8], sizes: &[usize]) -> Result<Found, Malformed> {
    let mut scan = Scan::new(WATCH);
    let mut rest = body;
    for &size in sizes.iter().cycle().take(if sizes.is_empty() { 0 } else { body.len() }) {
        let (piece, tail) = rest.split_at(size.min(rest.len()));
        if scan.feed(piece).is_err() {
            return scan.finish().cloned();
        }
        rest = tail;
    }
    let _ = scan.feed(rest);
    scan.finish().cloned()
}

fn cut(body: &[u8], range: &Range<usize>) -> Vec<u8> {
    splice(&[Bytes::copy_from_slice(body)], &[(range.clone(), Bytes::new())]).concat()
}

fn accepted(body: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(body).is_ok()
}

/// The kind and, where it is handed out, the content.
fn same(value: &Value, json: &Json) -> bool {
    match (value, json) {
        (Value::Text(ours), Json::String(theirs)) => **ours == **theirs,
        (Value::Bool(ours), Json::Bool(theirs)) => ours == theirs,
        (Value::TooLong, Json::String(_)) => true,
        (Value::Number, Json::Number(_)) | (Value::Null, Json::Null) => true,
        (Value::Object, Json::Object(_)) | (Value::Array, Json::Array(_)) => true,
        _ => false,
    }
}

#[test]
fn finds_watched_members_and_what_to_cut() {
    let body = br#" { "model" : "a\u00e9\ud83d\ude00\n" , "x":{"model":1}, "stream": true, "last":[] } "#;
    let found = scan(body).unwrap();
    let model = found.member("model").unwrap();
    assert_eq!(model.value, Value::Text("aé😀\n".into()));
    assert_eq!(&body[model.span.clone()], br#""a\u00e9\ud83d\ude00\n""#);
    assert_eq!(cut(body, &model.cut), br#" { "x":{"model":1}, "stream": true, "last":[] } "#);
    let stream = found.member("stream").unwrap();
    assert_eq!(stream.value, Value::Bool(true));
    assert!(!model.repeated && !stream.repeated);
    assert_eq!(found.member("last"), None);

    for (body, left) in [
        (r#"{"model":1}"#, "{}"),
        (r#"{ "model" : -1.5e+3 }"#, "{  }"),
        (r#"{"a":1 , "model":null}"#, r#"{"a":1 }"#),
        (r#"{"a":1,"model":{"b":[1,{}]} }"#, r#"{"a":1 }"#),
        (r#"{"model":0,"a":1}"#, r#"{"a":1}"#),
        (r#"{"a":1,"model":[],"b":2}"#, r#"{"a":1,"b":2}"#),
    ] {
        let found = scan(body.as_bytes()).unwrap();
        assert_eq!(cut(body.as_bytes(), &found.member("model").unwrap().cut), left.as_bytes(), "{body}");
    }
}

#[test]
fn a_key_counts_as_what_it_decodes_to() {
    for key in ["model", r"mod\u0065l", r"\u006d\u006f\u0064\u0065\u006c", r"mod\u0065\u006C"] {
        let found = scan(format!(r#"{{"{key}":"x"}}"#).as_bytes()).unwrap();
        assert_eq!(found.member("model").map(|m| &m.value), Some(&Value::Text("x".into())), "{key}");
    }
    for key in [
        r"Model",
        r"\ud800model",
        r"\u0020model",
        r"model\u0000",
        r"mode\ud800l",
        r"models",
        "",
        r"\/model",
        "model\u{0}",
    ] {
        let found = scan(format!(r#"{{"{key}":"x"}}"#).as_bytes());
        assert!(found.is_err() || found == Ok(Found::default()), "{key}");
    }
    assert!(scan(r#"{"\u043a\u043b\u044e\u0447":1,"модель":2}"#.as_bytes()).unwrap().member("ключ").is_some());
}

#[test]
fn a_repeated_member_is_reported_with_its_last_value() {
    let body = br#"{"model":"a","stream":true,"\u006dodel":"b","x":1}"#;
    let model = scan(body).unwrap().member("model").cloned().unwrap();
    assert!(model.repeated);
    assert_eq!(model.value, Value::Text("b".into()));
    assert_eq!(&body[model.span], br#""b""#);
    assert_eq!(cut(body, &model.cut), br#"{"model":"a","stream":true,"x":1}"#);
    assert!(!scan(body).unwrap().member("stream").unwrap().repeated);
}

#[test]
fn says_why_not() {
    for (body, why) in [
        ("", Malformed::Incomplete),
        ("  ", Malformed::Incomplete),
        ("{", Malformed::Incomplete),
        (r#"{"model":"#, Malformed::Incomplete),
        (r#"{"model":"a"#, Malformed::Incomplete),
        (r#"{"a":"\u00"#, Malformed::Incomplete),
        (r#"{"a":tru"#, Malformed::Incomplete),
        (r#"{"a":1"#, Malformed::Incomplete),
        ("[1", Malformed::Incomplete),
        ("-", Malformed::Incomplete),
        ("1.", Malformed::Incomplete),
        ("[]", Malformed::NotAnObject),
        (" null ", Malformed::NotAnObject),
        ("12", Malformed::NotAnObject),
        ("0", Malformed::NotAnObject),
        (r#""model""#, Malformed::NotAnObject),
        (r#"[{"model":1}]"#, Malformed::NotAnObject),
        ("\u{feff}{}", Malformed::Syntax { at: 0 }),
        ("{}{}", Malformed::Syntax { at: 2 }),
        ("{},", Malformed::Syntax { at: 2 }),
        ("{]", Malformed::Syntax { at: 1 }),
        ("[}", Malformed::Syntax { at: 1 }),
        ("[[1}", Malformed::Syntax { at: 3 }),
        (r#"{"a":1,}"#, Malformed::Syntax { at: 7 }),
        ("[1,]", Malformed::Syntax { at: 3 }),
        (r#"{"a" 1}"#, Malformed::Syntax { at: 5 }),
        (r#"{"a":}"#, Malformed::Syntax { at: 5 }),
        (r#"{a:1}"#, Malformed::Syntax { at: 1 }),
        (r#"{"a":01}"#, Malformed::Syntax { at: 6 }),
        (r#"{"a":-a}"#, Malformed::Syntax { at: 6 }),
        (r#"{"a":1.e}"#, Malformed::Syntax { at: 7 }),
        (r#"{"a":1e}"#, Malformed::Syntax { at: 7 }),
        (r#"{"a":+1}"#, Malformed::Syntax { at: 5 }),
        (r#"{"a":NaN}"#, Malformed::Syntax { at: 5 }),
        (r#"{"a":nulL}"#, Malformed::Syntax { at: 8 }),
        (r#"{"a":"\x"}"#, Malformed::Syntax { at: 7 }),
        (r#"{"a":"\u00g0"}"#, Malformed::Syntax { at: 10 }),
        ("{\"a\":\"b\tc\"}", Malformed::Syntax { at: 7 }),
        ("{\"a\":1}\u{b}", Malformed::Syntax { at: 7 }),
        (r#"{"model":"\ud800"}"#, Malformed::Syntax { at: 9 }),
        (r#"{"model":"\udc00\ud800"}"#, Malformed::Syntax { at: 9 }),
    ] {
        assert_eq!(scan(body.as_bytes()), Err(why), "{body}");
        assert_eq!(scan_split(body.as_bytes(), &[1]), Err(why), "{body}, byte by byte");
    }
    assert_eq!(scan(b"{\"model\":\"\xff\"}"), Err(Malformed::Syntax { at: 9 }));
}

#[test]
fn an_error_stays() {
    let mut scan = Scan::new(WATCH);
    assert_eq!(scan.feed(b"{]"), Err(Malformed::Syntax { at: 1 }));
    assert_eq!(scan.feed(b"}"), Err(Malformed::Syntax { at: 1 }));
    assert_eq!(scan.finish(), Err(Malformed::Syntax { at: 1 }));
}

#[test]
fn unicode_is_judged_only_in_what_is_handed_out() {
    let body = b"{\"x\":\"\\ud800 \xff\",\"\xff\":1,\"\\udfff\":2,\"model\":\"m\"}";
    assert!(accepted(body));
    assert_eq!(scan(body).unwrap().member("model").unwrap().value, Value::Text("m".into()));
}

#[test]
fn a_long_text_is_not_copied() {
    for (length, long) in [(TEXT_LIMIT, false), (TEXT_LIMIT + 1, true), (1 << 20, true)] {
        let body = format!(r#"{{"model":"{}","stream":false}}"#, "m".repeat(length));
        // The last one ends right before the closing quote.
        for sizes in [vec![], vec![1000], vec![TEXT_LIMIT, 7], vec![length + 10]] {
            let mut scan = Scan::new(WATCH);
            let mut rest = body.as_bytes();
            for size in sizes.into_iter().cycle().take(rest.len()) {
                let (piece, tail) = rest.split_at(size.min(rest.len()));
                scan.feed(piece).unwrap();
                rest = tail;
                assert!(scan.kept.len() <= TEXT_LIMIT + 3);
            }
            scan.feed(rest).unwrap();
            let found = scan.finish().unwrap();
            assert_eq!(found.member("model").unwrap().value == Value::TooLong, long);
            assert_eq!(found.member("model").unwrap().span, 9..11 + length);
            assert_eq!(found.member("stream").unwrap().value, Value::Bool(false));
        }
    }
}

#[test]
fn any_depth_is_read_without_recursion() {
    let depth = 3_000_000;
    let mut body = br#"{"a":"#.to_vec();
    body.resize(body.len() + depth, b'[');
    body.resize(body.len() + depth, b']');
    body.extend(br#","model":7}"#);
    let mut scan = Scan::new(WATCH);
    scan.feed(&body).unwrap();
    assert_eq!(scan.finish().unwrap().member("model").unwrap().value, Value::Number);
}

#[test]
fn a_body_that_goes_on_shows_what_was_read() {
    let mut scan = Scan::new(WATCH);
    scan.feed(br#"{"model":"m","stream":{"a"#).unwrap();
    assert_eq!(scan.so_far("model"), Some(&Value::Text("m".into())));
    assert_eq!((scan.so_far("stream"), scan.reached("stream"), scan.reached("ключ")), (None, true, false));
}

/// JSON values with the watched names among the keys of every level.
fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<i16>().prop_map(|eighths| Json::from(f64::from(eighths) / 8.0)),
        ".{0,12}".prop_map(Json::from),
        "[a-c\"\\\\/\u{0}-\u{1f}é😀]{0,40}".prop_map(Json::from),
    ];
    let key = prop_oneof![
        3 => prop::sample::select(WATCH).prop_map(String::from),
        2 => "[a-c\"\\\\é]{0,6}",
    ];
    let value = leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
            prop::collection::hash_map(key.clone(), inner, 0..6)
                .prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    });
    let member = (prop_oneof![4 => prop::sample::select(WATCH).prop_map(String::from), 2 => "[a-c]{0,3}"], value);
    prop::collection::vec(member, 0..7).prop_map(|members| Json::Object(members.into_iter().collect()))
}

/// Writes a value in one of its many spellings, chosen by the dice.
struct Writer<'a> {
    dice: std::iter::Cycle<std::slice::Iter<'a, u8>>,
    text: String,
}

impl Writer<'_> {
    fn roll(&mut self) -> u8 {
        self.dice.next().copied().unwrap_or(0)
    }

    fn space(&mut self) {
        let space = ["", "", "", " ", "\n", "\t", "\r\n", "  "][usize::from(self.roll() % 8)];
        self.text.push_str(space);
    }

    fn string(&mut self, string: &str) {
        self.text.push('"');
        for c in string.chars() {
            let plain = c >= ' ' && c != '"' && c != '\\';
            match (c, self.roll() % 4) {
                ('/' | '"' | '\\', 1) => self.text.extend(['\\', c]),
                ('\n', 1) => self.text.push_str(r"\n"),
                ('\u{8}', 1) => self.text.push_str(r"\b"),
                (_, 1..) if plain => self.text.push(c),
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.text.push_str(&format!("\\u{unit:04x}"));
                    }
                }
            }
        }
        self.text.push('"');
    }

    fn value(&mut self, value: &Json) {
        self.space();
        match value {
            Json::Array(items) => {
                self.text.push('[');
                for (place, item) in items.iter().enumerate() {
                    if place > 0 {
                        self.text.push(',');
                    }
                    self.value(item);
                }
                self.space();
                self.text.push(']');
            }
            Json::Object(members) => {
                self.text.push('{');
                for (place, (key, member)) in members.iter().enumerate() {
                    if place > 0 {
                        self.text.push(',');
                    }
                    self.space();
                    self.string(key);
                    self.space();
                    self.text.push(':');
                    self.value(member);
                }
                self.space();
                self.text.push('}');
            }
            Json::String(string) => self.string(string),
            plain => self.text.push_str(&plain.to_string()),
        }
        self.space();
    }
}

fn written() -> impl Strategy<Value = (Json, Vec<u8>)> {
    (json(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(value, dice)| {
        let mut writer = Writer { dice: dice.iter().cycle(), text: String::new() };
        writer.value(&value);
        let text = writer.text;
        (value, text.into_bytes())
    })
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![1]), prop::collection::vec(0usize..30, 0..6), Just(vec![])]
}

/// What the scan must agree with, whatever the body.
fn agrees(body: &[u8], sizes: &[usize]) -> Result<(), TestCaseError> {
    let whole = scan(body);
    prop_assert_eq!(&whole, &scan_split(body, sizes));
    if body.len() <= 256 {
        for place in 1..body.len() {
            prop_assert_eq!(&whole, &scan_split(body, &[place, body.len()]), "cut at {}", place);
        }
    }
    match serde_json::from_slice::<IgnoredAny>(body) {
        Err(_) => prop_assert!(matches!(whole, Err(Malformed::Syntax { .. } | Malformed::Incomplete)), "{whole:?}"),
        Ok(_) => match serde_json::from_slice::<Json>(body) {
            // Unicode, huge numbers and depth are judged only by the reading into a tree.
            Err(_) => match whole {
                Err(Malformed::Syntax { at }) => prop_assert_eq!(body[at], b'"'),
                whole => prop_assert!(whole != Err(Malformed::Incomplete)),
            },
            Ok(Json::Object(members)) => {
                let found = whole.unwrap();
                for &key in WATCH {
                    let (ours, theirs) = (found.member(key), members.get(key));
                    prop_assert_eq!(ours.is_some(), theirs.is_some());
                    let (Some(ours), Some(theirs)) = (ours, theirs) else { continue };
                    prop_assert!(same(&ours.value, theirs), "{:?} is not {}", ours.value, theirs);
                    let span: Json = serde_json::from_slice(&body[ours.span.clone()]).unwrap();
                    prop_assert_eq!(&span, theirs);
                    let left = serde_json::from_slice::<Json>(&cut(body, &ours.cut)).unwrap();
                    if !ours.repeated {
                        let mut without = members.clone();
                        without.remove(key);
                        prop_assert_eq!(left, Json::Object(without));
                    }
                }
            }
            Ok(_) => prop_assert_eq!(whole, Err(Malformed::NotAnObject)),
        },
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn agrees_with_a_full_parser((value, body) in written(), sizes in sizes()) {
        prop_assert_eq!(&serde_json::from_slice::<Json>(&body).unwrap(), &value);
        agrees(&body, &sizes)?;
    }

    #[test]
    fn agrees_with_a_full_parser_on_damaged_bodies(
        (_, mut body) in written(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..4),
        sizes in sizes(),
    ) {
        const TELLING: &[u8] = b"{}[]:,\"\\0123456789.eE+-tfnu \n\x00\x1f\x7f\xef\xff";
        for (place, byte, how) in damage {
            if body.is_empty() { break }
            let place = place.index(body.len());
            let byte = TELLING[usize::from(byte) % TELLING.len()];
            match how {
                0 => body[place] = byte,
                1 => body.insert(place, byte),
                2 => { body.remove(place); }
                _ => body.truncate(place),
            }
        }
        agrees(&body, &sizes)?;
    }

    #[test]
    fn agrees_with_a_full_parser_on_scraps(body in r#"[{}\[\]:,"\\/0-2.eE+\-tfnu \n]{0,12}|(\{"model": ?)?(tru|true|nul|null|false|-?0?[0-9]{0,2}(\.[0-9]?)?([eE][+-]?[0-9]?)?)[} ]?"#, sizes in sizes()) {
        agrees(body.as_bytes(), &sizes)?;
    }
}
