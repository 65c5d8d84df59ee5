//! The bench: the gateway that is judged, the two scripted providers behind it, and one client's way through it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::ask::Ask;
use super::scene::model_for;
use super::wire::{Heard, Reply, Wire};
use super::{Boxed, Fault, failed, not_applicable, shapes};
use crate::lab::{IdleClose, Lab, Received, Script, Welcome};

/// What a gateway is asked for where its routes are not ours to write.
const MODEL: &str = "claude-sonnet-4-5";
/// How often a gateway is given a moment to forget what the point before did to it.
const MOMENTS: usize = 20;
const MOMENT: Duration = Duration::from_millis(500);

/// Where the gateway is.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Its address.
    pub address: SocketAddr,
    /// The `Host` of requests to it.
    pub host: String,
    /// What stands before every path, without a slash at its end.
    pub prefix: String,
}

/// What is known of the gateway's configuration.
#[derive(Clone, Default)]
pub struct Setup {
    /// It has every one of [`SCENES`](super::SCENES).
    pub scenes: bool,
    /// It knows the second lab, and goes there where the first fails.
    pub failover: bool,
    /// The key that opens it; without it, a dummy is sent.
    pub key: Option<String>,
    /// What it has logged so far, where that can be read.
    pub log: Option<Arc<dyn Fn() -> String + Send + Sync>>,
}

/// The gateway and what stands on both sides of it.
pub struct Bench {
    /// The gateway.
    pub gateway: Gateway,
    /// The upstream that it asks first.
    pub first: Lab,
    /// The one that it asks next, if it does.
    pub second: Lab,
    /// What is known of its configuration.
    pub setup: Setup,
    heard: Heard,
}

/// How many requests each lab had seen at a moment.
pub(super) struct Mark {
    first: usize,
    second: usize,
}

impl Bench {
    /// Labs that answer as the real API would, until a point tells them otherwise.
    pub fn new(gateway: Gateway, first: Lab, second: Lab, setup: Setup) -> Self {
        first.answer(usual);
        second.answer(usual);
        Self { gateway, first, second, setup, heard: Heard::default() }
    }

    /// Whether a request comes through to the first lab.
    pub fn reached(&self) -> Boxed<'_, bool> {
        Box::pin(async move { self.arrives(&self.ask_for("one")).await.is_ok() })
    }

    /// Puts the labs back to what they were, and waits until the gateway asks the first one again.
    pub(super) fn calm(&self) -> Boxed<'_, ()> {
        Box::pin(self.settle())
    }

    async fn settle(&self) {
        for lab in [&self.first, &self.second] {
            lab.idle_close(IdleClose::Never);
            lab.welcome(Welcome::Serve);
            lab.answer(usual);
        }
        if self.setup.scenes || !self.setup.failover {
            return;
        }
        for _ in 0..MOMENTS {
            if timeout(MOMENT, self.reached()).await.unwrap_or(false) {
                return;
            }
            sleep(MOMENT).await;
        }
    }

    /// The model that leads to a scene.
    pub(super) fn model(&self, scene: &str) -> String {
        if self.setup.scenes { model_for(scene) } else { MODEL.to_owned() }
    }

    /// What Claude Code sends, a stream being asked for.
    pub(super) fn ask_for(&self, scene: &str) -> Ask {
        self.keyed(shapes::claude_code(&self.model(scene), true))
    }

    /// The same, with no stream.
    pub(super) fn plain(&self, scene: &str) -> Ask {
        self.keyed(shapes::claude_code(&self.model(scene), false))
    }

    /// With the key that opens the gateway instead of the dummy.
    pub(super) fn keyed(&self, ask: Ask) -> Ask {
        match &self.setup.key {
            Some(key) if ask.field("x-api-key").is_some() => ask.set("X-Api-Key", key),
            Some(key) if ask.field("authorization").is_some() => ask.set("Authorization", &format!("Bearer {key}")),
            _ => ask,
        }
    }

    /// A connection to the gateway.
    pub(super) fn open(&self) -> Boxed<'_, io::Result<Wire>> {
        Box::pin(Wire::open(self.gateway.address, self.heard.clone()))
    }

    /// Writes a request on a connection.
    pub(super) fn send<'a>(&'a self, wire: &'a mut Wire, ask: &'a Ask) -> Boxed<'a, io::Result<()>> {
        wire.ask(ask, &self.gateway.host, &self.gateway.prefix)
    }

    /// One request on a connection of its own, and its answer. Boxed, like all that every point uses: sixty copies of
    /// it would make the program larger by a tenth.
    pub fn once<'a>(&'a self, ask: &'a Ask) -> Boxed<'a, io::Result<Reply>> {
        Box::pin(async move {
            let mut wire = self.open().await?;
            self.send(&mut wire, ask).await?;
            wire.reply().await
        })
    }

    /// One request that must arrive at the first lab and be answered with 200; what arrived.
    pub(super) fn arrives<'a>(&'a self, ask: &'a Ask) -> Boxed<'a, Result<Received, Fault>> {
        Box::pin(async move {
            let mark = self.mark();
            let reply = self.once(ask).await?;
            let arrived = self.at_first(&mark).into_iter().next();
            match arrived {
                Some(received) if reply.status == 200 => Ok(received),
                Some(_) => failed(format!("{} {} was answered with {}", ask.method, ask.target, reply.brief())),
                None => failed(format!("{} {} did not arrive: {}", ask.method, ask.target, reply.brief())),
            }
        })
    }

    /// What the first lab does with the next requests; then the usual.
    pub(super) fn first_plays(&self, scripts: Vec<Script>) {
        play(&self.first, scripts);
    }

    /// The same for the second.
    pub(super) fn second_plays(&self, scripts: Vec<Script>) {
        play(&self.second, scripts);
    }

    /// A stream of Claude Code's while the first lab plays this script; the answer.
    pub(super) fn streamed<'a>(&'a self, scene: &'a str, script: Script) -> Boxed<'a, io::Result<Reply>> {
        self.first_plays(vec![script]);
        Box::pin(async move { self.once(&self.ask_for(scene)).await })
    }

    /// From here on requests are counted.
    pub(super) fn mark(&self) -> Mark {
        Mark { first: self.first.arrivals(), second: self.second.arrivals() }
    }

    /// What the first lab has got since.
    pub(super) fn at_first(&self, mark: &Mark) -> Vec<Received> {
        self.first.requests().into_iter().skip(mark.first).collect()
    }

    /// What the second lab has got since.
    pub(super) fn at_second(&self, mark: &Mark) -> Vec<Received> {
        self.second.requests().into_iter().skip(mark.second).collect()
    }

    /// How many have come to each since.
    pub(super) fn counts(&self, mark: &Mark) -> (usize, usize) {
        (self.first.arrivals() - mark.first, self.second.arrivals() - mark.second)
    }

    /// Goes on where there is a second upstream.
    pub(super) fn needs_second(&self) -> Result<(), Fault> {
        if self.setup.failover {
            return Ok(());
        }
        not_applicable("needs a gateway that knows a second upstream (--failover)")
    }

    /// Goes on where the configuration is ours.
    pub(super) fn needs_scenes(&self, what: &str) -> Result<(), Fault> {
        if self.setup.scenes {
            return Ok(());
        }
        not_applicable(format!("needs {what}, which is judged with --self only"))
    }

    /// All that the gateway has answered so far.
    pub(super) fn heard(&self) -> Vec<Bytes> {
        self.heard.all()
    }
}

fn play(lab: &Lab, scripts: Vec<Script>) {
    let queue = Mutex::new(VecDeque::from(scripts));
    lab.answer(move |request| {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        next.unwrap_or_else(|| usual(request))
    });
}

/// What the real API would answer.
fn usual(request: &Received) -> Script {
    let path = request.target.split('?').next().unwrap_or_default();
    let model =
        |id: &str| json!({ "type": "model", "id": id, "display_name": id, "created_at": "2026-01-01T00:00:00Z" });
    if request.method == "HEAD" {
        return Script::json(200, &json!({}));
    }
    if path.ends_with("/v1/messages/count_tokens") {
        return Script::json(200, &json!({ "input_tokens": request.body.len() }));
    }
    if path.ends_with("/v1/messages") {
        return Script::as_asked(request);
    }
    if path.ends_with("/v1/models") {
        let data = [model("claude-lab-1"), model("claude-lab-2")];
        return Script::json(200, &json!({ "data": data, "has_more": false }));
    }
    Script::json(200, &json!({ "id": "lab", "type": "file" }))
}
