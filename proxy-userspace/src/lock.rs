//! A lock that ends with its process, and is as wide as a network namespace.
//!
//! A Unix socket with an abstract name: like routes and interfaces it belongs to the network namespace, whatever file systems its
//! processes see, and the kernel frees the name the moment the process has ended, however it did.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _socket: UnixDatagram,
}

impl Lock {
    /// Takes a lock in the network namespace of this thread; `None` when somebody has it.
    ///
    /// # Errors
    /// When there can be no such lock.
    pub fn take(name: &str) -> io::Result<Option<Self>> {
        let bound = SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixDatagram::bind_addr(&address));
        match bound {
            Ok(socket) => Ok(Some(Self { _socket: socket })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_free_again_when_its_holder_is_gone() {
        let name = format!("culvert-test-{}", std::process::id());
        let held = Lock::take(&name).unwrap();
        assert!(held.is_some());
        assert!(Lock::take(&name).unwrap().is_none());
        drop(held);
        assert!(Lock::take(&name).unwrap().is_some());
    }
}
