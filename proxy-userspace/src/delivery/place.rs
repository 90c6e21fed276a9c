//! Where an address is, as the kernel's routing tables have it.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

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

/// How long an answer is used again: the kernel's takes as long as all else that precedes a connection. For so long after an address
/// has moved to this host, or away, connections to it may not come about.
const KEPT: Duration = Duration::from_millis(100);
/// Answers that are kept at once.
const MOST_KEPT: usize = 256;

/// Tells where addresses are, in the network namespace of the thread that asks first.
#[derive(Debug, Default)]
pub struct Places {
    /// None before it is needed, and after an error.
    kernel: Option<Kernel>,
    /// What it said of late.
    known: HashMap<IpAddr, (Instant, Place)>,
}

impl Places {
    /// Where an address is, or was a moment ago.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn of(&mut self, address: IpAddr) -> Result<Place, DeliveryError> {
        if address.is_loopback() {
            return Ok(Place::Loopback);
        }
        let now = Instant::now();
        if let Some((asked, place)) = self.known.get(&address)
            && now.duration_since(*asked) < KEPT
        {
            return Ok(*place);
        }
        let place = self.ask(address)?;
        if self.known.len() >= MOST_KEPT {
            self.known.clear();
        }
        self.known.insert(address, (now, place));
        Ok(place)
    }

    fn ask(&mut self, address: IpAddr) -> Result<Place, DeliveryError> {
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
