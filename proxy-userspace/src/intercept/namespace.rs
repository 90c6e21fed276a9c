//! Which network namespace the listeners are in, in the kernel's own numbers.
//!
//! Sockets tell it by `SO_NETNS_COOKIE` since kernel 5.14; hooks have known it since 5.7. Before, a hook is asked: a program on our
//! own cgroup notes the number when a socket that we have marked as ours connects. It is a datagram socket, so nothing is
//! sent and nobody else notices.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::fd::AsFd,
};

use aya::{
    Ebpf,
    maps::{Map, SkStorage},
    programs::CgroupSockAddr,
};
use proxy_common::names;
use thiserror::Error;

use super::{
    InterceptError, MODE, attach_error,
    handles::{Relays, duplicate, map_error},
    load_error,
};
use crate::{
    cgroup::{Cgroup2, CgroupError},
    socket,
};

/// Why a hook could not be asked.
#[derive(Debug, Error)]
pub enum NamespaceError {
    /// Our own cgroup, where it would be attached.
    #[error(
        "kernels before 5.14 tell the network namespace only to hooks, and none can be attached to the cgroup of this process"
    )]
    Cgroup(#[source] CgroupError),
    /// A system call.
    #[error(
        "cannot {operation} to ask a hook for the network namespace, as kernels before 5.14 need it"
    )]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It was not called.
    #[error(
        "the hook that tells the network namespace was not called, which kernels before 5.14 need; start culvert without a change \
         of its cgroup meanwhile"
    )]
    Silent,
}

/// The number of the namespace that a listener of ours is in, which is that of this thread.
pub(super) fn cookie(
    ebpf: &mut Ebpf,
    relays: &Relays,
    listener: &TcpListener,
) -> Result<u64, InterceptError> {
    match socket::netns_cookie(listener) {
        Ok(cookie) => Ok(cookie),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => ask(ebpf, relays),
        Err(error) => Err(failed("read SO_NETNS_COOKIE")(error).into()),
    }
}

fn ask(ebpf: &mut Ebpf, relays: &Relays) -> Result<u64, InterceptError> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed("make a socket"))?;
    let mut ours: SkStorage<_, u32> =
        SkStorage::try_from(Map::SkStorage(duplicate(ebpf, names::OURS)?))
            .map_err(map_error("open", names::OURS))?;
    ours.insert(&socket, 1, 0)
        .map_err(map_error("insert into", names::OURS))?;

    let own = Cgroup2::find().and_then(|cgroups| cgroups.own_dir());
    let own = own.map_err(NamespaceError::Cgroup)?;
    let own = File::open(own).map_err(failed("open the own cgroup"))?;
    let program: &mut CgroupSockAddr = ebpf
        .program_mut(names::NETNS)
        .and_then(|program| program.try_into().ok())
        .ok_or(InterceptError::Missing(names::NETNS))?;
    program.load().map_err(load_error(names::NETNS))?;
    let link = program
        .attach(own.as_fd(), MODE)
        .and_then(|id| program.take_link(id))
        .map_err(attach_error(names::NETNS))?;
    // Whichever address: a datagram socket only notes it.
    let asked = socket
        .local_addr()
        .and_then(|address| socket.connect(address));
    drop(link);
    asked.map_err(failed("connect a socket"))?;
    let unloaded = program.unload();
    unloaded.map_err(load_error(names::NETNS))?;

    // It has written there.
    match relays.own()?.netns_cookie {
        0 => Err(NamespaceError::Silent.into()),
        cookie => Ok(cookie),
    }
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> NamespaceError {
    move |source| NamespaceError::Socket { operation, source }
}
