//! What the service manager is told (systemd's `Type=notify`), if there is one.

use std::{
    collections::VecDeque,
    env,
    ffi::OsString,
    fmt::Write as _,
    future::pending,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Where the manager listens.
const SOCKET: &str = "NOTIFY_SOCKET";
/// Signs of life for each that is waited for: one may be left out by chance.
const PER_WAIT: u32 = 4;
/// How often one is sent when nobody has said how long is waited. Who takes over from a daemon is not told.
const PERIOD: Duration = Duration::from_secs(5);
/// What an end takes besides draining.
const END: Duration = Duration::from_secs(10);
/// Messages that are kept for a manager that does not read; the oldest of more are of no use.
const UNSAID: usize = 8;

/// The manager. It is never waited for: the socket of one that does not read is full after ten messages
/// (`net.unix.max_dgram_qlen`), and then `sendto()` would hold up whoever keeps the heartbeat.
pub(super) struct Manager {
    socket: Option<OsString>,
    /// What there was no room for.
    unsaid: VecDeque<String>,
    /// When signs of life are due, for a manager that ends and restarts who hangs (`WatchdogSec`).
    beats: Option<Interval>,
}

impl Manager {
    /// That of the environment.
    pub(super) fn new() -> Self {
        let socket = env::var_os(SOCKET);
        let period = sd_notify::watchdog_enabled().map(|wait| wait / PER_WAIT);
        let period = period.filter(|period| !period.is_zero()).unwrap_or(PERIOD);
        let beats = socket.is_some().then(|| {
            let mut beats = interval(period);
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            beats
        });
        Self {
            socket,
            unsaid: VecDeque::new(),
            beats,
        }
    }

    /// Tells it, as soon as it reads.
    pub(super) fn tell(&mut self, states: &[NotifyState<'_>]) {
        if self.socket.is_none() {
            return;
        }
        if self.unsaid.len() == UNSAID {
            self.unsaid.pop_front();
        }
        self.unsaid.push_back(message(states));
        self.go_on();
    }

    /// Tells it that we end, and how long that may take.
    pub(super) fn tell_of_end(&mut self, drain_timeout: Duration) {
        let time = (drain_timeout + END).as_micros();
        let time = u32::try_from(time).unwrap_or(u32::MAX);
        self.tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(time)]);
    }

    /// Returns when a sign of life is due. May be dropped and called again.
    pub(super) async fn due(&mut self) {
        match &mut self.beats {
            Some(beats) => drop(beats.tick().await),
            None => pending().await,
        }
    }

    /// Gives a sign of life, if there is any; one for which there is no room is left out.
    pub(super) fn beat(&mut self, lives: bool) {
        self.go_on();
        if lives && self.unsaid.is_empty() {
            self.say(&message(&[NotifyState::Watchdog]));
        }
    }

    fn go_on(&mut self) {
        while let Some(message) = self.unsaid.front() {
            if !self.say(message) {
                break;
            }
            self.unsaid.pop_front();
        }
    }

    /// Whether there was room for it, or never will be.
    fn say(&self, message: &str) -> bool {
        let Some(socket) = &self.socket else {
            return true;
        };
        match send(socket, message) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                tracing::debug!(%error, "cannot notify the service manager");
                true
            }
        }
    }
}

fn message(states: &[NotifyState<'_>]) -> String {
    states.iter().fold(String::new(), |mut message, state| {
        // Writing to a string cannot fail.
        let _ = writeln!(message, "{state}");
        message
    })
}

/// Without waiting for room.
fn send(socket: &OsString, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(message.as_bytes(), &address).map(drop)
}
