//! The relay as both ends of a connection see it: every byte, in order, and the end as the other side made it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    sync::mpsc,
};

use culvert_tests::{
    Payload, Sandbox, eventually,
    peer::{Server, read_all, reset_on_close},
    rules::ALL,
    sandbox::{SERVER_V4, SERVER_V6},
};
use nix::{errno::Errno, sys::signal::Signal};

/// Both ways to move bytes.
const PATHS: [&str; 2] = ["copy", "splice"];

/// Every connection, by one path.
fn all_by(path: &str) -> String {
    format!("{ALL}path = \"{path}\"\n")
}

/// A server that reports what it makes of each connection.
fn reporting<T: Send + 'static>(
    sandbox: &Sandbox,
    serve: impl Fn(TcpStream) -> T + Send + Sync + 'static,
) -> (Server, mpsc::Receiver<T>) {
    let (report, reports) = mpsc::channel();
    let server = sandbox.within(|| {
        Server::start((SERVER_V4, 0), move |stream| {
            report.send(serve(stream)).expect("the test");
            Ok(())
        })
    });
    (server, reports)
}

#[test]
fn the_app_ends_first() {
    for path in PATHS {
        let sandbox = Sandbox::new();
        let (server, heard) = reporting(&sandbox, |mut stream| {
            let heard = read_all(&stream).unwrap();
            stream.write_all(b"answer after the end").unwrap();
            heard
        });
        let culvert = sandbox.culvert(&all_by(path));
        let app = sandbox.app();
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        socket.send(b"question").unwrap();
        socket.shutdown().unwrap();
        assert_eq!(socket.receive_all().unwrap(), b"answer after the end");
        assert_eq!(heard.recv().unwrap(), b"question");
        let record = culvert.the_record();
        assert_eq!(record.reason, "done");
        assert_eq!((record.up, record.down), (8, 20));
    }
}

#[test]
fn the_server_ends_first() {
    for path in PATHS {
        let sandbox = Sandbox::new();
        let (server, heard) = reporting(&sandbox, |mut stream| {
            stream.write_all(b"greeting").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            read_all(&stream).unwrap()
        });
        let culvert = sandbox.culvert(&all_by(path));
        let app = sandbox.app();
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        assert_eq!(socket.receive_all().unwrap(), b"greeting");
        // The other direction is still open.
        socket.send(b"said to one who ").unwrap();
        socket.send(b"has ended").unwrap();
        socket.close();
        assert_eq!(heard.recv().unwrap(), b"said to one who has ended");
        assert_eq!(culvert.the_record().reason, "done");
    }
}

#[test]
fn the_server_speaks_first_and_alone() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::greeter((SERVER_V6, 0), b"220 ready\r\n"));
    let _culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    assert_eq!(socket.receive_all().unwrap(), b"220 ready\r\n");
}

#[test]
fn a_reset_of_the_app_reaches_the_server() {
    for path in PATHS {
        let sandbox = Sandbox::new();
        let (server, heard) = reporting(&sandbox, |mut stream| {
            let mut first = [0; 5];
            stream.read_exact(&mut first).unwrap();
            read_all(&stream).map_err(|error| error.raw_os_error())
        });
        let culvert = sandbox.culvert(&all_by(path));
        let app = sandbox.app();
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        socket.send(b"first").unwrap();
        eventually("the server to have it", || {
            server.clients().first().copied()
        });
        socket.reset();
        assert_eq!(heard.recv().unwrap(), Err(Some(libc::ECONNRESET)));
        let record = culvert.the_record();
        assert_eq!(record.reason, "downstream_reset");
        assert_eq!(record.up, 5);
    }
}

#[test]
fn what_was_sent_by_an_app_that_is_gone_arrives() {
    // The app does not wait for anything, and its sockets are gone before the relay has accepted them.
    const COUNT: u32 = 500;
    const LENGTH: u64 = 100;
    for address in [IpAddr::from(SERVER_V4), SERVER_V6.into()] {
        let sandbox = Sandbox::new();
        let (report, reports) = mpsc::channel();
        let server = sandbox.within(|| {
            Server::start((address, 0), move |stream| {
                report.send(read_all(stream)?).expect("the test");
                Ok(())
            })
        });
        let culvert = sandbox.culvert(ALL);
        let app = sandbox.app();
        // All are over before the first is accepted.
        culvert.signal(Signal::SIGSTOP);
        app.deliver(server.address(), COUNT, LENGTH).unwrap();
        culvert.signal(Signal::SIGCONT);
        culvert.await_records(COUNT as usize);
        let mut expected: Vec<_> = (0..u64::from(COUNT))
            .map(|seed| Payload { seed }.prefix(usize::try_from(LENGTH).unwrap()))
            .collect();
        let mut arrived: Vec<_> = reports.try_iter().collect();
        expected.sort();
        arrived.sort();
        assert_eq!(arrived.len(), expected.len());
        assert!(arrived == expected, "something else arrived than was sent");
    }
}

#[test]
fn a_killed_app_is_an_end_and_not_a_reset() {
    // The kernel closes the sockets of a killed process, in order if they held nothing unread.
    let sandbox = Sandbox::new();
    let (server, heard) = reporting(&sandbox, |stream| read_all(&stream).unwrap());
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.send(b"last words").unwrap();
    drop(app);
    assert_eq!(heard.recv().unwrap(), b"last words");
    assert_eq!(culvert.the_record().reason, "done");
}

#[test]
fn a_reset_of_the_server_reaches_the_app_behind_what_it_said() {
    for path in PATHS {
        let sandbox = Sandbox::new();
        let (go, wait) = mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let server = sandbox.within(|| {
            Server::start((SERVER_V4, 0), move |mut stream| {
                stream.write_all(b"413 too large")?;
                let _ = wait.lock().unwrap().recv();
                reset_on_close(&stream);
                Ok(())
            })
        });
        let culvert = sandbox.culvert(&all_by(path));
        let app = sandbox.app();
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        assert_eq!(socket.receive(13).unwrap(), b"413 too large");
        go.send(()).unwrap();
        assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
        assert_eq!(culvert.the_record().reason, "upstream_reset");
    }
}

#[test]
fn urgent_data_stays_in_its_place() {
    for path in PATHS {
        let sandbox = Sandbox::new();
        let (server, heard) = reporting(&sandbox, |stream| read_all(&stream).unwrap());
        let _culvert = sandbox.culvert(&all_by(path));
        let app = sandbox.app();
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        socket.send(b"before ").unwrap();
        socket.send_urgent(b'!').unwrap();
        socket.send(b" behind").unwrap();
        socket.close();
        assert_eq!(
            String::from_utf8(heard.recv().unwrap()).unwrap(),
            "before ! behind"
        );
    }
}

#[test]
fn much_both_ways_at_once() {
    const LENGTH: u64 = 32 * 1024 * 1024;
    for path in PATHS {
        let sandbox = Sandbox::new();
        let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
        let culvert = sandbox.culvert(&all_by(path));
        let app = sandbox.app();
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        socket.exchange(42, LENGTH).unwrap();
        socket.close();
        let record = culvert.the_record();
        assert_eq!((record.up, record.down), (LENGTH, LENGTH));
        assert_eq!(record.reason, "done");
        assert_eq!(record.path.as_deref(), Some(path));
    }
}

#[test]
fn a_slow_server_slows_the_app_down() {
    // What the relay takes must be bounded: the buffers of four sockets and its own.
    const FAR_TOO_MUCH: u64 = 64 * 1024 * 1024;
    for path in PATHS {
        let sandbox = Sandbox::new();
        let (go, wait) = mpsc::channel::<u64>();
        let wait = std::sync::Mutex::new(wait);
        let (server, verified) = reporting(&sandbox, move |mut stream| {
            let length = wait.lock().unwrap().recv().unwrap();
            let payload = Payload { seed: 5 };
            payload
                .verify(&mut stream, length)
                .map_err(|error| error.to_string())
        });
        let _culvert = sandbox.culvert(&all_by(path));
        let app = sandbox.app();
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        let taken = socket.send_until_blocked(5, FAR_TOO_MUCH).unwrap();
        assert!(taken < FAR_TOO_MUCH, "{path}: {taken} bytes and no end");
        go.send(taken).unwrap();
        assert_eq!(verified.recv().unwrap(), Ok(()), "{path}");
    }
}

#[test]
fn silence_ends_a_connection_after_the_idle_timeout() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let settings = culvert_tests::daemon::Settings::daemon("idle_timeout = \"400ms\"");
    let culvert = sandbox.culvert_with(&settings, ALL);
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.assert_echo();
    assert_eq!(socket.receive_all(), Err(Errno::ECONNRESET));
    let record = culvert.the_record();
    assert_eq!(record.reason, "idle_timeout");
    assert!(record.total_us >= 400_000, "{record:?}");
}

#[test]
fn the_destination_may_be_any_address_of_the_same_server() {
    // Two connections that differ in nothing but the destination are kept apart.
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((Ipv6Addr::UNSPECIFIED, 0)));
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let port = server.address().port();
    let destinations: [SocketAddr; 3] = [
        (SERVER_V4, port).into(),
        (SERVER_V6, port).into(),
        ([127, 0, 0, 1], port).into(),
    ];
    let sockets = destinations.map(|destination| {
        let socket = app.tcp(destination);
        socket.connect(destination).unwrap();
        socket
    });
    for (socket, destination) in sockets.iter().zip(destinations) {
        assert_eq!(socket.peer(), Ok(destination));
        socket.assert_echo();
    }
    eventually("three clients", || {
        (server.clients().len() == 3).then_some(())
    });
    for socket in sockets {
        socket.close();
    }
    let mut seen: Vec<_> = culvert
        .await_records(3)
        .into_iter()
        .filter_map(|record| record.orig_dst)
        .collect();
    seen.sort();
    let mut expected = destinations.to_vec();
    expected.sort();
    assert_eq!(seen, expected);
}
