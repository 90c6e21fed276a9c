//! A worker without the kernel side: the original destination comes from a table, the rest is real.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use proxy_common::{BePort, Family, Record, RuleRef};
use proxy_userspace::{
    close::CloseReason,
    policy::Compiled,
    record::{AccessLog, Format},
    relay::{COMPARED, Calibration, Path, Paths},
    routes::{ByRole, Generation, Route, Routes},
    rule::{Departure, PathChoice},
    shared::{OriginalDst, Shared, Stats},
    socket,
    upstream::{NoExemption, Upstream},
    worker::{self, Parts},
};
use tokio::sync::watch;

/// Records by the client's address, put there before the client connects, as the kernel does.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<HashMap<SocketAddr, Record>>>);

impl OriginalDst for Table {
    fn take(
        &mut self,
        client: SocketAddr,
        _: SocketAddr,
        _: Option<u64>,
    ) -> io::Result<Option<Record>> {
        Ok(self.0.lock().unwrap().remove(&client))
    }
}

/// What a test can read of the access log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Rig {
    listener: SocketAddr,
    table: Table,
    lines: Lines,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    handle: worker::Handle,
    log_guard: proxy_userspace::record::AccessLogGuard,
}

const GENERATION: u32 = 1;

impl Rig {
    fn start() -> Self {
        Self::with(PathChoice::Auto, Arc::default())
    }

    /// With one rule, which asks for a path, and what is known of the paths.
    fn with(path: PathChoice, paths: Arc<Paths>) -> Self {
        let table = Table::default();
        let lines = Lines::default();
        let (access_log, log_guard) = AccessLog::new(lines.clone(), Format::Json);
        let routes = Routes::default();
        let route = Route {
            rule: "rule".into(),
            upstream: Arc::new(Upstream {
                name: "direct".into(),
                hops: Vec::new(),
                connect_timeout: Duration::from_secs(10),
                handshake_timeout: Duration::from_secs(10),
            }),
            group: None,
            destination: None,
            names: None,
            accept_proxy: Arc::default(),
            send_proxy: None,
            keep_source: false,
            from: Departure::Host,
            path,
        };
        routes.publish(&Generation::new(
            GENERATION,
            &Compiled::default(),
            ByRole {
                forward: [Some(route)].into(),
                ..ByRole::default()
            },
        ));
        let shared = Arc::new(Shared {
            live: Arc::default(),
            routes,
            stats: Stats::default(),
            access_log: Some(access_log),
            idle_timeout: None,
            paths,
            shortcut: ArcSwapOption::empty(),
            abroad: OnceLock::new(),
        });
        let socket = socket::listener((Ipv4Addr::LOCALHOST, 0).into(), 64).unwrap();
        let listener = socket.local_addr().unwrap();
        let parts = Parts {
            listeners: vec![socket],
            original_dst: Box::new(table.clone()),
            exempt: Arc::new(NoExemption),
            shortcuts: None,
            foreign: None,
            max_connections: 64,
            keeps_alive: true,
        };
        let (stop, stopped) = watch::channel(false);
        let handle = worker::start("test".into(), parts, Arc::clone(&shared), stopped).unwrap();
        Self {
            listener,
            table,
            lines,
            shared,
            stop,
            handle,
            log_guard,
        }
    }

    /// Connects as an app whose `connect()` to `destination` was rewritten.
    fn connect(&self, destination: SocketAddr, generation: u32) -> TcpStream {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        let client = socket.local_addr().unwrap().as_socket().unwrap();
        let record = Record {
            orig_addr: destination.ip().into(),
            orig_port: BePort::new(destination.port()),
            family: Family::V4,
            pid: std::process::id(),
            rule: RuleRef {
                generation,
                index: 0,
            },
            ..Record::default()
        };
        self.table.0.lock().unwrap().insert(client, record);
        socket.connect(&self.listener.into()).unwrap();
        socket.into()
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        let mut closed = self.shared.stats.closed();
        closed
            .find(|(found, _)| *found == reason)
            .map_or(0, |(_, count)| count)
    }

    /// Stops the worker and returns the close records.
    fn finish(self) -> Vec<serde_json::Value> {
        self.stop.send_replace(true);
        self.handle.join();
        drop(self.log_guard);
        let lines = self.lines.0.lock().unwrap();
        lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
    )
}

#[test]
fn relays_to_the_original_destination_and_records_it() {
    let rig = Rig::start();
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let destination = server.local_addr().unwrap();
    let echo = thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        stream.write_all(&received).unwrap();
    });
    let mut app = rig.connect(destination, GENERATION);
    app.write_all(b"question").unwrap();
    app.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    app.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"question");
    echo.join().unwrap();

    let [record] = &*rig.finish() else {
        panic!("one record")
    };
    assert_eq!(record["reason"], "done");
    assert_eq!(record["orig_dst"], destination.to_string());
    assert_eq!(record["peer"], destination.to_string());
    assert_eq!((&record["up"], &record["down"]), (&8.into(), &8.into()));
    assert_eq!(
        (&record["rule"], &record["upstream"]),
        (&"rule".into(), &"direct".into())
    );
}

/// A measurement by which copying costs twice as much as `best`, whatever a connection is used for.
fn measured(best: Path) -> Calibration {
    let times = COMPARED.map(|path| {
        let micros = if path == best { 500 } else { 1000 };
        vec![Duration::from_micros(micros); 5]
    });
    Calibration::of(&[times.clone(), times.clone(), times])
}

/// Exchanges messages of such a length, `count` times, and returns the close record.
fn exchange(rig: Rig, length: usize, count: usize) -> serde_json::Value {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut app = rig.connect(server.local_addr().unwrap(), GENERATION);
    let (mut server, _) = server.accept().unwrap();
    let echo = thread::spawn(move || {
        let mut message = vec![0; length];
        while server.read_exact(&mut message).is_ok() {
            server.write_all(&message).unwrap();
        }
    });
    let mut message = vec![7; length];
    for _ in 0..count {
        app.write_all(&message).unwrap();
        app.read_exact(&mut message).unwrap();
    }
    app.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(app.read(&mut message).unwrap(), 0);
    echo.join().unwrap();
    let shared = Arc::clone(&rig.shared);
    let mut records = rig.finish();
    let record = records.remove(0);
    let moved = 2 * (length * count) as u64;
    for (path, bytes) in shared.stats.bytes() {
        let key = match path {
            Path::BothWays => "replies",
            _ => path.label(),
        };
        assert_eq!(record["bytes"][key], bytes, "{path:?}: {record}");
    }
    assert_eq!(
        shared.stats.bytes().map(|(_, bytes)| bytes).sum::<u64>(),
        moved
    );
    record
}

#[test]
fn a_connection_that_is_copied_says_why() {
    let reason = |path, paths: Paths, count| {
        let record = exchange(Rig::with(path, Arc::new(paths)), 100, count);
        assert_eq!(record["path"], "copy", "{record}");
        assert_eq!(record["bytes"]["copy"], 200 * count, "{record}");
        assert_eq!(record["promotions"], 0);
        record["path_reason"].as_str().unwrap().to_owned()
    };
    let failed = || {
        let paths = Paths::default();
        paths.set_sockmap(Err("bound"));
        paths
    };
    assert_eq!(reason(PathChoice::Copy, Paths::default(), 20), "rule");
    assert_eq!(reason(PathChoice::Sockmap, failed(), 20), "self_test");
    assert_eq!(reason(PathChoice::Auto, failed(), 3), "short");
    assert_eq!(reason(PathChoice::Auto, failed(), 20), "unmeasured");
    let with = |paths: Paths, best| {
        paths.set_measured(measured(best));
        paths
    };
    for best in [Path::Copy, Path::Sockmap] {
        // It might be better, but it may not be used here.
        let paths = with(failed(), best);
        assert_eq!(reason(PathChoice::Auto, paths, 20), "self_test");
    }
}

#[test]
fn a_connection_takes_the_path_that_measured_best() {
    let paths = Paths::default();
    paths.set_sockmap(Err("bound"));
    paths.set_measured(measured(Path::Splice));
    let record = exchange(Rig::with(PathChoice::Auto, Arc::new(paths)), 200_000, 20);
    assert_eq!(record["path"], "splice", "{record}");
    assert_eq!(record["path_reason"], serde_json::Value::Null, "{record}");
    assert_eq!(record["promotions"], 2, "{record}");
    assert!(record["bytes"]["splice"].as_u64() > Some(0), "{record}");
}

#[test]
fn a_measurement_counts_for_connections_that_are_open() {
    let paths = Arc::new(Paths::default());
    paths.set_sockmap(Err("bound"));
    let rig = Rig::with(PathChoice::Auto, Arc::clone(&paths));
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut app = rig.connect(server.local_addr().unwrap(), GENERATION);
    let (mut server, _) = server.accept().unwrap();
    let mut upload = |mebibytes: usize| {
        let sending = thread::scope(|scope| {
            let sending = scope.spawn(|| app.write_all(&vec![7; mebibytes << 20]));
            server.read_exact(&mut vec![0; mebibytes << 20]).unwrap();
            sending.join()
        });
        sending.unwrap().unwrap();
    };
    upload(8);
    paths.set_measured(measured(Path::Splice));
    upload(8);
    let [record] = &*rig.finish() else {
        panic!("one record")
    };
    assert_eq!(record["path"], "splice", "{record}");
    assert!(
        record["bytes"]["copy"].as_u64() >= Some(8 << 20),
        "{record}"
    );
    assert!(record["bytes"]["splice"].as_u64() > Some(0), "{record}");
}

#[test]
fn who_was_not_intercepted_is_reset() {
    let rig = Rig::start();
    let mut stranger = TcpStream::connect(rig.listener).unwrap();
    let error = stranger.read(&mut [0]).unwrap_err();
    assert!(is_reset(&error), "{error}");
    assert_eq!(rig.closed(CloseReason::NotIntercepted), 1);
    assert!(rig.finish().is_empty(), "nothing was relayed");
}

#[test]
fn a_rule_long_gone_is_a_reset() {
    let rig = Rig::start();
    let mut app = rig.connect(([192, 0, 2, 1], 80).into(), GENERATION + 1);
    assert!(is_reset(&app.read(&mut [0]).unwrap_err()));
    assert_eq!(rig.closed(CloseReason::RuleGone), 1);
}

#[test]
fn a_refused_destination_is_a_reset_with_its_reason() {
    let rig = Rig::start();
    let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let destination = unused.local_addr().unwrap();
    drop(unused);
    let mut app = rig.connect(destination, GENERATION);
    assert!(is_reset(&app.read(&mut [0]).unwrap_err()));
    let [record] = &*rig.finish() else {
        panic!("one record")
    };
    assert_eq!(record["reason"], "destination_refused");
    assert_eq!(record["path"], serde_json::Value::Null);
    assert!(
        record["error"]
            .as_str()
            .unwrap()
            .contains(&destination.to_string())
    );
}

#[test]
fn stopping_resets_what_is_open() {
    let rig = Rig::start();
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut app = rig.connect(server.local_addr().unwrap(), GENERATION);
    let (mut upstream, _) = server.accept().unwrap();
    upstream.write_all(b"x").unwrap();
    app.read_exact(&mut [0]).unwrap();
    let [record] = &*rig.finish() else {
        panic!("one record")
    };
    assert_eq!(record["reason"], "shutdown");
    assert!(is_reset(&app.read(&mut [0]).unwrap_err()));
    assert!(is_reset(&upstream.read(&mut [0]).unwrap_err()));
}
