//! How a connection is, for whoever looks at it and does not own its socket.
//!
//! Sockets belong to the relays of other threads, which close them when it is time. A number of a descriptor is all that is kept
//! here, so it may be another file's by the time somebody asks; the cookie of the socket tells. It is asked for when somebody looks
//! for the first time: nobody ever looks at most connections.

use std::{
    io, mem,
    num::NonZeroU64,
    os::fd::{AsFd, AsRawFd, RawFd},
    ptr,
    sync::OnceLock,
    time::Duration,
};

use nix::errno::Errno;

use super::{inq, queued};

/// Silence after which a connection that lasts is probed, in seconds.
pub(super) const KEEPALIVE_IDLE: libc::c_int = 60;
/// Seconds between two probes.
pub(super) const KEEPALIVE_INTERVAL: libc::c_int = 10;
/// Unanswered probes after which the connection is dead: two minutes from the last sign of life.
pub(super) const KEEPALIVE_PROBES: libc::c_int = 6;

/// A TCP socket of this process, which may be gone.
#[derive(Debug)]
pub struct Handle {
    fd: RawFd,
    /// The number that the kernel gives to no other socket (`SO_COOKIE`, Linux 4.12).
    cookie: OnceLock<NonZeroU64>,
}

/// How a connection is at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Round trip, smoothed, as the kernel measures it (`tcpi_rtt`).
    pub rtt: Duration,
    /// Bytes that arrived and that nobody has read.
    pub unread: u64,
    /// Bytes that the peer or the network has no room for yet (`tcpi_notsent_bytes`, Linux 4.6).
    pub unsent: u64,
}

impl Handle {
    /// Of a socket. Whoever uses it for the first time must have reason to think that the socket is still there: one that is closed
    /// just then may be taken for the next of its number.
    #[must_use]
    pub fn of(socket: &impl AsFd) -> Self {
        Self {
            fd: socket.as_fd().as_raw_fd(),
            cookie: OnceLock::new(),
        }
    }

    /// How its connection is; `None` when it is gone.
    #[must_use]
    pub fn look(&self) -> Option<Condition> {
        let known = self.known()?;
        let info = tcp_info(self.fd).ok()?;
        let unread = queued(self.fd, inq).ok()?;
        // Last: a cookie is never given again, so what was asked before was asked of this socket or of nobody's.
        (self.there() == Some(known)).then(|| Condition {
            rtt: Duration::from_micros(info.tcpi_rtt.into()),
            unread,
            unsent: info.tcpi_notsent_bytes.into(),
        })
    }

    /// Has the kernel find out when its peer is silent because it is gone.
    pub fn keep_alive(&self) {
        if self.known().is_none() || self.there() != self.known() {
            return;
        }
        for (level, name, value) in [
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        ] {
            // If it is closed meanwhile, another connection of ours gets this earlier than it would.
            _ = set(self.fd, level, name, value);
        }
    }

    /// The cookie that it has, as of the first time that somebody asked.
    fn known(&self) -> Option<NonZeroU64> {
        if self.cookie.get().is_none() {
            _ = self.cookie.set(self.there()?);
        }
        self.cookie.get().copied()
    }

    /// The cookie of the socket that has its number now.
    fn there(&self) -> Option<NonZeroU64> {
        let mut found = 0_u64;
        option(self.fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut found).ok()?;
        NonZeroU64::new(found)
    }
}

/// Statistics of a connection. The struct grows from kernel to kernel: what an older one does not know is 0.
pub(super) fn tcp_info(fd: RawFd) -> io::Result<libc::tcp_info> {
    // SAFETY: plain integers, for which zeros are a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    Ok(info)
}

/// Reads an option into plain integers.
fn option<T: Copy>(fd: RawFd, level: i32, name: i32, into: &mut T) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: whatever the number stands for, the kernel answers or refuses, and writes at most `length` bytes, for which there
    // is room; both callers' types are integers, of which any bytes are a value.
    let result =
        unsafe { libc::getsockopt(fd, level, name, ptr::from_mut(into).cast(), &raw mut length) };
    Errno::result(result)?;
    Ok(())
}

/// Sets an option to an integer.
pub(super) fn set(fd: RawFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: whatever the number stands for, the kernel reads one integer, or refuses.
    let result = unsafe { libc::setsockopt(fd, level, name, ptr::from_ref(&value).cast(), length) };
    Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{Ipv4Addr, TcpListener, TcpStream},
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn what_waits_is_seen_on_both_sides() {
        let (mut near, far) = pair();
        let [near_handle, far_handle] = [&near, &far].map(Handle::of);
        let look = near_handle.look().unwrap();
        assert!(look.rtt > Duration::ZERO, "{look:?}");
        assert_eq!((look.unread, look.unsent), (0, 0));
        near.set_nonblocking(true).unwrap();
        let block = vec![0; 65_536];
        let mut sent = 0;
        while let Ok(count) = near.write(&block) {
            sent += count as u64;
        }
        // The window is closed: what does not fit into one queue waits in the other.
        while near_handle.look().unwrap().unsent + far_handle.look().unwrap().unread < sent / 2 {
            std::thread::yield_now();
        }
        assert!(near_handle.look().unwrap().unsent > 0);
        assert!(far_handle.look().unwrap().unread > 0);
    }

    #[test]
    fn who_lasts_is_kept_alive() {
        let (one, _far) = pair();
        let socket = socket2::SockRef::from(&one);
        assert!(!socket.keepalive().unwrap());
        Handle::of(&one).keep_alive();
        assert!(socket.keepalive().unwrap());
        let seconds = |time: Duration| libc::c_int::try_from(time.as_secs()).unwrap();
        let idle = socket.tcp_keepalive_time().unwrap();
        assert_eq!(seconds(idle), KEEPALIVE_IDLE);
        let interval = socket.tcp_keepalive_interval().unwrap();
        assert_eq!(seconds(interval), KEEPALIVE_INTERVAL);
        let probes = socket.tcp_keepalive_retries().unwrap();
        assert_eq!(libc::c_int::try_from(probes).unwrap(), KEEPALIVE_PROBES);
    }

    #[test]
    fn who_is_gone_is_not_taken_for_who_came_after() {
        let (one, _far) = pair();
        let handle = Handle::of(&one);
        assert!(handle.look().is_some());
        let fd = one.as_raw_fd();
        drop(one);
        assert_eq!(handle.look(), None);
        // The lowest number is given again, unless another thread of the tests was faster.
        let others: Vec<_> = (0..8).map(|_| pair()).collect();
        assert!(
            others
                .iter()
                .flat_map(|(one, other)| [one, other])
                .all(|socket| { socket.as_raw_fd() != fd || handle.look().is_none() })
        );
    }
}
