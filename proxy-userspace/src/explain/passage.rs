//! What becomes of a connection that passes through and that no rule selects: the kernel routes it, or the fast path does.

use std::net::{IpAddr, SocketAddr};

use super::outcome::Outcome;
use crate::{
    netlink::{Conversation, Interface, Way},
    rule::Router,
};

/// The fast path, as it is or would be.
pub(crate) struct FastPath<'a> {
    pub(crate) router: &'a Router,
    /// Why it is off at the moment.
    pub(crate) rests: Option<String>,
    /// What keeps it from an interface.
    pub(crate) obstacle: fn(&Interface) -> Option<&'static str>,
}

/// A packet that comes in.
pub(super) struct Passing {
    pub(super) from: IpAddr,
    pub(super) to: SocketAddr,
    /// The interface, by number.
    pub(super) by: u32,
}

/// Where it goes.
pub(super) fn way(passing: &Passing) -> Way {
    let asked = Conversation::open()
        .and_then(|mut kernel| kernel.way(passing.from, passing.to.ip(), passing.by));
    asked.unwrap_or_else(|error| {
        tracing::debug!(%error, "no way");
        Way::Nowhere
    })
}

/// Of what no rule has the relay take, as the beginning of the reason says.
pub(super) fn left(
    fast_path: &FastPath<'_>,
    passing: &Passing,
    way: Way,
    because: &str,
) -> Outcome {
    match on(fast_path, passing, way) {
        Ok(interface) => Outcome {
            verdict: "fast path",
            why: format!(
                "{because}; `[router] fast_path` sends it on by {interface}, but for what is unusual in a packet \
                 (counters `slow_…` of `culvert status`)"
            ),
            ..Outcome::default()
        },
        Err(why) => Outcome::direct(format!("{because}, and {why}")),
    }
}

/// By which interface the fast path sends it on, or what the kernel does with it and why.
fn on(fast_path: &FastPath<'_>, passing: &Passing, way: Way) -> Result<String, String> {
    let failed = |error| format!("the interfaces of this host cannot be listed: {error}");
    let interfaces = Conversation::open().and_then(|mut kernel| kernel.interfaces());
    let interfaces = interfaces.map_err(failed)?;
    let find = |number: u32| interfaces.iter().find(|it| it.number == number);
    let Way::By(leaves_by) = way else {
        return Err("the kernel knows no way for it".to_owned());
    };
    let (Some(comes_by), Some(leaves_by)) = (find(passing.by), find(leaves_by)) else {
        return Err("an interface on its way has vanished".to_owned());
    };
    let routed = format!("the kernel routes it, by {}", leaves_by.name);
    if !fast_path.router.is_on() {
        return Err(routed);
    }
    if let Some(why) = &fast_path.rests {
        return Err(format!("{routed}, while the fast path rests: {why}"));
    }
    if comes_by.number == leaves_by.number {
        return Err(format!(
            "{routed}, since it leaves by the interface that it comes by (`slow_elsewhere`)"
        ));
    }
    for (interface, counter) in [(comes_by, ""), (leaves_by, " (`slow_elsewhere`)")] {
        let name = &interface.name;
        if !fast_path.router.fast_path.contains(name) {
            return Err(format!(
                "{routed}, since {name} is none of `[router] fast_path`{counter}"
            ));
        }
        if let Some(why) = (fast_path.obstacle)(interface) {
            return Err(format!(
                "{routed}, since the fast path is not on {name}: {why}"
            ));
        }
    }
    Ok(leaves_by.name.clone())
}
