//! Where an address is, as the kernel's routing tables have it.

use std::net::IpAddr;

use netlink_packet_route::route::{RouteAttribute, RouteType};

use super::{DeliveryError, kernel::Kernel};

/// Where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this host's loopback.
    Loopback,
    /// On this host, and others may reach it.
    Local,
    /// On another host, by the interface with this number.
    Remote(u32),
    /// Nowhere, as far as this host knows.
    Nowhere,
}

/// Tells where addresses are, in the network namespace that it was made in.
#[derive(Debug)]
pub struct Places(Kernel);

impl Places {
    /// Opens what the kernel is asked by.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn open() -> Result<Self, DeliveryError> {
        Kernel::open().map(Self)
    }

    /// Where an address is.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn of(&mut self, address: IpAddr) -> Result<Place, DeliveryError> {
        if address.is_loopback() {
            return Ok(Place::Loopback);
        }
        let Some(route) = self.0.route(address)? else {
            return Ok(Place::Nowhere);
        };
        if route.header.kind == RouteType::Local {
            return Ok(Place::Local);
        }
        let interface = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(number) => Some(*number),
                _ => None,
            });
        Ok(interface.map_or(Place::Nowhere, Place::Remote))
    }
}
