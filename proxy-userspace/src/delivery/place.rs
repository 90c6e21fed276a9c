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

/// Tells where addresses are, in the network namespace of the thread that asks first.
#[derive(Debug, Default)]
pub struct Places {
    /// None before it is needed, and after an error.
    kernel: Option<Kernel>,
}

impl Places {
    /// Where an address is.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn of(&mut self, address: IpAddr) -> Result<Place, DeliveryError> {
        if address.is_loopback() {
            return Ok(Place::Loopback);
        }
        let mut kernel = self.kernel.take().map_or_else(Kernel::open, Ok)?;
        let route = kernel.route(address)?;
        self.kernel = Some(kernel);
        let Some(route) = route else {
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
