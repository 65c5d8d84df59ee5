//! A scripted authorization server: codes bound to a PKCE challenge, refresh tokens that are good for one use, and a
//! family of tokens that dies when one of them is used twice. Its ledger is what tests believe.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Lab;
use super::gate::Gate;
use super::record::locked;
use super::request::Received;
use super::script::Script;

/// The authorization server. Dropping it ends its listener.
///
/// ```no_run
/// # async fn example(authorization_url: &str) -> std::io::Result<()> {
/// use claude_code_balancer::lab::{Authority, Whim};
///
/// let authority = Authority::start().await?;
/// let pasted = authority.sign_in(authorization_url, "main@example.com"); // "code#state", as the page shows it
/// authority.next(Whim::LoseReply); // the next call rotates and is not answered
/// assert_eq!(authority.reuses(), 0);
/// # Ok(())
/// # }
/// ```
pub struct Authority {
    lab: Lab,
    state: Arc<Mutex<State>>,
}

/// How one call departs from the rule.
#[derive(Clone, Debug)]
pub enum Whim {
    /// Does what it is asked to, and closes the connection instead of answering.
    LoseReply,
    /// Does what it is asked to, and answers when the gate opens.
    Hold(Gate),
    /// Does what it is asked to, and answers after a time.
    Delay(Duration),
    /// Does what it is asked to, and answers with these fields changed; `null` takes one out.
    Change(Value),
    /// Does nothing, and answers this.
    Instead(Box<Script>),
}

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A code was exchanged: a family begins.
    Issued {
        /// Its number.
        family: usize,
    },
    /// A refresh token was used for the first time.
    Redeemed {
        /// Its family.
        family: usize,
        /// Its number in the family, from 1.
        number: usize,
    },
    /// One was used again within the grace: the same answer.
    Graced {
        /// Its family.
        family: usize,
        /// Its number in the family.
        number: usize,
    },
    /// One was used again: the family is dead.
    Reused {
        /// Its family.
        family: usize,
        /// Its number in the family.
        number: usize,
    },
    /// A call that was refused for another reason.
    Refused(&'static str),
}

struct State {
    /// Mixed into every token.
    prefix: String,
    codes: HashMap<String, Code>,
    families: Vec<Family>,
    refresh_tokens: HashMap<String, (usize, usize)>,
    ledger: Vec<Entry>,
    whims: VecDeque<Whim>,
    life: Value,
    grace: Duration,
    names_account: bool,
    rotates: bool,
}

struct Code {
    challenge: String,
    state: String,
    email: String,
    client: String,
    redirect: String,
}

struct Family {
    email: String,
    dead: bool,
    /// The number of the refresh token that is good now.
    newest: usize,
    rotated: Option<Instant>,
}

/// Orders.
impl Authority {
    /// On a free port of 127.0.0.1.
    pub async fn start() -> io::Result<Self> {
        let lab = Lab::start().await?;
        let state = Arc::new(Mutex::new(State {
            prefix: "lab".into(),
            codes: HashMap::new(),
            families: Vec::new(),
            refresh_tokens: HashMap::new(),
            ledger: Vec::new(),
            whims: VecDeque::new(),
            life: json!(28_800),
            grace: Duration::ZERO,
            names_account: true,
            rotates: true,
        }));
        let answering = Arc::clone(&state);
        lab.answer(move |request| locked(&answering).answer(request));
        Ok(Self { lab, state })
    }

    /// The server behind it: its connections, and requests as they came.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// For `settings.oauth.token_url`.
    pub fn token_url(&self) -> String {
        format!("{}/v1/oauth/token", self.lab.url())
    }

    /// For `settings.oauth.authorize_url`.
    pub fn authorize_url(&self) -> String {
        format!("{}/oauth/authorize", self.lab.url())
    }

    /// Does what a human does with the link: signs in, and gets `code#state` to paste.
    pub fn sign_in(&self, authorization_url: &str, email: &str) -> String {
        let query = authorization_url.split_once('?').map_or("", |(_, query)| query);
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map_or(String::new(), |(_, value)| decoded(value))
        };
        let mut state = locked(&self.state);
        let code = format!("{}-code-{}", state.prefix, state.codes.len() + 1);
        let given = Code {
            challenge: value("code_challenge"),
            state: value("state"),
            email: email.to_owned(),
            client: value("client_id"),
            redirect: value("redirect_uri"),
        };
        let pasted = format!("{code}#{}", given.state);
        state.codes.insert(code, given);
        pasted
    }

    /// How the next call departs from the rule; several are taken in order.
    pub fn next(&self, whim: Whim) {
        locked(&self.state).whims.push_back(whim);
    }

    /// `expires_in` of replies from now on; 28,800 at first.
    pub fn life(&self, seconds: u64) {
        locked(&self.state).life = json!(seconds);
    }

    /// For how long a used refresh token gets the same answer again; not at all at first.
    pub fn grace(&self, grace: Duration) {
        locked(&self.state).grace = grace;
    }

    /// Whether replies name the account; they do at first.
    pub fn names_account(&self, names: bool) {
        locked(&self.state).names_account = names;
    }

    /// Whether a refresh brings a new refresh token; it does at first.
    pub fn rotates(&self, rotates: bool) {
        locked(&self.state).rotates = rotates;
    }

    /// What every token begins with from now on: a canary.
    pub fn prefix(&self, prefix: &str) {
        locked(&self.state).prefix = prefix.to_owned();
    }

    /// Ends all sessions of an account, as its owner may at any time.
    pub fn revoke(&self, email: &str) {
        locked(&self.state).families.iter_mut().filter(|family| family.email == email).for_each(|f| f.dead = true);
    }
}

/// What it has seen.
impl Authority {
    /// Everything, in order.
    pub fn ledger(&self) -> Vec<Entry> {
        locked(&self.state).ledger.clone()
    }

    /// Refresh tokens that were redeemed.
    pub fn redeemed(&self) -> usize {
        self.ledger().iter().filter(|entry| matches!(entry, Entry::Redeemed { .. })).count()
    }

    /// Refresh tokens that were used twice: what must never happen.
    pub fn reuses(&self) -> usize {
        self.ledger().iter().filter(|entry| matches!(entry, Entry::Reused { .. })).count()
    }

    /// The number of the refresh token of a family that is good now, from 1.
    pub fn newest(&self, family: usize) -> usize {
        locked(&self.state).families.get(family).map_or(0, |family| family.newest)
    }

    /// Whether a provider would accept this access token: it is the newest of a living family.
    pub fn accepts(&self, access: &str) -> bool {
        let state = locked(&self.state);
        let mut families = state.families.iter().enumerate();
        families.any(|(index, family)| !family.dead && access.ends_with(&format!("-access-{index}-{}", family.newest)))
    }
}

impl State {
    fn answer(&mut self, request: &Received) -> Script {
        let whim = self.whims.pop_front();
        if let Some(Whim::Instead(script)) = whim {
            return *script;
        }
        let mut reply = match self.reply(request) {
            Ok(reply) => reply,
            Err((status, code)) => {
                self.ledger.push(Entry::Refused(code));
                return Script::json(status, &json!({"error": code, "error_description": "Scripted refusal"}));
            }
        };
        if let (Some(Whim::Change(Value::Object(fields))), Value::Object(reply)) = (&whim, &mut reply) {
            for (name, value) in fields {
                reply.insert(name.clone(), value.clone());
            }
            reply.retain(|_, value| !value.is_null());
        }
        let script = Script::json(200, &reply);
        match whim {
            Some(Whim::LoseReply) => Script::close(),
            Some(Whim::Hold(gate)) => script.hold_head(gate),
            Some(Whim::Delay(time)) => script.delay_head(time),
            _ => script,
        }
    }

    fn reply(&mut self, request: &Received) -> Result<Value, (u16, &'static str)> {
        let body = request.json();
        let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
        let json = request.header("content-type").is_some_and(|kind| kind.starts_with("application/json"));
        if request.method != "POST" || request.target != "/v1/oauth/token" || !json {
            return Err((404, "not_found"));
        }
        match text("grant_type") {
            "authorization_code" => {
                let code = self.codes.remove(text("code")).ok_or((400, "invalid_grant"))?;
                let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(text("code_verifier").as_bytes()));
                let same = code.challenge == challenge
                    && code.state == text("state")
                    && code.client == text("client_id")
                    && code.redirect == text("redirect_uri");
                if !same {
                    return Err((400, "invalid_grant"));
                }
                let family = self.families.len();
                self.families.push(Family { email: code.email, dead: false, newest: 1, rotated: None });
                self.ledger.push(Entry::Issued { family });
                Ok(self.tokens(family))
            }
            "refresh_token" => self.refresh(text("refresh_token")),
            _ => Err((400, "unsupported_grant_type")),
        }
    }

    fn refresh(&mut self, token: &str) -> Result<Value, (u16, &'static str)> {
        let (family, number) = *self.refresh_tokens.get(token).ok_or((400, "invalid_grant"))?;
        let kin = self.families.get_mut(family).filter(|kin| !kin.dead).ok_or((400, "invalid_grant"))?;
        if !self.rotates {
            self.ledger.push(Entry::Redeemed { family, number });
            return Ok(self.tokens(family));
        }
        if number == kin.newest {
            kin.newest += 1;
            kin.rotated = Some(Instant::now());
            self.ledger.push(Entry::Redeemed { family, number });
            return Ok(self.tokens(family));
        }
        let graced = kin.rotated.is_some_and(|at| at.elapsed() < self.grace) && number + 1 == kin.newest;
        if graced {
            self.ledger.push(Entry::Graced { family, number });
            return Ok(self.tokens(family));
        }
        kin.dead = true;
        self.ledger.push(Entry::Reused { family, number });
        Err((400, "invalid_grant"))
    }

    fn tokens(&mut self, family: usize) -> Value {
        let (number, email) =
            self.families.get(family).map_or((0, String::new()), |kin| (kin.newest, kin.email.clone()));
        let refresh = format!("{}-refresh-{family}-{number}", self.prefix);
        self.refresh_tokens.insert(refresh.clone(), (family, number));
        let mut reply = json!({
            "token_type": "Bearer",
            "access_token": format!("{}-access-{family}-{number}", self.prefix),
            "refresh_token": refresh,
            "expires_in": self.life,
            "scope": "user:profile user:inference",
        });
        if let (true, Value::Object(fields)) = (self.names_account, &mut reply) {
            fields.insert("account".into(), json!({"uuid": format!("lab-{family}"), "email_address": email}));
        }
        reply
    }
}

/// Form-decoded.
fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).unwrap_or_default();
                let value = digit() * 16 + digit();
                out.push(u8::try_from(value).unwrap_or_default());
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
