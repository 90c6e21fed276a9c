//! Everything at once: endpoints are killed, hang, come back, are drained, listed and no longer listed, rules come and go, packets
//! are lost, while verified traffic runs on every kind of path.
//!
//! What is promised: a connection fails only if it was on an endpoint in the moment in which that was killed. One that the hook has
//! rewritten also fails when it is made to a killed endpoint before anybody has noticed. And each ends as it should, at last:
//! nothing is left.
//!
//! It takes `CULVERT_CHAOS_SECONDS` (15 if that is not set). `CULVERT_CHAOS_SEED` has it do the same again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use culvert_tests::{
    App, Culvert, Sandbox,
    app::protocol::{Storm, Visit},
    eventually,
    process::app_binary,
    sandbox::{OTHER_V4, SERVER_V4},
    usage::{open_files, resident},
};
use fastrand::Rng;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const ENDPOINTS: usize = 6;
/// So many are always well, listed and not drained.
const WELL: usize = 2;
/// Where connections of each kind arrive.
const FRONTS: [(&str, u16); 6] = [
    ("copy", 8001),
    ("splice", 8002),
    ("sockmap", 8003),
    ("auto", 8004),
    ("group", 8005),
    ("rewrite", 8006),
];
/// Those that go with `rewrite`.
const BALANCE: [&str; 3] = ["round-robin", "least-conn", "p2c"];
/// Clients wait no longer for anything.
const PATIENCE_MS: u64 = 60_000;
/// Bytes of connections, in turn.
const LENGTHS: [u64; 3] = [200, 30_000, 400_000];

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
struct Death {
    port: u16,
    killed: (u64, u64),
    back: u64,
}

struct Chaos<'a> {
    sandbox: &'a Sandbox,
    culvert: &'a Culvert<'a>,
    endpoints: Vec<Endpoint>,
    deaths: Vec<Death>,
    rng: Rng,
    done: BTreeMap<&'static str, u32>,
}

fn address(number: usize) -> SocketAddr {
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

/// The group as it is listed, and the rules in an order and among others that change.
fn rules(endpoints: &[Endpoint], rng: &mut Rng) -> String {
    let listed = (0..).zip(endpoints).filter(|(_, one)| one.is_listed);
    let listed: Vec<_> = listed
        .map(|(number, _)| format!("{} weight={}", address(number), rng.u32(1..4)))
        .collect();
    let mut text = format!(
        "[upstream.farm]\nendpoints = {listed:?}\nbalance = \"{}\"\n\
         health = {{ tcp = true, interval = \"100ms\", timeout = \"30s\", fall = 1, rise = 1, \
                     passive = {{ failures = 3, eject = \"200ms\" }} }}\n",
        BALANCE[rng.usize(..BALANCE.len())]
    );
    let mut fronts = FRONTS.to_vec();
    rng.shuffle(&mut fronts);
    for (path, port) in fronts {
        if rng.bool() {
            let other = 20_000 + port;
            write!(
                text,
                "[[reverse]]\nname = \"other-{path}\"\nlisten = \"{OTHER_V4}:{other}\"\nvia = \"farm\"\n"
            )
            .unwrap();
        }
        let (section, path) = match path {
            "group" => (
                format!("forward]]\nmatch = {{ dest = \"{OTHER_V4}\", port = {port} }}"),
                "copy",
            ),
            "rewrite" => (
                format!("forward]]\nmatch = {{ dest = \"{OTHER_V4}\", port = {port} }}"),
                "rewrite",
            ),
            path => (format!("reverse]]\nlisten = \"{OTHER_V4}:{port}\""), path),
        };
        write!(
            text,
            "[[{section}\nname = \"front-{port}\"\nvia = \"farm\"\npath = \"{path}\"\n"
        )
        .unwrap();
    }
    text
}

impl Chaos<'_> {
    fn step(&mut self) {
        let number = self.rng.usize(..ENDPOINTS);
        let well = self.endpoints.iter().filter(|one| one.is_well()).count();
        let may_harm = well > WELL || !self.endpoints[number].is_well();
        let deed = match self.rng.u32(..5) {
            0 if self.endpoints[number].server.is_none() => self.restart(number),
            0 if may_harm => self.kill(number),
            // The clients of one that hangs can only wait.
            1..=3 if self.endpoints[number].is_hung => self.wake(number),
            1 if may_harm && self.endpoints[number].server.is_some() => self.hang(number),
            2 if self.endpoints[number].is_listed && may_harm => self.list(number, false),
            2 if !self.endpoints[number].is_listed => self.list(number, true),
            3 if self.endpoints[number].is_drained => self.restore(number),
            3 if may_harm && self.endpoints[number].is_listed => self.drain(number),
            4 => {
                self.reload();
                "reload"
            }
            _ => return,
        };
        *self.done.entry(deed).or_default() += 1;
        thread::sleep(Duration::from_millis(self.rng.u64(20..250)));
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
        self.reload();
        if listed { "list" } else { "unlist" }
    }

    fn reload(&mut self) {
        let rules = rules(&self.endpoints, &mut self.rng);
        self.culvert.reload(&rules);
    }

    fn drain(&mut self, number: usize) -> &'static str {
        self.tell(&["drain", &address(number).to_string(), "--timeout", "1h"]);
        self.endpoints[number].is_drained = true;
        "drain"
    }

    fn restore(&mut self, number: usize) -> &'static str {
        self.tell(&["restore", &address(number).to_string()]);
        self.endpoints[number].is_drained = false;
        "restore"
    }

    fn tell(&self, words: &[&str]) {
        let mut command = self.sandbox.culvert_command();
        command.args(words).arg("--admin").arg(self.culvert.admin());
        culvert_tests::process::output(&mut command);
    }

    /// Everybody is well, listed and not drained.
    fn calm(&mut self) {
        for number in 0..ENDPOINTS {
            if self.endpoints[number].is_hung {
                self.wake(number);
            }
            if self.endpoints[number].server.is_none() {
                self.restart(number);
            }
            if self.endpoints[number].is_drained {
                self.restore(number);
            }
            self.endpoints[number].is_listed = true;
        }
        self.reload();
    }
}

/// Makes connections of one length to all fronts until it is told to stop: what became of each.
fn load(app: App, length: u64, stop: Arc<AtomicBool>) -> JoinHandle<Vec<Visit>> {
    let addresses = FRONTS.map(|(_, port)| (OTHER_V4, port).into()).to_vec();
    let storm = Storm {
        addresses,
        threads: 6,
        each: 4,
        length,
    };
    thread::spawn(move || {
        let mut visits = Vec::new();
        while !stop.load(SeqCst) {
            visits.append(&mut app.visit(&storm));
        }
        visits
    })
}

/// Whether a connection was lost with an endpoint.
fn is_explained(visit: &Visit, deaths: &[Death]) -> bool {
    // The clocks are one, but are read before and after.
    const SLACK: u64 = 50;
    // Who is lost with an endpoint hears of it.
    if visit.ended_ms - visit.begun_ms >= PATIENCE_MS {
        return false;
    }
    let rewritten = visit.address.port() == FRONTS[5].1;
    deaths.iter().any(|death| {
        let was_there = visit.endpoint.is_none_or(|port| port == death.port);
        let end = if rewritten && visit.endpoint.is_none() {
            death.back
        } else {
            death.killed.1
        };
        let from = visit.begun_ms.saturating_sub(SLACK);
        was_there && from <= end && death.killed.0 <= visit.ended_ms + SLACK
    })
}

/// Lines of the log that warn of anything else than of an endpoint that was killed.
fn surprises(culvert: &Culvert<'_>, deaths: &[Death]) -> Vec<String> {
    let log = culvert.log();
    let of_the_dead = |line: &str| {
        let named = |death: &Death| line.contains(&format!("{SERVER_V4}:{}", death.port));
        line.contains("refused") && deaths.iter().any(named)
    };
    log.lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .filter(|line| !of_the_dead(line))
        .map(str::to_owned)
        .collect()
}

fn seconds() -> u64 {
    let told = env::var("CULVERT_CHAOS_SECONDS");
    told.map_or(15, |told| told.parse().expect("seconds"))
}

#[test]
fn nothing_is_lost_that_a_healthy_endpoint_could_have_served() {
    const GROWN: u64 = 32 * 1024 * 1024;
    let told = env::var("CULVERT_CHAOS_SEED");
    let seed = told.map_or_else(|_| fastrand::u64(..), |told| told.parse().expect("a seed"));
    println!("CULVERT_CHAOS_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let sandbox = Sandbox::new();
    sandbox.allow(Duration::from_secs(seconds()));
    let endpoints: Vec<_> = (0..ENDPOINTS)
        .map(|number| Endpoint {
            server: Some(serve(&sandbox, number)),
            is_hung: false,
            is_listed: true,
            is_drained: false,
        })
        .collect();
    let culvert = sandbox.culvert(&rules(&endpoints, &mut rng));
    sandbox.netns().lose_one_packet_in(100);
    let stop = Arc::<AtomicBool>::default();
    let loads = LENGTHS.map(|length| load(sandbox.app(), length, Arc::clone(&stop)));
    eventually("connections", || {
        let accepted = &culvert.status()["connections"]["accepted"];
        accepted.as_u64().filter(|count| *count > 100)
    });
    let before = (open_files(culvert.pid()), resident(culvert.pid()));

    let mut chaos = Chaos {
        sandbox: &sandbox,
        culvert: &culvert,
        endpoints,
        deaths: Vec::new(),
        rng,
        done: BTreeMap::new(),
    };
    let end = Instant::now() + Duration::from_secs(seconds());
    while Instant::now() < end {
        chaos.step();
    }
    chaos.calm();
    stop.store(true, SeqCst);
    let visits: Vec<_> = loads
        .into_iter()
        .flat_map(|load| load.join().unwrap())
        .collect();

    let deaths = &chaos.deaths;
    println!("{:?}", chaos.done);
    for (name, port) in FRONTS {
        let its = || visits.iter().filter(|visit| visit.address.port() == port);
        let failed = its().filter(|visit| visit.error.is_some()).count();
        println!("{name}: {} connections, {failed} lost", its().count());
        assert!(its().count() > failed + 20);
    }
    for visit in visits.iter().filter(|visit| visit.error.is_some()) {
        println!("{visit:?}, after {} ms", visit.ended_ms - visit.begun_ms);
    }
    let slowest = visits
        .iter()
        .max_by_key(|visit| visit.ended_ms - visit.begun_ms);
    println!("the slowest: {slowest:?}");
    let lost: Vec<_> = visits
        .iter()
        .filter(|visit| visit.error.is_some() && !is_explained(visit, deaths))
        .collect();
    assert!(lost.is_empty(), "{lost:#?}\n{deaths:#?}");
    let surprises = surprises(&culvert, deaths);
    assert!(surprises.is_empty(), "{surprises:#?}");

    run_is_over(&culvert);
    eventually("as few files as before", || {
        (open_files(culvert.pid()) <= before.0).then_some(())
    });
    let after = resident(culvert.pid());
    println!("resident: {} KiB, then {}", before.1 / 1024, after / 1024);
    assert!(after.saturating_sub(before.1) < GROWN, "{after}");
}

/// Waits until nothing is left of any connection.
fn run_is_over(culvert: &Culvert<'_>) {
    eventually("the end of all connections", || {
        let status = culvert.status();
        let over = status["connections"]["live"] == 0 && status["groups"][0]["live"] == 0;
        over.then_some(())
    });
    eventually("empty tables", || {
        let maps = culvert.maps();
        (maps.records().is_empty() && maps.own().is_empty() && maps.lanes().is_empty())
            .then_some(())
    });
}
