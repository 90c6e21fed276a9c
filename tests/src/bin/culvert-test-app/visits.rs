//! Connections to servers that say who they are, and such a server.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Mutex,
    thread,
    time::{Duration, SystemTime},
};

use culvert_tests::{
    Payload,
    app::protocol::{Storm, Visit},
};
use socket2::{Domain, SockRef, Socket, Type};

use crate::streams::exchange;

/// Says its port to every client, and sends back what it receives.
pub(crate) fn serve(address: SocketAddr) -> io::Result<SocketAddr> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // Its client sees how it ends.
            thread::spawn(move || drop(greet(stream, address.port())));
        }
    });
    Ok(address)
}

fn greet(mut stream: TcpStream, port: u16) -> io::Result<()> {
    // The client speaks first: a connection on which nobody has said anything may be lost without anybody hearing of it, where
    // the last packet of the handshake was lost and the server is killed.
    stream.read_exact(&mut [0])?;
    stream.write_all(&port.to_be_bytes())?;
    let mut reading = stream.try_clone()?;
    io::copy(&mut reading, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}

/// Makes them all.
pub(crate) fn visit(storm: &Storm) -> Vec<Visit> {
    let visits = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for number in 0..storm.threads {
            let visits = &visits;
            scope.spawn(move || {
                for turn in 0..storm.each {
                    let visit = one(storm, number * storm.each + turn);
                    visits.lock().expect("visits").push(visit);
                }
            });
        }
    });
    visits.into_inner().expect("visits")
}

fn one(storm: &Storm, count: u32) -> Visit {
    let turn = usize::try_from(count).expect("a count") % storm.addresses.len();
    let address = storm.addresses.get(turn).copied().expect("an address");
    let mut visit = Visit {
        address,
        local: None,
        endpoint: None,
        begun_ms: now(),
        ended_ms: 0,
        error: None,
        is_wrong: false,
    };
    let talked = talk(&mut visit, u64::from(count), storm.length);
    visit.ended_ms = now();
    if let Err(error) = talked {
        visit.is_wrong = error.raw_os_error() == Some(libc::EBADMSG);
        visit.error = Some(error.to_string());
    }
    visit
}

fn talk(visit: &mut Visit, seed: u64, length: u64) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_mins(1);
    let socket = Socket::new(Domain::for_address(visit.address), Type::STREAM, None)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect(&visit.address.into())?;
    visit.local = socket.local_addr()?.as_socket();
    (&socket).write_all(b"?")?;
    let mut greeting = [0; 2];
    (&socket).read_exact(&mut greeting)?;
    visit.endpoint = Some(u16::from_be_bytes(greeting));
    exchange(&socket, Payload { seed }, length)?;
    SockRef::from(&socket).shutdown(Shutdown::Write)?;
    match (&socket).read(&mut greeting)? {
        0 => Ok(()),
        // More than there should be.
        _ => Err(io::Error::from_raw_os_error(libc::EBADMSG)),
    }
}

/// As close records tell the time.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.expect("a time").as_millis()).expect("a time")
}
