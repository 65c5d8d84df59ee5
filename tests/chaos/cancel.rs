//! F19, cancellation: a connection is dropped at its k-th poll, for every k until whole requests are through: while a
//! token is renewed, at a target that is tried again after a cooldown, in the middle of a stream. Nothing may leak.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use claude_code_balancer::app::App;
use claude_code_balancer::health::Now;
use claude_code_balancer::lab::{Authority, Lab, Script};
use claude_code_balancer::oauth::State;
use claude_code_balancer::proxy::intake::BUFFER_LIMIT;
use claude_code_balancer::server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::report::{Report, number};
use super::support::accounts::email;
use super::support::balancer::{Balancer, limits, request};
use super::support::ordeal::number_of;
use super::support::soon;

/// Serves one request until the k-th poll; tells whether it came to its end before that.
async fn served_until(app: Arc<App>, host: String, k: u64) -> bool {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, peer) = listener.accept().await.unwrap();
    let (server, limits) = (server.into_std().unwrap(), limits());
    let body = request(true);
    let text = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let asking = async {
        for piece in text.as_bytes().chunks(64) {
            client.write_all(piece).await?;
            tokio::task::yield_now().await;
        }
        client.read_to_end(&mut Vec::new()).await
    };
    let serving = async {
        let mut connection = pin!(server::serve_one(server, peer.ip(), app, &limits));
        let mut polls = 0;
        std::future::poll_fn(|cx| {
            polls += 1;
            if polls == k {
                return Poll::Ready(false);
            }
            connection.as_mut().poll(cx).map(|()| true)
        })
        .await
    };
    let mut asking = pin!(asking);
    let mut serving = pin!(serving);
    tokio::select! {
        whole = serving.as_mut() => whole,
        _ = asking.as_mut() => serving.await,
    }
}

pub async fn run(most: u64) -> Report {
    let mut report = Report::new("cancel", format!("dropped at each of {most} polls"));
    let (failing, provider) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    failing.remember(false);
    // Every second time it is well, so that its cooldown stays short.
    let turn = AtomicUsize::new(0);
    failing.answer(move |request| match turn.fetch_add(1, Ordering::Relaxed) % 2 {
        0 => Script::error(500, "api_error", "no"),
        _ => Script::as_asked(request),
    });
    provider.remember(false);
    let authority = Authority::start().await.unwrap();
    // The number of the first token that the provider accepts.
    let floor = Arc::new(AtomicUsize::new(0));
    let least = floor.clone();
    provider.answer(move |request| {
        if number_of(request.header("authorization").unwrap_or("-0")) >= least.load(Ordering::Relaxed) {
            Script::stream(&["one", "two", "three"]).split_writes(64)
        } else {
            Script::error(401, "authentication_error", "Scripted refusal")
        }
    });
    let yaml = format!(
        "providers:\n  - {{ name: A, base_url: \"{}\", auth_value: key-a }}\n  - {{ name: B, base_url: \"{}\", \
         auth_value: oauth, account_email: main@example.com }}\nmodel_routes:\n  \"*\": [{{ provider: A, priority: 1 }}, \
         {{ provider: B, priority: 2 }}]\nsettings:\n  log_file_path: \"\"\n  unhealthy_threshold: 1\n  failure_cooldown: \
         \"1ms\"\n  oauth:\n    token_url: \"{}\"\n    authorize_url: \"{}\"\n",
        failing.url(),
        provider.url(),
        authority.token_url(),
        authority.authorize_url()
    );
    let balancer = Balancer::start(&yaml).await;
    let (app, host) = (balancer.app.clone(), balancer.address.to_string());
    let begun = app.accounts.begin(Some(email("main"))).unwrap();
    let pasted = authority.sign_in(&begun.authorization_url, "main@example.com");
    soon("the exchange", app.accounts.exchange(&pasted, None)).await.unwrap();
    let (mut whole, mut last) = (0, 0);
    for k in 1..=most {
        floor.store(authority.newest(0) + 1, Ordering::Relaxed);
        let done = soon("the end of a request", served_until(app.clone(), host.clone(), k)).await;
        whole += u64::from(done);
        last = if done { last } else { k };
        balancer.inflight(0).await;
        let free = soon("the room of bodies", async {
            while app.proxy.buffers.free() != BUFFER_LIMIT {
                tokio::task::yield_now().await;
            }
        });
        free.await;
        report.requests += 1;
        match done {
            true => report.ends.ok += 1,
            false => report.ends.cancelled += 1,
        }
    }
    // Both were waited for behind each of them.
    let room = app.proxy.buffers.free();
    report.check("no request under way and no room for bodies is left behind", room == BUFFER_LIMIT, || {
        format!("{room} of {BUFFER_LIMIT}")
    });
    report.check("the last of them end before they are dropped", last < most, || format!("{last} of {most}"));

    // The permit of a target that failed is there again: it is asked once more.
    let before = failing.arrivals();
    balancer.until("the cooldown ends", "A", |entry| entry["cooldown_until"].is_null()).await;
    let reply = balancer.ask(true).await;
    report.count(Some(reply.status));
    report.check("no permit of a target is left behind", failing.arrivals() == before + 1, || {
        format!("{} of {}", failing.arrivals(), before + 1)
    });
    report.check("all are served afterwards", reply.status == 200, || reply.text());
    app.accounts.finish().await;
    let reuses = authority.reuses();
    let status = app.accounts.status(Now::read());
    let kept = status.iter().all(|account| account.persisted && account.state == State::Healthy);
    report.check("every refresh is finished and kept", kept, || format!("{status:?}"));
    report.check("no refresh token is used twice", reuses == 0, || format!("{reuses}"));
    let metrics = balancer.fetch("GET", "/metrics", &[], "").await.text();
    let streams = number(&metrics, "balancer_open_streams");
    report.check("no stream is left behind", streams == 0, || format!("{streams}"));
    report.figure("polls of the longest request", last);
    report.figure("came to their end", whole);
    report.figure("tokens renewed", authority.redeemed());
    report.done()
}
