//! One connection: reads requests, plays scripts, notices when the peer leaves.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::acts::{Act, acts};
use super::http2;
use super::record::Record;
use super::request::{NoRequest, Received, read_body, read_head};
use super::script::{Script, Wait};
use super::temper::{IdleClose, Welcome};
use super::wire::{Departed, Wire};

/// What is left of a connection after a script.
enum Left {
    /// It can take another request.
    Open(Wire),
    Closed,
}

/// Serves a connection to its end.
pub(super) async fn serve(record: Arc<Record>, tcp: TcpStream, tls: Option<TlsAcceptor>, number: usize) {
    let _open = record.opened();
    // Small writes must leave as they are made.
    let _ = tcp.set_nodelay(true);
    match record.welcome() {
        Welcome::Serve => {}
        Welcome::Mute => return std::future::pending().await,
        Welcome::Close => return,
        Welcome::Reset => return Wire::plain(tcp).reset(),
    }
    let mut wire = match tls {
        None => Wire::plain(tcp),
        Some(acceptor) => match acceptor.accept(tcp).await {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(http2::NAME) => {
                return http2::serve(record, stream, number).await;
            }
            Ok(stream) => Wire::tls(stream),
            Err(error) => return record.complain(format!("TLS handshake: {error}")),
        },
    };
    let mut fate = IdleClose::Never;
    loop {
        if fate != IdleClose::Never {
            return turn_away(&record, wire, fate, number).await;
        }
        match one_request(&record, wire, number).await {
            Ok(Left::Open(kept)) => wire = kept,
            Ok(Left::Closed) | Err(NoRequest::Ended) => return,
            Err(NoRequest::Malformed(what)) => return record.complain(what),
        }
        fate = record.fate();
    }
}

/// Reads one request and plays its script.
async fn one_request(record: &Record, mut wire: Wire, number: usize) -> Result<Left, NoRequest> {
    let mut request = match read_head(&mut wire, number).await {
        Ok(request) => request,
        Err(NoRequest::Malformed(what)) => return refuse(wire, what).await,
        Err(ended) => return Err(ended),
    };
    let script = match record.early_script() {
        Some(script) => {
            record.receive(&request);
            script
        }
        None => {
            if request.expects_continue() {
                let _ = wire.write(b"HTTP/1.1 100 Continue\r\n\r\n", None).await;
            }
            request.body = match read_body(&mut wire, &request).await {
                Ok(body) => body,
                Err(NoRequest::Malformed(what)) => return refuse(wire, what).await,
                Err(ended) => return Err(ended),
            };
            let script = record.script_for(&request);
            record.receive(&request);
            script
        }
    };
    match play(record, &script, &request, wire).await {
        Ok(left) => Ok(left),
        Err(Departed) => {
            record.depart();
            Ok(Left::Closed)
        }
    }
}

async fn play(record: &Record, script: &Script, request: &Received, mut wire: Wire) -> Result<Left, Departed> {
    for act in acts(script, request.method == "HEAD") {
        match act {
            Act::Send(bytes) => wire.write(&bytes, script.split).await?,
            Act::Wait(wait) => tokio::select! {
                biased;
                () = pass(wait) => {}
                departed = wire.departure() => return Err(departed),
            },
            Act::Stall => return Err(wire.departure().await),
            Act::Cut => {
                wire.cut().await;
                return Ok(Left::Closed);
            }
            Act::Reset => {
                wire.reset();
                return Ok(Left::Closed);
            }
            Act::Close => {
                wire.close().await;
                return Ok(Left::Closed);
            }
            Act::Linger => {
                wire.close().await;
                wire.drain().await;
                return Ok(Left::Closed);
            }
        }
    }
    if request.wants_close() {
        if wire.close_unread().await {
            record.unread();
        }
        return Ok(Left::Closed);
    }
    Ok(Left::Open(wire))
}

pub(super) async fn pass(wait: Wait) {
    match wait {
        Wait::For(time) => tokio::time::sleep(time).await,
        Wait::At(gate) => gate.pass().await,
    }
}

/// Closes an idle connection the way the policy says.
async fn turn_away(record: &Record, mut wire: Wire, fate: IdleClose, number: usize) {
    match fate {
        IdleClose::After(time) => tokio::time::sleep(time).await,
        IdleClose::OnNextRequest => {
            // Without a next request the peer has left by itself.
            if read_head(&mut wire, number).await.is_err() {
                return;
            }
        }
        IdleClose::Never | IdleClose::AtOnce | IdleClose::Random { .. } => {}
    }
    record.turn_away();
    wire.cut().await;
}

/// Tells the peer that its request is none, and remembers it for the test.
async fn refuse(mut wire: Wire, what: String) -> Result<Left, NoRequest> {
    let _ = wire.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", None).await;
    wire.close().await;
    Err(NoRequest::Malformed(what))
}
