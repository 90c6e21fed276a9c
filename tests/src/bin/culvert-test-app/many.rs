//! Many connections at once.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpStream},
    sync::Barrier,
    thread,
};

use culvert_tests::{Payload, app::protocol::Storm};
use socket2::{Domain, SockRef, Socket, Type};

use crate::streams::{exchange, numbered};

/// Makes them all and counts how they ended.
pub(crate) fn storm(storm: &Storm) -> Vec<(i32, u64)> {
    let start = Barrier::new(storm.threads as usize);
    let outcomes = thread::scope(|scope| {
        let threads: Vec<_> = (0..storm.threads)
            .map(|number| {
                let start = &start;
                let work = move || {
                    start.wait();
                    one_thread(storm, number)
                };
                let thread = thread::Builder::new().stack_size(256 * 1024);
                thread.spawn_scoped(scope, work).expect("a thread")
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a thread of the storm"))
            .collect::<Vec<_>>()
    });
    let mut counts = BTreeMap::new();
    for (outcome, count) in outcomes {
        *counts.entry(outcome).or_default() += count;
    }
    counts.into_iter().collect()
}

fn one_thread(storm: &Storm, number: u32) -> BTreeMap<i32, u64> {
    let mut counts = BTreeMap::new();
    for turn in 0..storm.each {
        let count = u64::from(number) * u64::from(storm.each) + u64::from(turn);
        let outcome = match one(storm, count) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().expect("an error of the system"),
        };
        *counts.entry(outcome).or_default() += 1;
    }
    counts
}

fn one(storm: &Storm, count: u64) -> io::Result<()> {
    let turn = usize::try_from(count).expect("a count") % storm.addresses.len();
    let address = storm.addresses.get(turn).copied().expect("an address");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.connect(&address.into())?;
    if storm.length > 0 {
        exchange_in_turn(&socket, Payload { seed: count }, storm.length)?;
    }
    Ok(())
}

/// What fits into the buffers on the way is sent before anything is received, which spares a thread.
fn exchange_in_turn(mut socket: &Socket, payload: Payload, length: u64) -> io::Result<()> {
    const FITS: u64 = 16 * 1024;
    if length > FITS {
        return exchange(socket, payload, length);
    }
    payload.write(&mut socket, length)?;
    payload.verify(&mut socket, length).map_err(numbered)
}

/// Sends and closes, without waiting for anything.
pub(crate) fn deliver(address: SocketAddr, count: u32, length: u64) -> io::Result<()> {
    for number in 0..count {
        let mut stream = TcpStream::connect(address)?;
        let seed = u64::from(number);
        Payload { seed }.write(&mut stream, length)?;
    }
    Ok(())
}

/// Opens connections and keeps them.
pub(crate) fn hold(address: SocketAddr, count: u32, held: &mut Vec<TcpStream>) -> io::Result<()> {
    for _ in 0..count {
        held.push(TcpStream::connect(address)?);
    }
    Ok(())
}

/// Exchanges a payload of its own on each of them.
pub(crate) fn exchange_held(held: &[TcpStream], length: u64) -> io::Result<()> {
    for (seed, stream) in (0..).zip(held) {
        exchange_in_turn(&SockRef::from(stream), Payload { seed }, length)?;
    }
    Ok(())
}
