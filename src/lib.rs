//! One local endpoint in front of every way to reach Claude: it reads the model name of a request, tries the
//! providers and accounts that a YAML file names for it, in order, and streams the first good answer back untouched.
//!
//! The README is for those who use it; this is for those who change it. What is wanted, in order of precedence: never
//! leak a secret · never change bytes that nobody asked us to change · never lose a working configuration · never hang,
//! and never leave a request without an honest answer · say truthfully who failed · simple before general · fast, and
//! proved by a bench.
//!
//! # Rooms
//!
//! Arrows point downward only: a room uses those below it, and none above.
//!
//! | room | what it does |
//! | --- | --- |
//! | [`cli`] | the commands: `serve`, `check`, `explain`, `login`, `accounts`, `demo`, `conformance` |
//! | [`server`] | sockets, HTTP, graceful end |
//! | [`app`] | builds the rooms once and leads each request to its room |
//! | [`admin`] | the balancer's own paths: what it is, how it is, reload, signing in |
//! | [`proxy`] | the data path, from the request's body to the last byte of the answer |
//! | [`oauth`] | accounts: signing in, their tokens, keeping them fresh and safe |
//! | [`upstream`] | one request to one provider: egress, TLS, HTTP/1.1 or HTTP/2, warm connections |
//! | [`config`] | from YAML text to a snapshot, with every problem at once |
//! | [`route`] | from a model name to an ordered queue of targets |
//! | [`health`] | who is well, who is cooling, who is known to be rejected until when |
//! | [`inflow`] | what comes from a client: heads for hyper, bodies for who answers |
//! | [`gate`] | who may talk to us: Host, Origin, framing, key |
//! | [`provider`] | the nouns of the configuration |
//! | [`secret`], [`log`], [`metrics`] | a text that cannot be printed; the log and its two forms; the counters |
//! | [`chunked`] | chunked bodies, of either side |
//! | [`memory`] | what is free goes back to the system; how much requests may hold |
//! | [`lab`] | scripted providers for `demo`, the judge, tests and benches; beside the others, and uses none of them |
//! | [`conformance`] | the judge of gateways: from outside only, so that it uses nothing but the lab |
//!
//! # The life of a request
//!
//! ```text
//! server::connection   inflow finds the head and looks at it, hyper reads it
//!   app::handle        the snapshot is loaded, once for the whole request
//!     gate::admit      Host, Origin, target, key; anything else stops here
//!     admin            … the balancer's own paths end here
//!     proxy::handle
//!       intake         the body is read once; model, stream and pin are found on the way
//!       route::Plan    the targets in order, each with its standing from health
//!       failover       while a target is left:
//!         accounts       the token of its account, if it has one; renewed first if it has expired
//!         rewrite        the head for it: one credential, no hop-by-hop headers
//!         attempt        send; read as much of the answer as the verdict needs
//!         verdict        commit, forward to the client, or next; and what it costs in health
//!       ── commit point: the request body is released, no other target can be reached ──
//!       relay          frames move as they come; an observer looks for the end, and a break becomes an error
//!       ledger         the account is closed: one log line, counters
//! ```
//!
//! # Words
//!
//! *Downstream*: the client's side. *Upstream*: the provider's. *Inflow*: what comes from a client. *Stand-in*: the
//! head that hyper gets instead of one that is refused. *Permission*: `100 Continue`. *To forget* a body: to read it
//! for nobody. *Provider*: one entry of `providers:`. *Account*: one OAuth identity, named by its e-mail. *Route*: a
//! model pattern and its targets. *Target*: a provider, account and model choice of a route. *Plan*: the targets of
//! one request, in order. *Attempt*: one try at one target. *Verdict*: what an attempt's outcome means. *Commit
//! point*: where the answer belongs to the client. *Failover*: going to the next target before it. *Cooldown*: our own
//! belief that a target is bad, which moves it to the end. *Limit*: the provider's word until when it refuses, for
//! which the target is skipped. *Egress*: the proxy through which a provider is reached. *Snapshot*: one immutable,
//! validated configuration.
//!
//! # Levels of the log
//!
//! ERROR: a human must act (an address that cannot be bound, connections that cannot be accepted). WARN: the system
//! recovered by itself (a failed attempt, a request that was sent twice, a rejected edit). INFO: normal life; one line
//! for each finished request, and the start, the end and each reload. DEBUG: the verdict of each attempt, and who was
//! refused at the gate. Bodies, credentials and query strings are never logged, at any level.

pub mod admin;
pub mod app;
pub mod chunked;
pub mod cli;
pub mod config;
pub mod conformance;
pub mod gate;
pub mod health;
pub mod inflow;
pub mod lab;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod oauth;
pub mod provider;
pub mod proxy;
pub mod route;
pub mod secret;
pub mod server;
pub mod upstream;
