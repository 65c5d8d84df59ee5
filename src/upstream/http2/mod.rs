//! HTTP/2 (RFC 9113) towards providers that are offered it and choose it; the frames are those of the `h2` crate.
//!
//! A connection is a [`Line`]: many requests at once, each a stream of its own. hyper's client is made of the same
//! crate, but hides how many streams a peer allows: what is one too many waits there in silence. Here it gets a line of
//! its own, and whatever the provider says of a request that it did not look at (RFC 9113 §8.7) is passed on as a fact.
//!
//! A line is driven by a task on the runtime that dialled it and is shared by all threads. Its frames wake two of them
//! where the client is served by another one; a line for each thread would spare that, and open as many connections as
//! there are cores to a peer of which one is wanted.

mod line;
mod stream;
mod tally;

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection};
use tokio::io::{AsyncRead, AsyncWrite};

use super::error::SendError;
use super::http1::HEAD_LIMIT;
use line::Line;
pub(super) use line::{Lines, Slot, Way};
pub(super) use stream::Body;
use tally::{Counted, Tally};

/// Most streams of one line, whatever the peer allows; RFC 9113 §6.5.2 recommends to allow no fewer.
const STREAMS: usize = 100;
/// Bytes of one answer that may lie here unread.
const STREAM_WINDOW: u32 = 256 * 1024;
/// And of all answers together: a client that does not read must not hold up the others on its line. Half of it is what
/// `h2` spends on the bookkeeping of small frames that lie unread, before it ends the connection.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS as u32;
/// How often a peer is listened for: where it was silent, it is asked whether it lives; where it was silent again, it is
/// taken for dead. That is within three times this.
const SILENCE: Duration = Duration::from_secs(10);

/// Opens a line, and gives what [drives](drive) it. The peer's settings have arrived within `limit`, so that it is
/// known how many streams it allows.
async fn open<T>(io: T, host: &str, limit: Duration) -> Result<(Line, impl Future<Output = ()> + use<T>), SendError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let tally = Arc::new(Tally::default());
    let io = Counted::new(io, tally.clone());
    let greeting = async {
        let (sender, mut connection) = builder().handshake(io).await?;
        std::future::poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(end) => Poll::Ready(end.and(Err(h2::Reason::NO_ERROR.into()))),
            Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        Ok::<_, h2::Error>((sender, connection))
    };
    match tokio::time::timeout(limit, greeting).await {
        Ok(Ok((sender, connection))) => Ok((Line::new(sender, tally.clone()), drive(connection, tally))),
        Ok(Err(error)) => Err(SendError::Http2 { host: host.to_owned(), reason: stream::in_words(&error) }),
        Err(_) => Err(SendError::Http2Timeout { host: host.to_owned(), limit }),
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD_LIMIT as u32)
        // None, until the peer's settings say how many.
        .initial_max_send_streams(0);
    builder
}

/// Moves a line's frames until its end: the peer's, the death of it, or when nobody uses the line any longer.
async fn drive<T>(mut connection: Connection<Counted<T>, Bytes>, tally: Arc<Tally>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let Some(mut pings) = connection.ping_pong() else { return };
    let mut asked = false;
    loop {
        let heard = tally.heard();
        tokio::select! {
            end = &mut connection => {
                if let Err(error) = end {
                    tracing::debug!(error = stream::in_words(&error), "a connection in HTTP/2 broke");
                }
                return;
            }
            () = tokio::time::sleep(SILENCE) => {}
        }
        if tally.heard() != heard {
            asked = false;
            // The answer to an earlier question makes room for the next.
            std::future::poll_fn(|cx| Poll::Ready(pings.poll_pong(cx).is_ready())).await;
        } else if asked {
            tracing::debug!("a peer in HTTP/2 is silent; its connection is given up");
            return;
        } else {
            asked = true;
            // Where the question cannot be put, the silence is answer enough.
            let _ = pings.send_ping(h2::Ping::opaque());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_lives_is_kept_through_any_silence_and_a_dead_one_is_not() {
        let (ours, theirs) = duplex(64 * 1024);
        let (open, dead) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
        let peer = async {
            let mut connection = h2::server::handshake(theirs).await.expect("a client");
            open.notify_one();
            // It answers pings for as long as it is polled.
            tokio::select! {
                _ = connection.accept() => panic!("nothing is asked"),
                () = dead.notified() => {}
            }
            // Here it holds its end of the connection and does nothing.
            std::future::pending::<()>().await;
        };
        let test = async {
            let lines = Lines::default();
            let slot = lines.open(ours, "peer", LIMIT).await.expect("a slot");
            open.notified().await;
            tokio::time::sleep(SILENCE * 20).await;
            assert!(slot.line.is_open(), "alive, if silent");
            dead.notify_one();
            tokio::time::sleep(SILENCE * 3 + Duration::from_millis(1)).await;
            assert!(!slot.line.is_open(), "dead");
        };
        tokio::select! {
            () = peer => {}
            () = test => {}
        }
    }

    #[tokio::test]
    async fn a_request_on_a_connection_that_ended_unnoticed_was_not_sent() {
        let (ours, theirs) = duplex(64 * 1024);
        let lines = Lines::default();
        let (slot, peer) = tokio::join!(lines.open(ours, "peer", LIMIT), h2::server::handshake(theirs));
        let (slot, peer) = (slot.expect("a slot"), peer.expect("a client"));
        let headers = vec![("host", std::borrow::Cow::Owned(http::HeaderValue::from_static("peer")))];
        let payload = crate::upstream::Payload::Empty;
        let request = crate::upstream::Request { method: &http::Method::GET, target: "/".into(), headers, payload };
        // The end of the connection is there to be read; the line's own task has no turn to do so before this.
        drop(peer);
        let error = slot.exchange(&request).await.expect_err("no answer");
        assert!(matches!(error, SendError::Closed { sent: false, .. }) && error.nothing_sent(), "{error:?}");
        assert!(lines.take().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_without_settings_is_not_waited_for() {
        let (ours, _theirs) = duplex(64 * 1024);
        let error = Lines::default().open(ours, "peer", LIMIT).await.expect_err("no settings");
        assert!(matches!(error, SendError::Http2Timeout { limit: LIMIT, .. }), "{error}");
        let (ours, theirs) = duplex(64 * 1024);
        drop(theirs);
        let error = Lines::default().open(ours, "peer", LIMIT).await.expect_err("no peer");
        assert!(matches!(error, SendError::Http2 { .. }) && error.nothing_sent(), "{error}");
    }
}
