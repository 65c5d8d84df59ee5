//! From a script to the acts that play it: a pure function, so that what goes over the wire can be read here.

use bytes::{Bytes, BytesMut};

use super::script::{After, Ending, Frame, Framing, Limit, Opening, Script, Wait};

/// One thing that a connection does.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Send(Bytes),
    Wait(Wait),
    /// Silence until the peer leaves.
    Stall,
    /// FIN, over TLS without `close_notify`.
    Cut,
    Reset,
    /// The polite end of a connection: `close_notify`, then FIN.
    Close,
    /// FIN; what still comes is read and dropped.
    Linger,
}

/// What a script does, in order. An end without a closing act leaves the connection to the next request.
pub(super) fn acts(script: &Script, to_head_request: bool) -> Vec<Act> {
    let mut acts: Vec<Act> = script.before_head.iter().cloned().map(Act::Wait).collect();
    acts.extend(script.interims.iter().cloned().map(Act::Send));
    let mut broken_off = false;
    match &script.opening {
        Opening::Silence => broken_off = true,
        Opening::Refusal(_) => return vec![Act::Reset],
        Opening::Raw(bytes) => acts.push(Act::Send(bytes.clone())),
        Opening::Answer => {
            acts.push(Act::Send(head(script)));
            if has_body(script, to_head_request) {
                broken_off = body(script, &mut acts);
            }
        }
    }
    if let Limit::WireBytes(bytes) = script.limit {
        broken_off = true;
        truncate(&mut acts, bytes);
    }
    if broken_off {
        acts.extend(script.before_end.iter().cloned().map(Act::Wait));
        acts.push(match script.ending {
            Ending::Cut => Act::Cut,
            Ending::Reset => Act::Reset,
            Ending::Stall => Act::Stall,
        });
    } else {
        acts.push(Act::Send(script.surplus.clone()));
        match script.after {
            After::Keep => {}
            After::SayClose | After::Close => acts.push(Act::Close),
            After::Reset => acts.push(Act::Reset),
            After::Linger => acts.push(Act::Linger),
        }
    }
    if script.one_write { joined(acts) } else { acts }
}

/// Adds the body; true if it breaks off.
fn body(script: &Script, acts: &mut Vec<Act>) -> bool {
    let (mut events, mut bytes) = match script.limit {
        Limit::None | Limit::WireBytes(_) => (usize::MAX, usize::MAX),
        Limit::Events(events) => (events, usize::MAX),
        Limit::BodyBytes(bytes) => (usize::MAX, bytes),
    };
    for (index, frame) in script.frames.iter().enumerate() {
        if events == 0 || bytes == 0 {
            break;
        }
        if index > 0 {
            acts.extend(script.between.iter().cloned().map(Act::Wait));
        }
        acts.extend(frame.waits.iter().cloned().map(Act::Wait));
        acts.push(Act::Send(encoded(script, frame, bytes)));
        events -= 1;
        bytes = bytes.saturating_sub(frame.bytes.len());
    }
    if matches!(script.limit, Limit::Events(_) | Limit::BodyBytes(_)) {
        return true;
    }
    acts.extend(script.before_end.iter().cloned().map(Act::Wait));
    if script.framing == Framing::Chunked {
        let mut end = String::from("0\r\n");
        for (name, value) in &script.trailers {
            end.push_str(&format!("{name}: {value}\r\n"));
        }
        end.push_str("\r\n");
        acts.push(Act::Send(Bytes::from(end)));
    }
    false
}

/// A frame as it goes over the wire; one that is cut short still announces its full size.
fn encoded(script: &Script, frame: &Frame, limit: usize) -> Bytes {
    let data = frame.bytes.get(..limit).unwrap_or(&frame.bytes);
    // An empty chunk would be the last one.
    if script.framing != Framing::Chunked || frame.bytes.is_empty() {
        return Bytes::copy_from_slice(data);
    }
    let size = format!("{:x}{}\r\n", frame.bytes.len(), script.chunk_extension);
    let mut chunk = BytesMut::with_capacity(size.len() + data.len() + 2);
    chunk.extend_from_slice(size.as_bytes());
    chunk.extend_from_slice(data);
    if data.len() == frame.bytes.len() {
        chunk.extend_from_slice(b"\r\n");
    }
    chunk.freeze()
}

fn head(script: &Script) -> Bytes {
    let mut head = format!("{} {} {}\r\n", script.version, script.status, reason(script.status));
    for (name, value) in &script.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut framing = Vec::new();
    match script.framing {
        _ if bodiless(script.status) => {}
        Framing::Length => framing.push(("content-length", script.whole_body().len().to_string())),
        Framing::Chunked => framing.push(("transfer-encoding", "chunked".to_owned())),
        Framing::Close => {}
    }
    if matches!(script.after, After::SayClose | After::Linger) {
        framing.push(("connection", "close".to_owned()));
    }
    for (name, value) in framing {
        if !script.omitted.iter().any(|omitted| omitted == name) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head.push_str("\r\n");
    Bytes::from(head)
}

fn has_body(script: &Script, to_head_request: bool) -> bool {
    // A body behind a 204 is a lie that a script may tell.
    !to_head_request && (!bodiless(script.status) || !script.frames.is_empty())
}

pub(super) fn bodiless(status: u16) -> bool {
    matches!(status, 100..=199 | 204 | 304)
}

/// Keeps the first `limit` bytes of what is sent, and no wait after them.
fn truncate(acts: &mut Vec<Act>, mut limit: usize) {
    let mut kept = 0;
    for act in acts.iter_mut() {
        if limit == 0 {
            break;
        }
        if let Act::Send(bytes) = act {
            bytes.truncate(limit);
            limit -= bytes.len();
        }
        kept += 1;
    }
    acts.truncate(kept);
}

/// Neighbouring writes become one.
fn joined(acts: Vec<Act>) -> Vec<Act> {
    let mut joined = Vec::with_capacity(acts.len());
    let mut pending = BytesMut::new();
    for act in acts {
        if let Act::Send(bytes) = act {
            pending.extend_from_slice(&bytes);
            continue;
        }
        joined.push(Act::Send(pending.split().freeze()));
        joined.push(act);
    }
    joined.push(Act::Send(pending.freeze()));
    joined
}

/// The usual words for a status.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Payload Too Large",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        529 => "Overloaded",
        _ => "Scripted",
    }
}
