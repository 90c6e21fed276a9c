//! What each path of the relay makes of a connection, end to end: an app, a daemon and a server.
//!
//! `cargo bench -p culvert-tests --bench paths`, as root. Everything runs on one core, so that the figures are what it
//! costs and not who waits for whom; rounds go through the paths in turn, and each is compared with the direct connection
//! of its own round. `cargo test` makes one short round, so that this cannot rot; it says nothing about time then.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use culvert_tests::{
    App, Culvert, Sandbox,
    app::protocol::Work,
    peer::Server,
    sandbox::{OTHER_V4, SERVER_V4},
};
use libtest_mimic::{Arguments, Measurement, Trial};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// The paths, the first of which is what the others are compared with.
const PATHS: [&str; 4] = ["direct", "copy", "splice", "shortcut-without-fionread"];

/// What is done, as far as it does not depend on the effort.
#[derive(Clone, Copy)]
enum Case {
    /// Messages of so many bytes, each answered.
    Exchange(usize),
    /// Pieces of so many bytes.
    Upload(usize),
}

const CASES: [Case; 6] = [
    Case::Exchange(64),
    Case::Exchange(16 * 1024),
    Case::Exchange(64 * 1024),
    Case::Upload(1024),
    Case::Upload(64 * 1024),
    Case::Upload(1024 * 1024),
];

impl Case {
    fn work(self, effort: Effort) -> Work {
        match self {
            Self::Exchange(length) => Work::Exchange {
                length,
                count: effort.exchanges,
            },
            Self::Upload(length) => Work::Upload {
                length,
                count: effort.megabytes * 1_000_000 / u32::try_from(length).unwrap(),
            },
        }
    }
}

/// How much is measured.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    exchanges: u32,
    megabytes: u32,
}

const FULL: Effort = Effort {
    rounds: 9,
    exchanges: 10_000,
    megabytes: 512,
};
const QUICK: Effort = Effort {
    rounds: 1,
    exchanges: 20,
    megabytes: 4,
};

fn main() {
    let measure = |test_mode| Ok(compare(if test_mode { QUICK } else { FULL }));
    let trial = Trial::bench("paths", measure);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

/// Prints a table, and returns the time of an exchange on the shortcut.
fn compare(effort: Effort) -> Option<Measurement> {
    pin();
    let sandboxes: Vec<_> = PATHS.iter().map(|_| Sandbox::new()).collect();
    let subjects: Vec<_> = PATHS
        .iter()
        .zip(&sandboxes)
        .map(|(path, sandbox)| Subject::new(path, sandbox))
        .collect();
    println!(
        "\nwork                {}",
        PATHS.map(|path| format!("{path:>28}")).concat()
    );
    let mut shortcut = None;
    for case in CASES {
        let mut times = vec![Vec::new(); subjects.len()];
        for _ in 0..effort.rounds {
            for (subject, times) in subjects.iter().zip(&mut times) {
                times.push(subject.measure(case, effort));
            }
        }
        report(case, effort, &times);
        if let (Case::Exchange(64), Some(times)) = (case, times.last()) {
            shortcut = Some(spread(times));
        }
    }
    let (lowest, median, highest) = shortcut?;
    let each = |seconds: f64| {
        let exchange = Duration::from_secs_f64(seconds / f64::from(effort.exchanges));
        u64::try_from(exchange.as_nanos()).unwrap()
    };
    Some(Measurement {
        avg: each(median),
        variance: each(highest - lowest),
    })
}

/// What is started from here on inherits it.
fn pin() {
    let mut core = CpuSet::new();
    core.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &core).unwrap();
}

/// One path, with all that it takes.
struct Subject<'a> {
    echo: Server,
    sink: Server,
    app: App,
    path: &'static str,
    culvert: Culvert<'a>,
}

impl<'a> Subject<'a> {
    fn new(path: &'static str, sandbox: &'a Sandbox) -> Self {
        Self {
            echo: sandbox.within(|| Server::start((SERVER_V4, 0), echo)),
            sink: sandbox.within(|| Server::start((OTHER_V4, 0), sink)),
            app: sandbox.app(),
            culvert: sandbox.culvert(&rules(path)),
            path,
        }
    }

    /// Seconds that it takes.
    fn measure(&self, case: Case, effort: Effort) -> f64 {
        let server = match case {
            Case::Exchange(_) => self.echo.address(),
            Case::Upload(_) => self.sink.address(),
        };
        let socket = self.app.tcp(server);
        socket.set_nonblocking(true);
        assert_eq!(socket.connect(server), Err(Errno::EINPROGRESS));
        socket.finish_connect().unwrap();
        let time = socket.time(case.work(effort)).unwrap();
        socket.close();
        let relayed = self.culvert.counter("relayed");
        assert_eq!(relayed == 0, self.path == "direct", "not by {}", self.path);
        time.as_secs_f64()
    }
}

/// The path is of a rule that relays; direct is no rule's.
fn rules(path: &str) -> String {
    let (dest, path) = match path {
        "direct" => ("203.0.113.0/24", "auto"),
        path => ("0.0.0.0/0", path),
    };
    format!(
        r#"
        [upstream.relay]
        url = "direct://"
        [[forward]]
        name = "all"
        match = {{ dest = "{dest}" }}
        via = "relay"
        path = "{path}"
        "#
    )
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

fn spread(times: &[f64]) -> (f64, f64, f64) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    (
        sorted[0],
        sorted[sorted.len() / 2],
        sorted[sorted.len() - 1],
    )
}

/// Shares of direct, round by round: median, lowest and highest.
fn report(case: Case, effort: Effort, times: &[Vec<f64>]) {
    let (name, amount, unit) = match case {
        Case::Exchange(length) => (
            format!("exchange {length:>6} B"),
            f64::from(effort.exchanges),
            "/s",
        ),
        Case::Upload(length) => (
            format!("upload   {:>6} KiB", length / 1024),
            f64::from(effort.megabytes),
            " MB/s",
        ),
    };
    let (_, direct, _) = spread(&times[0]);
    print!("{name:<20}{:>28}", format!("{:.0}{unit}", amount / direct));
    for path in &times[1..] {
        let shares: Vec<_> = times[0]
            .iter()
            .zip(path)
            .map(|(direct, time)| direct / time)
            .collect();
        let (lowest, median, highest) = spread(&shares);
        print!(
            "{:>28}",
            format!("{median:.2} ({lowest:.2} .. {highest:.2})")
        );
    }
    println!();
}
