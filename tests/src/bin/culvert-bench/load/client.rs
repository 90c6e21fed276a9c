//! The client: reads an [`Order`] a line from standard input and answers each with one line on standard output.

mod connect;
mod exchange;
mod transfer;

use std::{
    io::{self, BufRead, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use socket2::{Domain, Socket, Type};

use super::{
    job::{Job, READY},
    order::{Done, Order, Reply},
    pattern::{CHUNK, Pattern},
    reactor::{Reactor, Task, attempt},
};

/// Nothing on one host takes as long as this.
const PATIENCE: Duration = Duration::from_secs(20);

/// Does what it is told until nobody tells it anything.
pub(crate) fn serve(threads: usize) -> Result<()> {
    let mut held = Vec::new();
    let mut output = io::stdout();
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let reply: Reply = obey(order, threads, &mut held).map_err(|error| format!("{error:#}"));
        let line = serde_json::to_string(&reply)?;
        // Whoever told us what to do may be gone; then there is nobody to answer.
        if writeln!(output, "{line}")
            .and_then(|()| output.flush())
            .is_err()
        {
            break;
        }
    }
    Ok(())
}

fn obey(order: Order, threads: usize, held: &mut Vec<TcpStream>) -> Result<Done> {
    match order {
        Order::Exchange {
            address,
            length,
            connections,
            milliseconds,
        } => {
            let duration = Duration::from_millis(milliseconds);
            let work =
                |share, start: &Barrier| exchange::run(address, length, share, duration, start);
            paced(on_threads(threads, connections, work)?)
        }
        Order::Connect {
            address,
            at_once,
            milliseconds,
        } => {
            let duration = Duration::from_millis(milliseconds);
            let work = |share, start: &Barrier| connect::run(address, share, duration, start);
            paced(on_threads(threads, at_once, work)?)
        }
        Order::Transfer {
            address,
            up,
            down,
            connections,
        } => {
            let work = |share, start: &Barrier| transfer::run(address, up, down, share, start);
            let times = on_threads(threads, connections, work)?;
            let begun = times.iter().map(|(begun, _)| *begun).min();
            let ended = times.iter().map(|(_, ended)| *ended).max();
            let time = ended.zip(begun).context("no thread")?;
            Ok(Done::Moved {
                bytes: (up + down) * u64::from(connections),
                seconds: (time.0 - time.1).as_secs_f64(),
            })
        }
        Order::Hold { address, count } => {
            for number in 0..count {
                let stream = open(address, Job::Exchange(1))
                    .with_context(|| format!("connection {number} of {count}"))?;
                held.push(stream);
            }
            Ok(Done::Nothing)
        }
        Order::Offer {
            address,
            bytes,
            patience_milliseconds,
        } => {
            let stream = open(address, Job::Hold)?;
            let taken = offer(&stream, bytes, patience_milliseconds)?;
            held.push(stream);
            Ok(Done::Taken(taken))
        }
        Order::Release => {
            held.clear();
            Ok(Done::Nothing)
        }
    }
}

/// What one thread has counted.
struct Counted {
    /// How long it counted.
    time: Duration,
    /// What each took, in nanoseconds.
    times: Vec<u32>,
}

/// What the tasks of a thread count on.
struct Clock {
    from: Instant,
    until: Instant,
    last: Instant,
    times: Vec<u32>,
}

impl Clock {
    fn new(from: Instant, until: Instant) -> Self {
        Self {
            from,
            until,
            last: from,
            times: Vec::new(),
        }
    }

    /// Counts what is done now; whether the time is over.
    fn count(&mut self, begun: Instant, now: Instant) -> bool {
        if now >= self.from {
            let nanoseconds = now.duration_since(begun).as_nanos();
            self.times
                .push(u32::try_from(nanoseconds).unwrap_or(u32::MAX));
            self.last = now;
        }
        now >= self.until
    }
}

/// Runs tasks until each has found that the time is over.
fn count<T: Task<Shared = Clock>>(mut reactor: Reactor<T>) -> Result<Counted> {
    reactor.finish(PATIENCE)?;
    let Clock {
        from, last, times, ..
    } = reactor.shared;
    Ok(Counted {
        time: last - from,
        times,
    })
}

/// Shares the connections among threads, which start together when all have made theirs.
fn on_threads<T: Send>(
    threads: usize,
    connections: u32,
    work: impl Fn(u32, &Barrier) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let threads = u32::try_from(threads)?.clamp(1, connections.max(1));
    let start = Barrier::new(threads as usize);
    let share = |number: u32| connections / threads + u32::from(number < connections % threads);
    let (start, work) = (&start, &work);
    if threads == 1 {
        return Ok(vec![work(connections, start)?]);
    }
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || work(share(number), start)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().ok().context("a thread panicked")?)
            .collect()
    })
}

/// Rate and quantiles of what all threads have counted.
fn paced(counted: Vec<Counted>) -> Result<Done> {
    let rate = counted
        .iter()
        .map(|counted| counted.times.len() as f64 / counted.time.as_secs_f64())
        .sum();
    let mut times: Vec<u32> = counted
        .into_iter()
        .flat_map(|counted| counted.times)
        .collect();
    times.sort_unstable();
    let Some(last) = times.len().checked_sub(1) else {
        bail!("nothing was done in the time that was given");
    };
    let quantile = |per_mille: usize| {
        let nanoseconds = times.get(last * per_mille / 1000).copied();
        f64::from(nanoseconds.unwrap_or_default()) / 1000.0
    };
    Ok(Done::Paced {
        rate,
        count: times.len() as u64,
        p50: quantile(500),
        p99: quantile(990),
        p999: quantile(999),
    })
}

/// Begins to connect a socket that does not block.
fn begin(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        None,
    )?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket),
    }
}

/// Connects, and waits until the server says that it knows what the connection is for.
fn open(address: SocketAddr, job: Job) -> Result<TcpStream> {
    let socket = begin(address).context("cannot connect")?;
    await_ready(&socket, PollFlags::POLLOUT)?;
    if let Some(error) = socket.take_error()? {
        return Err(error).context("cannot connect");
    }
    let mut stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.write_all(&job.encode())?;
    let mut answer = [0];
    loop {
        await_ready(&stream, PollFlags::POLLIN)?;
        match attempt(stream.read(&mut answer)).context("no answer from the server")? {
            None => {}
            Some(1) if answer == [READY] => return Ok(stream),
            Some(_) => bail!("the server does not answer as it should: {answer:?}"),
        }
    }
}

fn await_ready(socket: impl AsFd, wanted: PollFlags) -> Result<()> {
    let timeout = PollTimeout::try_from(PATIENCE)?;
    if poll(&mut [PollFd::new(socket.as_fd(), wanted)], timeout)? == 0 {
        bail!("nothing happened on a connection for {PATIENCE:?}");
    }
    Ok(())
}

/// Sends until nothing is taken for a while, or everything is.
fn offer(mut stream: &TcpStream, bytes: u64, patience_milliseconds: u64) -> Result<u64> {
    let pattern = Pattern::new();
    let patience = PollTimeout::try_from(Duration::from_millis(patience_milliseconds))?;
    let mut taken = 0;
    while taken < bytes {
        let piece = pattern.at(taken, (bytes - taken).min(CHUNK as u64));
        if let Some(count) = attempt(stream.write(piece))? {
            taken += count as u64;
        } else {
            let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut polled, patience)? == 0 {
                break;
            }
        }
    }
    Ok(taken)
}
