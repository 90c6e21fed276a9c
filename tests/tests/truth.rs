//! What the app is told about its own socket, and what must be told as if culvert were not there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::net::{IpAddr, SocketAddr};

use culvert_tests::{
    App, Sandbox, Socket,
    app::protocol::{Family, Kind},
    peer::Server,
    rules::{ALL, RELAY, relayed},
    sandbox::{SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` have the same number (`linux/netfilter_ipv4.h`,
/// `linux/netfilter_ipv6/ip6_tables.h`).
const ORIGINAL_DST: i32 = 80;

/// `struct sockaddr_in` or `sockaddr_in6` of an address.
fn sockaddr(address: SocketAddr) -> Vec<u8> {
    let family = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let mut bytes = u16::try_from(family).unwrap().to_ne_bytes().to_vec();
    bytes.extend(address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes.extend(ip.octets());
            bytes.extend([0; 8]);
        }
        IpAddr::V6(ip) => {
            bytes.extend([0; 4]);
            bytes.extend(ip.octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

fn level(address: SocketAddr) -> i32 {
    match address {
        SocketAddr::V4(_) => libc::SOL_IP,
        SocketAddr::V6(_) => libc::SOL_IPV6,
    }
}

fn connected(app: &App, destination: SocketAddr) -> Socket<'_> {
    let socket = app.tcp(destination);
    socket.connect(destination).unwrap();
    socket
}

fn echo(sandbox: &Sandbox, address: impl Into<IpAddr> + Send) -> Server {
    sandbox.within(|| Server::echo((address.into(), 0)))
}

#[test]
fn the_original_destination() {
    let sandbox = Sandbox::new();
    let servers = [echo(&sandbox, SERVER_V4), echo(&sandbox, SERVER_V6)];
    let _culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    for server in &servers {
        let (address, level) = (server.address(), level(server.address()));
        let socket = connected(&app, address);
        let expected = sockaddr(address);
        let length = expected.len();
        // With just enough room, and with more.
        for room in [length, length + 100, 4096, 10_000] {
            assert_eq!(
                socket.option(level, ORIGINAL_DST, room).as_deref(),
                Ok(&*expected),
                "{room} bytes of room"
            );
        }
    }
}

#[test]
fn the_original_destination_of_a_mapped_one_is_ipv4() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let _culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let mapped = SocketAddr::new(SERVER_V4.to_ipv6_mapped().into(), server.address().port());
    let socket = connected(&app, mapped);
    let answer = socket.option(libc::SOL_IP, ORIGINAL_DST, 16);
    assert_eq!(answer, Ok(sockaddr(server.address())));
}

#[test]
fn the_original_destination_in_too_little_room() {
    let sandbox = Sandbox::new();
    let servers = [echo(&sandbox, SERVER_V4), echo(&sandbox, SERVER_V6)];
    // What the kernel says where nothing was redirected.
    let app = sandbox.app();
    let errors: Vec<_> = servers
        .iter()
        .map(|server| errors_in_little_room(&connected(&app, server.address()), server.address()))
        .collect();
    let _culvert = sandbox.culvert(ALL);
    for (server, errors) in servers.iter().zip(errors) {
        let socket = connected(&app, server.address());
        assert_eq!(errors_in_little_room(&socket, server.address()), errors);
    }
}

fn errors_in_little_room(socket: &Socket<'_>, address: SocketAddr) -> Vec<Errno> {
    let enough = sockaddr(address).len();
    let ask = |room| socket.option(level(address), ORIGINAL_DST, room);
    (0..enough)
        .map(|room| ask(room).expect_err("an answer in too little room"))
        .collect()
}

#[test]
fn direct_connections_have_no_original_destination() {
    let sandbox = Sandbox::new();
    let servers = [echo(&sandbox, SERVER_V4), echo(&sandbox, SERVER_V6)];
    let app = sandbox.app();
    let ask = |server: &Server| {
        let socket = connected(&app, server.address());
        assert_eq!(socket.peer(), Ok(server.address()));
        let answer = socket.option(level(server.address()), ORIGINAL_DST, 28);
        answer.expect_err("an original destination of a direct connection")
    };
    let without = servers.each_ref().map(ask);
    let _culvert = sandbox.culvert(&(RELAY.to_owned() + &relayed("other", "port = 1")));
    assert_eq!(servers.each_ref().map(ask), without);
}

#[test]
fn the_number_of_the_original_destination_at_other_levels_is_something_else() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let app = sandbox.app();
    let ask = |socket: &Socket<'_>| {
        [
            libc::SOL_SOCKET,
            libc::SOL_TCP,
            libc::SOL_UDP,
            libc::SOL_IPV6,
        ]
        .map(|level| socket.option(level, ORIGINAL_DST, 64))
    };
    let without = ask(&connected(&app, server.address()));
    let _culvert = sandbox.culvert(ALL);
    assert_eq!(ask(&connected(&app, server.address())), without);
}

#[test]
fn other_options_are_untouched() {
    let sandbox = Sandbox::new();
    let server = echo(&sandbox, SERVER_V4);
    let app = sandbox.app();
    let small = [
        (libc::SOL_SOCKET, libc::SO_TYPE),
        (libc::SOL_SOCKET, libc::SO_ERROR),
        (libc::SOL_SOCKET, libc::SO_PROTOCOL),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        (libc::SOL_TCP, libc::TCP_NODELAY),
        (libc::SOL_IP, libc::IP_TTL),
        (libc::SOL_IP, libc::IP_TOS),
        (libc::SOL_IP, 12345),
        (12345, 1),
    ];
    let ask = |socket: &Socket<'_>| {
        let ask = |(level, name)| {
            [0, 1, 4, 4096, 5000, 70_000].map(|room| socket.option(level, name, room))
        };
        small.map(ask)
    };
    let without = ask(&connected(&app, server.address()));
    let _culvert = sandbox.culvert(ALL);
    assert_eq!(ask(&connected(&app, server.address())), without);
}

#[test]
fn options_longer_than_a_page_are_untouched() {
    // The kernel shows hooks no more than a page of an option. A list of many multicast sources is longer than that.
    const SOURCES: u16 = 1200;
    let sandbox = Sandbox::new();
    sandbox.netns().sysctl("net.ipv4.igmp_max_msf", "2000");
    let _culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let socket = app.open(Family::V4, Kind::Udp);
    let membership = [GROUP, SERVER_V4.octets()].concat();
    let filter = multicast_filter(SOURCES);
    socket
        .set_option_bytes(libc::SOL_IP, libc::IP_ADD_MEMBERSHIP, &membership)
        .unwrap();
    socket
        .set_option_bytes(libc::SOL_IP, IP_MSFILTER, &filter)
        .unwrap();
    // Which group is meant is in the buffer.
    let answer = socket.option_into(libc::SOL_IP, IP_MSFILTER, filter.clone());
    assert!(filter.len() > 4096);
    assert_eq!(answer, Ok(filter));
}

const GROUP: [u8; 4] = [239, 1, 2, 3];
/// From linux/in.h.
const IP_MSFILTER: i32 = 41;
const MCAST_INCLUDE: u32 = 1;

/// `struct ip_msfilter`: take from these sources only.
fn multicast_filter(sources: u16) -> Vec<u8> {
    let mut filter = [GROUP, SERVER_V4.octets()].concat();
    filter.extend(MCAST_INCLUDE.to_ne_bytes());
    filter.extend(u32::from(sources).to_ne_bytes());
    for source in 1..=sources {
        let [high, low] = source.to_be_bytes();
        filter.extend([10, 0, high, low]);
    }
    filter
}
