//! The app of the demonstration: a process of its own that connects where it is told, and knows of no proxy.
//!
//! It is this executable again, with a hidden subcommand. Calls come as lines of JSON on its standard input and what it
//! saw goes back the same way; it ends when its input does.

use std::{
    io::{self, BufRead, Write},
    net::SocketAddr,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdin, ChildStdout},
    time::timeout,
};

use super::payload::{self, Side};
use crate::cgroup::{CgroupError, OwnCgroup};

/// The hidden subcommand that runs [`main`].
const SUBCOMMAND: &str = "__demo-app";

/// A call that takes longer has failed: everything is on this machine.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What the app saw of one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Seen {
    /// `connect()` failed, with this error number.
    NotConnected(i32),
    /// It did not.
    Connected {
        /// `getsockname()`.
        local: SocketAddr,
        /// `getpeername()`.
        peer: SocketAddr,
        /// From `connect()` to the end of the exchange.
        elapsed: Duration,
        /// What went wrong in the exchange, if anything.
        error: Option<String>,
    },
}

/// The running app.
pub(super) struct App {
    child: Child,
    calls: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl App {
    /// Starts it and puts it into a cgroup. It connects nowhere before it is told to.
    ///
    /// # Errors
    /// When there can be no such process.
    pub(super) fn start() -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("culvert-demo-app")
            .arg(SUBCOMMAND)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(calls), Some(answers)) => Ok(Self {
                child,
                calls,
                answers: BufReader::new(answers).lines(),
            }),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Puts it into a cgroup.
    ///
    /// # Errors
    /// As [`OwnCgroup::place`].
    pub(super) fn place(&self, cgroup: &OwnCgroup) -> Result<(), CgroupError> {
        cgroup.place(self.pid())
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Lets it connect, and says what it saw.
    ///
    /// # Errors
    /// When it died.
    pub(super) async fn connect(&mut self, destination: SocketAddr) -> io::Result<Seen> {
        let mut call = serde_json::to_string(&destination)?;
        call.push('\n');
        self.calls.write_all(call.as_bytes()).await?;
        let answer = self.answers.next_line().await?;
        Ok(serde_json::from_str(&answer.unwrap_or_default())?)
    }

    /// Lets it end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(super) async fn end(self) -> io::Result<()> {
        let Self {
            mut child, calls, ..
        } = self;
        drop(calls);
        child.wait().await.map(drop)
    }
}

/// What the hidden subcommand does.
///
/// # Errors
/// When its input or output is not what [`App`] makes it.
pub(super) fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for call in io::stdin().lock().lines() {
        let destination = serde_json::from_str(&call?)?;
        let seen = runtime.block_on(connect(destination))?;
        let mut answer = serde_json::to_string(&seen)?;
        answer.push('\n');
        if io::stdout().lock().write_all(answer.as_bytes()).is_err() {
            // Nobody wants to know any more.
            break;
        }
    }
    Ok(())
}

async fn connect(destination: SocketAddr) -> io::Result<Seen> {
    let begun = Instant::now();
    let mut stream = match timeout(TIMEOUT, TcpStream::connect(destination)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Ok(Seen::NotConnected(error.raw_os_error().unwrap_or_default())),
        Err(_) => return Ok(Seen::NotConnected(libc::ETIMEDOUT)),
    };
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    let exchange = payload::exchange(&mut stream, destination, Side::App);
    let error = match timeout(TIMEOUT, exchange).await {
        Ok(done) => done.err().map(|error| error.to_string()),
        Err(elapsed) => Some(elapsed.to_string()),
    };
    Ok(Seen::Connected {
        local,
        peer,
        elapsed: begun.elapsed(),
        error,
    })
}
