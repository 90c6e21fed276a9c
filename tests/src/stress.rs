//! Flows that do everything a connection can do, through a daemon, each byte checked at both ends.
//!
//! What a flow does follows from a seed and its number ([`plan`]), so both ends know it without a word to each other, and a
//! run can be repeated. The apps' ends are in a program of their own, where the hooks see them; the servers' are here.

pub mod end;
pub mod plan;

use std::{
    fmt::{self, Display},
    io::Read,
    net::{SocketAddr, TcpStream},
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    Culvert, Sandbox,
    daemon::Settings,
    peer::Server,
    record::CloseRecord,
    rules::ALL,
    sandbox::{SERVER_V4, SERVER_V6},
};
use end::Ended;
use plan::{Plan, Shape};

/// Bytes at the beginning of each flow that tell its number.
pub const HEADER: usize = 8;

/// Flows for the apps' side to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flows {
    /// What they are like.
    pub shape: Shape,
    /// Their numbers.
    pub numbers: Range<u64>,
    /// How many at a time.
    pub at_once: u32,
    /// Servers, used in turn.
    pub addresses: Vec<SocketAddr>,
}

impl Flows {
    /// Does the apps' side of all of them: what went wrong.
    pub fn play(&self) -> Vec<String> {
        let next = AtomicU64::new(self.numbers.start);
        let failures = Mutex::new(Vec::new());
        let work = || {
            loop {
                let number = next.fetch_add(1, SeqCst);
                if number >= self.numbers.end {
                    return;
                }
                if let Err(failure) = self.play_one(number) {
                    let failure = format!("flow {number}, app: {failure}");
                    failures.lock().expect("failures").push(failure);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..self.at_once {
                scope.spawn(work);
            }
        });
        failures.into_inner().expect("failures")
    }

    fn play_one(&self, number: u64) -> Result<Ended, String> {
        let plan = Plan::of(&self.shape, number);
        let turn = usize::try_from(number).expect("a count") % self.addresses.len();
        let address = self.addresses.get(turn).copied().expect("an address");
        let connect = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            if let Some(bytes) = plan.app.receive_buffer {
                socket.set_recv_buffer_size(bytes)?;
            }
            socket.connect(&address.into())?;
            Ok(TcpStream::from(socket))
        };
        let stream = connect().map_err(|error: std::io::Error| format!("connect: {error}"))?;
        end::play(stream, &plan.app, &plan.server, number.to_le_bytes(), 0)
            .map_err(|failure| format!("{failure}; {plan:?}"))
    }
}

/// A daemon and servers to send flows through.
pub struct Stress<'a> {
    culvert: Culvert<'a>,
    sandbox: &'a Sandbox,
    servers: [Server; 2],
    shape: Shape,
    failures: Arc<Mutex<Vec<String>>>,
    /// Flows that surely have a record.
    done: usize,
}

impl<'a> Stress<'a> {
    /// Starts them: a daemon whose rule asks for a path, with more lines for its section.
    pub fn start(sandbox: &'a Sandbox, path: &str, daemon: &str, shape: Shape) -> Self {
        let failures = Arc::<Mutex<Vec<String>>>::default();
        let serve = |address: SocketAddr| {
            let failures = Arc::clone(&failures);
            let work = move |stream| {
                if let Err(failure) = serve(stream, &shape) {
                    failures.lock().expect("failures").push(failure);
                }
                Ok(())
            };
            sandbox.within(|| Server::start(address, work))
        };
        let servers = [serve((SERVER_V4, 0).into()), serve((SERVER_V6, 0).into())];
        let rules = format!("{ALL}path = \"{path}\"\n");
        let culvert = sandbox.culvert_with(&Settings::daemon(daemon), &rules);
        Self {
            culvert,
            sandbox,
            servers,
            shape,
            failures,
            done: 0,
        }
    }

    /// Does flows, so many at a time, and waits for their records: what there is to say of all since the start.
    pub fn run(&mut self, numbers: Range<u64>, at_once: u32) -> Report {
        // Whoever resets may do so before the relay accepts, which then knows nothing of the connection.
        let orderly = |number: &u64| Plan::of(&self.shape, *number).is_orderly();
        self.done += numbers.clone().filter(orderly).count();
        let failed = self.sandbox.app().stress(&Flows {
            shape: self.shape,
            numbers,
            at_once,
            addresses: self.servers.iter().map(Server::address).collect(),
        });
        self.failures.lock().expect("failures").extend(failed);
        let records = self.culvert.await_records(self.done);
        Report::new(&records, &self.failures.lock().expect("failures"))
    }
}

/// The server's side of one flow.
fn serve(mut stream: TcpStream, shape: &Shape) -> Result<Ended, String> {
    end::probe(&stream).map_err(|error| error.to_string())?;
    let mut header = [0; HEADER];
    let mut received = 0;
    while let Some(rest) = header.get_mut(received..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) => return Err(format!("the end after {received} bytes of a header")),
            Ok(count) => received += count,
            // Whoever resets may truncate.
            Err(_) => return Ok(Ended::ByReset),
        }
    }
    let number = u64::from_le_bytes(header);
    let plan = Plan::of(shape, number);
    if let Some(bytes) = plan.server.receive_buffer {
        SockRef::from(&stream)
            .set_recv_buffer_size(bytes)
            .map_err(|error| error.to_string())?;
    }
    end::play(stream, &plan.server, &plan.app, [], HEADER as u64)
        .map_err(|failure| format!("flow {number}, server: {failure}"))
}

/// What became of flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Connections with a close record.
    pub flows: usize,
    /// Bytes that the relay or the kernel moved.
    pub bytes: u64,
    /// Those that the kernel moved by itself.
    pub in_kernel: u64,
    /// Times that bytes came twice and were cut off.
    pub repairs: u64,
    /// Times that the kernel gave a direction back.
    pub demotions: u64,
    /// Connections that ended by a reset.
    pub resets: usize,
    /// What went wrong, a line each.
    pub failures: Vec<String>,
}

impl Report {
    fn new(records: &[CloseRecord], failures: &[String]) -> Self {
        let sum = |of: fn(&CloseRecord) -> u64| records.iter().map(of).sum();
        let out_of_sequence = records
            .iter()
            .filter_map(|record| record.error.as_ref())
            .filter(|error| error.contains("sequence"))
            .map(|error| format!("daemon: {error}"));
        Self {
            flows: records.len(),
            bytes: sum(|record| record.up + record.down),
            in_kernel: sum(|record| record.bytes.sockmap),
            repairs: sum(|record| record.repairs.into()),
            demotions: sum(|record| record.demotions.into()),
            resets: records
                .iter()
                .filter(|record| record.reason != "done")
                .count(),
            failures: failures.iter().cloned().chain(out_of_sequence).collect(),
        }
    }
}

impl Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} flows, {} resets, {} MiB, of which the kernel moved {}; {} repairs, {} demotions, {} failures",
            self.flows,
            self.resets,
            self.bytes >> 20,
            self.in_kernel >> 20,
            self.repairs,
            self.demotions,
            self.failures.len(),
        )
    }
}
