use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpStream as StdStream},
};

use super::*;

const V4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const V6: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 0);

/// A connected pair: the far end, and the end that a listener of ours accepted.
fn accepted(address: SocketAddr) -> (StdStream, StdStream) {
    let listener = listener(address, 16).expect("a listener");
    let far = StdStream::connect(listener.local_addr().expect("its address")).expect("a client");
    listener
        .set_nonblocking(false)
        .expect("a blocking listener");
    let (near, _) = listener.accept().expect("the accepted socket");
    (far, near)
}

fn assert_relay_options(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    assert!(socket.tcp_nodelay().expect("TCP_NODELAY"));
    assert!(socket.out_of_band_inline().expect("SO_OOBINLINE"));
    assert_eq!(socket.protocol().expect("SO_PROTOCOL"), Some(Protocol::TCP));
}

/// What waits, as a read tells it.
fn assert_tells_what_waits(far: &mut StdStream, near: &StdStream) {
    far.write_all(b"some bytes").expect("room");
    let ready = has_news(near).expect("a poll") || {
        std::thread::sleep(Duration::from_millis(50));
        has_news(near).expect("a poll")
    };
    assert!(ready);
    let mut buffer = [0; 4];
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    let mut control = nix::cmsg_space!(libc::c_int);
    let flags = MsgFlags::empty();
    let read =
        nix::sys::socket::recvmsg::<()>(near.as_raw_fd(), &mut parts, Some(&mut control), flags);
    assert_eq!(read.expect("a read").bytes, 4);
    // SAFETY: the kernel writes one control message into room for one, which begins with its header.
    let header = unsafe { control.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
    assert_eq!(
        (header.cmsg_level, header.cmsg_type),
        (libc::SOL_TCP, libc::TCP_INQ)
    );
}

fn assert_own_and_non_blocking(socket: &Socket) {
    assert!(socket.nonblocking().expect("O_NONBLOCK"));
    let flags = nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_GETFD).expect("F_GETFD");
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
}

#[test]
fn upstream_sockets_are_plain_tcp_with_the_options_of_relayed_connections() {
    for address in [V4, V6] {
        let socket = for_upstream(address).expect("a socket");
        assert_relay_options(&socket);
        assert_own_and_non_blocking(&socket);
        assert_eq!(
            socket.domain().expect("SO_DOMAIN"),
            Domain::for_address(address)
        );
    }
}

#[test]
fn accepted_sockets_inherit_the_options() {
    for address in [V4, V6] {
        let (mut far, near) = accepted(address);
        assert_relay_options(&near);
        assert_tells_what_waits(&mut far, &near);
    }
}

#[test]
fn workers_share_a_port_and_strangers_do_not() {
    for address in [V4, V6] {
        let first = listener(address, 16).expect("the first listener");
        let shared = first.local_addr().expect("its address");
        let second = listener(shared, 16).expect("the second listener");
        assert_eq!(second.local_addr().expect("its address"), shared);
        let stranger = TcpListener::bind(shared).expect_err("no shared port");
        assert_eq!(stranger.kind(), io::ErrorKind::AddrInUse);
        assert_own_and_non_blocking(&second.into());
    }
}

#[test]
fn an_ipv6_listener_takes_ipv6_only() {
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let listener = listener(any, 16).expect("a listener");
    assert!(SockRef::from(&listener).only_v6().expect("IPV6_V6ONLY"));
}

#[tokio::test]
async fn reset_reaches_the_other_side_as_a_reset() {
    let (mut far, near) = accepted(V4);
    near.set_nonblocking(true).expect("a non-blocking socket");
    reset(TcpStream::from_std(near).expect("a tokio socket"));
    let error = far.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn the_error_of_a_reset_waits_on_the_socket_and_is_taken_once() {
    let (far, near) = accepted(V4);
    SockRef::from(&far)
        .set_linger(Some(Duration::ZERO))
        .expect("SO_LINGER");
    drop(far);
    let mut ready = [PollFd::new(near.as_fd(), PollFlags::POLLIN)];
    poll(&mut ready, PollTimeout::NONE).expect("poll");
    let error = take_error(&near)
        .expect("SO_ERROR")
        .expect("an error waits");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(take_error(&near).expect("SO_ERROR").is_none());
}

#[test]
fn urgent_data_stays_in_the_stream() {
    let (mut far, mut near) = accepted(V4);
    far.write_all(b"ab").expect("bytes before");
    SockRef::from(&far)
        .send_out_of_band(b"!")
        .expect("an urgent byte");
    far.write_all(b"cd").expect("bytes behind");
    drop(far);
    let mut all = String::new();
    near.read_to_string(&mut all).expect("the stream");
    assert_eq!(all, "ab!cd");
}

#[test]
fn sockets_have_cookies_of_their_own_and_share_their_namespace() {
    let (one, other) = accepted(V4);
    assert_ne!(
        cookie(&one).expect("SO_COOKIE"),
        cookie(&other).expect("SO_COOKIE")
    );
    assert_eq!(
        cookie(&one).expect("SO_COOKIE"),
        cookie(&one).expect("SO_COOKIE")
    );
    let namespace = netns_cookie(&one).expect("SO_NETNS_COOKIE");
    assert_ne!(namespace, 0);
    assert_eq!(namespace, netns_cookie(&other).expect("SO_NETNS_COOKIE"));
}

#[test]
fn resource_exhaustion_is_ours_and_never_the_other_sides() {
    for number in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS] {
        assert!(
            is_resource_exhaustion(&io::Error::from_raw_os_error(number)),
            "{number}"
        );
    }
    for number in [
        libc::ECONNREFUSED,
        libc::ECONNABORTED,
        libc::ETIMEDOUT,
        libc::EPERM,
    ] {
        assert!(
            !is_resource_exhaustion(&io::Error::from_raw_os_error(number)),
            "{number}"
        );
    }
    assert!(!is_resource_exhaustion(
        &io::ErrorKind::UnexpectedEof.into()
    ));
}

/// An acknowledgement between the two questions that the answer is made of would make it too small.
#[test]
fn what_was_sent_is_exact_while_acknowledgements_come_in() {
    const ROUNDS: u64 = 20_000;
    const PIECE: usize = 1000;
    let (mut far, mut near) = accepted(V4);
    let start = sent_exactly(&near).expect("a count");
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while far.read(&mut buffer).expect("bytes") > 0 {}
    });
    for round in 1..=ROUNDS {
        near.write_all(&[0; PIECE]).expect("room");
        let sent = sent_exactly(&near).expect("a count");
        assert_eq!(sent - start, round * PIECE as u64, "in round {round}");
    }
    near.shutdown(Shutdown::Write).expect("an end");
    reader.join().expect("the reader");
}
