//! The self-test of replies past the relay.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    thread::sleep,
    time::{Duration, Instant},
};

use proxy_common::Replies;

use super::{Bench, Flow, PATIENCE};
use crate::{
    intercept::shortcut::replies::Entry,
    relay::replies::{Delivery, Replies as _},
    socket::{self, repair},
};

/// More than goes past the relay at once, and no stream yet.
const LARGE: usize = 32 * 1024;
/// More than goes past the relay while the app says nothing.
const STREAM: usize = 1024 * 1024;

type Test = fn(&mut Bench, Flow, &Entry) -> io::Result<bool>;

/// Tries everything. Names the test that fails, or that could not be made.
pub(super) fn prove(bench: &mut Bench) -> Result<(), &'static str> {
    let tests: [(&'static str, Test); 4] = [
        ("order of replies", |_, flow, entry| order(&flow, entry)),
        ("overlap of replies", overlap),
        ("bound of replies", |_, flow, entry| bound(&flow, entry)),
        ("end of replies", |_, flow, entry| end(&flow, entry)),
    ];
    for (name, test) in tests {
        let outcome = bench.flow().and_then(|flow| {
            let entry = bench.lanes.replies.open(flow.key, &flow.upstream)?;
            test(bench, flow, &entry)
        });
        match outcome {
            Ok(true) => {}
            Ok(false) => return Err(name),
            Err(error) => {
                tracing::warn!(%error, test = name, "cannot test replies past the relay");
                return Err(name);
            }
        }
    }
    Ok(())
}

/// Replies go past the relay only when the app has read what the relay had to bring.
fn order(flow: &Flow, entry: &Entry) -> io::Result<bool> {
    let first = arrives(flow, b"first")?;
    let all_read = settles(entry, Delivery::Read)?;
    let large: Vec<u8> = (0..LARGE).map(|n| n.to_le_bytes()[1]).collect();
    (&flow.server).write_all(&large)?;
    (&flow.server).write_all(b"behind")?;
    let passed = received(&flow.upstream, LARGE + 6)?;
    (&flow.relay).write_all(&passed)?;
    let whole = received(&flow.app, LARGE + 6)? == [&large, &b"behind"[..]].concat();
    let after = arrives(flow, b"after")?;
    let state = entry.state()?;
    let counted = (state.redirected, state.passed) == (5 + 5, LARGE as u64 + 6);
    Ok(first && all_read && whole && after && counted)
}

/// A retransmission that brings bytes again in front of new ones delivers the new ones only.
fn overlap(bench: &mut Bench, flow: Flow, entry: &Entry) -> io::Result<bool> {
    // More than one cut takes away.
    let first: Vec<u8> = (0..3000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let old = first.get(1000..).unwrap_or_default();
    let arrived = arrives(&flow, &first)?;
    let begun = Instant::now();
    while socket::unacknowledged(&flow.server)? > 0 && begun.elapsed() < PATIENCE {
        sleep(Duration::from_micros(50));
    }
    // The others stay open.
    let Flow {
        app,
        relay: _relay,
        upstream: _upstream,
        server,
        ..
    } = flow;
    let mut server = repair::resend(server, old, b"new bytes", |socket, _| bench.exempt(socket))?;
    // What was delivered twice would stand in front of this.
    server.write_all(b", last bytes")?;
    let rest = received(&app, 21)?;
    let Replies {
        redirected,
        sequence,
        ..
    } = entry.state()?;
    let repaired = (sequence.repairs, sequence.faults) == (1, 0);
    Ok(arrived && rest == b"new bytes, last bytes" && repaired && redirected == 3021)
}

/// Only little goes past the relay to an app that does not read; the rest waits where TCP makes the server wait.
fn bound(flow: &Flow, entry: &Entry) -> io::Result<bool> {
    flow.server.set_nonblocking(true)?;
    let begun = Instant::now();
    let mut sent = 0;
    while sent < STREAM && begun.elapsed() < PATIENCE {
        match (&flow.server).write(&[7; 1000]) {
            Ok(written) => sent += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    settles(entry, Delivery::Arrived)?;
    let state = entry.state()?;
    let redirected = usize::try_from(state.redirected).unwrap_or(usize::MAX);
    let past = received(&flow.app, redirected)?;
    Ok((1..STREAM / 4).contains(&redirected) && past.len() == redirected)
}

/// The kernel tells when the last bytes are where the end of the stream cannot overtake them.
fn end(flow: &Flow, entry: &Entry) -> io::Result<bool> {
    (&flow.server).write_all(b"last")?;
    flow.server.shutdown(Shutdown::Write)?;
    let ended = (&flow.upstream).read(&mut [0])? == 0;
    let waits = settles(entry, Delivery::Arrived)?;
    flow.relay.shutdown(Shutdown::Write)?;
    let last = received(&flow.app, 4)? == b"last";
    let all_read = settles(entry, Delivery::Read)?;
    flow.app.set_nonblocking(false)?;
    let told = (&flow.app).read(&mut [0])? == 0;
    Ok(ended && waits && last && all_read && told)
}

/// Whether what the server sends now arrives at the app.
fn arrives(flow: &Flow, bytes: &[u8]) -> io::Result<bool> {
    (&flow.server).write_all(bytes)?;
    Ok(received(&flow.app, bytes.len())? == bytes)
}

/// Receives so many bytes, or what comes in time.
fn received(mut end: &TcpStream, length: usize) -> io::Result<Vec<u8>> {
    let begun = Instant::now();
    let mut bytes = vec![0; length];
    let mut at = 0;
    while let Some(rest) = bytes.get_mut(at..)
        && !rest.is_empty()
        && begun.elapsed() < PATIENCE
    {
        match end.read(rest) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(Duration::from_micros(50)),
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

/// Whether replies come to be there in time.
fn settles(entry: &Entry, delivery: Delivery) -> io::Result<bool> {
    let begun = Instant::now();
    while entry.delivery()? != delivery {
        if begun.elapsed() > PATIENCE {
            return Ok(false);
        }
        sleep(Duration::from_micros(50));
    }
    Ok(true)
}
