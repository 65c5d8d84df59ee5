//! `login` and `accounts` as a user runs them, with a running server and without.
#![cfg(unix)]

use claude_code_balancer::lab::{Authority, Lab, Script};

use crate::support::binary::{Binary, Said, Service, ask};
use crate::support::running::ask_for;

struct Desk {
    binary: Binary,
    authority: Authority,
    lab: Lab,
}

impl Desk {
    /// A configuration with these accounts, of which the file keeps the tokens; its port is not used by anybody.
    async fn new(accounts: &[&str]) -> Self {
        let (authority, lab) = (Authority::start().await.unwrap(), Lab::start().await.unwrap());
        lab.always(Script::message("hi"));
        let port = claude_code_balancer::lab::unused_port().unwrap();
        let desk = Self { binary: Binary::new(), authority, lab };
        desk.configure(accounts, port);
        desk
    }

    fn configure(&self, accounts: &[&str], port: u16) {
        let entry = |email: &&str| {
            format!("  - {{ name: P, base_url: \"{}\", auth_value: oauth, account_email: {email} }}\n", self.lab.url())
        };
        let entries: String = accounts.iter().map(entry).collect();
        let text = format!(
            "providers:\n{entries}settings:\n  port: {port}\n  oauth:\n    storage: file\n    token_url: \"{}\"\n    authorize_url: \"{}\"\n",
            self.authority.token_url(),
            self.authority.authorize_url()
        );
        self.binary.file("config.yaml", &text);
    }

    /// The link that `login` shows, and what a browser brings back from it.
    async fn visit(&self, login: &mut Service, email: &str) -> String {
        let link = login.line("  http").await;
        self.authority.sign_in(link.trim(), email)
    }

    async fn sign_in(&self, arguments: &[&str], email: &str) -> String {
        let mut login = self.binary.converse(&[&["login"], arguments].concat());
        let code = self.visit(&mut login, email).await;
        login.say(&code);
        assert_eq!(login.end().await, Some(0), "{:?}", login.seen);
        login.seen.join("\n")
    }

    async fn accounts(&self) -> String {
        let Said { status, out, err } = self.binary.run(&["accounts"]).await;
        assert_eq!((status, err.as_str()), (Some(0), ""), "{out}");
        out
    }
}

#[tokio::test]
async fn a_login_without_a_server_is_stored_and_served_from_by_the_next_one() {
    let desk = Desk::new(&["main@example.com", "other@example.com"]).await;
    let out = desk.accounts().await;
    assert!(out.contains("main@example.com   not signed in") && out.contains("no server answered"), "{out}");
    let said = desk.sign_in(&["Main@example.com"], "main@example.com").await;
    assert!(said.contains("Signed in as Main@example.com; stored in the file "), "{said}");
    let out = desk.accounts().await;
    assert!(out.contains("Main@example.com   healthy ") && out.contains("token: 7h 59m, not used yet"), "{out}");
    assert!(out.contains("other@example.com  not signed in"), "{out}");
    let (_service, address) = desk.binary.serve(&[]).await;
    let json = [("content-type", "application/json")];
    let reply = ask(address, "POST", "/v1/messages", &json, &ask_for("m")).await;
    assert_eq!(
        (reply.status, reply.header("x-provider-used")),
        (200, Some("P (main@example.com)")),
        "{}",
        reply.text()
    );
}

#[tokio::test]
async fn a_login_beside_a_running_server_is_found_by_it() {
    let desk = Desk::new(&["main@example.com"]).await;
    // On another port than the one in the file: `login` does not find it.
    let (mut service, address) = desk.binary.serve(&[]).await;
    let json = [("content-type", "application/json")];
    let reply = ask(address, "POST", "/v1/messages", &json, &ask_for("m")).await;
    assert_eq!((reply.status, reply.header("x-should-retry")), (401, Some("false")), "{}", reply.text());
    // The box, with the real port, although nobody sees it.
    service.line("AUTHENTICATION REQUIRED - OAUTH LOGIN NEEDED").await;
    service.line("Required account: main@example.com").await;
    service.line(&format!("http://{address}/oauth/generate-url?account_email=main@example.com")).await;
    service.line("5. ").await;
    desk.sign_in(&[], "main@example.com").await;
    let served = async {
        // The store is read again at most every 200 ms.
        while ask(address, "POST", "/v1/messages", &json, &ask_for("m")).await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), served).await.expect("found soon");
}

#[tokio::test]
async fn wrong_codes_may_be_followed_by_the_right_one_and_nothing_is_stored_before() {
    let desk = Desk::new(&["main@example.com"]).await;
    let mut login = desk.binary.converse(&["login"]);
    let code = desk.visit(&mut login, "main@example.com").await;
    login.say("\u{1f600} no code at all");
    login.line("please try again").await;
    login.say(&format!("{}#another-state", code.split('#').next().unwrap()));
    login.line("please try again").await;
    login.say(&code);
    assert_eq!(login.end().await, Some(0), "{:?}", login.seen);

    // A text that could be a code uses the login up: another begins by itself.
    let desk = Desk::new(&["main@example.com"]).await;
    let mut login = desk.binary.converse(&["login"]);
    desk.visit(&mut login, "main@example.com").await;
    login.say("garbage");
    let code = desk.visit(&mut login, "main@example.com").await;
    login.say(&code);
    assert_eq!(login.end().await, Some(0), "{:?}", login.seen);

    let desk = Desk::new(&["main@example.com"]).await;
    let mut login = desk.binary.converse(&["login"]);
    desk.visit(&mut login, "main@example.com").await;
    login.hang_up();
    assert_eq!(login.end().await, Some(1), "{:?}", login.seen);
    let mut login = desk.binary.converse(&["login"]);
    let code = desk.visit(&mut login, "somebody.else@example.com").await;
    login.say(&code);
    assert_eq!(login.end().await, Some(1), "{:?}", login.seen);
    assert!(login.seen.join("\n").contains("nothing was stored"), "{:?}", login.seen);
    assert!(desk.accounts().await.contains("main@example.com  not signed in"));
}

#[tokio::test]
async fn what_login_cannot_do_it_says() {
    let desk = Desk::new(&["main@example.com", "other@example.com"]).await;
    // Which of the two?
    let Said { status, err, .. } = desk.binary.run(&["login"]).await;
    assert_eq!(status, Some(64));
    assert!(err.contains("an e-mail address is needed"), "{err}");
    let Said { status, .. } = desk.binary.run(&["login", "nobody"]).await;
    assert_eq!(status, Some(64));
    let text = std::fs::read_to_string(desk.binary.home().join("config.yaml")).unwrap();
    desk.binary.file("config.yaml", &text.replace("storage: file", "storage: memory"));
    let Said { status, err, .. } = desk.binary.run(&["login", "main@example.com"]).await;
    assert_eq!(status, Some(1));
    assert!(err.contains("memory of the server"), "{err}");
}
