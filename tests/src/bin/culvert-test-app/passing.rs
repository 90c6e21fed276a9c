//! Between processes: sockets by `SCM_RIGHTS`, answers of children by a pipe.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
};

use nix::{
    cmsg_space,
    sys::{
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
        wait::waitpid,
    },
    unistd::{ForkResult, fork, pipe},
};
use socket2::Socket;

/// Passes a socket to the first who connects to a Unix socket at `path`.
pub(crate) fn pass(socket: &Socket, path: &Path) -> io::Result<()> {
    // Under another name until it listens, so that whoever finds it can connect.
    let making = path.with_extension("making");
    let listener = UnixListener::bind(&making)?;
    std::fs::rename(&making, path)?;
    let (taker, _) = listener.accept()?;
    let sockets = [socket.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&sockets)];
    let byte = [IoSlice::new(b"!")];
    sendmsg::<()>(taker.as_raw_fd(), &byte, &control, MsgFlags::empty(), None)?;
    Ok(())
}

/// Takes a socket from whoever passes one at `path`.
pub(crate) fn take(path: &Path) -> io::Result<Socket> {
    let giver =
        culvert_tests::eventually("the giver of a socket", || UnixStream::connect(path).ok());
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(giver.as_raw_fd(), &mut bytes, Some(&mut space), flags)?;
    let taken = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let taken = taken.expect("a descriptor in the message");
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(Socket::from(unsafe { OwnedFd::from_raw_fd(taken) }))
}

/// Runs a closure in a child and returns what it returned there.
pub(crate) fn in_child(work: impl FnOnce() -> Vec<u8>) -> io::Result<Vec<u8>> {
    let (reader, writer) = pipe()?;
    // SAFETY: this program has no threads while it answers a call.
    match unsafe { fork() }? {
        ForkResult::Child => {
            File::from(writer).write_all(&work()).expect("the parent");
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut answer = Vec::new();
            File::from(reader).read_to_end(&mut answer)?;
            waitpid(child, None)?;
            Ok(answer)
        }
    }
}
