//! A program that makes connections as the test tells it, one system call at a time.
//!
//! It must be a process of its own: the hooks look at the cgroup, the user, the executable and the process of whoever
//! calls `connect()`. The test's side is here, what is said is in [`protocol`], and the program itself is
//! `src/bin/culvert-test-app`.

pub mod protocol;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, ErrorKind, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Mutex,
    thread,
};

use nix::errno::Errno;

use crate::eventually;
use protocol::{Answer, Call, Family, How, Kind, Opening, Reply, Storm};

pub use protocol::Route;

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
            Ok(Answer::Socket(id)) => self.socket(id),
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

    fn socket(&self, id: u32) -> Socket<'_> {
        Socket {
            app: self,
            id,
            place: Place::Here,
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who makes the calls on a socket.
#[derive(Clone, Copy, Debug)]
enum Place {
    Here,
    Child,
}

/// A socket of an app.
#[derive(Clone, Copy, Debug)]
pub struct Socket<'a> {
    app: &'a App,
    id: u32,
    place: Place,
}

#[allow(clippy::missing_errors_doc, reason = "each is that of its system call")]
impl Socket<'_> {
    /// The same socket, but each call on it is made by a child of the program that is forked for it.
    #[must_use]
    pub fn in_child(self) -> Self {
        Self {
            place: Place::Child,
            ..self
        }
    }

    /// A second descriptor of the socket.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        match self.call(Call::Duplicate(self.id)) {
            Ok(Answer::Socket(id)) => Self { id, ..*self },
            other => panic!("duplicate: {other:?}"),
        }
    }

    /// `connect()`.
    pub fn connect(&self, address: SocketAddr) -> Result<()> {
        self.connect_by(address, How::Connect)
    }

    /// Connects in some other way.
    pub fn connect_by(&self, address: SocketAddr, how: How) -> Result<()> {
        let socket = self.id;
        self.done(Call::Connect {
            socket,
            address,
            how,
        })
    }

    /// `connect()` to no address, which disconnects.
    pub fn disconnect(&self) -> Result<()> {
        self.done(Call::Disconnect(self.id))
    }

    /// Waits until a connect in the background is over, and returns how it ended.
    pub fn finish_connect(&self) -> Result<()> {
        self.done(Call::FinishConnect(self.id))
    }

    /// Whether calls on it return at once, or wait.
    pub fn set_nonblocking(&self, on: bool) {
        let socket = self.id;
        self.done(Call::SetNonBlocking { socket, on })
            .expect("set_nonblocking");
    }

    /// `bind()`.
    pub fn bind(&self, address: SocketAddr) -> Result<()> {
        let socket = self.id;
        self.done(Call::Bind { socket, address })
    }

    /// `SO_BINDTODEVICE`.
    pub fn bind_device(&self, device: &str) -> Result<()> {
        let (socket, device) = (self.id, device.to_owned());
        self.done(Call::BindDevice { socket, device })
    }

    /// `getpeername()`.
    pub fn peer(&self) -> Result<SocketAddr> {
        self.address(Call::PeerName(self.id))
    }

    /// `getsockname()`.
    pub fn local(&self) -> Result<SocketAddr> {
        self.address(Call::SockName(self.id))
    }

    /// `getsockopt()` with a buffer of this length: what was written into it.
    pub fn option(&self, level: i32, name: i32, length: usize) -> Result<Vec<u8>> {
        self.option_into(level, name, vec![0; length])
    }

    /// `getsockopt()` of an option that is asked for by what the buffer holds.
    pub fn option_into(&self, level: i32, name: i32, buffer: Vec<u8>) -> Result<Vec<u8>> {
        let socket = self.id;
        self.bytes(Call::GetOption {
            socket,
            level,
            name,
            buffer,
        })
    }

    /// `setsockopt()` of a number.
    pub fn set_option(&self, level: i32, name: i32, value: i32) -> Result<()> {
        self.set_option_bytes(level, name, &value.to_ne_bytes())
    }

    /// `setsockopt()` of anything.
    pub fn set_option_bytes(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        let (socket, value) = (self.id, value.to_vec());
        self.done(Call::SetOption {
            socket,
            level,
            name,
            value,
        })
    }

    /// Sends all of this.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        let (socket, bytes) = (self.id, bytes.to_vec());
        self.done(Call::Send { socket, bytes })
    }

    /// Sends one byte of urgent data.
    pub fn send_urgent(&self, byte: u8) -> Result<()> {
        let socket = self.id;
        self.done(Call::SendUrgent { socket, byte })
    }

    /// Receives that many bytes, or fewer when the stream ends before.
    pub fn receive(&self, length: usize) -> Result<Vec<u8>> {
        let socket = self.id;
        self.bytes(Call::Receive { socket, length })
    }

    /// Receives until the stream ends.
    pub fn receive_all(&self) -> Result<Vec<u8>> {
        self.receive(usize::MAX)
    }

    /// Sends a text to an echo server and checks what comes back.
    pub fn assert_echo(&self) {
        let text = b"to be echoed";
        self.send(text).expect("send");
        let received = self.receive(text.len()).expect("receive");
        assert_eq!(String::from_utf8_lossy(&received), "to be echoed");
    }

    /// Sends the first bytes of a [payload](crate::Payload) to an echo server and checks what comes back meanwhile.
    pub fn exchange(&self, seed: u64, length: u64) -> Result<()> {
        let socket = self.id;
        self.done(Call::Exchange {
            socket,
            seed,
            length,
        })
    }

    /// Sends the first bytes of a [payload](crate::Payload) until nothing more is taken, or all is: how many bytes.
    pub fn send_until_blocked(&self, seed: u64, length: u64) -> Result<u64> {
        let socket = self.id;
        match self.call(Call::SendUntilBlocked {
            socket,
            seed,
            length,
        })? {
            Answer::Number(number) => Ok(number),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Ends its side of the stream.
    pub fn shutdown(&self) -> Result<()> {
        self.done(Call::Shutdown(self.id))
    }

    /// Closes it by a reset.
    pub fn reset(self) {
        self.done(Call::Reset(self.id)).expect("reset");
    }

    /// Closes it.
    pub fn close(self) {
        self.done(Call::Close(self.id)).expect("close");
    }

    /// Passes it to another program by `SCM_RIGHTS`, over a Unix socket at `path`: the same socket over there.
    pub fn pass<'a>(&self, taker: &'a App, path: &Path) -> Socket<'a> {
        let (socket, path) = (self.id, path.to_owned());
        let take = Call::Take(path.clone());
        thread::scope(|scope| {
            let answer = scope.spawn(|| taker.call(&take));
            self.done(Call::Pass { socket, path }).expect("pass");
            match answer.join().expect("the thread that takes") {
                Ok(Answer::Socket(id)) => taker.socket(id),
                other => panic!("take: {other:?}"),
            }
        })
    }

    fn call(&self, call: Call) -> Result<Answer> {
        match self.place {
            Place::Here => self.app.call(&call),
            Place::Child => self.app.call(&call.in_child()),
        }
    }

    fn done(&self, call: Call) -> Result<()> {
        match self.call(call)? {
            Answer::Done => Ok(()),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn address(&self, call: Call) -> Result<SocketAddr> {
        match self.call(call)? {
            Answer::Address(address) => Ok(address),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn bytes(&self, call: Call) -> Result<Vec<u8>> {
        match self.call(call)? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => panic!("unexpected {other:?}"),
        }
    }
}
