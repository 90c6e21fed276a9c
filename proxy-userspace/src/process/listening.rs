//! Which sockets of this network namespace listen, and where.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use procfs::{
    FromBufReadSI, ProcResult, current_system_info, net::TcpNetEntries, process::FDTarget,
};

use crate::netlink;

/// Tables of the TCP sockets of this network namespace, for kernels that do not tell otherwise; the second is not there without IPv6.
const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
/// `TCP_LISTEN` as these tables write it.
const LISTEN: &str = "0A";

/// What listened when it was looked: addresses, and the inode numbers of sockets.
pub(crate) struct Listening(Vec<(SocketAddr, u64)>);

impl Listening {
    /// Looks.
    pub(crate) fn read() -> Self {
        Self(netlink::listeners().unwrap_or_else(|_absent| Self::from_tables()))
    }

    fn from_tables() -> Vec<(SocketAddr, u64)> {
        let tables = TABLES
            .iter()
            .filter_map(|table| listeners(BufReader::new(File::open(table).ok()?)).ok());
        let sockets = tables.flat_map(|table| table.0);
        sockets.map(|it| (it.local_address, it.inode)).collect()
    }

    /// The sockets that take connections to an address.
    pub(super) fn at(&self, address: SocketAddr) -> impl Iterator<Item = (SocketAddr, u64)> {
        let takes = move |local: SocketAddr| {
            let ip = local.ip().to_canonical();
            local.port() == address.port() && (ip.is_unspecified() || ip == address.ip())
        };
        self.0
            .iter()
            .copied()
            .filter(move |(local, _)| takes(*local))
    }

    /// The socket that the kernel gives a connection to an address, by its inode number. Of several that are alike it is `held`, if that
    /// is one of them: they share one port, and the kernel chooses among them whichever it is told.
    pub(crate) fn best(&self, address: SocketAddr, held: Option<u64>) -> Option<u64> {
        // As the kernel prefers them: at the very address, then at all of its family; a socket of IPv6 may take IPv4, too.
        let rank = |local: SocketAddr| {
            let is_exact = !local.ip().is_unspecified();
            (!is_exact, local.is_ipv4() != address.is_ipv4())
        };
        let sockets = self.at(address);
        let best = sockets.min_by_key(|(local, inode)| (rank(*local), Some(*inode) != held));
        best.map(|(_, inode)| inode)
    }
}

/// Descriptors of sockets, by their inode numbers, taken from processes that hold them (`pidfd_getfd`, kernel 5.6). To be given up
/// soon: while one is open its socket listens, whatever becomes of the process.
pub(crate) fn take(wanted: &BTreeSet<u64>) -> HashMap<u64, OwnedFd> {
    let mut taken = HashMap::new();
    if wanted.is_empty() {
        return taken;
    }
    for process in procfs::process::all_processes()
        .into_iter()
        .flatten()
        .flatten()
    {
        for file in process.fd().into_iter().flatten().flatten() {
            if let FDTarget::Socket(inode) = file.target
                && wanted.contains(&inode)
                && !taken.contains_key(&inode)
                && let Ok(socket) = duplicate(process.pid, file.fd)
            {
                taken.insert(inode, socket);
            }
        }
        if taken.len() == wanted.len() {
            break;
        }
    }
    taken
}

/// A descriptor of what another process has under a number.
fn duplicate(pid: i32, number: i32) -> io::Result<OwnedFd> {
    let process = descriptor(
        // SAFETY: the call takes numbers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) },
    )?;
    // SAFETY: as above; the descriptor is open.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    descriptor(taken)
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The listening sockets of a table. They come first (`tcp_get_idx()` in `net/ipv4/tcp_ipv4.c`), so what is read does
/// not grow with the connections of the host.
fn listeners(table: impl BufRead) -> ProcResult<TcpNetEntries> {
    let mut rows = String::new();
    for (number, row) in table.lines().enumerate() {
        let row = row?;
        let is_heading = number == 0;
        if !is_heading && row.split_ascii_whitespace().nth(3) != Some(LISTEN) {
            break;
        }
        rows.push_str(&row);
        rows.push('\n');
    }
    TcpNetEntries::from_buf_read(rows.as_bytes(), current_system_info())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Others of the host come and go meanwhile.
    #[test]
    fn the_kernel_and_its_tables_tell_the_same_of_who_listens() {
        let ours = ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"]
            .map(|address| TcpListener::bind(address).unwrap());
        for listened in [netlink::listeners().unwrap(), Listening::from_tables()] {
            for listener in &ours {
                let inode = nix::sys::stat::fstat(listener).unwrap().st_ino;
                let address = listener.local_addr().unwrap();
                assert!(
                    listened.contains(&(address, inode)),
                    "{address} {inode}: {listened:?}"
                );
            }
        }
    }

    #[test]
    fn reading_stops_behind_the_listeners() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1\n   \
                     1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 42 1\n   \
                     2: this is never parsed\n";
        let found = listeners(table.as_bytes()).unwrap().0;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].inode, 41);
    }

    #[test]
    fn the_most_specific_listener_is_the_best_and_among_equals_the_one_that_is_held() {
        let at = |local: &str, inode| (local.parse::<SocketAddr>().unwrap(), inode);
        let mut listening = Listening(vec![
            at("[::]:80", 1),
            at("0.0.0.0:80", 2),
            at("0.0.0.0:81", 3),
            at("192.0.2.1:80", 4),
            at("192.0.2.1:80", 5),
            at("192.0.2.2:80", 6),
        ]);
        let address = "192.0.2.1:80".parse().unwrap();
        for (held, best) in [
            (None, 4),
            (Some(4), 4),
            (Some(5), 5),
            (Some(2), 4),
            (Some(6), 4),
        ] {
            assert_eq!(listening.best(address, held), Some(best), "{held:?}");
        }
        listening.0.truncate(3);
        assert_eq!(listening.best(address, Some(1)), Some(2));
        listening.0.truncate(1);
        assert_eq!(listening.best(address, None), Some(1));
        assert_eq!(listening.best("192.0.2.1:443".parse().unwrap(), None), None);
    }
}
