//! What the process itself is allowed: no core, no memory for others to read, no files for others to read, and as many
//! descriptors as the system gives.

use std::panic::PanicHookInfo;

/// Descriptors beyond which more are of no use; also where the system has no such limit.
const ENOUGH: u64 = 1 << 17;
/// User ids of people, beside those of services.
const PEOPLE: std::ops::Range<u32> = 1000..60_000;
/// Kept for the log, listeners, stores and watches (19 as soon as it serves, on Linux), and for clients that are told
/// that there is no room: a quarter, but no less and no more than this.
const RESERVE: std::ops::RangeInclusive<u64> = 32..=128;

/// No other process of this user reads our memory, and no crash leaves it on a disk.
pub(super) fn seal() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// For a service, whose children are its own: files that we create are ours alone, and there are no cores.
pub(super) fn settle() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit, umask};
        umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    }
}

/// Raises the soft limit of descriptors to the hard one: how many there may be.
pub(super) fn raise_descriptors() -> u64 {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let now = getrlimit(Resource::Nofile);
        let wanted = now.maximum.unwrap_or(ENOUGH).min(ENOUGH);
        if now.current.is_some_and(|current| current < wanted) {
            let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum });
        }
        getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH)
    }
    #[cfg(not(unix))]
    ENOUGH
}

/// How many connections of clients so many descriptors bear: each may need one towards a provider.
pub(super) fn connections(descriptors: u64, most: usize) -> usize {
    let reserve = (descriptors / 4).clamp(*RESERVE.start(), *RESERVE.end());
    usize::try_from(descriptors.saturating_sub(reserve) / 2).unwrap_or(most).clamp(1, most)
}

/// What the people of a machine are told that share a port without a key; `passwd` = the file of that name. `None` =
/// there is a key, or hardly anybody else.
pub(super) fn shared_port(has_key: bool, passwd: &str) -> Option<String> {
    let person = |line: &&str| {
        let mut fields = line.split(':').skip(2);
        let id = fields.next().and_then(|id| id.parse::<u32>().ok());
        let shell = fields.nth(3).unwrap_or_default();
        id.is_some_and(|id| PEOPLE.contains(&id)) && !shell.ends_with("/nologin") && !shell.ends_with("/false")
    };
    let people = passwd.lines().filter(person).count();
    (!has_key && people > 1).then(|| {
        format!(
            "{people} users of this machine can reach this port and spend what it holds; settings.auth asks for a key"
        )
    })
}

/// A panic says where it was; what it says may hold anything.
pub(super) fn quiet_panics(say: fn(&str)) {
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        say(&format!("a panic at {place}; this is a bug"));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_providers() {
        for (descriptors, wanted) in
            [(0, 1), (16, 1), (64, 16), (256, 96), (1024, 448), (20_000, 9_936), (1 << 20, 16_384)]
        {
            assert_eq!(connections(descriptors, 16_384), wanted, "{descriptors}");
        }
        assert_eq!(connections(1024, 10), 10);
    }

    #[test]
    fn people_who_share_a_machine_are_told_that_the_port_is_open_to_all_of_them() {
        let alone = "root:x:0:0:root:/root:/bin/bash\nwww:x:33:33::/var/www:/usr/sbin/nologin\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n\
                     bot:x:1001:1001::/home/bot:/usr/sbin/nologin\nnobody:x:65534:65534::/:/bin/sh\nodd line\n";
        let shared = format!("{alone}ben:x:1002:1002::/home/ben:/bin/zsh\n");
        assert_eq!(shared_port(false, alone), None);
        assert!(shared_port(false, &shared).is_some_and(|text| text.starts_with("2 users")));
        assert_eq!(shared_port(true, &shared), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_is_sealed() {
        use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
        seal();
        let sealed = dumpable_behavior();
        set_dumpable_behavior(DumpableBehavior::Dumpable).expect("as before");
        assert_eq!(sealed, Ok(DumpableBehavior::NotDumpable));
    }

    #[test]
    fn a_panic_says_where_it_was_and_not_what() {
        static SAID: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
        let before = std::panic::take_hook();
        quiet_panics(|text| SAID.lock().expect("not poisoned").push(text.to_owned()));
        let caught = std::panic::catch_unwind(|| panic!("sk-canary"));
        std::panic::set_hook(before);
        assert!(caught.is_err());
        // Other tests may panic on purpose meanwhile.
        let said = SAID.lock().expect("not poisoned");
        assert!(said.iter().any(|text| text.contains("src/cli/process.rs:")), "{said:?}");
        assert!(said.iter().all(|text| !text.contains("canary")), "{said:?}");
    }
}
