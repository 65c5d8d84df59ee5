use super::*;
use proptest::prelude::*;

/// A whole answer, with most of what a stream may lawfully contain.
const ANSWER: &str = "\
event: message_start
data: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"content\":[]}}

: keep-alive

event: ping
data: {\"type\": \"ping\"}

id: 7
event:content_block_start
data:{\"type\":\"content_block_start\",\"index\":0}

data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"event: error 你好\"}}
event: content_block_delta
:comment inside

data: {\"type\":
data:  \"content_block_stop\", \"x\": {}
data: }

event: content_block_delta
data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a\"}}

event: content_block_delta
data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"b\"}}

event: content_block_delta
data: {\"type\":\"content_block_delta\",
data: \"delta\":{}}

retry: 3
event: message_delta
data: {\"type\":\"message_delta\"}
data

event: message_stop
data: {\"type\":\"message_stop\"}

";

const OURS: (&str, &str) = ("error", r#"{"type":"error"}"#);

/// The specification's algorithm, word for word, over decoded text. With `sdk`, as the SDKs do it: an event with a name
/// but without data is dispatched too.
fn reference(bytes: &[u8], sdk: bool) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).replace("\r\n", "\n").replace('\r', "\n");
    let (mut events, mut name, mut data) = (Vec::new(), String::new(), String::new());
    let mut lines: Vec<&str> = text.split('\n').collect();
    lines.pop();
    for line in lines {
        if line.is_empty() {
            if !data.is_empty() || (sdk && !name.is_empty()) {
                data.pop();
                events.push((name.clone(), data.clone()));
            }
            name.clear();
            data.clear();
        } else if !line.starts_with(':') {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => name = value.to_owned(),
                "data" => data = data + value + "\n",
                _ => {}
            }
        }
    }
    events
}

fn observe(bytes: &[u8]) -> Observer {
    let mut observer = Observer::new();
    observer.feed(bytes);
    observer
}

fn seen(observer: &Observer) -> (bool, bool, bool, Vec<u8>) {
    (observer.opened(), observer.stopped(), observer.failed(), observer.separator())
}

fn with_our_error(bytes: &[u8]) -> Vec<u8> {
    [bytes, &observe(bytes).separator(), b"event: error\ndata: {\"type\":\"error\"}\n\n"].concat()
}

fn endings(stream: &str) -> [Vec<u8>; 4] {
    [
        stream.into(),
        stream.replace('\n', "\r\n").into(),
        stream.replace('\n', "\r").into(),
        format!("\u{feff}{stream}").into(),
    ]
}

#[test]
fn our_error_stands_alone_wherever_the_stream_was_cut() {
    for stream in endings(ANSWER) {
        for cut in 0..=stream.len() {
            let (before, written) = (&stream[..cut], with_our_error(&stream[..cut]));
            for sdk in [false, true] {
                let original = reference(&stream, sdk);
                let mut events = reference(&written, sdk);
                let (name, data) = events.pop().unwrap();
                let shown = String::from_utf8_lossy(before);
                assert_eq!((name.as_str(), data.as_str()), OURS, "cut at {cut}: {shown:?}");
                // Both official SDKs parse the data of every event but these.
                let half = events.last().is_some_and(|last| original.get(events.len() - 1) != Some(last));
                events.pop_if(|(name, _)| half && name == "ping");
                assert!(std::str::from_utf8(&written).is_ok(), "cut at {cut} left half a character: {shown:?}");
                // A name that comes after its data may be cut off: nameless, it is ignored.
                let whole = |(ours, theirs): (&(String, String), &(String, String))| {
                    ours.1.trim_end() == theirs.1.trim_end() && (ours.0 == theirs.0 || ours.0.is_empty())
                };
                assert!(events.iter().zip(&original).all(whole), "cut at {cut} brought half an event: {shown:?}");
                assert!(events.len() <= original.len());
                assert!(events.len() >= reference(before, sdk).len(), "cut at {cut} lost an event: {shown:?}");
            }
        }
    }
}

#[test]
fn half_a_character_is_completed() {
    for character in ["\u{7f}", "\u{80}", "ü", "\u{800}", "你", "\u{d7ff}", "\u{ffff}", "\u{10000}", "🔐", "\u{10ffff}"]
    {
        for cut in 1..=character.len() {
            let text = [b"event: a\ndata: \"x".as_slice(), &character.as_bytes()[..cut]].concat();
            let written = with_our_error(&text);
            assert!(std::str::from_utf8(&written).is_ok(), "{character:?} cut at {cut}");
            assert!(written.starts_with(&text));
        }
    }
    // What is no UTF-8 is not made so.
    for odd in [&b"\xff"[..], b"\x80", b"\xc0", b"\xed\xa0", b"\xf4\x90"] {
        assert_eq!(rest_of_character(odd), b"", "{odd:?}");
    }
}

#[test]
fn opens_at_message_start_and_stops_at_message_stop() {
    for stream in endings(ANSWER) {
        let mut observer = Observer::new();
        let mut changes = Vec::new();
        for (at, byte) in stream.iter().enumerate() {
            let before = (observer.opened(), observer.stopped());
            observer.feed(&[*byte]);
            let after = (observer.opened(), observer.stopped());
            assert_eq!(observer.opened(), first_event(&stream[..=at]).is_some());
            if before != after {
                changes.push((reference(&stream[..=at], false).len(), after));
            }
        }
        assert_eq!(changes, [(1, (true, false)), (10, (true, true))]);
        assert!(!observer.failed());
    }
}

#[test]
fn separators() {
    for (stream, separator) in [
        ("", ""),
        ("\u{feff}", "\nevent: ping\n\n"),
        (": hi\n", ""),
        (": hi\r", "\n"),
        (": h", "\nevent: ping\n\n"),
        ("event: a\ndata: {}\n\n", ""),
        ("event: a\r\ndata: {}\r\n\r\n", ""),
        ("event: a\r\ndata: {}\r\n\r", "\n"),
        ("event: a\r\ndata: {}\r\n", "\n"),
        ("event: a\r\ndata: {}\r", "\n\n"),
        ("event: a\ndata: {}\n", "\n"),
        ("event: a\ndata: {}", "\nevent: ping\n\n"),
        ("event: a\ndata: {\n", "event: ping\n\n"),
        ("event: a\ndata: {\ndata: }\n", "event: ping\n\n"),
        ("event: a\n", "event: ping\n\n"),
        ("event: a\r", "\nevent: ping\n\n"),
        ("event: a", "\nevent: ping\n\n"),
    ] {
        assert_eq!(observe(stream.as_bytes()).separator(), separator.as_bytes(), "{stream:?}");
    }
}

/// Found by fuzzing: the observer kept less of the data than what the first event is judged by.
#[test]
fn the_observer_and_the_first_event_agree_wherever_the_type_stands() {
    for length in 60..160 {
        for start in ["data: ", "data:", "\u{feff}data: "] {
            let stream = format!("{start}{{\"{}\":\"a\",\"type\":\"ping\"}}\n\n", "x".repeat(length));
            let opened = observe(stream.as_bytes()).opened();
            assert_eq!(opened, first_event(stream.as_bytes()).is_some(), "{length} {start:?}");
        }
    }
}

#[test]
fn what_counts_as_what() {
    let long = "x".repeat(1 << 20);
    let (open, stop, fail) = ((true, false, false), (true, true, false), (true, false, true));
    let none = (false, false, false);
    for (stream, want) in [
        ("event: message_start\ndata: {}\n\n", open),
        ("event: message_start\ndata: {}\n", none),
        ("event: message_start\n\n", none),
        ("event: error\n\n", none),
        (": a\n\n: b\n\n", none),
        ("event: ping\ndata: {\"type\":\"ping\"}\n\n", none),
        ("event: ping\rdata: {}\r\r", none),
        ("data: {\"type\": \"ping\"}\n\n", none),
        ("data: [DONE]\n\n", none),
        ("data:[DONE]\r\n\r\n", none),
        ("event: message_stop\ndata: {}\n\n", stop),
        ("data: {}\nevent: message_stop\n\n", stop),
        ("event: ping\nevent: message_stop\ndata: {}\n\n", stop),
        ("event: message_stop\nevent: \ndata: {\"type\":\"other\"}\n\n", open),
        ("data: {\"type\":\"message_stop\"}\n\n", stop),
        ("data: {\ndata:   \"type\" : \"message_stop\"\ndata: }\n\n", stop),
        ("data: {\"x\":{\"type\":\"message_stop\"}}\n\n", open),
        ("data: {\"text\":\"event: error\"}\n\n", open),
        ("event: message_stopped\ndata: {}\n\n", open),
        (" event: message_stop\ndata: {}\n\n", open),
        ("event:  message_stop\ndata: {}\n\n", open),
        ("event: error\ndata: {\"type\":\"error\"}\n\n", fail),
        ("data: {\"type\":\"error\",\"error\":{}}\n\n", fail),
        ("data: {\"error\":{\"message\":\"no channel\"}}\n\n", fail),
        ("data: {\"error\":null,\"x\":1}\n\n", open),
        ("data: hello\n\n", open),
        ("data\n\n", open),
        (&format!("data: {{\"error\":{{\"message\":\"{long}\"}}}}\n\n"), fail),
        (&format!("event: message_stop\ndata: {long}\n\n"), stop),
        (&format!("event: {long}\ndata: {long}\n\n"), open),
        (&format!(":{long}\n\n{long}\n\n{long}: 1\n\n"), none),
    ] {
        for stream in [stream.to_owned(), format!("\u{feff}{stream}")] {
            let observer = observe(stream.as_bytes());
            let got = (observer.opened(), observer.stopped(), observer.failed());
            assert_eq!(got, want, "{:?}", &stream[..stream.len().min(99)]);
            assert_eq!(first_event(stream.as_bytes()).is_some(), want.0);
        }
    }
}

#[test]
fn first_events_and_their_error_types() {
    for (stream, name, data, error) in [
        (ANSWER, "message_start", r#"{"type":"message_start","message":{"id":"msg_1","content":[]}}"#, None),
        (
            ": x\n\nevent: ping\ndata: {}\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
            "error",
            r#"{"type":"error","error":{"type":"overloaded_error"}}"#,
            Some("overloaded_error"),
        ),
        ("data: {\"type\":\"error\"}\n\n", "error", r#"{"type":"error"}"#, Some("api_error")),
        ("event: error\ndata: nonsense\n\n", "error", "nonsense", Some("api_error")),
        ("data: {\"error\":{\"type\":\"x_error\"}}\n\n", "error", r#"{"error":{"type":"x_error"}}"#, Some("x_error")),
        ("data: {\"error\":\"oh\"}\n\n", "error", r#"{"error":"oh"}"#, Some("api_error")),
        ("event: x\ndata: {\"error\":{\"type\":\"\"}}\n\n", "x", r#"{"error":{"type":""}}"#, Some("api_error")),
        ("data: {\"type\":\"m\",\"error\":{}}\n\n", "m", r#"{"type":"m","error":{}}"#, None),
        ("data: {\"error\":null}\n\n", "message", r#"{"error":null}"#, None),
        ("data: a\rdata:\rdata:  b\r\r", "message", "a\n\n b", None),
    ] {
        let event = first_event(stream.as_bytes()).unwrap();
        assert_eq!((event.name.as_str(), event.data.as_str()), (name, data));
        assert_eq!(error_type(&event).as_deref(), error, "{stream}");
    }
    assert_eq!(first_event(b"event: error\ndata: {}\n"), None);
}

#[test]
fn sniffs_a_stream_without_its_content_type() {
    for yes in
        ["event: x", "data:{", ": ping", ":", "\u{feff}event:", "\n\ndata: ", "\r\n id: 1", "retry:1", "\u{feff}\n:"]
    {
        assert!(looks_like_events(yes.as_bytes()), "{yes:?}");
    }
    for no in ["", "{\"type\":\"message\"}", "<html>", "eventual", "data", "[", "event x:", "\"data:\""] {
        assert!(!looks_like_events(no.as_bytes()), "{no:?}");
    }
}

/// Lines and line ends in any order.
fn soup() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        6 => prop::sample::select(vec!["\n", "\r", "\r\n", "\n\n", "\r\r", "\r\n\r\n"]).prop_map(|end| end.as_bytes().to_vec()),
        6 => prop::sample::select(vec![
            "event: message_stop", "event: ping", "event: error", "event:", "event", "event: x", "data: {}", "data", "data: {",
            "data:{\"type\":\"message_stop\"}", "data: {\"type\": \"ping\"}", "data: {\"error\":{}}", "data: [DONE]", ": c",
            ":", "id: 1", "\u{feff}", "event: ping", "event: odd", " ", "data: ",
        ]).prop_map(|line| line.as_bytes().to_vec()),
        3 => prop::sample::select(vec![
            "event: content_block_delta\ndata: {", "event: content_block_delta\ndata: {}\n\n",
            "event: content_block_delta\ndata: {\"type\":\"error\"}\n\n",
        ]).prop_map(|event| event.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..5),
        1 => (100usize..300).prop_map(|length| vec![b'y'; length]),
    ];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn chunking_changes_nothing(stream in soup(), sizes in prop::collection::vec(0usize..20, 1..6)) {
        let mut observer = Observer::new();
        let mut rest = &stream[..];
        for size in sizes.into_iter().cycle().take(stream.len()) {
            let (frame, tail) = rest.split_at(size.min(rest.len()));
            observer.feed(frame);
            rest = tail;
        }
        observer.feed(rest);
        prop_assert_eq!(seen(&observer), seen(&observe(&stream)));
        prop_assert_eq!(observer.opened(), first_event(&stream).is_some());
    }

    #[test]
    fn agrees_with_the_specification(stream in soup()) {
        let kinds: Vec<Kind> = reference(&stream, false)
            .into_iter()
            .filter(|(_, data)| data != "[DONE]")
            .map(|(name, data)| if name.is_empty() { data_kind(data.as_bytes()) } else { kind(name.as_bytes()) })
            .collect();
        let observer = observe(&stream);
        prop_assert_eq!(observer.opened(), kinds.iter().any(|&kind| kind != Kind::Ping));
        prop_assert_eq!(observer.stopped(), kinds.contains(&Kind::Stop));
        prop_assert_eq!(observer.failed(), kinds.contains(&Kind::Error));
    }

    #[test]
    fn our_error_comes_last_after_any_bytes(stream in soup()) {
        let (name, data) = reference(&with_our_error(&stream), false).pop().unwrap();
        prop_assert_eq!((name.as_str(), data.as_str()), OURS);
    }
}
