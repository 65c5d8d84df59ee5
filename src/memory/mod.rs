//! Free memory goes back to the system. The allocator of glibc keeps what lies beneath anything that is still in use:
//! 5,000 connections that have left leave 60 MiB resident, and four bodies of 30 MB leave 80 MiB (measured). The
//! allocator is the process's, and so is this. Beside it: how much all requests may hold.

mod budget;

use std::time::Duration;

pub use budget::{Budget, Share};
use tokio::sync::Notify;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use tokio::time::Instant;

/// From the end of something to a look at what it has left: those that end together cost one look.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// Less than so many bytes are kept; they are wanted again soon.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const WORTHWHILE: u64 = 4 << 20;

static ENDED: Notify = Notify::const_new();

/// Leaves it to [`give_back`] when most free memory goes back. The allocator of glibc does so by itself at the end of a large
/// piece, and the next one then finds empty pages: a hundred for each body of 1 MB, a quarter of its cost (measured). To be
/// called by who serves, before there are threads.
pub fn keep() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    set_thresholds();
}

/// Something of some size has ended: a connection, the body of a request. While nothing ends, nobody looks.
pub fn look() {
    ENDED.notify_one();
}

/// Looks and gives back until this is dropped; beside the threads that serve.
pub async fn give_back() {
    loop {
        ENDED.notified().await;
        tokio::time::sleep(LOOK_AFTER).await;
        let _ = tokio::task::spawn_blocking(give_back_now).await;
    }
}

/// Gives back what is free and resident, if it is worth it: a free page is then no more than an address, and the next
/// who needs it finds it empty. Meanwhile one thread at a time waits for its allocations; the log tells for how long.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_back_now() {
    let free = resident().saturating_sub(in_use());
    if free >= WORTHWHILE {
        let began = Instant::now();
        trim();
        let (took, left) = (began.elapsed(), resident() >> 10);
        tracing::debug!(free_kib = free >> 10, resident_kib = left, ?took, "free memory given back");
    }
}

/// Other allocators give it back themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back_now() {}

/// Resident memory that is no file's, in bytes; 0 where the system does not say.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim_end().parse::<u64>().map_or(0, |kib| kib << 10)
}

/// Bytes that the program holds.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc tells this by no other way")]
fn in_use() -> u64 {
    // SAFETY: takes and returns plain values; safe in any thread (mallinfo(3): "MT-Unsafe init const:mallopt" is about
    // calls to mallopt at the same time, and there are none).
    // Its successor, mallinfo2, is younger (2021) than some systems in use; this one counts modulo 4 GiB.
    let told = unsafe { libc::mallinfo() };
    u64::from(told.uordblks.cast_unsigned()) + u64::from(told.hblkhd.cast_unsigned())
}

/// Free bytes at the end of a heap from which on the allocator gives them back by itself; there is one heap for each thread
/// that serves, and nobody else can give back its end.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIM_THRESHOLD: i32 = 4 << 20;
/// Size from which on something has pages of its own, which go back with it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MMAP_THRESHOLD: i32 = 4 << 20;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc takes this order by no other way")]
fn set_thresholds() {
    // SAFETY: plain values go in; mallopt(3) is only unsafe beside other first calls to the allocator, and these come
    // before there are threads. One that is refused leaves the usual threshold.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc takes this order by no other way")]
fn trim() {
    // SAFETY: a plain value goes in; malloc_trim(3) is safe in any thread, and touches only what is free.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beneath_something_in_use_is_given_back() {
        // In a process of its own nothing else would be counted; here others may allocate, but not so much.
        const PIECES: usize = 8192;
        let mut pieces: Vec<Option<Vec<u8>>> = (0..PIECES).map(|_| Some(vec![1; 8 << 10])).collect();
        let full = resident();
        // Every 64th stays: the pages between them are free, and none is at the end of the heap.
        pieces.iter_mut().enumerate().filter(|(n, _)| n % 64 != 0).for_each(|(_, piece)| drop(piece.take()));
        give_back_now();
        let left = resident();
        assert!(full.saturating_sub(left) > 32 << 20, "{full} bytes, {left} after");
        assert!(pieces.iter().flatten().all(|piece| piece.iter().all(|byte| *byte == 1)));
    }

    #[test]
    fn what_is_in_use_is_counted() {
        let before = in_use();
        let held = vec![1_u8; 24 << 20];
        assert!(in_use() >= before + (16 << 20), "{before}, {}", in_use());
        assert!(resident() >= 24 << 20);
        drop(held);
    }
}
