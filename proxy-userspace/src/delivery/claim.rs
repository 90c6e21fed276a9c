//! Who may use a routing table: a lock that ends with its process, and is as wide as what it is about.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

use super::{DeliveryError, TABLES};

/// The right to one of [`TABLES`] in a network namespace.
///
/// A Unix socket with an abstract name: like a routing table it belongs to the network namespace, whatever file systems its
/// processes see, and the kernel frees the name the moment the process has ended, however it did.
#[derive(Debug)]
pub(super) struct Claim {
    table: u32,
    _lock: UnixDatagram,
}

impl Claim {
    /// To the first table that nobody has.
    pub(super) fn any() -> Result<Self, DeliveryError> {
        for table in TABLES {
            if let Some(claim) = Self::of(table)? {
                return Ok(claim);
            }
        }
        Err(DeliveryError::NoTable)
    }

    /// To a table, if nobody has it.
    pub(super) fn of(table: u32) -> Result<Option<Self>, DeliveryError> {
        let name = format!("culvert-table-{table}");
        let lock =
            SocketAddr::from_abstract_name(&name).and_then(|name| UnixDatagram::bind_addr(&name));
        match lock {
            Ok(lock) => Ok(Some(Self { table, _lock: lock })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(source) => Err(DeliveryError::Kernel {
                operation: format!("claim the routing table {table}"),
                source,
            }),
        }
    }

    /// Its number.
    pub(super) fn table(&self) -> u32 {
        self.table
    }
}
