//! What a human pastes: what was read is a code within its limits, and is read again as the same.

use claude_code_balancer::oauth::parse_pasted;
use claude_code_balancer::oauth::paste::{PasteFault, Pasted};
use claude_code_balancer::secret::Secret;

pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match parse_pasted(&text) {
        Ok(pasted) => {
            let code = pasted.code.expose();
            let state = pasted.state.as_ref().map(|state| state.expose());
            let clean = |text: &str, limit| {
                !text.is_empty() && text.len() <= limit && text.bytes().all(|byte| byte.is_ascii_graphic())
            };
            assert!(clean(code, 2048) && state.is_none_or(|state| clean(state, 512)), "{code:?} {state:?}");
            let again = match state {
                Some(state) => format!("{code}#{state}"),
                None => code.to_owned(),
            };
            assert_eq!(parse_pasted(&again).as_ref(), Ok(&pasted), "{again:?} is read otherwise");
            let other = || Secret::new("another");
            let another = Pasted { code: other(), state: pasted.state.as_ref().map(|_| other()) };
            assert_eq!(format!("{pasted:?}"), format!("{another:?}"), "a code can be printed");
        }
        Err(fault) => {
            // One of a few sentences, none of which knows the text.
            let known =
                [PasteFault::Empty, PasteFault::TooLong, PasteFault::NoCode, PasteFault::Denied, PasteFault::Malformed];
            assert!(known.map(|known| format!("{known} {known:?}")).contains(&format!("{fault} {fault:?}")));
        }
    }
}
