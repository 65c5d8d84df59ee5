//! The faults of the matrix, each by its row of the catalogue, and what a provider plays for each.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use claude_code_balancer::lab::{Script, event};
use serde_json::json;

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// U1: the port refuses.
    Refused,
    /// U4: a certificate by nobody known.
    Tls,
    /// U7: an idle connection dies as the request arrives.
    Stale,
    /// U8: the request is read, and the connection reset.
    Reset,
    /// U10: no head.
    NoHead,
    /// U11: a head that is none.
    BadHead,
    /// U16: 400.
    BadRequest,
    /// U18: 401.
    Unauthorized,
    /// U20: 403 and a web page.
    EdgePage,
    /// U26: 429 with a reset.
    Limited,
    /// U27: 429 bare.
    Busy,
    /// U28: 500.
    ServerError,
    /// U29: 502, 503 or 504.
    Unavailable,
    /// U30: 529.
    Overloaded,
    /// U33: 200, and an error in JSON.
    ErrorUnder200,
    /// U34: 200, and half a JSON.
    HalfJson,
    /// U38: the first event is an error. (Plain: an event stream that nobody asked for.)
    FirstEventError,
    /// U39: an error behind `message_start`. (Plain: an empty body.)
    ErrorAfterStart,
    /// U40: cut before any content, at any byte.
    CutEarly,
    /// U41: cut or reset after content.
    CutLate,
    /// U42: silence in the middle.
    Silence,
    /// U45: odd but valid framing.
    OddFraming,
    /// U48: the client leaves.
    ClientLeaves,
    /// U49: encoded, although identity was asked for.
    Encoded,
}

pub const FAULTS: [Fault; 24] = [
    Fault::Refused,
    Fault::Tls,
    Fault::Stale,
    Fault::Reset,
    Fault::NoHead,
    Fault::BadHead,
    Fault::BadRequest,
    Fault::Unauthorized,
    Fault::EdgePage,
    Fault::Limited,
    Fault::Busy,
    Fault::ServerError,
    Fault::Unavailable,
    Fault::Overloaded,
    Fault::ErrorUnder200,
    Fault::HalfJson,
    Fault::FirstEventError,
    Fault::ErrorAfterStart,
    Fault::CutEarly,
    Fault::CutLate,
    Fault::Silence,
    Fault::OddFraming,
    Fault::ClientLeaves,
    Fault::Encoded,
];

/// What must come of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// All of the script's body, to the byte, under its status.
    Whole,
    /// 400, to the byte.
    ClientError,
    /// The provider's own `event: error`, to the byte.
    OwnError,
    /// What there was of it, then one `event: error` of the balancer's.
    BrokenOff,
    /// The client leaves in the middle.
    Left,
    /// This provider must not have answered.
    Nothing,
}

/// One request, and what every provider does with it: all of it follows from the seed and the number.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub seed: u64,
    pub number: u64,
    pub stream: bool,
}

/// Providers with faults, and how often, in percent.
pub const ODDS: [u64; 3] = [30, 30, 0];

/// SplitMix64.
fn mixed(mut state: u64) -> u64 {
    state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

impl Case {
    pub fn new(seed: u64, number: u64) -> Self {
        Self { seed, number, stream: mixed(mixed(seed) ^ number).is_multiple_of(2) }
    }

    fn roll(&self, what: u64) -> u64 {
        mixed(mixed(mixed(self.seed) ^ self.number) ^ (what << 40))
    }

    /// The fault of a provider in this case.
    pub fn fault(&self, provider: usize) -> Option<Fault> {
        let roll = self.roll(1 + provider as u64);
        (roll % 100 < ODDS[provider]).then(|| FAULTS[usize::try_from(roll / 100 % 24).unwrap()])
    }

    /// What a provider says for this request and no other.
    pub fn words(&self, provider: usize) -> String {
        format!("nonce {}/{} of {provider}", self.seed, self.number)
    }

    /// What the client says, and a provider can check.
    pub fn prompt(&self) -> String {
        format!("prompt {}/{}", self.seed, self.number)
    }

    /// The events of a healthy stream.
    pub fn events(&self, provider: usize) -> Vec<Bytes> {
        let words = self.words(provider);
        event::message("claude-lab", &["Hello", words.as_str(), " ", "héllo 你好"])
    }

    fn healthy(&self, provider: usize) -> Script {
        if self.stream { Script::events(self.events(provider)) } else { Script::message(&self.words(provider)) }
    }

    /// Events before the first text.
    const HEAD: usize = 3;

    /// Where [`Fault::CutEarly`] cuts, in bytes of the body.
    fn early_cut(&self, provider: usize) -> usize {
        let whole: usize = if self.stream {
            self.events(provider).iter().take(Self::HEAD).map(Bytes::len).sum()
        } else {
            self.healthy(provider).body_bytes().len() - 1
        };
        usize::try_from(self.roll(9)).unwrap_or(0) % (whole + 1)
    }

    /// When the client leaves: before the head, at the head, or after some content.
    pub fn leaves_after(&self) -> usize {
        if self.stream { usize::try_from(self.roll(10) % 3).unwrap() } else { 0 }
    }

    /// What a provider plays. `reused`: the connection has served before.
    pub fn script(&self, provider: usize, reused: bool) -> Script {
        let healthy = self.healthy(provider);
        let roll = self.roll(20 + provider as u64);
        let error = |status, kind| Script::error(status, kind, &self.words(provider));
        let Some(fault) = self.fault(provider) else { return healthy };
        match fault {
            // Other addresses do these; nobody comes here.
            Fault::Refused | Fault::Tls => healthy,
            Fault::Stale if reused => Script::close(),
            Fault::Stale => healthy,
            Fault::Reset if roll.is_multiple_of(2) => Script::reset(),
            Fault::Reset => Script::close(),
            Fault::NoHead => Script::stall(),
            Fault::BadHead => Script::raw(match roll % 4 {
                0 => Bytes::from_static(b"HTP/1.1 200 OK\r\n\r\n"),
                1 => Bytes::from_static(b"HTTP/1.1 abc\r\n\r\n"),
                2 => Bytes::from_static(b"HTTP/1.1 200 OK\r\na\0b: c\r\n\r\n"),
                _ => Bytes::from(format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(60_000))),
            }),
            Fault::BadRequest => error(400, "invalid_request_error"),
            Fault::Unauthorized => error(401, "authentication_error"),
            Fault::EdgePage => Script::html(403).header("cf-mitigated", "challenge"),
            Fault::Limited => {
                let reset = SystemTime::now() + Duration::from_secs(3600);
                let reset = reset.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
                error(429, "rate_limit_error")
                    .header("anthropic-ratelimit-unified-status", "rejected")
                    .header("anthropic-ratelimit-unified-reset", &reset.to_string())
            }
            Fault::Busy => error(429, "rate_limit_error"),
            Fault::ServerError => error(500, "api_error"),
            Fault::Unavailable => error([502, 503, 504][usize::try_from(roll % 3).unwrap()], "api_error"),
            Fault::Overloaded => error(529, "overloaded_error"),
            Fault::ErrorUnder200 => {
                let kind = ["overloaded_error", "rate_limit_error", "api_error"][usize::try_from(roll % 3).unwrap()];
                Script::json(200, &json!({ "type": "error", "error": { "type": kind, "message": "no" } }))
            }
            Fault::HalfJson => Script::body(200, "application/json", r#"{"type":"message","content":[{"te"#),
            Fault::FirstEventError if self.stream => {
                let kind = ["overloaded_error", "rate_limit_error", "api_error"][usize::try_from(roll % 3).unwrap()];
                healthy.first_event_error(kind)
            }
            Fault::FirstEventError => Script::events(self.events(provider)),
            Fault::ErrorAfterStart if self.stream => healthy.error_after(1, "overloaded_error"),
            Fault::ErrorAfterStart => Script::body(200, "application/json", ""),
            Fault::CutEarly => healthy.cut_at_byte(self.early_cut(provider)),
            Fault::CutLate if self.stream && roll.is_multiple_of(2) => healthy.cut_after(Self::HEAD + 2),
            Fault::CutLate if self.stream => healthy.reset_after(Self::HEAD + 2),
            Fault::CutLate => healthy.reset_at_byte(40),
            Fault::Silence if self.stream => healthy.stall_after(Self::HEAD + 1),
            Fault::Silence => healthy.stall_at_byte(40),
            Fault::OddFraming => self.odd(provider, healthy, roll),
            Fault::ClientLeaves => match self.leaves_after() {
                0 => Script::stall(),
                1 => healthy.stall_after(1),
                _ => healthy.stall_after(Self::HEAD + 2),
            },
            Fault::Encoded => healthy.header("content-encoding", "gzip"),
        }
    }

    fn odd(&self, provider: usize, healthy: Script, roll: u64) -> Script {
        let wide = |whole: Script| {
            let text = String::from_utf8(whole.body_bytes().to_vec()).unwrap();
            whole.frames(vec![Bytes::from(text.replace('\n', "\r\n"))])
        };
        match roll % 6 {
            0 => healthy.chunked().rechunk(1 + usize::try_from(roll / 7 % 9).unwrap()),
            1 => healthy.chunked().chunk_extension("a=b").trailer("x-trailer", "1"),
            2 => healthy.interim(103, &[("link", "</a>")]).split_writes(41),
            3 if self.stream => wide(healthy),
            4 if self.stream => healthy.behind(vec![event::comment("hello"), event::ping(), event::ping()]),
            5 if self.stream => {
                let mut events = self.events(provider);
                events.insert(4, event::event("surprise", &json!({ "type": "surprise", "text": "x".repeat(70_000) })));
                healthy.frames(events)
            }
            _ => healthy.close_delimited(),
        }
    }

    /// What must come of it when this provider has answered.
    pub fn expected(&self, provider: usize) -> Expected {
        let Some(fault) = self.fault(provider) else { return Expected::Whole };
        match fault {
            Fault::Stale | Fault::OddFraming | Fault::Encoded => Expected::Whole,
            Fault::BadRequest => Expected::ClientError,
            Fault::ErrorAfterStart if self.stream => Expected::OwnError,
            Fault::CutEarly if self.stream && self.early_cut(provider) >= self.events(provider)[0].len() => {
                Expected::BrokenOff
            }
            Fault::CutLate | Fault::Silence if self.stream => Expected::BrokenOff,
            Fault::ClientLeaves if self.leaves_after() > 0 => Expected::Left,
            _ => Expected::Nothing,
        }
    }
}
