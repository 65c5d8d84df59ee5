//! The judge of gateways: it passes what is right, and finds what is wrong.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use claude_code_balancer::conformance::{Bench, Gateway, Setup, Verdict, judge};
use claude_code_balancer::lab::{Lab, unused_port};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::binary::Binary;

/// A gateway that copies bytes both ways and understands none of them.
struct Pipe {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Pipe {
    async fn to(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(upstream).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { address, _tasks: tasks }
    }
}

#[tokio::test]
async fn a_gateway_that_only_copies_bytes_is_found_out_where_that_is_not_enough() {
    let (first, second) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let pipe = Pipe::to(first.address()).await;
    let gateway = Gateway { address: pipe.address, host: pipe.address.to_string(), prefix: String::new() };
    let bench = Bench::new(gateway, first, second, Setup::default());
    // All but those that wait, or move many MiB.
    let points: Vec<u8> = (1..=60).filter(|number| ![33, 35, 51, 55].contains(number)).collect();
    let mut told = 0;
    let report = judge(&bench, &points, |_| told += 1).await;
    assert_eq!((told, report.findings.len()), (points.len(), points.len()));
    let mut found: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for finding in &report.findings {
        found.entry(finding.verdict.word()).or_default().push(finding.number);
    }
    // Hop-by-hop fields, Host, coding, broken streams, and strangers need one who understands.
    let wrong = [8, 9, 26, 28, 29, 58];
    assert!(wrong.iter().all(|number| found["fail"].contains(number)), "{found:?}");
    let right = [1, 2, 3, 4, 5, 6, 7, 10, 11, 13, 14, 19, 20, 22, 23, 24, 25, 27, 30, 31, 32, 34, 36, 37, 46, 48, 53];
    assert!(right.iter().all(|number| found["pass"].contains(number)), "{found:?}\n{report:?}");
    let unjudged = [12, 15, 16, 17, 18, 21, 38, 39, 40, 41, 42, 43, 44, 49, 59, 60];
    assert_eq!(found["not_applicable"], unjudged);
    assert!(!report.good());
    let silent = report.findings.iter().filter(|finding| finding.seen.is_empty()).count();
    assert_eq!(silent, 0, "{report:?}");
}

#[tokio::test]
async fn the_program_judges_itself() {
    let points = "1,2,9,16,17,18,20,21,26,28,40,42,44,59";
    let said = Binary::new().run(&["conformance", "--self", "--only", points, "--format", "json"]).await;
    assert_eq!(said.status, Some(0), "{said:?}");
    let report: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&report["passed"], &report["failed"], &report["not_applicable"]), (&13.into(), &0.into(), &1.into()));
    let point = &report["points"][1];
    assert_eq!((point["number"].as_u64(), point["verdict"].as_str()), (Some(2), Some("pass")));
    for key in ["group", "title", "expected", "seen"] {
        assert!(point[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {point}");
    }
    assert!(!said.out.contains("c4nary") && !said.err.contains("c4nary"), "{said:?}");
}

#[tokio::test]
async fn the_exit_status_says_whether_a_point_failed() {
    let binary = Binary::new();
    let run = async |points: &str| {
        // The second upstream takes the port behind the first: somebody else may have it.
        for _ in 0..100 {
            let port = unused_port().unwrap();
            let pipe = Pipe::to(SocketAddr::from(([127, 0, 0, 1], port))).await;
            let (target, port) = (format!("http://{}", pipe.address), port.to_string());
            let arguments = ["conformance", "--target", &target, "--upstream-port", &port, "--only", points];
            let said = binary.run(&arguments).await;
            if said.status != Some(69) {
                return said;
            }
        }
        panic!("no two free ports");
    };
    let good = run("1,2").await;
    assert_eq!(good.status, Some(0), "{good:?}");
    assert!(good.out.contains("2 points: 2 passed, 0 failed, 0 not applicable"), "{good:?}");
    let bad = run("1,9").await;
    assert_eq!(bad.status, Some(1), "{bad:?}");
    let line = bad.out.lines().find(|line| line.starts_with("fail")).unwrap();
    assert!(line.contains(" 9  Host | expected: the upstream's own | seen: 127.0.0.1:"), "{line}");
    // What must be configured stands there, in one line.
    assert!(
        bad.out
            .lines()
            .any(|line| line.contains("its upstream, the base URL of its provider, must be http://127.0.0.1:"))
    );
    for wrong in
        [&["conformance"][..], &["conformance", "--target", "https://x"], &["conformance", "--self", "--only", "61"]]
    {
        assert_eq!(binary.run(wrong).await.status, Some(64), "{wrong:?}");
    }
}

#[test]
fn verdicts_have_words_of_their_own() {
    let words = [Verdict::Pass, Verdict::Fail, Verdict::NotApplicable].map(Verdict::word);
    assert_eq!(words, ["pass", "fail", "not_applicable"]);
}
