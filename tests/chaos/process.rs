//! The real program, and what the system tells of its process.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::support::balancer::{JSON, request};
use super::support::binary::{Binary, Service};
use super::support::{Client, Reply};

/// A home with a configuration: these providers, each with a key.
pub fn home(urls: &[String], settings: &str) -> Binary {
    let binary = Binary::new();
    let mut yaml = String::from("providers:\n");
    for (url, name) in urls.iter().zip('A'..='Z') {
        yaml.push_str(&format!("  - {{ name: \"{name}\", base_url: \"{url}\", auth_value: \"key-{name}\" }}\n"));
    }
    yaml.push_str("settings:\n  log_file_path: \"\"\n");
    yaml.push_str(settings);
    binary.file("config.yaml", &yaml);
    binary
}

/// A number of `/proc/PID/status`.
pub fn status(service: &Service, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", service.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_else(|| panic!("no {name}:\n{text}"))
}

/// Processor time so far, in clock ticks of 10 ms.
pub fn ticks(service: &Service) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", service.id())).unwrap();
    let after = text.rsplit(") ").next().unwrap();
    let fields: Vec<&str> = after.split_whitespace().collect();
    // utime and stime, fields 14 and 15 of all.
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Asks until the condition holds, and answers after how long; `None` when that is too long.
pub async fn held_within(limit: Duration, mut condition: impl FnMut() -> bool) -> Option<Duration> {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > limit {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Some(began.elapsed())
}

/// A message on a connection of its own.
pub async fn message(address: SocketAddr, stream: bool) -> io::Result<Reply> {
    let mut client = Client::connect(address).await?;
    let host = address.to_string();
    let headers = [("host", host.as_str()), JSON, ("connection", "close")];
    client.send("POST", "/v1/messages", &headers, request(stream)).await?;
    client.read_to_end().await
}

/// The status of an answer that is whole.
pub fn status_of(reply: &io::Result<Reply>) -> Option<u16> {
    reply.as_ref().ok().filter(|reply| reply.clean_end).map(|reply| reply.status)
}

/// Its open descriptors.
pub fn descriptors(service: &Service) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", service.id())).unwrap().count()
}
