//! Who may use a routing table.

use super::{DeliveryError, TABLES};
use crate::lock::Lock;

/// The right to one of [`TABLES`] in a network namespace.
#[derive(Debug)]
pub(super) struct Claim {
    table: u32,
    _lock: Lock,
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
        let lock = Lock::take(&format!("culvert-table-{table}")).map_err(|source| {
            DeliveryError::Kernel {
                operation: format!("claim the routing table {table}"),
                source,
            }
        })?;
        Ok(lock.map(|lock| Self { table, _lock: lock }))
    }

    /// Its number.
    pub(super) fn table(&self) -> u32 {
        self.table
    }
}
