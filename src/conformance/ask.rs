//! A request as it goes over the wire: order and case of its fields are kept.

use bytes::Bytes;

/// How the length of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
}

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Ask {
    pub(super) method: &'static str,
    pub(super) target: String,
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Bytes,
    version: &'static str,
    framing: Framing,
}

impl Ask {
    /// One without fields.
    pub fn new(method: &'static str, target: &str, body: impl Into<Bytes>) -> Self {
        Self {
            method,
            target: target.to_owned(),
            fields: Vec::new(),
            body: body.into(),
            version: "HTTP/1.1",
            framing: Framing::Length,
        }
    }

    /// Adds a field behind those that are there.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Replaces a field in its place, or adds it.
    pub(super) fn set(mut self, name: &str, value: &str) -> Self {
        match self.fields.iter_mut().find(|(other, _)| other.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value.to_owned(),
            None => return self.with(name, value),
        }
        self
    }

    /// Takes a field out.
    pub(super) fn without(mut self, name: &str) -> Self {
        self.fields.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self
    }

    pub(super) fn to(mut self, target: &str) -> Self {
        target.clone_into(&mut self.target);
        self
    }

    pub(super) fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    pub(super) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// In chunks of 1,000 bytes, with no length.
    pub(super) fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    pub(super) fn http10(mut self) -> Self {
        self.version = "HTTP/1.0";
        self
    }

    /// The value of a field.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The head's bytes; the target is put behind `prefix`. A `Host` of its own is kept.
    pub(super) fn head(&self, host: &str, prefix: &str) -> Vec<u8> {
        let mut head = format!("{} {prefix}{} {}\r\n", self.method, self.target, self.version);
        let mut line = |name: &str, value: &str| {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        };
        self.fields.iter().for_each(|(name, value)| line(name, value));
        if self.field("host").is_none() {
            line("Host", host);
        }
        match self.framing {
            Framing::Chunked => line("Transfer-Encoding", "chunked"),
            Framing::Length if self.body.is_empty() && self.method != "POST" => {}
            Framing::Length => line("Content-Length", &self.body.len().to_string()),
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// The body as it goes over the wire.
    pub(super) fn framed_body(&self) -> Bytes {
        if self.framing == Framing::Length {
            return self.body.clone();
        }
        let mut framed = Vec::new();
        for piece in self.body.chunks(1000) {
            framed.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            framed.extend_from_slice(piece);
            framed.extend_from_slice(b"\r\n");
        }
        framed.extend_from_slice(b"0\r\n\r\n");
        Bytes::from(framed)
    }
}
