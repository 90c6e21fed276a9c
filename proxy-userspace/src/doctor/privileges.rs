//! What this process may do, and what for.

use std::slice;

use super::check::Check;
use crate::privileges::{self, Privilege};

/// A line for each capability, with all it is for.
pub(super) fn checks() -> Vec<Check> {
    let admin = [privileges::MOUNT, privileges::NAMESPACE, privileges::SURVEY];
    let needed = privileges::NEEDED.iter().map(slice::from_ref);
    let useful = privileges::USEFUL.iter().map(slice::from_ref);
    needed
        .map(|same| (same, true))
        .chain(useful.chain([&admin[..]]).map(|same| (same, false)))
        .filter_map(|(same, is_needed)| {
            let (capability, _) = same.first()?;
            Some(check(same, is_needed, privileges::has(*capability)))
        })
        .collect()
}

/// About privileges that are the same capability.
fn check(same: &[Privilege], is_needed: bool, is_held: bool) -> Check {
    let capability = same.first().map(|(capability, _)| *capability);
    let id = capability.map_or_else(String::new, |it| it.to_string().to_lowercase());
    let purposes: Vec<_> = same.iter().map(|(_, purpose)| *purpose).collect();
    let purposes = format!("to {}", purposes.join(", to "));
    if is_held {
        Check::ok(id, purposes)
    } else if is_needed {
        Check::missing(id, purposes).advice(
            "run as root, or give the service this capability (AmbientCapabilities= in a unit)",
        )
    } else {
        Check::warning(id, purposes).advice("everything else works without it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Status;
    use caps::Capability;

    #[test]
    fn every_capability_stands_once() {
        let checks = checks();
        let mut ids: Vec<_> = checks.iter().map(|check| &check.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), checks.len());
    }

    #[test]
    fn only_what_is_needed_is_missed() {
        let of = |is_needed, is_held| {
            let same = [(Capability::CAP_BPF, "a"), (Capability::CAP_BPF, "b")];
            let check = check(&same, is_needed, is_held);
            assert_eq!((&*check.id, &*check.found), ("cap_bpf", "to a, to b"));
            check.status
        };
        assert_eq!(of(true, false), Status::Missing);
        assert_eq!(of(false, false), Status::Warning);
        assert_eq!((of(true, true), of(false, true)), (Status::Ok, Status::Ok));
    }
}
