//! Endpoints that are killed, hang and come back, and clients that vanish, under load: what a client saw.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    process::{Child, Stdio},
    sync::Arc,
    thread,
    time::SystemTime,
};

use culvert_tests::{
    Culvert, Sandbox,
    daemon::Settings,
    eventually,
    netns::Netns,
    peer::nginx,
    process::{Running, attempt},
    record::CloseRecord,
    sandbox::{OTHER_V4, SERVER_V4},
    ways::{rules, ways},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    await_service,
    wrk::{Seen, wrk},
};

/// Where connections of each path arrive.
const FRONTS: [(&str, u16); 3] = [("copy", 8001), ("splice", 8002), ("sockmap", 8003)];

/// Several nginx that serve the same.
struct Farm<'a> {
    sandbox: &'a Sandbox,
    servers: Vec<Option<Running>>,
    page: String,
}

impl<'a> Farm<'a> {
    fn new(sandbox: &'a Sandbox, count: usize) -> Self {
        let lines: Vec<_> = (0..3000).map(|line| format!("line {line}")).collect();
        let mut farm = Self {
            sandbox,
            servers: (0..count).map(|_| None).collect(),
            page: lines.join("\n"),
        };
        fs::write(sandbox.directory().join("page"), &farm.page).unwrap();
        for number in 0..count {
            fs::create_dir(sandbox.directory().join(number.to_string())).unwrap();
            farm.start(number);
        }
        farm
    }

    fn address(number: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 9000 + u16::try_from(number).unwrap()).into()
    }

    fn start(&mut self, number: usize) {
        let server = format!(
            "keepalive_requests 100; server {{ listen {}; root {}; location = /health {{ return 200; }} }}",
            Self::address(number),
            self.sandbox.directory().display()
        );
        let directory = self.sandbox.directory().join(number.to_string());
        let nginx = nginx(&directory, &server, &mut self.sandbox.outsider("nginx"));
        self.servers[number] = Some(nginx);
        await_service("nginx", || {
            let mut curl = self.sandbox.outsider("curl");
            curl.args(["-sSf", &format!("http://{}/health", Self::address(number))]);
            curl
        });
    }

    /// Whom connections of all paths arrive for.
    fn rules(&self) -> String {
        let endpoints: Vec<_> = (0..self.servers.len())
            .map(|number| Self::address(number).to_string())
            .collect();
        let rule = |(path, port): &(&str, u16)| {
            format!(
                "[[reverse]]\nname = \"{path}\"\nlisten = \"{SERVER_V4}:{port}\"\nvia = \"farm\"\npath = \"{path}\"\n"
            )
        };
        format!(
            "[upstream.farm]\nendpoints = {endpoints:?}\nbalance = \"round-robin\"\n\
             health = {{ http = \"/health\", interval = \"100ms\", timeout = \"300ms\", fall = 1, rise = 1, \
                         passive = {{ failures = 5, eject = \"200ms\" }} }}\n{}",
            FRONTS.iter().map(rule).collect::<String>()
        )
    }

    /// Load on all paths while something happens: what was seen on each.
    fn under_load(&mut self, seconds: u32, event: impl FnOnce(&mut Self)) -> Vec<Seen> {
        let (sandbox, page) = (self.sandbox, self.page.clone());
        thread::scope(|scope| {
            let page = &page;
            let loads: Vec<_> = FRONTS
                .iter()
                .map(|(_, port)| {
                    let url = format!("http://{SERVER_V4}:{port}/page");
                    let load =
                        move || wrk(sandbox, sandbox.outsider("wrk"), seconds, 6, &url, page);
                    scope.spawn(load)
                })
                .collect();
            event(self);
            assert!(
                loads.iter().all(|load| !load.is_finished()),
                "all of it happened under load"
            );
            loads.into_iter().map(|load| load.join().unwrap()).collect()
        })
    }
}

/// Waits until the daemon says something of an endpoint.
fn await_endpoint(culvert: &Culvert<'_>, number: usize, what: &str, says: impl Fn(&Value) -> bool) {
    let address = Farm::address(number).to_string();
    eventually(&format!("{address} to be {what}"), || {
        let status = culvert.status();
        let mut endpoints = status["groups"][0]["endpoints"].as_array().unwrap().iter();
        says(endpoints.find(|one| one["address"] == address)?).then_some(())
    });
}

fn await_state(culvert: &Culvert<'_>, number: usize, state: &str) {
    await_endpoint(culvert, number, state, |its| its["state"] == state);
}

/// Waits until an endpoint has connections under way: what happens to it then is felt.
fn await_busy(culvert: &Culvert<'_>, number: usize) {
    let is_busy = |its: &Value| its["live"].as_u64().is_some_and(|live| live > 2);
    await_endpoint(culvert, number, "busy", is_busy);
}

#[test]
fn a_killed_endpoint_takes_nothing_along_but_what_it_had() {
    let sandbox = Sandbox::new();
    let mut farm = Farm::new(&sandbox, 3);
    let culvert = sandbox.culvert(&farm.rules());
    let mut kills = Vec::new();
    let seen = farm.under_load(4, |farm| {
        for number in [0, 2] {
            await_busy(&culvert, number);
            let begun = now();
            farm.servers[number] = None;
            await_state(&culvert, number, "down");
            await_endpoint(&culvert, number, "rid of all", |its| its["live"] == 0);
            kills.push((Farm::address(number).to_string(), begun..=now()));
            farm.start(number);
            await_state(&culvert, number, "up");
        }
    });
    let records = culvert.records();
    for ((path, _), seen) in FRONTS.into_iter().zip(seen) {
        // The kernel ends some in order and resets others: what tells is whose they were, and when they ended.
        let was_lost = |record: &&CloseRecord| {
            let by = |(endpoint, time): &(String, RangeInclusive<u64>)| {
                record.endpoint.as_ref() == Some(endpoint) && time.contains(&record.closed_at_ms)
            };
            kills.iter().any(by)
        };
        let its = || {
            records
                .iter()
                .filter(|record| record.rule.as_deref() == Some(path))
        };
        let lost = its().filter(was_lost).count();
        println!("{path}: {seen:?}, {lost} lost with an endpoint");
        assert!(seen.requests > 50 && lost > 0, "{seen:?}");
        assert!(seen.read <= lost as u64, "{seen:?}, {lost} lost");
        assert_eq!(seen.failures(), seen.read, "{seen:?}");
        for record in its().filter(|record| !was_lost(record)) {
            // What it has asked for when its time is over, `wrk` does not wait for.
            assert!(
                ["done", "downstream_reset"].contains(&&*record.reason),
                "{record:#?}"
            );
        }
    }
}

/// As close records tell the time.
fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Its listener goes on to take connections, so only a request tells. What it has got, it answers when it goes on.
#[test]
fn a_hung_endpoint_costs_time_and_nothing_else() {
    let sandbox = Sandbox::new();
    let mut farm = Farm::new(&sandbox, 3);
    let culvert = sandbox.culvert(&farm.rules());
    let seen = farm.under_load(3, |farm| {
        for number in [1, 0] {
            await_busy(&culvert, number);
            let hung = farm.servers[number].as_ref().unwrap();
            hung.signal(Signal::SIGSTOP);
            await_state(&culvert, number, "down");
            hung.signal(Signal::SIGCONT);
            await_state(&culvert, number, "up");
        }
    });
    for ((path, _), seen) in FRONTS.into_iter().zip(seen) {
        println!("{path}: {seen:?}");
        seen.assert_flawless(path);
    }
}

/// A page that takes the clients of a test for ever.
fn endless(sandbox: &Sandbox) -> Running {
    fs::write(sandbox.directory().join("page"), vec![b'x'; 10 << 20]).unwrap();
    let server = format!(
        "keepalive_timeout 600s;
         server {{ listen 0.0.0.0:8080; root {}; location = /page {{ limit_rate 100k; }}
                   location = /active {{ stub_status; }} }}",
        sandbox.directory().display()
    );
    let nginx = nginx(sandbox.directory(), &server, &mut sandbox.outsider("nginx"));
    await_service("nginx", || {
        let mut curl = sandbox.outsider("curl");
        curl.args(["-sSf", "http://127.0.0.1:8080/active"]);
        curl
    });
    nginx
}

/// Waits until nginx serves that many connections, one of them this question.
fn await_active(sandbox: &Sandbox, count: usize) {
    eventually(&format!("{count} connections to nginx"), || {
        let mut curl = sandbox.outsider("curl");
        curl.args(["-sS", "http://127.0.0.1:8080/active"]);
        let said = String::from_utf8(attempt(&mut curl).stdout).unwrap();
        said.starts_with(&format!("Active connections: {} ", count + 1))
            .then_some(())
    });
}

#[test]
fn whoever_vanishes_in_the_middle_leaves_nothing_behind() {
    const EACH: usize = 3;
    let sandbox = Sandbox::new();
    let _nginx = endless(&sandbox);
    let culvert = sandbox.culvert(&rules(8080));
    let all = ways(8080);
    for _ in 0..2 {
        let mut clients = Vec::<Child>::new();
        for way in all.iter().flat_map(|way| [way; EACH]) {
            let mut curl = sandbox.command("curl");
            curl.args([
                "-sS",
                "-o",
                "/dev/null",
                &format!("http://{}/page", way.address),
            ]);
            clients.push(curl.stdin(Stdio::null()).spawn().unwrap());
        }
        await_active(&sandbox, EACH * all.len());
        for client in &mut clients {
            client.kill().unwrap();
            client.wait().unwrap();
        }
        await_active(&sandbox, 0);
        eventually("no connection", || {
            (culvert.status()["connections"]["live"] == 0).then_some(())
        });
    }
    assert_eq!(culvert.maps().own(), []);
    assert_eq!(culvert.maps().lanes(), []);
    assert_eq!(culvert.maps().records(), []);
}

/// A host whose cable was pulled says nothing, for ever.
#[test]
fn whoever_is_cut_off_is_given_up_after_a_time() {
    let sandbox = Sandbox::new();
    let _nginx = endless(&sandbox);
    let far = Arc::new(Netns::new());
    sandbox
        .netns()
        .link("cable", "198.51.100.1/24", &far, "198.51.100.2/24");
    let settings = Settings::daemon("idle_timeout = \"1s\"");
    let rules = FRONTS.map(|(path, port)| {
        format!("[[reverse]]\nname = \"{path}\"\nlisten = \"*:{port}\"\nvia = \"127.0.0.1:8080\"\npath = \"{path}\"\n")
    });
    let culvert = sandbox.culvert_with(&settings, &rules.concat());
    let clients = FRONTS.map(|(_, port)| {
        let mut curl = sandbox.command_elsewhere(&far, "curl");
        curl.args([
            "-sS",
            "-o",
            "/dev/null",
            &format!("http://198.51.100.1:{port}/page"),
        ]);
        Running::start(&mut curl)
    });
    let near = FRONTS.map(|(_, port)| {
        let mut curl = sandbox.command("curl");
        curl.args([
            "-sS",
            "-o",
            "/dev/null",
            &format!("http://{OTHER_V4}:{port}/page"),
        ]);
        Running::start(&mut curl)
    });
    await_active(&sandbox, 6);
    sandbox.netns().ip("link set cable down");
    for record in culvert.await_records(3) {
        assert_eq!(record.reason, "idle_timeout", "{record:#?}");
        assert_eq!(
            record.client.ip(),
            Ipv4Addr::new(198, 51, 100, 2),
            "{record:#?}"
        );
    }
    // The others were not disturbed.
    await_active(&sandbox, 3);
    drop((clients, near));
}
