//! By which interface a connection arrived: the kernel tells it of TCP by the control messages of "sticky options", to those who
//! want to be told.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr,
};

use tokio::net::TcpStream;

use super::condition::set;

/// Room for one control message of either family, and more.
const ROOM: libc::socklen_t = 256;

/// Has a listener of IPv4 want it, and so those whom it accepts, which saves two calls for each. It costs TCP nothing. In IPv6 the
/// kernel would keep a copy of packets for it (`tcp_v6_do_rcv()`).
pub(super) fn be_told(listener: &impl AsFd) -> io::Result<()> {
    set(
        listener.as_fd().as_raw_fd(),
        libc::IPPROTO_IP,
        libc::IP_PKTINFO,
        1,
    )
}

/// As [`super::ingress_interface`].
pub(super) fn interface(stream: &TcpStream, is_v4: bool) -> io::Result<u32> {
    let fd = stream.as_fd();
    let found = if is_v4 {
        messages(fd, libc::IPPROTO_IP, IP_PKTOPTIONS)?
    } else {
        set(fd.as_raw_fd(), libc::IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)?;
        let found = messages(fd, libc::IPPROTO_IPV6, IPV6_2292PKTOPTIONS);
        set(fd.as_raw_fd(), libc::IPPROTO_IPV6, IPV6_RECVPKTINFO, 0)?;
        found?
    };
    let (buffer, length) = found;
    first_interface(&buffer, length, is_v4)
        .ok_or_else(|| io::Error::other("the kernel does not tell the interface"))
}

/// `IP_PKTOPTIONS` of `linux/in.h`, which libc does not have.
const IP_PKTOPTIONS: libc::c_int = 9;
/// `IPV6_2292PKTOPTIONS` of `linux/in6.h`.
const IPV6_2292PKTOPTIONS: libc::c_int = 6;
/// `IPV6_RECVPKTINFO` of `linux/in6.h`.
const IPV6_RECVPKTINFO: libc::c_int = 49;

/// Aligned as control messages are.
#[repr(C, align(8))]
struct Buffer([u8; ROOM as usize]);

fn messages(fd: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<(Buffer, usize)> {
    let mut buffer = Buffer([0; ROOM as usize]);
    let mut length = ROOM;
    // SAFETY: the descriptor is borrowed and so open; the kernel writes at most `length` bytes, for which there is room.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            option,
            ptr::from_mut(&mut buffer.0).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok((buffer, length.min(ROOM) as usize))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The interface in the first message that has one.
fn first_interface(buffer: &Buffer, length: usize, is_v4: bool) -> Option<u32> {
    let header = size_of::<libc::cmsghdr>();
    let bytes = buffer.0.get(..length)?;
    // `in_pktinfo` begins with the number, `in6_pktinfo` ends with it, behind an address of 16 bytes.
    let at = header + if is_v4 { 0 } else { 16 };
    let number = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(number.try_into().ok()?)).filter(|number| *number != 0)
}
