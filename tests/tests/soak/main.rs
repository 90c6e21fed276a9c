//! Everything at once, in all roles: endpoints are killed, hang, come back, are drained, listed and no longer listed, rules come
//! and go, containers start again and again, one of them in another network each time, packets are lost, while verified traffic runs
//! on every kind of path, through proxies, and past the relay by the fast path of a router.
//!
//! What is promised: a connection fails only if it was on an endpoint in the moment in which that was killed. One that the hook has
//! rewritten also fails when it is made to a killed endpoint before anybody has noticed. Each ends as it should, at last: nothing
//! is left. And however long it takes, the daemon needs no more than in the beginning.
//!
//! It takes `CULVERT_SOAK_SECONDS` (120 if that is not set); `cargo xtask soak` sets it. `CULVERT_SOAK_SEED` has it do the same again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

mod farm;
mod traffic;
mod vitals;

use std::{
    cell::Cell,
    collections::BTreeMap,
    env,
    net::TcpStream,
    process::{Command, Stdio},
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use culvert_tests::{
    App, Culvert, Sandbox,
    app::protocol::Visit,
    container::{Container, Pod, id, network},
    daemon::Settings,
    eventually::{eventually, in_time},
    hosts::{Hosts, WAN},
    peer::HttpProxy,
    process::{Running, app_binary},
    record::CloseRecord,
    sandbox::SERVER_V4,
};
use fastrand::Rng;

use self::{
    farm::{Death, Farm},
    traffic::{
        ALONE, CONTAINER, GATEWAY, HTTP_PROXY, LENGTHS, NOWHERE, OF_APPS, PROXY, ROUTED, SERVICE,
        SHOWN, Stop, address, await_capture, behind_proxies, fronts, is_explained, keep_up,
        start_again,
    },
    vitals::{Vitals, WORKERS},
};

/// Packets of a connection that passes through, at least: its two beginnings and ends, and some of what it sends there and back.
const PACKETS: u64 = 10;

fn told<T: std::str::FromStr>(variable: &str) -> Option<T> {
    let told = env::var(variable).ok()?;
    let Ok(told) = told.parse() else {
        panic!("{variable}={told} is no number");
    };
    Some(told)
}

/// What nobody does anything to.
struct Others {
    _servers: Vec<App>,
    _proxy: Running,
    _http_proxy: HttpProxy,
}

impl Others {
    fn start(sandbox: &Sandbox, hosts: &Hosts) -> Self {
        let serve = |mut program: Command, address| {
            let server = App::start(&mut program);
            server.serve(address);
            server
        };
        let [socks, http] = behind_proxies();
        let here = [SERVICE, socks, http];
        let here = here.map(|address| serve(sandbox.outsider(app_binary()), address));
        let there = Sandbox::outsider_in(hosts.server(1), app_binary());
        let there = serve(there, address(ROUTED));
        let mut proxy = sandbox.outsider("microsocks");
        proxy.args(["-i", &PROXY.ip().to_string()]);
        proxy.args(["-p", &PROXY.port().to_string()]);
        // A line for each connection.
        let proxy = Running::start(proxy.stderr(Stdio::null()));
        sandbox.within(|| eventually("a proxy", || TcpStream::connect(PROXY).ok()));
        Self {
            _servers: here.into_iter().chain([there]).collect(),
            _proxy: proxy,
            _http_proxy: sandbox.within(|| HttpProxy::start(HTTP_PROXY)),
        }
    }
}

/// A container that starts again and again, each time with a network of its own.
fn in_new_networks(sandbox: &Sandbox, id: &str, stop: &AtomicBool) -> Vec<Visit> {
    let numbers = Cell::new(0);
    let start = || {
        // The link to the network before goes when that does, which takes a moment.
        numbers.set((numbers.get() + 1) % 200);
        let netns = network(sandbox, numbers.get());
        let container = Container::alone(sandbox, id, &netns);
        let app = container.start_app();
        await_capture(&app, ALONE);
        (app, container)
    };
    start_again(start, ALONE, stop)
}

#[test]
fn nothing_is_lost_and_nothing_grows() {
    let seconds = told("CULVERT_SOAK_SECONDS").unwrap_or(120);
    let seed = told("CULVERT_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("CULVERT_SOAK_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let sandbox = Sandbox::new();
    sandbox.allow(Duration::from_secs(seconds));
    let hosts = Hosts::around(&sandbox);
    let way = format!("route add {NOWHERE} dev {}", WAN[0]);
    sandbox.netns().ip(&way);
    // What `keep_source` needs on the way to another address of this host.
    sandbox.netns().sysctl("net.ipv4.tcp_fwmark_accept", "1");
    let alone = id();
    let mut farm = Farm::new(&sandbox, &alone);
    let others = Others::start(&sandbox, &hosts);
    let settings = Settings::daemon(&format!("workers = {WORKERS}"));
    let first_rules = farm.rules(&mut rng);
    let culvert = sandbox.culvert_with(&settings, &first_rules);
    warm_up(&sandbox, &culvert, &first_rules);
    let pod = Pod::new(&sandbox);
    let container = pod.app("app");
    let mut vitals = Vitals::new(&sandbox, &culvert);
    for lossy in [sandbox.netns(), hosts.server(1)] {
        lossy.lose_one_packet_in(100);
    }
    let sent_on = culvert.counter("fast");

    let stop = AtomicBool::new(false);
    let mut done = BTreeMap::<_, u32>::new();
    let visits: Vec<Visit> = thread::scope(|scope| {
        let stop = &stop;
        let mut loads = Vec::new();
        for length in LENGTHS {
            let app = sandbox.app();
            loads.push(scope.spawn(move || keep_up(&app, &OF_APPS, length, stop)));
        }
        let host = hosts.app(&sandbox, 0);
        loads.push(scope.spawn(move || keep_up(&host, &[GATEWAY], LENGTHS[1], stop)));
        let container = &container;
        loads.push(
            scope.spawn(move || start_again(|| (container.start_app(), ()), CONTAINER, stop)),
        );
        let other = hosts.app(&sandbox, 1);
        loads.push(scope.spawn(move || keep_up(&other, &[SHOWN], LENGTHS[1], stop)));
        let passing = hosts.app(&sandbox, 1);
        loads.push(scope.spawn(move || keep_up(&passing, &[ROUTED], LENGTHS[2], stop)));
        let (sandbox, alone) = (&sandbox, &*alone);
        loads.push(scope.spawn(move || in_new_networks(sandbox, alone, stop)));

        let stopping = Stop(stop);
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            if let Some(deed) = farm.step(&culvert, &mut rng) {
                *done.entry(deed).or_default() += 1;
                thread::sleep(farm::pause(&mut rng));
            }
            vitals.look(&culvert);
        }
        farm.calm(&culvert);
        culvert.reload(&first_rules);
        drop(stopping);
        loads
            .into_iter()
            .flat_map(|load| load.join().unwrap())
            .collect()
    });

    // What was in force before is still in the tables.
    culvert.reload(&first_rules);
    println!("{done:?}\n{vitals}");
    assert_explained(&visits, &farm.deaths, &culvert.records());
    assert_routed(&visits, culvert.counter("fast") - sent_on);
    let surprises = surprises(&culvert, &farm.deaths);
    assert!(surprises.is_empty(), "{surprises:#?}");
    await_rest(&culvert);
    vitals.assert_flat(&culvert);
    drop(others);
}

/// What is loaded and opened when it is first used is there before the first look.
fn warm_up(sandbox: &Sandbox, culvert: &Culvert<'_>, rules: &str) {
    let warm = traffic::storm(&OF_APPS, LENGTHS[2]);
    let visits = sandbox.app().visit(&warm);
    assert!(visits.iter().all(|visit| visit.error.is_none()));
    culvert.reload(rules);
    await_rest(culvert);
}

/// What passes through was sent on by the fast path.
fn assert_routed(visits: &[Visit], sent_on: u64) {
    let routed = visits
        .iter()
        .filter(|visit| visit.address == address(ROUTED));
    let least = routed.count() as u64 * PACKETS;
    assert!(
        sent_on >= least,
        "{sent_on} packets by the fast path, of {least}"
    );
}

fn assert_explained(visits: &[Visit], deaths: &[Death], records: &[CloseRecord]) {
    for (name, port) in fronts() {
        let its = || visits.iter().filter(|visit| visit.address.port() == port);
        let failed = its().filter(|visit| visit.error.is_some()).count();
        println!("{name}: {} connections, {failed} lost", its().count());
        assert!(its().count() > failed + 20);
    }
    for visit in visits.iter().filter(|visit| visit.error.is_some()) {
        println!("{visit:?}, after {} ms", visit.ended_ms - visit.begun_ms);
    }
    let time = |visit: &&Visit| visit.ended_ms - visit.begun_ms;
    println!("the slowest: {:?}", visits.iter().max_by_key(time));
    let lost: Vec<_> = visits
        .iter()
        .filter(|visit| visit.error.is_some() && !is_explained(visit, deaths, records))
        .collect();
    assert!(lost.is_empty(), "{lost:#?}\n{deaths:#?}");
}

/// Lines of the log that warn of anything else than of an endpoint that was killed or a container that starts again.
fn surprises(culvert: &Culvert<'_>, deaths: &[Death]) -> Vec<String> {
    let log = culvert.log();
    let of_the_dead = |line: &str| {
        let named = |death: &Death| line.contains(&format!("{SERVER_V4}:{}", death.port));
        // Who is killed resets those whose connections were made and not accepted yet.
        let usual = ["refused", "reset by peer"];
        usual.iter().any(|part| line.contains(part)) && deaths.iter().any(named)
    };
    // A container that starts is met before there are listeners, and one that was ended is not there.
    let of_the_restarted = |line: &str| {
        let usual = [
            "processes in another network namespace cannot reach the relay",
            "it does not run; its rules apply as soon as it does",
        ];
        usual.iter().any(|part| line.contains(part))
    };
    log.lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .filter(|line| !of_the_dead(line) && !of_the_restarted(line))
        .map(str::to_owned)
        .collect()
}

/// Waits until nothing is left of any connection.
fn await_rest(culvert: &Culvert<'_>) {
    eventually("the end of all connections", || {
        let status = culvert.status();
        let groups = status["groups"].as_array().unwrap();
        let over = groups.iter().all(|group| group["live"] == 0);
        (over && status["connections"]["live"] == 0).then_some(())
    });
    let mut left = String::new();
    let are_empty = in_time(|| {
        let maps = culvert.maps();
        let (records, own, lanes) = (maps.records(), maps.own(), maps.lanes());
        left = format!("records {records:?}, own {own:?}, lanes {lanes:?}");
        (records.is_empty() && own.is_empty() && lanes.is_empty()).then_some(())
    });
    assert!(are_empty.is_some(), "{left}");
}
