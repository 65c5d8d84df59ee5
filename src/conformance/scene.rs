//! Scenes: what a gateway is configured for, where its configuration is ours to write. Each has providers of its own,
//! so that what a gateway remembers of one point does not colour the next.

/// Every secret of a run contains this, so that one search finds any of them where it must not be.
pub const CANARY: &str = "c4nary-of-conformance";

/// The providers of a scene; the first lab is always asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The first lab, with a key of the gateway's in `x-api-key`.
    One,
    /// The first lab, with a key of the gateway's as Bearer.
    Bearer,
    /// The first lab, with the client's own credential.
    Own,
    /// The first lab under the path `/pre/fix/`.
    Prefixed,
    /// The first lab, with the token of an account.
    Account,
    /// The first lab, then the second; each with a key of its own.
    Pair,
    /// The same, with the client's own credential at the first.
    OwnPair,
    /// An address that refuses connections, then the second lab.
    Refused,
}

/// Every scene and its providers.
pub const SCENES: [(&str, Plan); 67] = [
    ("one", Plan::One),
    ("bearer", Plan::Bearer),
    ("own", Plan::Own),
    ("prefix", Plan::Prefixed),
    ("account", Plan::Account),
    ("secrecy", Plan::Pair),
    ("stream", Plan::Pair),
    ("cut-1", Plan::Pair),
    ("cut-2", Plan::Pair),
    ("cut-3", Plan::Pair),
    ("cut-4", Plan::Pair),
    ("short", Plan::Pair),
    ("slow", Plan::One),
    ("large", Plan::One),
    ("final-400", Plan::One),
    ("final-401", Plan::One),
    ("final-402", Plan::One),
    ("final-403", Plan::One),
    ("final-404", Plan::One),
    ("final-409", Plan::One),
    ("final-413", Plan::One),
    ("final-422", Plan::One),
    ("final-429", Plan::One),
    ("final-500", Plan::One),
    ("final-503", Plan::One),
    ("final-529", Plan::One),
    ("heads-200", Plan::One),
    ("heads-429", Plan::One),
    ("next-408", Plan::Pair),
    ("next-429", Plan::Pair),
    ("next-500", Plan::Pair),
    ("next-502", Plan::Pair),
    ("next-503", Plan::Pair),
    ("next-529", Plan::Pair),
    ("next-event", Plan::Pair),
    ("request-400", Plan::Pair),
    ("request-413", Plan::Pair),
    ("request-404", Plan::Pair),
    ("model-404", Plan::Pair),
    ("key-401", Plan::Pair),
    ("key-403", Plan::Pair),
    ("own-401", Plan::OwnPair),
    ("own-403", Plan::OwnPair),
    ("html-403", Plan::Pair),
    ("html-502", Plan::Pair),
    ("html-both", Plan::Pair),
    ("gone-fin", Plan::Pair),
    ("gone-rst", Plan::Pair),
    ("gone-accept", Plan::Pair),
    ("gone-refused", Plan::Refused),
    ("committed-cut", Plan::Pair),
    ("committed-rst", Plan::Pair),
    ("long-wait", Plan::Pair),
    ("short-wait", Plan::Pair),
    ("all-529", Plan::Pair),
    ("all-500", Plan::Pair),
    ("retried", Plan::Pair),
    ("gzip-429", Plan::One),
    ("early", Plan::One),
    ("count", Plan::Pair),
    ("keep", Plan::One),
    ("keep-close", Plan::One),
    ("stale", Plan::One),
    ("stale-race", Plan::One),
    ("redirect", Plan::One),
    ("redirect-pair", Plan::Pair),
    ("cut-plain", Plan::One),
];

/// The model that leads to a scene, where the configuration is ours.
pub fn model_for(scene: &str) -> String {
    format!("claude-conformance-{scene}")
}
