//! A program that makes connections as the test tells it, one system call at a time.
//!
//! It must be a process of its own: the hooks look at the cgroup, the user, the executable and the process of whoever
//! calls `connect()`. The test's side is here, what is said is in [`protocol`], and the program itself is
//! `src/bin/culvert-test-app`.

pub mod protocol;
mod socket;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, ErrorKind, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Mutex,
};

use nix::errno::Errno;

use crate::{eventually, stress::Flows};
use protocol::{Answer, Call, Family, Kind, Opening, Reply, Storm, Visit};

pub use protocol::Route;
pub use socket::Socket;

/// The result of a system call.
pub type Result<T> = std::result::Result<T, Errno>;

/// A running program, killed when dropped.
#[derive(Debug)]
pub struct App {
    child: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl App {
    /// Starts it by a command that names its executable.
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // A test beside this one that forks while a copied program is being written holds it open for a moment.
        let mut child = eventually("a program that nobody writes", || match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => None,
            spawned => Some(spawned),
        })
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let pipes = (
            input.expect("a pipe"),
            BufReader::new(output.expect("a pipe")),
        );
        Self {
            child,
            pipes: Mutex::new(pipes),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it an empty line, for shells that wait for one before they become an app.
    pub fn say_nothing(&self) {
        let (input, _) = &mut *self.pipes.lock().expect("the pipes");
        input.write_all(b"\n").expect("the app is gone");
    }

    /// Waits until the process that was started has ended; a child of it may go on as the app.
    pub fn wait(&mut self) {
        self.child.wait().expect("cannot wait for the app");
    }

    /// Has it make a call, and returns the answer.
    ///
    /// # Errors
    /// The error number of the call.
    pub fn call(&self, call: &Call) -> Result<Answer> {
        let (input, output) = &mut *self.pipes.lock().expect("the pipes");
        let mut line = serde_json::to_string(call).expect("a call as JSON");
        line.push('\n');
        input.write_all(line.as_bytes()).expect("the app is gone");
        let mut line = String::new();
        output.read_line(&mut line).expect("the app is gone");
        let reply: Reply = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("the app answered {line:?} to {call:?}: {error}"));
        reply.map_err(Errno::from_raw)
    }

    /// A TCP socket for a destination of this kind of address.
    pub fn tcp(&self, destination: SocketAddr) -> Socket<'_> {
        self.open(Family::of(destination), Kind::Tcp)
    }

    /// A socket.
    pub fn open(&self, family: Family, kind: Kind) -> Socket<'_> {
        let opening = Opening { family, kind };
        match self.call(&Call::Open(opening)) {
            Ok(Answer::Socket(id)) => Socket::new(self, id),
            other => panic!("{opening:?}: {other:?}"),
        }
    }

    /// Becomes another user, for good.
    pub fn become_user(&self, uid: u32, gid: u32) {
        let done = self.call(&Call::BecomeUser { uid, gid });
        assert!(matches!(done, Ok(Answer::Done)), "{done:?}");
    }

    /// Connects to a [mirror](crate::peer::Server::mirror) and tells which way the connection went.
    ///
    /// # Errors
    /// That of `connect()`, or of reading what the mirror says.
    pub fn probe(&self, mirror: SocketAddr) -> Result<Route> {
        self.probe_by(&Call::Probe(mirror))
    }

    /// As [`App::probe`], from a child of the program that is forked for it.
    ///
    /// # Errors
    /// As [`App::probe`].
    pub fn probe_in_child(&self, mirror: SocketAddr) -> Result<Route> {
        self.probe_by(&Call::Probe(mirror).in_child())
    }

    /// As [`App::probe`], by any call that ends in a probe.
    ///
    /// # Errors
    /// As [`App::probe`].
    pub fn probe_by(&self, call: &Call) -> Result<Route> {
        match self.call(call)? {
            Answer::Route(route) => Ok(route),
            other => panic!("{call:?}: {other:?}"),
        }
    }

    /// Makes many connections and counts how they ended: by error number, 0 for those that did what they should.
    pub fn storm(&self, storm: &Storm) -> BTreeMap<i32, u64> {
        match self.call(&Call::Storm(storm.clone())) {
            Ok(Answer::Outcomes(outcomes)) => outcomes.into_iter().collect(),
            other => panic!("{storm:?}: {other:?}"),
        }
    }

    /// Does the apps' side of flows: what went wrong.
    pub fn stress(&self, flows: &Flows) -> Vec<String> {
        match self.call(&Call::Stress(flows.clone())) {
            Ok(Answer::Failures(failures)) => failures,
            other => panic!("{flows:?}: {other:?}"),
        }
    }

    /// Makes connections one after the other, each of which sends the first bytes of a [payload](crate::Payload), whose
    /// seed is the number of the connection, and is closed at once: nobody waits for an answer.
    ///
    /// # Errors
    /// That of the first call that fails.
    pub fn deliver(&self, address: SocketAddr, count: u32, length: u64) -> Result<()> {
        let call = Call::Deliver {
            address,
            count,
            length,
        };
        self.call(&call).map(drop)
    }

    /// Opens connections and keeps them until it ends.
    ///
    /// # Errors
    /// That of the first `connect()` that fails.
    pub fn hold(&self, address: SocketAddr, count: u32) -> Result<()> {
        self.call(&Call::Hold { address, count }).map(drop)
    }

    /// Sends a payload on each of the connections that it keeps, and verifies what an echo server sends back.
    ///
    /// # Errors
    /// That of the first exchange that fails; `ENODATA` when bytes are missing, `EBADMSG` when one is wrong.
    pub fn exchange_held(&self, length: u64) -> Result<()> {
        self.call(&Call::ExchangeHeld { length }).map(drop)
    }

    /// Becomes a server that says its port to every client and sends back what it receives. Returns where it listens.
    pub fn serve(&self, address: SocketAddr) -> SocketAddr {
        match self.call(&Call::Serve(address)) {
            Ok(Answer::Address(address)) => address,
            other => panic!("{address}: {other:?}"),
        }
    }

    /// Makes many connections to servers that say their ports.
    pub fn visit(&self, storm: &Storm) -> Vec<Visit> {
        match self.call(&Call::Visit(storm.clone())) {
            Ok(Answer::Visits(visits)) => visits,
            other => panic!("{storm:?}: {other:?}"),
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
