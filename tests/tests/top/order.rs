//! The order of connections, by each of the keys for that.

use std::{
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use culvert_tests::{
    Sandbox, eventually, netns::Netns, peer::Server, rules::ALL, sandbox::SERVER_V4, tun::Tun,
};

use super::{quit, top};

/// Three connections: each is the first by something, and the last by something else.
#[test]
fn every_key_sorts_by_what_it_says() {
    /// Time between two exchanges.
    const PERIOD: Duration = Duration::from_millis(200);
    let sandbox = Sandbox::new();
    let hosts = [(); 2].map(|()| Netns::new());
    let here = sandbox.netns();
    let slow = Duration::from_millis(30);
    let _links = [
        Tun::with_delay(
            "slow",
            [(here, "10.7.1.1/24"), (&hosts[0], "10.7.1.2/24")],
            slow,
        ),
        Tun::between("quick", [(here, "10.7.2.1/24"), (&hosts[1], "10.7.2.2/24")]),
    ];
    let servers = [
        hosts[0].within(|| Server::echo(([10, 7, 1, 2], 0))),
        sandbox.within(|| Server::echo((SERVER_V4, 0))),
        hosts[1].within(|| Server::echo(([10, 7, 2, 2], 0))),
    ];
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    // In the order of their ages: the one with the longest round trip, the fastest, and the largest.
    let [oldest, fastest, largest] =
        [(0, 100_000), (1, 1000), (2, 2_000_000)].map(|(at, length)| {
            let server: &Server = &servers[at];
            let socket = app.tcp(server.address());
            socket.connect(server.address()).unwrap();
            socket.exchange(1, length).unwrap();
            socket
        });
    let names = servers.each_ref().map(|one| one.address().to_string());

    thread::scope(|scope| {
        // It ends with this, however that comes about.
        let (_stop, stopped) = channel::<()>();
        let (fastest, largest) = (&fastest, &largest);
        scope.spawn(move || {
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                fastest.exchange(1, 500).unwrap();
                largest.exchange(1, 100).unwrap();
            }
        });
        let mut screen = top(&sandbox, &culvert, &[]);
        let mut await_order = |keys: &str, by: &str, order: [usize; 3]| {
            screen.type_in(keys);
            screen.await_text(&format!("Connections 3, by {by}"));
            screen.await_seen(&format!("{order:?} by {by}"), |text| {
                let places = order.map(|at| text.find(&names[at]));
                let [Some(first), Some(second), Some(third)] = places else {
                    return None;
                };
                (first < second && second < third).then_some(())
            });
        };
        await_order("", "rate", [1, 2, 0]);
        await_order("t", "rtt", [0, 2, 1]);
        await_order("b", "bytes", [2, 0, 1]);
        await_order("a", "age", [0, 1, 2]);
        await_order("r", "rate", [1, 2, 0]);
        // One after the other, and again from the beginning.
        await_order("s", "bytes", [2, 0, 1]);
        await_order("s", "age", [0, 1, 2]);
        await_order("s", "rtt", [0, 2, 1]);
        await_order("s", "id", [0, 1, 2]);
        await_order("s", "rate", [1, 2, 0]);
        quit(screen);
    });
    for socket in [oldest, fastest, largest] {
        socket.close();
    }
    eventually("their ends", || {
        (culvert.status()["connections"]["live"] == 0).then_some(())
    });
}
