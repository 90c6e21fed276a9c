//! The endpoints of a group, and what happens to them.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use culvert_tests::{
    App, Culvert, Sandbox,
    process::{app_binary, output},
    sandbox::SERVER_V4,
};
use fastrand::Rng;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::traffic;

pub(super) const ENDPOINTS: usize = 6;
/// So many are always well, listed and not drained.
const WELL: usize = 2;
/// Those that go with `rewrite`.
const BALANCE: [&str; 3] = ["round-robin", "least-conn", "p2c"];

/// What an endpoint is like.
struct Endpoint {
    server: Option<App>,
    is_hung: bool,
    is_listed: bool,
    is_drained: bool,
}

impl Endpoint {
    const fn is_well(&self) -> bool {
        self.server.is_some() && !self.is_hung && self.is_listed && !self.is_drained
    }
}

/// When an endpoint was dead, in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death {
    pub(super) port: u16,
    pub(super) killed: (u64, u64),
    pub(super) back: u64,
}

/// All of them.
pub(super) struct Farm<'a> {
    sandbox: &'a Sandbox,
    /// The container that a rule names.
    alone: &'a str,
    endpoints: Vec<Endpoint>,
    pub(super) deaths: Vec<Death>,
}

pub(super) fn address(number: usize) -> SocketAddr {
    (SERVER_V4, 9000 + u16::try_from(number).unwrap()).into()
}

/// As records and visits tell the time.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap().as_millis()).unwrap()
}

fn serve(sandbox: &Sandbox, number: usize) -> App {
    let server = App::start(&mut sandbox.outsider(app_binary()));
    server.serve(address(number));
    server
}

impl<'a> Farm<'a> {
    /// All are well.
    pub(super) fn new(sandbox: &'a Sandbox, alone: &'a str) -> Self {
        let endpoint = |number| Endpoint {
            server: Some(serve(sandbox, number)),
            is_hung: false,
            is_listed: true,
            is_drained: false,
        };
        Self {
            sandbox,
            alone,
            endpoints: (0..ENDPOINTS).map(endpoint).collect(),
            deaths: Vec::new(),
        }
    }

    /// The group as it is listed, and the rules in an order and among others that change.
    pub(super) fn rules(&self, rng: &mut Rng) -> String {
        let listed = (0..).zip(&self.endpoints).filter(|(_, one)| one.is_listed);
        let listed: Vec<_> = listed
            .map(|(number, _)| format!("{} weight={}", address(number), rng.u32(1..4)))
            .collect();
        format!(
            "[upstream.farm]\nendpoints = {listed:?}\nbalance = \"{}\"\n\
             health = {{ tcp = true, interval = \"100ms\", timeout = \"30s\", fall = 1, rise = 1, \
                         passive = {{ failures = 3, eject = \"200ms\" }} }}\n{}",
            BALANCE[rng.usize(..BALANCE.len())],
            traffic::rules(self.alone, rng)
        )
    }

    /// Does something to one of them, or only to the rules; what.
    pub(super) fn step(&mut self, culvert: &Culvert<'_>, rng: &mut Rng) -> Option<&'static str> {
        let number = rng.usize(..ENDPOINTS);
        let well = self.endpoints.iter().filter(|one| one.is_well()).count();
        let endpoint = &self.endpoints[number];
        let may_harm = well > WELL || !endpoint.is_well();
        let deed = match rng.u32(..5) {
            0 if endpoint.server.is_none() => self.restart(number),
            0 if may_harm => self.kill(number),
            // The clients of one that hangs can only wait.
            1..=3 if endpoint.is_hung => self.wake(number),
            1 if may_harm && endpoint.server.is_some() => self.hang(number),
            2 if endpoint.is_listed && may_harm => self.list(number, false),
            2 if !endpoint.is_listed => self.list(number, true),
            3 if endpoint.is_drained => self.restore(culvert, number),
            3 if may_harm && endpoint.is_listed => self.drain(culvert, number),
            4 => "reload",
            _ => return None,
        };
        if ["list", "unlist", "reload"].contains(&deed) {
            culvert.reload(&self.rules(rng));
        }
        Some(deed)
    }

    /// Everybody is well, listed and not drained.
    pub(super) fn calm(&mut self, culvert: &Culvert<'_>) {
        for number in 0..ENDPOINTS {
            if self.endpoints[number].is_hung {
                self.wake(number);
            }
            if self.endpoints[number].server.is_none() {
                self.restart(number);
            }
            if self.endpoints[number].is_drained {
                self.restore(culvert, number);
            }
            self.endpoints[number].is_listed = true;
        }
    }

    fn kill(&mut self, number: usize) -> &'static str {
        let before = now();
        // Waits until it is gone.
        self.endpoints[number].server = None;
        self.endpoints[number].is_hung = false;
        self.deaths.push(Death {
            port: address(number).port(),
            killed: (before, now()),
            back: u64::MAX,
        });
        "kill"
    }

    fn restart(&mut self, number: usize) -> &'static str {
        self.endpoints[number].server = Some(serve(self.sandbox, number));
        let port = address(number).port();
        let death = self.deaths.iter_mut().rev().find(|one| one.port == port);
        death.unwrap().back = now();
        "restart"
    }

    fn hang(&mut self, number: usize) -> &'static str {
        self.signal(number, Signal::SIGSTOP);
        self.endpoints[number].is_hung = true;
        "hang"
    }

    fn wake(&mut self, number: usize) -> &'static str {
        self.signal(number, Signal::SIGCONT);
        self.endpoints[number].is_hung = false;
        "wake"
    }

    fn signal(&self, number: usize, signal: Signal) {
        let pid = self.endpoints[number].server.as_ref().unwrap().pid();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    fn list(&mut self, number: usize, listed: bool) -> &'static str {
        self.endpoints[number].is_listed = listed;
        // Who is no longer listed is no longer drained.
        self.endpoints[number].is_drained = false;
        if listed { "list" } else { "unlist" }
    }

    fn drain(&mut self, culvert: &Culvert<'_>, number: usize) -> &'static str {
        let endpoint = address(number).to_string();
        self.tell(culvert, &["drain", &endpoint, "--timeout", "1h"]);
        self.endpoints[number].is_drained = true;
        "drain"
    }

    fn restore(&mut self, culvert: &Culvert<'_>, number: usize) -> &'static str {
        self.tell(culvert, &["restore", &address(number).to_string()]);
        self.endpoints[number].is_drained = false;
        "restore"
    }

    fn tell(&self, culvert: &Culvert<'_>, words: &[&str]) {
        let mut command = self.sandbox.culvert_command();
        output(command.args(words).arg("--admin").arg(culvert.admin()));
    }
}

/// How long it is until the next step.
pub(super) fn pause(rng: &mut Rng) -> Duration {
    Duration::from_millis(rng.u64(20..250))
}
