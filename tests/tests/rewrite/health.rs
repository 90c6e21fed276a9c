//! Who takes connections and who does not: what checks, names, time and the connections themselves say of endpoints.

use std::{net::SocketAddr, thread, time::Duration};

use culvert_tests::{
    Culvert, Sandbox, eventually,
    peer::Server,
    sandbox::{CLOSED_PORT, OTHER_V4, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

use super::{SERVICE, echo, names, rules, status, storm};

fn await_state(sandbox: &Sandbox, culvert: &Culvert<'_>, server: &str, state: &str) {
    eventually(&format!("{server} {state}"), || {
        (status(sandbox, culvert).get(server)?["state"] == state).then_some(())
    });
}

#[test]
fn checks_take_an_endpoint_out_and_bring_it_back() {
    let sandbox = Sandbox::new();
    let well = echo(&sandbox, SERVER_V4);
    let sick = echo(&sandbox, SERVER_V4);
    let address = sick.address();
    let health = "health = { tcp = true, interval = \"50ms\", rise = 1, fall = 1 }";
    let culvert = sandbox.culvert(&rules(&names(&[&well, &sick]), health, ""));
    let app = sandbox.app();
    drop(sick);
    await_state(&sandbox, &culvert, &address.to_string(), "down");
    let rewritten = culvert.counter("rewritten");
    // Nobody meets it.
    assert_eq!(storm(&app, 4, 50, 100), [(0, 200)].into());
    assert_eq!(culvert.counter("rewritten") - rewritten, 200);
    let sick = sandbox.within(|| Server::echo(address));
    await_state(&sandbox, &culvert, &address.to_string(), "up");
    // Checks are its clients, too.
    let made = |culvert| status(&sandbox, culvert)[&address.to_string()]["rewritten"].clone();
    let before = made(&culvert).as_u64().unwrap();
    assert_eq!(storm(&app, 4, 50, 100), [(0, 200)].into());
    let taken = made(&culvert).as_u64().unwrap() - before;
    assert!((60..140).contains(&taken), "{taken}");
    drop(sick);
}

#[test]
fn an_endpoint_that_dies_between_two_checks_is_ejected_by_those_who_meet_it() {
    let sandbox = Sandbox::new();
    let well = echo(&sandbox, SERVER_V4);
    let dead = SocketAddr::from((SERVER_V4, CLOSED_PORT));
    let endpoints = [well.address().to_string(), dead.to_string()];
    let health = "health = { passive = { failures = 3, eject = \"1h\" } }";
    let culvert = sandbox.culvert(&rules(&endpoints, health, ""));
    let app = sandbox.app();
    // As it would be without us.
    let refused = eventually("a connection to the dead one", || {
        let socket = app.tcp(SERVICE);
        let result = socket.connect(SERVICE);
        socket.close();
        result.err()
    });
    assert_eq!(refused, Errno::ECONNREFUSED);
    eventually("its ejection", || {
        let socket = app.tcp(SERVICE);
        // The error tells where it went.
        let _ = socket.connect(SERVICE);
        socket.close();
        (status(&sandbox, &culvert)[&dead.to_string()]["state"] == "ejected").then_some(())
    });
    let endpoint = status(&sandbox, &culvert)[&dead.to_string()].clone();
    assert_eq!(endpoint["failures"], 3, "{endpoint}");
    assert_eq!(endpoint["rewritten"], 0, "{endpoint}");
    assert!(
        endpoint["last_error"].as_str().unwrap().contains("refused"),
        "{endpoint}"
    );
    assert_eq!(storm(&app, 4, 50, 100), [(0, 200)].into());
}

#[test]
fn names_are_endpoints_too() {
    let sandbox = Sandbox::new();
    let name_server = sandbox.name_server();
    let one = echo(&sandbox, SERVER_V4);
    let port = one.address().port();
    let other = sandbox.within(|| Server::echo((OTHER_V4, port)));
    name_server.set("web.test", &[SERVER_V4.into()]);
    let culvert = sandbox.culvert(&rules(&[format!("dns:web.test:{port}")], "", ""));
    let app = sandbox.app();
    // The first may come before the answer of the name server: the relay has it wait.
    assert_eq!(storm(&app, 2, 10, 100), [(0, 20)].into());
    assert_eq!(storm(&app, 2, 10, 100), [(0, 20)].into());
    assert!(culvert.counter("rewritten") >= 20);
    assert_eq!(one.clients().len(), 40);
    name_server.set("web.test", &[OTHER_V4.into()]);
    await_state(&sandbox, &culvert, &other.address().to_string(), "up");
    let rewritten = culvert.counter("rewritten");
    assert_eq!(storm(&app, 2, 10, 100), [(0, 20)].into());
    assert_eq!(culvert.counter("rewritten"), rewritten + 20);
    assert_eq!(other.clients().len(), 20);
}

#[test]
fn a_newcomer_starts_slowly() {
    let sandbox = Sandbox::new();
    let old = echo(&sandbox, SERVER_V4);
    let new = echo(&sandbox, SERVER_V4);
    let slowly = "slow_start = \"1h\"";
    let culvert = sandbox.culvert(&rules(&names(&[&old]), slowly, ""));
    culvert.reload(&rules(&names(&[&old, &new]), slowly, ""));
    assert_eq!(storm(&sandbox.app(), 4, 150, 100), [(0, 600)].into());
    // An eleventh, and more than five standard deviations.
    let count = new.clients().len();
    assert!((10..100).contains(&count), "{count}");
    assert_eq!(culvert.counter("rewritten"), 600);
}

#[test]
fn who_gives_up_says_nothing_of_the_endpoint() {
    let sandbox = Sandbox::new();
    // A listener whose queue is full answers no SYN.
    let server = sandbox.within(|| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::from((SERVER_V4, 0)).into())
            .unwrap();
        socket.listen(0).unwrap();
        std::net::TcpListener::from(socket)
    });
    let address = server.local_addr().unwrap();
    let health = "health = { passive = { failures = 1, eject = \"1h\" }, panic = \"0%\" }";
    let well = echo(&sandbox, SERVER_V6);
    let endpoints = [address.to_string(), well.address().to_string()];
    let culvert = sandbox.culvert(&rules(&endpoints, health, ""));
    let app = sandbox.app();
    let waiting = eventually("a full queue", || {
        let socket = app.tcp(SERVICE);
        socket.set_nonblocking(true);
        socket.connect(SERVICE).err()?;
        socket.peer().is_err().then_some(socket)
    });
    waiting.close();
    let counted = || status(&sandbox, &culvert)[&address.to_string()]["failures"].clone();
    assert_eq!(counted(), 0);
    // Who waits until the SYN was repeated does.
    eventually("a failure", || {
        let socket = app.tcp(SERVICE);
        socket.set_nonblocking(true);
        let _ = socket.connect(SERVICE);
        thread::sleep(Duration::from_millis(1500));
        socket.close();
        (counted() == 1).then_some(())
    });
    let state = status(&sandbox, &culvert)[&address.to_string()]["state"].clone();
    assert_eq!(state, "ejected");
}
