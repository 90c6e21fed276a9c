//! Which sockets listen, as `sock_diag` tells: it goes through those that do. The files in `/proc/net` go on through the table of all
//! connections to fill what is read, milliseconds even where there are none.

use std::{io, net::SocketAddr};

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::Conversation;

/// Addresses that TCP sockets of the network namespace of this thread listen at, and the inode numbers of the sockets.
///
/// # Errors
/// When the kernel does not tell: it has no module `tcp_diag`.
pub fn listeners() -> io::Result<Vec<(SocketAddr, u64)>> {
    let mut kernel = Conversation::with(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for (family, socket_id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let question = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id,
        };
        let question = SockDiagMessage::InetRequest(question);
        kernel.ask(question, NLM_F_DUMP, |answer| {
            if let SockDiagMessage::InetResponse(socket) = answer {
                let socket = socket.header;
                let local = (
                    socket.socket_id.source_address,
                    socket.socket_id.source_port,
                );
                found.push((local.into(), socket.inode.into()));
            }
        })?;
    }
    Ok(found)
}
