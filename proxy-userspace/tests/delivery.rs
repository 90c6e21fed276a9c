//! Rules and routes of local delivery, in network namespaces of their own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use proxy_userspace::delivery::{self, Delivery, DeliveryError, Place, Places, Want};
use socket2::{Domain, SockAddr, Socket, Type};

/// Runs a test in a new network namespace, which goes with the thread.
fn apart(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which needs root");
            tool("ip", "link set lo up");
            test();
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn tool(program: &str, arguments: &str) -> String {
    let arguments: Vec<_> = arguments.split_ascii_whitespace().collect();
    let output = Command::new(program).args(&arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that could be left: rules, and routes of tables that nobody made but us.
fn routing() -> String {
    [
        "ip rule",
        "ip -6 rule",
        "ip -4 route show table all proto 67",
        "ip -6 route show table all proto 67",
    ]
    .map(|command| command.split_once(' ').unwrap())
    .map(|(program, arguments)| tool(program, arguments))
    .concat()
}

fn marked(interface: &str) -> Want {
    Want::Marked {
        interface: Arc::from(interface),
    }
}

fn replies(from: &str) -> Want {
    Want::Replies {
        from: from.parse().unwrap(),
    }
}

#[test]
fn what_is_made_is_tagged_and_goes_when_it_is_dropped() {
    apart(|| {
        let before = routing();
        let wants = [
            marked("eth7"),
            replies("127.0.0.1:8080"),
            replies("[::1]:8081"),
        ];
        let delivery = Delivery::new(&wants).unwrap();
        assert_eq!(delivery.mark(), 0x6375_6c00);
        let rules = tool("ip", "rule");
        for line in [
            "from all fwmark 0x63756c00 iif eth7 [detached] lookup 1668639744 proto 67",
            "from 127.0.0.1 ipproto tcp sport 8080 lookup 1668639744 proto 67",
        ] {
            assert!(rules.contains(line), "{rules}");
        }
        let rules = tool("ip", "-6 rule");
        assert!(
            rules.contains("from ::1 ipproto tcp sport 8081 lookup 1668639744 proto 67"),
            "{rules}"
        );
        let route = "local default dev lo proto 67 scope host";
        let v4 = tool("ip", "route show table 1668639744");
        assert!(v4.contains(route), "{v4}");
        let v6 = tool("ip", "-6 route show table 1668639744");
        assert!(v6.contains("local default dev lo proto 67"), "{v6}");
        drop(delivery);
        assert_eq!(routing(), before);
    });
}

#[test]
fn a_plan_is_what_is_done() {
    apart(|| {
        let wants = [
            marked("lo"),
            replies("127.0.0.1:8080"),
            replies("[::1]:8081"),
        ];
        let made = {
            let _delivery = Delivery::new(&wants).unwrap();
            routing()
        };
        for command in delivery::planned(&wants) {
            let (program, arguments) = command.split_once(' ').unwrap();
            tool(program, arguments);
        }
        assert_eq!(routing(), made);
    });
}

#[test]
fn wants_can_change() {
    apart(|| {
        let mut delivery = Delivery::new(&[replies("127.0.0.1:1"), marked("lo")]).unwrap();
        let with_both = routing();
        delivery
            .change(&[marked("lo"), replies("127.0.0.1:2")])
            .unwrap();
        let rules = routing();
        assert!(
            rules.contains("sport 2 ") && !rules.contains("sport 1 "),
            "{rules}"
        );
        assert!(rules.contains("fwmark"), "{rules}");
        delivery
            .change(&[replies("127.0.0.1:1"), marked("lo")])
            .unwrap();
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&routing()), sorted(&with_both));
    });
}

/// A listener where there was one a moment ago: a process that another test is about to start may hold that until it executes.
fn listener(address: SocketAddr) -> TcpListener {
    let mut tries = 200;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => tries -= 1,
            bound => return bound.unwrap(),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a service at an address can answer somebody who is not here.
fn answers_a_stranger(service: SocketAddr, stranger: &str) -> bool {
    let listener = listener(service);
    let socket = Socket::new(Domain::for_address(service), Type::STREAM, None).unwrap();
    // One bit of both families.
    socket.set_ip_transparent_v4(true).unwrap();
    let stranger: SocketAddr = stranger.parse().unwrap();
    socket.bind(&stranger.into()).unwrap();
    let reached = socket.connect_timeout(&SockAddr::from(listener.local_addr().unwrap()), PATIENCE);
    if reached.is_err() {
        return false;
    }
    assert_eq!(listener.accept().unwrap().1, stranger);
    true
}

/// Longer than an answer takes; what should not come is waited for as long.
const PATIENCE: Duration = Duration::from_millis(700);

#[test]
fn a_service_on_loopback_answers_addresses_of_others() {
    apart(|| {
        for (service, stranger) in [
            ("127.0.0.1:8080", "198.51.100.7:4000"),
            ("[::1]:8080", "[2001:db8::7]:4000"),
        ] {
            let service = service.parse().unwrap();
            assert!(!answers_a_stranger(service, stranger));
            let delivery = Delivery::new(&[Want::Replies { from: service }]).unwrap();
            assert!(answers_a_stranger(service, stranger));
            drop(delivery);
            assert!(!answers_a_stranger(service, stranger));
        }
    });
}

#[test]
fn two_do_not_touch_each_other() {
    apart(|| {
        let before = routing();
        let first = Delivery::new(&[replies("127.0.0.1:80"), marked("lo")]).unwrap();
        let second = Delivery::new(&[replies("127.0.0.1:80"), marked("lo")]).unwrap();
        assert_ne!(first.mark(), second.mark());
        assert_eq!(delivery::stale().unwrap(), [0; 0]);
        assert_eq!(delivery::remove_stale().unwrap(), 0);
        drop(first);
        let rules = routing();
        assert_eq!(
            rules.matches(&second.mark().to_string()).count(),
            5,
            "{rules}"
        );
        drop(second);
        assert_eq!(routing(), before);
    });
}

/// Not a test, but the process that is killed in one.
#[test]
#[ignore = "started by another test"]
fn holds_until_it_is_killed() {
    let _delivery = Delivery::new(&[replies("127.0.0.1:80"), marked("lo")]).unwrap();
    println!("ready");
    thread::sleep(Duration::from_mins(10));
}

fn holder() -> Child {
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "holds_until_it_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(holder.stdout.as_mut().unwrap()).lines();
    assert!(output.any(|line| line.unwrap().contains("ready")));
    holder
}

#[test]
fn what_a_killed_process_left_is_told_from_what_lives_and_removed() {
    apart(|| {
        let before = routing();
        let mut killed = holder();
        let living = Delivery::new(&[marked("lo")]).unwrap();
        assert_eq!(delivery::stale().unwrap(), [0; 0]);
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert_eq!(delivery::stale().unwrap(), [0x6375_6c00]);
        assert_ne!(living.mark(), 0x6375_6c00);
        assert_eq!(delivery::remove_stale().unwrap(), 1);
        assert_eq!(delivery::remove_stale().unwrap(), 0);
        assert!(routing().contains(&living.mark().to_string()));
        drop(living);
        assert_eq!(routing(), before);
    });
}

#[test]
fn who_takes_the_table_of_a_killed_process_has_it_for_himself() {
    apart(|| {
        let before = routing();
        let mut killed = holder();
        killed.kill().unwrap();
        killed.wait().unwrap();
        let next = Delivery::new(&[marked("lo")]).unwrap();
        assert_eq!(next.mark(), 0x6375_6c00);
        let rules = routing();
        assert!(!rules.contains("sport"), "{rules}");
        drop(next);
        assert_eq!(routing(), before);
    });
}

#[test]
fn a_rule_in_the_way_is_named() {
    for (rule, shown) in [
        ("fwmark 0x1/0xff lookup 100 priority 9", None),
        ("fwmark 0x400/0xf00 lookup 100 priority 1", None),
        (
            "fwmark 0xc00/0xf00 lookup 100 priority 1",
            Some(
                "`1: from all fwmark 0xc00/0xf00 lookup 100` of another owner is asked before culvert's",
            ),
        ),
        (
            "not fwmark 0xca6c lookup 51820 priority 1",
            Some("`1: not from all fwmark 0xca6c lookup 51820` of another owner is asked before"),
        ),
        (
            "to 10.0.0.0/8 lookup 100 priority 0",
            Some("`0: from all to 10.0.0.0/8 lookup 100` of another owner is asked before"),
        ),
        (
            "fwmark 0x63756c00 lookup main priority 5000",
            Some(
                "`5000: from all fwmark 0x63756c00 lookup 254` of another owner is about culvert's mark",
            ),
        ),
        (
            "from 10.1.1.1 lookup 1668639744 priority 5000",
            Some(
                "`5000: from 10.1.1.1/32 lookup 1668639744` of another owner uses culvert's routing table",
            ),
        ),
    ] {
        apart(|| {
            tool("ip", &format!("rule add {rule}"));
            let before = routing();
            let outcome = Delivery::new(&[marked("lo")]);
            match (outcome, shown) {
                (Ok(_), None) => {}
                (Err(error @ DeliveryError::Conflict(_)), Some(shown)) => {
                    assert!(error.to_string().contains(shown), "{error}");
                }
                (outcome, _) => panic!("{rule}: {outcome:?}"),
            }
            assert_eq!(routing(), before);
        });
    }
}

#[test]
fn a_change_that_is_refused_changes_nothing() {
    apart(|| {
        let mut delivery = Delivery::new(&[replies("127.0.0.1:80")]).unwrap();
        tool("ip", "rule add fwmark 0x63756c00 lookup main priority 5000");
        let before = routing();
        delivery.change(&[replies("127.0.0.1:81")]).unwrap_err();
        assert_eq!(routing(), before);
    });
}

#[test]
fn without_ipv6_it_delivers_ipv4() {
    apart(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let before = routing();
        let delivery = Delivery::new(&[marked("lo"), replies("127.0.0.1:80")]).unwrap();
        assert!(routing().contains("fwmark"));
        drop(delivery);
        assert_eq!(routing(), before);
        let error = Delivery::new(&[replies("[::1]:80")]);
        if let Err(error) = error {
            assert!(
                error.to_string().contains("ip -6 route add local default"),
                "{error}"
            );
        }
        assert_eq!(routing(), before);
    });
}

#[test]
fn where_a_server_is_is_asked_again_soon() {
    apart(|| {
        const SERVER: &str = "10.2.0.2";
        let server: IpAddr = SERVER.parse().unwrap();
        let mut places = Places::default();
        assert_eq!(places.of(server).unwrap(), Place::Nowhere);
        tool("ip", "link add eth7 type veth peer name eth8");
        tool("ip", "link set eth7 up");
        tool("ip", "route add 10.2.0.0/24 dev eth7");
        let mut becomes = |expected: fn(Place) -> bool| {
            // More than a tenth of a second.
            thread::sleep(Duration::from_millis(150));
            let place = places.of(server).unwrap();
            assert!(expected(place), "{place:?}");
        };
        becomes(|place| matches!(place, Place::Remote(_)));
        tool("ip", &format!("address add {SERVER}/32 dev eth7"));
        becomes(|place| place == Place::Local);
        tool("ip", &format!("address del {SERVER}/32 dev eth7"));
        // The routes of an interface go with its last address.
        becomes(|place| place == Place::Nowhere);
    });
}
