//! The verdict on any answer: a status line, fields, an empty line, and the type, message and code of an error, one a
//! line. What was asked for is committed, a web page never reaches the client, and no penalty is without an end.

use claude_code_balancer::health::Penalty;
use claude_code_balancer::provider::Auth;
use claude_code_balancer::proxy::verdict::{Asked, Content, ErrorBody, Fault, Outcome, Verdict, judge};
use claude_code_balancer::secret::Secret;

use super::limits::{fields, is_bounded, moments};

pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (line, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let Ok(status) = line.trim().parse::<u16>() else { return };
    let (head, body) = rest.split_once("\n\n").unwrap_or((rest, ""));
    let headers = fields(head.as_bytes());
    let mut lines = body.lines();
    let mut next = || lines.next().unwrap_or_default();
    let error = ErrorBody { kind: next(), message: next(), code: next() };
    let contents =
        [Content::AsAsked, Content::Error(error), Content::Html, Content::Unusable("a message for a stream")];
    let auths = [Auth::ApiKey(Secret::new("k")), Auth::Bearer(Secret::new("k")), Auth::OAuth, Auth::Passthrough];
    for (auth, content) in auths.iter().flat_map(|auth| contents.map(|content| (auth, content))) {
        for (now, replay_after_send) in moments().into_iter().zip([true, false, true, false]) {
            let asked = Asked { auth, model: "claude", unhealthy_codes: &[418, 200, 529], replay_after_send };
            let verdict = judge(asked, &Outcome::Answer { status, headers: &headers, content }, now);
            let good = (200..300).contains(&status) && !matches!(status, 204 | 206) && content == Content::AsAsked;
            assert_eq!(verdict == Verdict::Commit, good, "{status} {content:?}: {verdict:?}");
            match verdict {
                Verdict::Commit => {}
                Verdict::Forward(code) => {
                    assert!((400..500).contains(&code), "{code} is forwarded");
                    assert!(matches!(content, Content::AsAsked | Content::Error(_)), "{content:?} is forwarded");
                    assert!(status == code || matches!(content, Content::Error(_)), "{status} became {code}");
                }
                Verdict::Next(Fault { class, penalty, maybe_processed }) => {
                    assert!(!maybe_processed, "an answer came");
                    if let Penalty::Limited { until, .. } = penalty {
                        is_bounded(until, now);
                    }
                    assert!(*auth != Auth::Passthrough || !is_personal(&penalty), "{class:?} {penalty:?}");
                }
                Verdict::Stop(fault) => panic!("an answer came, yet {fault:?}"),
            }
        }
    }
}

/// Whether it says something of the credential, which may be the client's.
fn is_personal(penalty: &Penalty) -> bool {
    match penalty {
        Penalty::None | Penalty::Failure | Penalty::UnknownModel | Penalty::Overloaded => false,
        Penalty::Refused
        | Penalty::RefusedModel
        | Penalty::Busy
        | Penalty::Spent
        | Penalty::Unpaid
        | Penalty::Limited { .. } => true,
    }
}
