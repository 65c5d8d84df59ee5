//! More than the balancer can hold: connections, descriptors, request bodies. It says so, and it gets over it.

use std::time::Duration;

use claude_code_balancer::lab::{Lab, Script};
use claude_code_balancer::proxy::intake::BUFFER_LIMIT;
use claude_code_balancer::server::Limits;

use crate::support::balancer::{Balancer, JSON, fleet, limits, request};
use crate::support::running::assert_is_our_error;
use crate::support::{Client, soon};

async fn within(limits: Limits) -> (Lab, Balancer) {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::within(&fleet(&[lab.url()], ""), limits).await;
    (lab, balancer)
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so_and_a_place_that_is_free_is_given_away() {
    let (lab, balancer) = within(Limits { connections: 8, ..limits() }).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut client = balancer.asking(false).await;
        assert_eq!(soon("an answer", client.read_to_end()).await.unwrap().status, 200);
        held.push(client);
    }
    let reply = balancer.ask(false).await;
    assert_is_our_error(&reply, 503, "api_error", "the ninth");
    assert_eq!((reply.header("retry-after"), reply.header("connection")), (Some("1"), Some("close")));
    // Those who have a place keep it.
    for client in &mut held {
        balancer.send_on(client, "POST", "/v1/messages", &[JSON], request(true)).await;
        assert_eq!(soon("an answer", client.read_to_end()).await.unwrap().status, 200);
    }
    assert_eq!(lab.requests().len(), 16);
    drop(held.pop());
    let again = async { while balancer.ask(false).await.status != 200 {} };
    soon("a free place", again).await;
}

#[tokio::test]
async fn bodies_that_together_are_too_large_wait_and_are_then_told_so() {
    let (lab, balancer) = within(limits()).await;
    let buffers = balancer.app.proxy.buffers.clone();
    assert_eq!(buffers.free(), BUFFER_LIMIT);
    let held = buffers.try_take(BUFFER_LIMIT - 50).unwrap();
    let reply = balancer.ask(false).await;
    assert_is_our_error(&reply, 503, "api_error", "no room");
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(lab.connections(), 0);
    // One that waits is served as soon as there is room.
    let mut waiting = balancer.asking(false).await;
    balancer.inflight(1).await;
    drop(held);
    assert_eq!(soon("an answer", waiting.read_to_end()).await.unwrap().status, 200);
    assert_eq!(buffers.free(), BUFFER_LIMIT);
}

#[tokio::test]
async fn room_for_a_body_is_given_back_at_the_commit_point_and_by_whoever_leaves() {
    let (lab, balancer) = within(limits()).await;
    let buffers = balancer.app.proxy.buffers.clone();
    let all_back = async {
        while buffers.free() != BUFFER_LIMIT {
            tokio::task::yield_now().await;
        }
    };
    lab.next(Script::stream(&["x"]).stall_after(4));
    let mut client = balancer.asking(true).await;
    soon("the head", client.head()).await.unwrap();
    assert_eq!(buffers.free(), BUFFER_LIMIT, "the stream is still open");
    drop(client);

    lab.next(Script::stall());
    let client = balancer.asking(true).await;
    soon("the provider is asked", lab.received(2)).await;
    assert!(buffers.free() < BUFFER_LIMIT);
    drop(client);
    soon("the room is given back", all_back).await;
}

#[tokio::test]
async fn only_one_expectation_can_be_met() {
    let (lab, balancer) = within(limits()).await;
    for what in ["200-ok", "100-continue, more", ""] {
        let reply = balancer.fetch("POST", "/v1/messages", &[JSON, ("expect", what)], request(false)).await;
        assert_is_our_error(&reply, 417, "invalid_request_error", what);
    }
    let reply = balancer.fetch("POST", "/v1/messages", &[JSON, ("expect", "100-Continue")], request(false)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(lab.requests().len(), 1);
}

#[cfg(target_os = "linux")]
mod as_a_process {
    use super::*;
    use crate::support::binary::{Binary, ask};

    fn processor_time(id: u32) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // utime and stime, in hundredths of a second.
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    #[tokio::test]
    async fn two_hundred_connections_on_64_descriptors_neither_end_it_nor_make_it_spin() {
        let lab = Lab::start().await.unwrap();
        let binary = Binary::new().with_descriptors(64);
        let config = binary.file("config.yaml", &fleet(&[lab.url()], ""));
        let (mut service, address) = binary.serve(&["--config", config.to_str().unwrap()]).await;
        let mut held = Vec::new();
        for _ in 0..200 {
            held.push(Client::connect(address).await.unwrap());
        }
        service.line("too many connections").await;
        // The first ones have a place, and providers are reached in spite of the crowd.
        for client in &mut held[..10] {
            client.send("POST", "/v1/messages", &[("host", &address.to_string()), JSON], request(true)).await.unwrap();
            assert_eq!(soon("an answer", client.read_to_end()).await.unwrap().status, 200);
        }
        let before = processor_time(service.id());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let spent = processor_time(service.id()) - before;
        assert!(spent <= 10, "{spent} % of a processor while it is full");
        drop(held);
        let released = tokio::time::Instant::now();
        while ask(address, "POST", "/v1/messages", &[JSON], &request(false)).await.status != 200 {}
        assert!(released.elapsed() < Duration::from_millis(1500), "{:?}", released.elapsed());
        let complaints = service.said().iter().filter(|line| line.contains("connections")).count();
        assert!(complaints <= 2, "{:?}", service.seen);
        service.signal("TERM");
        assert_eq!(service.end().await, Some(0));
    }

    #[tokio::test]
    async fn an_idle_connection_holds_no_room_for_a_request() {
        let binary = Binary::new();
        let config =
            binary.file("config.yaml", "providers: [{ name: A, base_url: \"http://127.0.0.1:9\", auth_value: k }]\n");
        let (service, address) = binary.serve(&["--config", config.to_str().unwrap()]).await;
        let resident = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", service.id())).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let host = address.to_string();
        let mut held = Vec::new();
        let mut before = 0;
        for number in 0..520 {
            if number == 20 {
                before = resident();
            }
            let mut client = Client::connect(address).await.unwrap();
            client.send("GET", "/health", &[("host", &host)], "").await.unwrap();
            assert_eq!(soon("an answer", client.read_to_end()).await.unwrap().status, 200);
            held.push(client);
        }
        let each = resident().saturating_sub(before) / 500;
        // 11.5; 16.6 where each request leaves a hole between what connections keep.
        assert!(each < 15, "{each} KiB each");
    }

    #[tokio::test]
    async fn the_process_leaves_no_core_and_takes_all_descriptors_it_may() {
        let binary = Binary::new();
        let config =
            binary.file("config.yaml", "providers: [{ name: A, base_url: \"http://127.0.0.1:9\", auth_value: k }]\n");
        let (service, _) = binary.serve(&["--config", config.to_str().unwrap()]).await;
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", service.id())).unwrap();
        assert!(read("status").contains("Umask:\t0077\n"));
        let limits = read("limits");
        let limit = |name: &str| limits.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace();
        assert!(limit("Max core file size").take(2).eq(["0", "0"]));
        let files: Vec<_> = limit("Max open files").take(2).collect();
        assert_eq!(files[0], files[1]);
    }
}
