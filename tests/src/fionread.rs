//! Whether this kernel tells a program how many bytes wait for it (`FIONREAD`) when its socket is in a map whose program sees only
//! what is sent: found out without culvert, by a program and a map of our own.
//!
//! Kernels with "bpf, sockmap: Fix FIONREAD for sockmap" (929e30f93125) say 0, those with its fix (04af4efde58a) and older ones the
//! truth; which stable kernels have which is not told by their versions.

use std::{
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::bytecode::{self, call, descriptor, instruction};

// Of `linux/bpf.h`.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_ATTACH: libc::c_int = 8;
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_MSG: u32 = 16;
const SK_MSG_VERDICT: u32 = 7;

/// Whether it tells the truth.
pub fn is_right() -> bool {
    const MESSAGE: &[u8] = b"so many bytes";
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let address = listener.local_addr().expect("its address");
    let asking = TcpStream::connect(address).expect("a connection");
    let (mut sending, _) = listener.accept().expect("its other end");
    let _map = map_with(&asking).expect("a map with a socket");
    sending.write_all(MESSAGE).expect("to send");
    let arrived = poll(
        &mut [PollFd::new(asking.as_fd(), PollFlags::POLLIN)],
        PollTimeout::try_from(crate::eventually::patience()).expect("a timeout"),
    );
    assert_eq!(arrived, Ok(1), "nothing arrives");
    waiting(&asking).expect("FIONREAD") == MESSAGE.len()
}

/// A map that holds a socket, and has a program that lets pass whatever is sent.
fn map_with(socket: &TcpStream) -> io::Result<OwnedFd> {
    // r0 = SK_PASS; exit
    let code = [instruction(0xb7, 0, 0, 1), instruction(0x95, 0, 0, 0)];
    let program = bytecode::load(PROG_TYPE_SK_MSG, SK_MSG_VERDICT, &code)?;
    // SAFETY: the attributes are numbers: type, sizes of key and value, entries.
    let map = unsafe { call(MAP_CREATE, &mut [MAP_TYPE_SOCKMAP, 4, 4, 1]) }?;
    // SAFETY: the kernel has just made it.
    let map = unsafe { descriptor(map) };
    let [map_number, program] = [map.as_raw_fd(), program.as_raw_fd()].map(RawFd::unsigned_abs);
    let mut attach = [map_number, program, SK_MSG_VERDICT, 0];
    // SAFETY: the attributes are numbers.
    unsafe { call(PROG_ATTACH, &mut attach) }?;
    let (key, value) = (0_u32, socket.as_raw_fd());
    let (key, value) = (&raw const key as u64, &raw const value as u64);
    let mut insert = [u64::from(map_number), key, value, 0];
    // SAFETY: key and value are four bytes each, as the map says, and are only read.
    unsafe { call(MAP_UPDATE_ELEM, &mut insert) }?;
    Ok(map)
}

fn waiting(socket: &TcpStream) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes a number to where one is.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    Errno::result(asked)?;
    usize::try_from(bytes).map_err(io::Error::other)
}
