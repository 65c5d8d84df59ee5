//! F17, trouble with the disk of the store: full, only to be read, closed, and well again, while the real program renews
//! tokens. Linux only: the disks are mounted in a namespace.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::report::Report;
use super::support::binary::ask;
use super::support::disk::{Trouble, Troubled, stored_when_it_can_be, told};
use super::support::ordeal::{Kept, request, who};

/// Accounts on a small disk: their file takes more than a page.
const ACCOUNTS: usize = 12;
/// A full disk has 0 to 3 pages left: what is written in the middle of a renewal finds its end in the journal, in the
/// first or the second page of the file, or nowhere.
const PAGES: usize = 4;

const CASES: [(&str, Trouble, Kept); 4] = [
    ("full, plain file", Trouble::Full, Kept::Plain),
    ("full, sealed file", Trouble::Full, Kept::Sealed),
    ("read-only", Trouble::ReadOnly, Kept::Plain),
    ("closed (mode 000)", Trouble::Closed, Kept::Plain),
];

/// So many runs, in four kinds of trouble; with `wait` also how long the balancer takes to store what it could not, when
/// nobody asks (it tries every 30 s).
pub async fn run(runs: usize, wait: bool) -> Report {
    let mut report = Report::new("disk", format!("{runs} times in trouble and out again, in {} ways", CASES.len()));
    let runs = runs.div_ceil(CASES.len());
    for (name, trouble, kept) in CASES {
        // A closed store is asked again by hand, which an account may be once in 30 s.
        let accounts = if trouble == Trouble::Closed { runs + 1 } else { ACCOUNTS };
        let Some(mut troubled) = Troubled::new(trouble, kept, accounts).await else {
            report.figure(name, "left out: needs `unshare` as root or with user namespaces, or `setpriv`");
            continue;
        };
        let (mut service, address) = troubled.ordeal.serve().await;
        for account in 0..accounts {
            serves(&mut report, address, &account.to_string()).await;
        }
        for run in 0..runs {
            if trouble == Trouble::Closed {
                closed(&mut report, &mut troubled, address, run).await;
            } else {
                unstored(&mut report, &mut troubled, address, run, trouble).await;
            }
        }
        let reuses = troubled.ordeal.authority.reuses();
        report.check("no refresh token is used twice", reuses == 0, || format!("{reuses}: {name}"));
        let left = troubled.unfinished();
        report.check("nothing unfinished is left", left.is_empty(), || format!("{left:?}: {name}"));
        service.signal("TERM");
        let status = service.end().await;
        report.check("exit status 0", status == Some(0), || format!("{status:?}: {name}"));
        report.figure(name, runs);
    }
    if wait {
        let took = tokio::join!(stored_when_it_can_be(Trouble::Full), stored_when_it_can_be(Trouble::ReadOnly));
        for (name, took) in [("stored after space is back, s", took.0), ("stored after a remount, s", took.1)] {
            let Some(took) = took else { continue };
            report.check("stored within 30 s", took <= Duration::from_secs(31), || format!("{took:?}"));
            report.figure(name, took.as_secs_f64());
        }
    }
    report.done()
}

/// A request for a model, which must be answered.
async fn serves(report: &mut Report, address: SocketAddr, model: &str) {
    let reply = request(address, model).await;
    let status = reply.as_ref().ok().map(|reply| reply.status);
    report.count(status);
    report.check("service continues", status == Some(200), || format!("{model}: {reply:?}"));
}

/// Whether the balancer says that an account's token is stored.
async fn persisted(address: SocketAddr, account: usize) -> bool {
    told(address, account).await["persisted"] == Value::Bool(true)
}

/// A token is renewed that cannot be stored, and once more when it can.
async fn unstored(report: &mut Report, troubled: &mut Troubled, address: SocketAddr, run: usize, trouble: Trouble) {
    let account = run % ACCOUNTS;
    let (before, number) = (std::fs::read(troubled.file()).unwrap(), troubled.ordeal.newest(account));
    let pages = if trouble == Trouble::Full { run % PAGES } else { 0 };
    troubled.begin(if trouble == Trouble::Full { pages } else { run });
    troubled.ordeal.refuse(account);
    serves(report, address, &account.to_string()).await;
    serves(report, address, &((account + 1) % ACCOUNTS).to_string()).await;
    serves(report, address, "key").await;

    let (says, stored) = (persisted(address, account).await, troubled.stored(account).await);
    let intact = stored == number && std::fs::read(troubled.file()).unwrap() == before;
    let replaced = says && stored == number + 1 && pages > 0;
    report.check("the file is the old one, byte for byte, or with room the new one", intact || replaced, || {
        format!("run {run}, {trouble:?}, {pages} pages left: {stored} is stored of {}", number + 1)
    });
    report.check("the status says whether the token is stored", says == replaced, || format!("run {run}: {says}"));

    troubled.end();
    troubled.ordeal.refuse(account);
    serves(report, address, &account.to_string()).await;
    let (says, stored) = (persisted(address, account).await, troubled.stored(account).await);
    report.check("when it can be stored it is, and the status says so", says && stored == number + 2, || {
        format!("run {run}: {stored} is stored of {}, {says}", number + 2)
    });
}

/// A store that cannot even be read: nobody knows whether the token there is the newest, so none is spent.
async fn closed(report: &mut Report, troubled: &mut Troubled, address: SocketAddr, run: usize) {
    let (before, account) = (std::fs::read(troubled.file()).unwrap(), run);
    troubled.begin(run);
    troubled.ordeal.refuse(account);
    let reply = request(address, &account.to_string()).await.unwrap();
    report.count(Some(reply.status));
    let text = reply.text();
    report.check(
        "who needs a new token is told why there is none",
        reply.status == 503 && text.contains("store"),
        || format!("{}: {text}", reply.status),
    );
    serves(report, address, &(account + 1).to_string()).await;
    serves(report, address, "key").await;
    let says = told(address, account).await;
    report.check("the status names the store", says["last_error"].is_string(), || says.to_string());
    troubled.end();

    let intact = std::fs::read(troubled.file()).unwrap() == before && troubled.stored(account).await == 1;
    report.check("a closed file is as it was, and its token is not spent", intact, || format!("run {run}"));
    let renewed = ask(address, "POST", &format!("/oauth/refresh/{}", who(account)), &[], "").await;
    let stored = troubled.stored(account).await;
    report.check("when it can be read the token is renewed and stored", renewed.status == 200 && stored == 2, || {
        format!("run {run}: {} {}", renewed.status, renewed.text())
    });
    serves(report, address, &account.to_string()).await;
}
