//! Measures what each path costs here, with the real relay on connections of its own over loopback. Takes about half a
//! second of one core, within two.
//!
//! App, relay and server are threads of one core, as they are on a machine that has no core to spare: then what passes on
//! the clock is what a path costs in processor time, also in the threads that the kernel moves bytes with, which no
//! process is charged for.
//!
//! What else runs on the machine disturbs it. So each round tries the paths in turns, several times and briefly, and the
//! median of each counts; and there are several rounds with pauses between them, so that what holds in most of them is not
//! a matter of one moment. (The shortest times would be less disturbed, but flatter paths that are quick now and then, as the
//! kernel's threads happen to be scheduled.) Every connection stays open over all rounds, and the first only warms it up.

use std::{
    future::Future,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use socket2::Socket;
use tokio::{net, runtime::Builder, task::JoinSet};

use super::{
    Calibration, Kind, Path, Progress, Promotion, Relay,
    calibration::{COMPARED, Times},
};
use crate::{rule::PathChoice, socket};

/// Rounds that count.
const ROUNDS: usize = 7;
/// Times that work is tried in a round, at most.
const TURNS: usize = 9;
/// The same of [`Kind::Bulk`].
const BULK_TURNS: usize = 3;
/// Time between two rounds.
const PAUSE: Duration = Duration::from_millis(150);
/// No further round begins after this, on a machine that is slow or busy.
const LONGEST: Duration = Duration::from_secs(4);
/// A round that takes longer is given up, and is the last: as many as it takes to tell anything would take longer than that.
/// (Usually one takes a twentieth of it; under emulation it can take five times as long.)
const LONGEST_ROUND: Duration = Duration::from_secs(1);
/// How long one read or write may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Measures, on threads of its own. Without a promotion the sockmap path is left out; with one, `events` serves what the
/// kernel has to tell of it, unless somebody else does. `exempt` keeps a socket from being intercepted by ourselves.
///
/// # Errors
/// When there are no sockets or threads, or a connection breaks.
pub fn measure(
    promotion: Option<&Promotion>,
    events: impl Future<Output = ()> + Send,
    exempt: &(impl Fn(&Socket, SocketAddr) -> io::Result<()> + Sync),
) -> io::Result<Calibration> {
    thread::scope(|scope| {
        let measuring = scope.spawn(|| on_one_core(promotion, events, exempt));
        measuring
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a measuring thread panicked")))
    })
}

fn on_one_core(
    promotion: Option<&Promotion>,
    events: impl Future<Output = ()> + Send,
    exempt: &impl Fn(&Socket, SocketAddr) -> io::Result<()>,
) -> io::Result<Calibration> {
    let mut core = CpuSet::new();
    core.set(sched_getcpu()?)?;
    // The threads made below inherit it.
    sched_setaffinity(Pid::from_raw(0), &core)?;

    let (mut apps, mut relays, mut servers) = (Vec::new(), Vec::new(), Vec::new());
    for kind in Kind::ALL {
        for path in COMPARED {
            if path == Path::Sockmap && promotion.is_none() {
                continue;
            }
            let work = Work { kind, path };
            let (app, downstream) = pair(exempt)?;
            let (upstream, server) = pair(exempt)?;
            let progress = Arc::<Progress>::default();
            apps.push((work, app, Arc::clone(&progress)));
            servers.push((work, server));
            relays.push((work, downstream, upstream, progress));
        }
    }
    thread::scope(|scope| {
        scope.spawn(|| relay(relays, promotion, events));
        scope.spawn(|| serve(servers));
        // Its sockets close at the end, and with them those of the others.
        compare(apps)
    })
}

/// What one connection is for.
#[derive(Clone, Copy)]
struct Work {
    kind: Kind,
    path: Path,
}

impl Work {
    /// Length of a message, and how many are exchanged in one turn.
    const fn exchanges(self) -> (usize, usize) {
        match self.kind {
            Kind::Messages => (64, 12),
            Kind::Blocks => (64 * 1024, 4),
            // More than any credit for bytes in flight: what fits into it says nothing of a stream.
            Kind::Bulk => (256 * 1024, 32),
        }
    }

    /// Whether it is tried in this one of [`TURNS`]. Bulk takes longest, and needs fewer.
    const fn is_in(self, turn: usize) -> bool {
        !matches!(self.kind, Kind::Bulk) || turn < BULK_TURNS
    }
}

/// The app: does all the work, in turns, and takes the times.
fn compare(mut apps: Vec<(Work, TcpStream, Arc<Progress>)>) -> io::Result<Calibration> {
    let mut times = Times::default();
    let mut buffer = vec![7; 256 * 1024];
    let started = Instant::now();
    for round in 0..=ROUNDS {
        if started.elapsed() > LONGEST {
            break;
        }
        if round > 0 {
            thread::sleep(PAUSE);
        }
        let Some(turns) = take_turns(&mut apps, &mut buffer)? else {
            break;
        };
        if round == 0 {
            continue;
        }
        for ((work, ..), mut turns) in apps.iter().zip(turns) {
            turns.sort();
            if let (Some(times), Some(median)) =
                (cell(&mut times, *work), turns.get(turns.len() / 2))
            {
                times.push(*median);
            }
        }
    }
    for (work, _, progress) in &apps {
        // A kernel that left all to the relay was not measured.
        if work.path == Path::Sockmap
            && progress.in_kernel() == 0
            && let Some(times) = cell(&mut times, *work)
        {
            times.clear();
        }
    }
    Ok(Calibration::of(&times))
}

/// A round: how long the turns of each work took, unless it takes too long.
fn take_turns(
    apps: &mut [(Work, TcpStream, Arc<Progress>)],
    buffer: &mut [u8],
) -> io::Result<Option<Vec<Vec<Duration>>>> {
    let begun = Instant::now();
    let mut turns = vec![Vec::with_capacity(TURNS); apps.len()];
    for turn in 0..TURNS {
        let tried = apps.iter_mut().zip(&mut turns);
        for ((work, app, _), turns) in tried.filter(|((work, ..), _)| work.is_in(turn)) {
            if begun.elapsed() > LONGEST_ROUND {
                return Ok(None);
            }
            let before = Instant::now();
            ask(*work, app, buffer)?;
            turns.push(before.elapsed());
        }
    }
    Ok(Some(turns))
}

fn cell(times: &mut Times, work: Work) -> Option<&mut Vec<Duration>> {
    times
        .get_mut(work.kind as usize)?
        .get_mut(work.path as usize)
}

fn ask(work: Work, app: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    let (length, count) = work.exchanges();
    let message = buffer.split_at_mut(length).0;
    for _ in 0..count {
        app.write_all(message)?;
        if work.kind != Kind::Bulk {
            app.read_exact(message)?;
        }
    }
    if work.kind == Kind::Bulk {
        app.read_exact(&mut [0])?;
    }
    Ok(())
}

/// The server: answers in the order in which it is asked, until it is not asked any more.
fn serve(mut servers: Vec<(Work, TcpStream)>) {
    let mut buffer = vec![0; 256 * 1024];
    for turn in (0..TURNS).cycle() {
        for (work, server) in servers.iter_mut().filter(|(work, _)| work.is_in(turn)) {
            if answer(*work, server, &mut buffer).is_err() {
                return;
            }
        }
    }
}

fn answer(work: Work, server: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    let (length, count) = work.exchanges();
    let message = buffer.split_at_mut(length).0;
    for _ in 0..count {
        server.read_exact(message)?;
        if work.kind != Kind::Bulk {
            server.write_all(message)?;
        }
    }
    if work.kind == Kind::Bulk {
        server.write_all(&[0])?;
    }
    Ok(())
}

/// The relay: each connection by its path, until the app has closed them all.
fn relay(
    connections: Vec<(Work, TcpStream, TcpStream, Arc<Progress>)>,
    promotion: Option<&Promotion>,
    events: impl Future<Output = ()>,
) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut relays = JoinSet::new();
        for (work, downstream, upstream, progress) in connections {
            let downstream = in_runtime(downstream)?;
            let upstream = in_runtime(upstream)?;
            let at_once = promotion.map(|promotion| Promotion {
                bytes: 0,
                reads: 0,
                ..promotion.clone()
            });
            relays.spawn(async move {
                let mut relay = Relay::new(progress, None).with_promotion(at_once);
                let choice = choice(work.path);
                relay.run_or_rest(downstream, upstream, choice).await;
            });
        }
        tokio::select! {
            () = events => {}
            _ = relays.join_all() => {}
        }
        Ok(())
    })
}

const fn choice(path: Path) -> PathChoice {
    match path {
        Path::Splice => PathChoice::Splice,
        Path::Sockmap => PathChoice::Sockmap,
        Path::Copy | Path::Shortcut | Path::BothWays => PathChoice::Copy,
    }
}

fn in_runtime(stream: TcpStream) -> io::Result<net::TcpStream> {
    stream.set_nonblocking(true)?;
    net::TcpStream::from_std(stream)
}

/// A connection over loopback: who connected, who accepted.
fn pair(
    exempt: &impl Fn(&Socket, SocketAddr) -> io::Result<()>,
) -> io::Result<(TcpStream, TcpStream)> {
    let listener = socket::listener((Ipv4Addr::LOCALHOST, 0).into(), 1)?;
    listener.set_nonblocking(false)?;
    let address = listener.local_addr()?;
    let connecting = socket::for_upstream(address)?;
    exempt(&connecting, address)?;
    connecting.set_nonblocking(false)?;
    connecting.connect_timeout(&address.into(), PATIENCE)?;
    let connecting = TcpStream::from(connecting);
    let (accepted, client) = listener.accept()?;
    if client != connecting.local_addr()? {
        return Err(io::Error::other("somebody else connected"));
    }
    for end in [&connecting, &accepted] {
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((connecting, accepted))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[test]
    fn every_path_that_may_be_used_is_measured() {
        let measured = measure(None, pending(), &|_, _| Ok(())).unwrap();
        for kind in Kind::ALL {
            assert!(measured.relative(kind, Path::Splice).is_some(), "{kind:?}");
            assert_eq!(measured.relative(kind, Path::Sockmap), None);
        }
    }

    #[test]
    fn a_socket_that_cannot_be_exempted_ends_it() {
        let refuse = |_: &Socket, _| Err(io::ErrorKind::OutOfMemory.into());
        let error = measure(None, pending(), &refuse).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    }
}
