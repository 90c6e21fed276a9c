//! What relaying costs on loopback: no relay, the relay's paths and `tokio::io::copy_bidirectional` side by side.
//!
//! `cargo bench --bench relay -- [ROUNDS] [LOAD]`. Client, relay and server share one core, so the figures are the cost
//! of the CPU work, and two TCP legs can hardly do better than half of one. All cases run in every round and are compared
//! with the direct connection of the same round; printed are the medians, and the lowest and highest of the rounds.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::resource::{UsageWho, getrusage},
    sys::time::TimeValLike,
    unistd::Pid,
};
use proxy_userspace::{
    intercept::Redirects,
    relay::{self, COMPARED, Kind, Paths, Promotion, Relay},
    rule::PathChoice,
    socket,
};
use tokio::{io::copy_bidirectional, net, runtime};

const ROUNDS: usize = 5;
const BULK: u32 = 1 << 30;
const CHUNK: u32 = 256 * 1024;

#[derive(Clone, Copy)]
enum Relayed {
    Directly,
    ByTokio,
    By(PathChoice),
}

const RELAYED: [(&str, Relayed); 6] = [
    ("direct", Relayed::Directly),
    ("tokio", Relayed::ByTokio),
    ("copy", Relayed::By(PathChoice::Copy)),
    ("splice", Relayed::By(PathChoice::Splice)),
    ("sockmap", Relayed::By(PathChoice::Sockmap)),
    ("auto", Relayed::By(PathChoice::Auto)),
];

#[derive(Clone, Copy)]
enum Load {
    Small,
    Large,
    Up,
    Down,
}

impl Load {
    /// Size of the messages that are exchanged.
    const fn message(self) -> u32 {
        match self {
            Self::Small => 64,
            Self::Large => 64 * 1024,
            Self::Up | Self::Down => CHUNK,
        }
    }
}

/// The unit of a load and how many of it one run moves.
const LOADS: [(&str, Load, u32); 4] = [
    ("64 B exchanges/s", Load::Small, 20_000),
    ("64 KiB exchanges/s", Load::Large, 5_000),
    ("bulk up B/s", Load::Up, BULK),
    ("bulk down B/s", Load::Down, BULK),
];

/// One run: units per second of wall clock, and per second of CPU time of this process.
#[derive(Clone, Copy)]
struct Rate {
    wall: f64,
    cpu: f64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` only wants to know that it builds and starts.
        return Ok(());
    }
    let mut given = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'));
    let rounds = given.clone().find_map(|argument| argument.parse().ok());
    let load = given.find(|argument| argument.parse::<usize>().is_err());
    compare(rounds.unwrap_or(ROUNDS), load.map_or("", String::as_str))
}

/// Runs the loads whose name contains `wanted`.
fn compare(rounds: usize, wanted: &str) -> Result<()> {
    let mut core = CpuSet::new();
    core.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &core).context("cannot bind to one core")?;

    let server = serve()?;
    let mut addresses = Vec::new();
    for (_, relayed) in RELAYED {
        addresses.push(relay(relayed, server)?);
    }
    for (name, load, amount) in LOADS.iter().filter(|(name, ..)| name.contains(wanted)) {
        let mut rates = vec![Vec::new(); RELAYED.len()];
        for _ in 0..rounds {
            for (address, rates) in addresses.iter().zip(&mut rates) {
                rates.push(measure(*address, *load, *amount)?);
            }
        }
        report(name, &rates);
    }
    Ok(())
}

fn report(load: &str, rates: &[Vec<Rate>]) {
    println!("{load:18}      median   share of direct (range)      by CPU time (range)");
    let Some(direct) = rates.first() else {
        return;
    };
    for ((path, _), rates) in RELAYED.iter().zip(rates) {
        let share = |of: fn(&Rate) -> f64| {
            let shares = rates
                .iter()
                .zip(direct)
                .map(|(rate, direct)| of(rate) / of(direct));
            spread(shares.collect())
        };
        let (median, _, _) = spread(rates.iter().map(|rate| rate.wall).collect());
        let (wall, cpu) = (share(|rate| rate.wall), share(|rate| rate.cpu));
        println!(
            "  {path:10} {median:18.0}       {:.2} ({:.2} to {:.2})         {:.2} ({:.2} to {:.2})",
            wall.0, wall.1, wall.2, cpu.0, cpu.1, cpu.2
        );
    }
}

/// Median, lowest and highest.
fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    (
        at(values.len() / 2),
        at(0),
        at(values.len().saturating_sub(1)),
    )
}

fn measure(address: SocketAddr, load: Load, amount: u32) -> Result<Rate> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    // The server learns what to do, and the connection through the relay is up.
    stream.write_all(&[load as u8])?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;

    let (started, cpu_before) = (Instant::now(), cpu_time()?);
    match load {
        Load::Small | Load::Large => {
            let mut message = vec![7; load.message() as usize];
            for _ in 0..amount {
                stream.write_all(&message)?;
                stream.read_exact(&mut message)?;
            }
        }
        Load::Up => {
            let chunk = vec![7; CHUNK as usize];
            for _ in 0..amount / CHUNK {
                stream.write_all(&chunk)?;
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            stream.read_exact(&mut byte)?;
        }
        Load::Down => {
            stream.write_all(&byte)?;
            receive_all(&mut stream, amount)?;
        }
    }
    let (wall, cpu) = (started.elapsed(), cpu_time()?.saturating_sub(cpu_before));
    let rate = |time: Duration| f64::from(amount) / time.as_secs_f64();
    Ok(Rate {
        wall: rate(wall),
        cpu: rate(cpu),
    })
}

fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

fn receive_all(stream: &mut TcpStream, amount: u32) -> Result<()> {
    let mut chunk = vec![0; CHUNK as usize];
    let mut left = amount as usize;
    while left > 0 {
        match stream.read(&mut chunk)? {
            0 => bail!("the stream ended {left} bytes early"),
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

/// A server that does for each connection what its first byte says.
fn serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that leaves ends its thread; the client's own error is what gets reported.
            thread::spawn(move || answer(stream).ok());
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    let asked = LOADS.iter().find(|(_, load, _)| [*load as u8] == byte);
    match asked.context("no such load")?.1 {
        load @ (Load::Small | Load::Large) => {
            let mut message = vec![0; load.message() as usize];
            loop {
                stream.read_exact(&mut message)?;
                stream.write_all(&message)?;
            }
        }
        Load::Up => {
            receive_all(&mut stream, BULK)?;
            stream.write_all(&byte)?;
        }
        Load::Down => {
            stream.read_exact(&mut byte)?;
            let chunk = vec![7; CHUNK as usize];
            for _ in 0..BULK / CHUNK {
                stream.write_all(&chunk)?;
            }
        }
    }
    Ok(())
}

/// The address at which `server` is reached this way.
fn relay(relayed: Relayed, server: SocketAddr) -> Result<SocketAddr> {
    if let Relayed::Directly = relayed {
        return Ok(server);
    }
    let (send_address, address) = mpsc::channel();
    thread::spawn(move || -> Result<()> {
        serve_relay(relayed, server, &send_address).inspect_err(|error| eprintln!("{error:#}"))
    });
    address.recv().context("the relay did not start")
}

fn serve_relay(
    relayed: Relayed,
    server: SocketAddr,
    send_address: &mpsc::Sender<SocketAddr>,
) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let paths = Arc::new(match relayed {
            Relayed::By(PathChoice::Sockmap | PathChoice::Auto) => paths(relayed)?,
            _ => Paths::default(),
        });
        // As the daemon's: what is accepted tells what waits.
        let listener = socket::listener((Ipv4Addr::LOCALHOST, 0).into(), 128)?;
        let listener = net::TcpListener::from_std(listener)?;
        send_address.send(listener.local_addr()?)?;
        loop {
            let (mut downstream, _) = listener.accept().await?;
            let upstream = socket::for_upstream(server)?.into();
            let upstream = net::TcpSocket::from_std_stream(upstream);
            let mut upstream = upstream.connect(server).await?;
            socket::end_orderly(&downstream);
            socket::end_orderly(&upstream);
            let paths = Arc::clone(&paths);
            tokio::spawn(async move {
                match relayed {
                    Relayed::By(path) => {
                        let mut relay = Relay::new(Arc::default(), None).with_paths(paths);
                        relay.run(&mut downstream, &mut upstream, path).await;
                    }
                    Relayed::ByTokio | Relayed::Directly => {
                        _ = copy_bidirectional(&mut downstream, &mut upstream).await;
                    }
                }
            });
        }
    })
}

/// The kernel side of the sockmap path, with its events served by this runtime, and, if the path is to be chosen, what the
/// paths cost.
fn paths(relayed: Relayed) -> Result<Paths> {
    let (redirects, mut events) = Redirects::alone()?;
    let promotion = Promotion::new(redirects);
    let paths = Paths::default();
    if let Relayed::By(PathChoice::Auto) = relayed {
        let serving = async {
            let _never = events.serve().await;
        };
        let measured = relay::measure(Some(&promotion), serving, &|_, _| Ok(()))?;
        events.leave_runtime();
        for kind in Kind::ALL {
            let relative = COMPARED.map(|path| measured.relative(kind, path));
            let best = measured.best(kind, |_| true);
            println!("{kind:?}: {COMPARED:?} measure {relative:?}, the best is {best:?}");
        }
        paths.set_measured(measured);
    }
    paths.set_sockmap(Ok(promotion));
    tokio::spawn(async move { events.serve().await });
    Ok(paths)
}
