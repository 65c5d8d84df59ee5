//! Tokens: what an authorization server says, and what is stored of it. A token that was read can be stored, and one
//! that was stored can be read.

use std::time::{Duration, SystemTime};

use claude_code_balancer::oauth::reply::{Named, Reply, ReplyFault};
use claude_code_balancer::oauth::token::{RECORD_LIMIT, RecordFault};
use claude_code_balancer::oauth::{Generation, Token};
use claude_code_balancer::provider::Email;
use claude_code_balancer::secret::Secret;

pub fn check_reply(bytes: &[u8]) {
    let visible = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let reply = match Reply::parse(bytes) {
        Ok(reply) => reply,
        Err(ReplyFault::NoAccess(refresh)) => {
            return assert!(refresh.is_none_or(|refresh| visible(refresh.expose())));
        }
        Err(ReplyFault::Page | ReplyFault::Unreadable) => return,
    };
    assert!(visible(reply.access.expose()) && reply.refresh.as_ref().is_none_or(|refresh| visible(refresh.expose())));
    let (second, year) = (Duration::from_secs(1), Duration::from_secs(366 * 24 * 3600));
    assert!((second..=year).contains(&reply.expires_in), "a life of {:?}", reply.expires_in);
    assert!(reply.scopes.iter().flatten().all(|scope| visible(scope)));
    let longest = format!("a@{}", "b".repeat(252));
    let token = Token {
        email: match reply.account {
            Named::Account(email) => email,
            Named::Nobody | Named::Unreadable => Email::parse(&longest).expect("an address"),
        },
        access: reply.access,
        refresh: reply.refresh,
        expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + reply.expires_in,
        scopes: reply.scopes.unwrap_or_default(),
        verified: false,
        created_at: SystemTime::UNIX_EPOCH,
        generation: Generation(u64::MAX),
    };
    is_kept(&token);
}

pub fn check_record(bytes: &[u8]) {
    match Token::from_record(bytes) {
        // A record of ours is never so close to the limit that a field more would be too much.
        Ok(token) if bytes.len() < RECORD_LIMIT - 256 => is_kept(&token),
        Ok(_) | Err(RecordFault::Newer | RecordFault::Damaged) => {}
    }
}

fn is_kept(token: &Token) {
    let record = token.to_record();
    assert!(record.len() <= RECORD_LIMIT, "a record of {} bytes", record.len());
    assert_eq!(Token::from_record(record.as_bytes()).as_ref(), Ok(token));
    let other = || Secret::new("another");
    let another = Token { access: other(), refresh: token.refresh.as_ref().map(|_| other()), ..token.clone() };
    assert_eq!(format!("{token:?}"), format!("{another:?}"), "a token can be printed");
}
