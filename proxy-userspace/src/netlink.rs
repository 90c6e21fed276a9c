//! The conversation with the kernel about routes and interfaces (`NETLINK_ROUTE`), chains of nftables, policies of `IPsec` and sockets
//! that listen: one question or change at a time, each answered at once; and what it tells unasked.

mod chains;
mod interfaces;
mod listeners;
mod news;
mod policies;
mod way;

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

pub use self::{
    chains::Chain,
    interfaces::{Header, Interface, Port},
    listeners::listeners,
    news::News,
    policies::IpsecPolicy,
    way::Way,
};

/// Longest message of the kernel's (`netlink_dump()` in `net/netlink/af_netlink.c`).
const LONGEST: usize = 32 << 10;

/// A socket of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Conversation {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Conversation {
    /// Opens one in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel has no such sockets, or the process is out of files.
    pub fn open() -> io::Result<Self> {
        Self::with(NETLINK_ROUTE)
    }

    fn with(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(LONGEST),
        })
    }

    /// Has the kernel change something.
    ///
    /// # Errors
    /// Its answer.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, flags | NLM_F_ACK, |_| ())
    }

    /// Sends a message and hears its answers to the last one. What cannot be read is passed over: it is somebody else's, and of a
    /// kind that nobody here asks for.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn ask<M: NetlinkSerializable + NetlinkDeserializable>(
        &mut self,
        message: M,
        flags: u16,
        mut hear: impl FnMut(M),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = &*self.buffer;
            while !rest.is_empty() {
                let header = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                let length = (header.length() as usize).next_multiple_of(4);
                let answer = NetlinkMessage::<M>::deserialize(rest);
                // An answer to an earlier question, whose end was not waited for.
                let is_older = header.sequence_number() != self.sequence;
                rest = rest.get(length..).unwrap_or_default();
                let Ok(answer) = answer else { continue };
                if is_older {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(answer) => hear(answer),
                    // A list may break off: that is told by its end (`netlink_dump_done()` in `net/netlink/af_netlink.c`).
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }
}

/// Whether an answer of the kernel's is one of these.
#[must_use]
pub fn is_one_of(error: &io::Error, numbers: &[Errno]) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    number.is_some_and(|number| numbers.contains(&number))
}
