//! What has packets delivered to this host that are addressed to others, and what keeps them from getting there.

use std::{fs, path::Path, sync::Arc};

use super::check::Check;
use crate::{
    delivery::{self, Want},
    forwarding::{Forwarding, STRICT},
    intercept::ingress,
    paint::one_line,
};

/// Rules and routes of daemons that are gone.
pub(super) fn stale() -> Check {
    const ID: &str = "stale_routing";
    match delivery::stale() {
        Ok(tables) if tables.is_empty() => Check::ok(ID, "none"),
        Ok(tables) => {
            let tables: Vec<_> = tables.iter().map(u32::to_string).collect();
            Check::warning(
                ID,
                format!(
                    "a killed daemon has left routing rules, to the table {}",
                    tables.join(", ")
                ),
            )
            .advice("culvert detach, or start the daemon again")
        }
        Err(error) => Check::unchecked(ID, error.to_string()),
    }
}

/// Filters of daemons that are gone.
pub(super) fn stale_filters() -> Check {
    const ID: &str = "stale_filters";
    match ingress::stale() {
        Ok(interfaces) if interfaces.is_empty() => Check::ok(ID, "none"),
        Ok(interfaces) => {
            let interfaces: Vec<_> = interfaces.into_iter().collect();
            Check::warning(
                ID,
                format!(
                    "a killed daemon has left filters on {}",
                    interfaces.join(", ")
                ),
            )
            .advice("culvert detach, or start the daemon again")
        }
        Err(error) => Check::unchecked(ID, one_line(&error)),
    }
}

/// Whether other hosts' packets pass through.
pub(super) fn forwarding() -> Check {
    forwards(Forwarding::of("all"))
}

fn forwards(what: Forwarding) -> Check {
    const ID: &str = "forwarding";
    let found = format!(
        "{}; `[[gateway]]` rules take only what is forwarded",
        what.label()
    );
    if what.v4 && what.v6 {
        return Check::ok(ID, found);
    }
    Check::warning(ID, found).advice(
        "a gateway needs it: sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
    )
}

/// Whether somebody else's routing rules would take packets that are to be delivered here.
pub(super) fn rules() -> Check {
    const ID: &str = "routing_rules";
    // The interface makes no difference.
    let marked = Want::Marked {
        interface: Arc::from("eth0"),
    };
    match delivery::conflicts(&[marked]) {
        Ok(conflicts) if conflicts.is_empty() => Check::ok(ID, "none is in the way of a gateway"),
        Ok(conflicts) => {
            let conflicts: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
            Check::warning(ID, conflicts.join("; "))
                .advice("`[[gateway]]` rules, and `keep_source` with services of other hosts, do not start until then")
        }
        Err(error) => Check::unchecked(ID, one_line(&error)),
    }
}

/// Interfaces that drop packets which come from where no answer would go, before anybody sees them.
pub(super) fn rp_filter() -> Check {
    strict(Path::new("/proc/sys/net/ipv4/conf"))
}

fn strict(settings: &Path) -> Check {
    const ID: &str = "rp_filter";
    let Ok(interfaces) = fs::read_dir(settings) else {
        return Check::unchecked(ID, format!("cannot read {}", settings.display()));
    };
    let value = |interface: &Path| {
        let text = fs::read_to_string(interface.join(ID)).unwrap_or_default();
        text.trim().parse::<u8>().unwrap_or_default()
    };
    // The greater one counts (ip-sysctl.rst in the kernel's documentation).
    let everywhere = value(&settings.join("all"));
    let mut strict: Vec<_> = interfaces
        .filter_map(Result::ok)
        .filter(|interface| value(&interface.path()).max(everywhere) == SAME)
        .filter_map(|interface| interface.file_name().into_string().ok())
        .filter(|name| !["all", "default", "lo"].contains(&&**name))
        .collect();
    strict.sort();
    if strict.is_empty() {
        return Check::ok(ID, "strict nowhere");
    }
    Check::warning(ID, format!("strict on {}: {STRICT}", strict.join(", "))).advice(
        "a gateway whose clients' packets take several ways needs it off, or loose: sysctl -w net.ipv4.conf.NAME.rp_filter=2",
    )
}

/// The answer must leave by the same interface.
const SAME: u8 = 1;

#[cfg(test)]
mod tests {
    use super::{super::check::Status, *};

    #[test]
    fn what_is_not_forwarded_is_worth_a_word() {
        let of = |v4, v6| forwards(Forwarding { v4, v6 }).status;
        assert_eq!(of(true, true), Status::Ok);
        for (v4, v6) in [(true, false), (false, true), (false, false)] {
            assert_eq!(of(v4, v6), Status::Warning);
        }
    }

    fn found(of: &[(&str, &str)]) -> String {
        let directory = tempfile::tempdir().unwrap();
        for (interface, value) in of {
            let place = directory.path().join(interface);
            fs::create_dir(&place).unwrap();
            fs::write(place.join("rp_filter"), value).unwrap();
        }
        strict(directory.path()).found
    }

    #[test]
    fn the_greater_value_of_an_interface_and_of_all_counts() {
        let interfaces = [
            ("all", "0\n"),
            ("lo", "1\n"),
            ("eth0", "1\n"),
            ("eth1", "2\n"),
        ];
        assert!(found(&interfaces).starts_with("strict on eth0:"));
        assert!(
            found(&[("all", "1\n"), ("eth0", "0\n"), ("eth1", "2\n")])
                .starts_with("strict on eth0:")
        );
        assert_eq!(found(&[("all", "2\n"), ("eth0", "1\n")]), "strict nowhere");
    }
}
