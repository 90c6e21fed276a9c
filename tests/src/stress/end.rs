//! One end of a flow: sends what its plan says, and checks what it receives against the plan of the other end.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use fastrand::Rng;
use socket2::{SockRef, TcpKeepalive};

use super::plan::{Part, Reading};
use crate::peer::reset_on_close;

/// Longer than a direction is silent while the other one moves bulk on a busy machine, lost packets included.
const PATIENCE: Duration = Duration::from_mins(5);
/// How often an end that will reset looks whether it has.
const LOOKS: Duration = Duration::from_millis(20);
/// Most bytes of one read.
const LARGEST_READ: usize = 256 * 1024;

/// How the stream that an end received has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With its last byte.
    Orderly,
    /// By a reset, the other end's or its own.
    ByReset,
    /// As if these bytes were all.
    Early(u64),
}

/// Has the kernel look every second whether the other end is still there.
///
/// A reset behind a lost byte is not believed but answered by a question (RFC 5961 section 3.2); when that is lost, too, nobody
/// says anything more.
///
/// # Errors
/// None in practice.
pub fn probe(stream: &TcpStream) -> io::Result<()> {
    let each_second = TcpKeepalive::new()
        .with_time(Duration::from_secs(1))
        .with_interval(Duration::from_secs(1));
    SockRef::from(stream).set_tcp_keepalive(&each_second)
}

/// Plays one end. `header` goes in front of what it sends and is part of its length; of what it receives, `received` bytes
/// are read already.
///
/// # Errors
/// What is wrong: a byte, the length, the end, or that nothing happens any more.
pub fn play<const N: usize>(
    stream: TcpStream,
    own: &Part,
    other: &Part,
    header: [u8; N],
    received: u64,
) -> Result<Ended, String> {
    let resets = own.resets_at.is_some();
    let options = || {
        probe(&stream)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(if resets { LOOKS } else { PATIENCE }))
    };
    options().map_err(|error: io::Error| error.to_string())?;
    let has_reset = AtomicBool::new(false);
    let (done_receiving, has_received) = mpsc::channel::<()>();
    let (sent, outcome) = thread::scope(|scope| {
        let (stream, has_reset) = (&stream, &has_reset);
        let sender = scope.spawn(move || {
            let sent = send(stream, own, &header, &has_received);
            if resets {
                has_reset.store(true, SeqCst);
            }
            sent
        });
        let outcome = receive(stream, own, other, received, has_reset);
        drop(done_receiving);
        (sender.join().expect("the thread that sends"), outcome)
    });
    if resets {
        reset_on_close(&stream);
    }
    // Not before both halves are done with it.
    drop(stream);
    let sent = sent.map_err(|error| error.kind());
    match outcome? {
        // The write took the error of the reset, and the read found none. Behind an end it would be another one.
        Ended::Early(_) if sent == Err(ErrorKind::ConnectionReset) && other.resets_at.is_some() => {
            Ok(Ended::ByReset)
        }
        Ended::Early(received) => {
            let length = other.length;
            Err(format!("the end after {received} of {length} bytes"))
        }
        ended => match sent {
            Err(error) if !resets && other.resets_at.is_none() => {
                Err(format!("cannot send: {error}"))
            }
            _ => Ok(ended),
        },
    }
}

/// Sends everything, or as much as comes before a reset, and ends the stream.
fn send(
    mut stream: &TcpStream,
    own: &Part,
    header: &[u8],
    has_received: &mpsc::Receiver<()>,
) -> io::Result<()> {
    let mut random = Rng::with_seed(own.seed);
    let mut buffer = vec![0; own.largest];
    let end = own.resets_at.unwrap_or(own.length);
    let mut at = 0;
    while at < end {
        // Whoever waits says its number first.
        let stop = if own.sends_last && at < header.len() as u64 {
            header.len() as u64
        } else {
            end
        };
        let left = usize::try_from(stop.min(end) - at).unwrap_or(usize::MAX);
        if own.sends_last && at >= header.len() as u64 {
            // It ends when the other half is dropped.
            _ = has_received.recv();
        }
        let size = random.usize(1..=own.largest).min(left);
        let part = buffer.get_mut(..size).expect("no more than the largest");
        fill(own, header, at, part);
        stream.write_all(part)?;
        at += size as u64;
        if own.pauses > 0 && random.u32(..own.pauses) == 0 {
            thread::sleep(Duration::from_micros(random.u64(..2000)));
        }
    }
    if own.resets_at.is_none() {
        stream.shutdown(Shutdown::Write)?;
    }
    Ok(())
}

/// What stands at a place of a stream: its header, and then its payload.
fn fill(own: &Part, header: &[u8], at: u64, part: &mut [u8]) {
    own.payload.fill(at, part);
    let skipped = usize::try_from(at).unwrap_or(usize::MAX);
    for (place, byte) in part.iter_mut().zip(header.iter().skip(skipped)) {
        *place = *byte;
    }
}

/// Receives to the end, and checks every byte.
fn receive(
    mut stream: &TcpStream,
    own: &Part,
    other: &Part,
    mut received: u64,
    has_reset: &AtomicBool,
) -> Result<Ended, String> {
    let mut random = Rng::with_seed(!own.seed);
    let mut buffer = vec![0; LARGEST_READ];
    let mut stops = if own.reading == Reading::WithStops {
        3
    } else {
        0
    };
    loop {
        if has_reset.load(SeqCst) {
            return Ok(Ended::ByReset);
        }
        let most = match own.reading {
            // Sips of bulk would take too long.
            Reading::InSips if other.length < 1 << 20 => random.usize(1..2000),
            Reading::InSips => random.usize(1..20_000),
            Reading::Eagerly | Reading::WithStops => LARGEST_READ,
        };
        if stops > 0 && random.u8(..4) == 0 {
            stops -= 1;
            thread::sleep(Duration::from_millis(random.u64(..60)));
        }
        let part = buffer.get_mut(..most).expect("no more than the largest");
        match stream.read(part) {
            Ok(0) if received == other.length => return Ok(Ended::Orderly),
            Ok(0) => return Ok(Ended::Early(received)),
            Ok(count) => {
                let part = part.get(..count).expect("what was read");
                if let Some(at) = other.payload.first_difference(received, part) {
                    return Err(format!("byte {at} of {} is wrong", other.length));
                }
                received += count as u64;
            }
            Err(error) if is_timeout(&error) && own.resets_at.is_some() => {}
            Err(error) if is_timeout(&error) => {
                return Err(format!(
                    "nothing comes after {received} of {} bytes",
                    other.length
                ));
            }
            Err(_) if own.resets_at.is_some() || other.resets_at.is_some() => {
                return Ok(Ended::ByReset);
            }
            Err(error) => {
                return Err(format!(
                    "{error} after {received} of {} bytes",
                    other.length
                ));
            }
        }
        if received > other.length {
            return Err(format!("more than {} bytes", other.length));
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
