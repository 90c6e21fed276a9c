//! `connect()` by way of `io_uring` (kernel 5.5).

use std::{io, os::fd::AsRawFd};

use io_uring::{IoUring, opcode, types};
use socket2::{SockAddr, Socket};

pub(crate) fn connect(socket: &Socket, address: &SockAddr) -> io::Result<()> {
    let mut ring = IoUring::new(1)?;
    let descriptor = types::Fd(socket.as_raw_fd());
    let entry = opcode::Connect::new(descriptor, address.as_ptr().cast(), address.len()).build();
    // SAFETY: socket and address outlive the operation, since we wait for its end.
    unsafe { ring.submission().push(&entry) }.expect("room for one entry");
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().expect("a completion").result();
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(())
}
