//! Which kernels are booted, how, and which of the kernel tests run there: these tables, and nothing else.
//!
//! What is chosen shows that everything does its main job on a kernel. The rest of the tests is for the running one.

use serde_json::{Value, json};

/// A machine.
pub(super) struct Guest {
    /// Of its kernel: the newest of Debian's that begins so.
    pub(super) series: &'static str,
    /// What is special about it, for the table.
    pub(super) setting: &'static str,
    /// Added to the kernel's command line.
    pub(super) arguments: &'static str,
    /// Where control groups are mounted.
    pub(super) cgroups: Cgroups,
    /// The bytes that its processes may lock, where that is what is special.
    pub(super) locked_memory: Option<u64>,
    /// What it is without.
    lacks: &'static [Need],
    /// It runs what its setting makes a difference to, and what shows that everything does its main job.
    is_special: bool,
}

/// A machine's control groups.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cgroups {
    /// Version 2 alone, as systemd mounts it.
    Pure,
    /// Hierarchies of version 1 beside it.
    Hybrid,
    /// Everything runs in a cgroup namespace, as in a container: the root that it sees is none.
    Private,
}

impl Cgroups {
    /// As `culvert-guest` is told.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Hybrid => "hybrid",
            Self::Private => "private",
        }
    }
}

/// What a test cannot do without, and some machines are without.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// IPv6.
    Ipv6,
    /// The kernel's type information (BTF).
    Types,
    /// Programs that read the kernel's memory.
    Memory,
}

/// All machines.
pub(super) static GUESTS: [Guest; 6] = [
    Guest {
        setting: "cgroup v1 and v2, 64 KiB of locked memory",
        cgroups: Cgroups::Hybrid,
        locked_memory: Some(64 << 10),
        ..plain("5.10")
    },
    plain("6.1"),
    plain("6.12"),
    plain("7"),
    Guest {
        setting: "BTF out of sight, in a cgroup namespace",
        cgroups: Cgroups::Private,
        lacks: &[Need::Types],
        is_special: true,
        ..plain("6.1")
    },
    Guest {
        setting: "no IPv6, locked down to confidentiality",
        arguments: "ipv6.disable=1 lockdown=confidentiality",
        lacks: &[Need::Ipv6, Need::Memory],
        is_special: true,
        ..plain("6.12")
    },
];

const fn plain(series: &'static str) -> Guest {
    Guest {
        series,
        setting: "",
        arguments: "",
        cgroups: Cgroups::Pure,
        lacks: &[],
        is_special: false,
        locked_memory: None,
    }
}

impl Guest {
    /// The tests that are for this machine, whatever its kernel: all, or only those that show that everything does its main job.
    pub(super) fn tests(&self, whole: bool, filter: Option<&str>) -> Vec<&'static Test> {
        let is_wanted = |test: &&Test| {
            (test.is_brief || whole && (test.is_special || !self.is_special))
                && !test.needs.iter().any(|need| self.lacks.contains(need))
                && filter.is_none_or(|part| test.name.contains(part))
        };
        TESTS.iter().filter(is_wanted).collect()
    }

    /// What `culvert-guest` has to make of it, and then makes sure of.
    pub(super) fn setting(&self) -> Value {
        let has = |need| !self.lacks.contains(&need);
        json!({
            "cgroups": self.cgroups.word(),
            "has_ipv6": has(Need::Ipv6),
            "has_types": has(Need::Types),
            "is_confidential": !has(Need::Memory),
            "locked_memory": self.locked_memory,
        })
    }

    /// The first two numbers of its series.
    pub(super) fn version(&self) -> (u32, u32) {
        version(self.series)
    }
}

/// A test of `culvert-tests`.
pub(super) struct Test {
    /// What it is about, for the table and the README.
    pub(super) subject: &'static str,
    /// Its name in the program `kernels`: module and function.
    pub(super) name: &'static str,
    /// The oldest kernel that has what it tests.
    pub(super) since: (u32, u32),
    needs: &'static [Need],
    /// All machines run it, always.
    is_brief: bool,
    /// Special machines run it, too.
    is_special: bool,
}

/// What every kernel in use has.
const FLOOR: (u32, u32) = (5, 10);

/// The oldest of Debian's kernels for clouds that has kTLS.
const KTLS: (u32, u32) = (6, 1);

/// All tests that guests run.
pub(super) static TESTS: [Test; 45] = {
    use Need::{Ipv6, Memory, Types};
    [
        test(FORWARD, "intercept::ipv4").brief(),
        test(FORWARD, "intercept::ipv6").needs(&[Ipv6]).brief(),
        test(FORWARD, "truth::the_original_destination").needs(&[Ipv6]),
        test(FORWARD, "strangers::on_the_hook_of_connect").brief(),
        test(
            FORWARD,
            "unreachable::a_rule_that_refuses_fails_the_connect_itself",
        )
        .brief(),
        test(
            SELECTORS,
            "processes::its_threads_children_and_grandchildren",
        )
        .needs(&[Types, Memory]),
        test(SELECTORS, "executables::its_threads_and_its_children").needs(&[Types, Memory]),
        test(
            FAILURE,
            "isolation::in_another_network_namespace_the_fail_mode_decides",
        )
        .brief(),
        test(
            FAILURE,
            "crash::after_a_kill_every_new_connection_goes_direct",
        )
        .brief(),
        test(
            FAILURE,
            "crash::after_a_kill_rules_that_refuse_refuse_until_detached",
        )
        .needs(&[Ipv6])
        .special(),
        test(
            FAILURE,
            "crash::a_hung_relay_counts_as_failed_until_it_goes_on",
        ),
        test(
            FAILURE,
            "reverse_crash::after_a_kill_rules_that_refuse_refuse_until_detached",
        )
        .needs(&[Ipv6]),
        test(SIDECAR, "sidecar::pods::the_whole_pod_whoever_starts_first").special(),
        test(
            SIDECAR,
            "sidecar::pods::one_container_whose_processes_are_shared",
        ),
        test(
            SIDECAR,
            "sidecar::failures::the_guard_of_a_sidecar_that_never_comes_back_goes_with_the_pod_or_is_detached",
        ),
        test(
            SIDECAR,
            "sidecar::readiness::ready_is_what_the_kernel_has_attached",
        ),
        test(
            REVERSE,
            "reverse::a_service_keeps_its_port_while_the_relay_stands_before_it",
        )
        .needs(&[Ipv6]),
        test(REVERSE, "reverse::both_roles_at_once").brief(),
        test(REVERSE, "strangers::on_the_hook_of_arrivals").brief(),
        test(
            BY_INTERFACE,
            "reverse::interfaces_choose_also_when_they_appear_later",
        )
        .since((5, 17))
        .needs(&[Types]),
        test(STEER, "reverse_steer::the_fail_mode_holds").special(),
        test(GATEWAY, "gateway::a_client_may_use_its_port_again_at_once").brief(),
        test(
            GATEWAY,
            "gateway::connections_of_hosts_that_know_nothing_are_relayed_to_where_they_go",
        )
        .brief(),
        test(
            GATEWAY,
            "gateway_rest::a_port_that_a_reload_adds_is_for_new_connections_only",
        )
        .needs(&[Ipv6]),
        test(
            GATEWAY,
            "gateway_crash::after_a_kill_every_new_connection_is_routed",
        )
        .special(),
        test(
            GATEWAY,
            "gateway_crash::after_a_kill_rules_that_refuse_let_nothing_pass_until_detached",
        )
        .special(),
        test(
            GATEWAY,
            "gateway_filters::filters_of_others_before_and_after_ours_go_on",
        )
        .needs(&[Ipv6]),
        test(
            GATEWAY,
            "vlan::what_is_tagged_comes_in_by_the_interface_of_its_vlan",
        )
        .needs(&[Ipv6]),
        test(
            ROUTER,
            "router::what_passes_between_named_interfaces_is_sent_on",
        )
        .needs(&[Ipv6]),
        test(ROUTER, "router::after_a_kill_the_kernel_routes")
            .needs(&[Ipv6])
            .special(),
        test(
            SOURCE_GATEWAY,
            "gateway_source::a_server_sees_the_address_and_port_of_the_client",
        )
        .needs(&[Ipv6]),
        test(
            SOURCE_LOOPBACK,
            "keep_source::a_service_on_loopback_sees_address_and_port",
        )
        .needs(&[Ipv6])
        .special(),
        test(
            SOURCE_HERE,
            "keep_source::a_service_on_another_address_of_this_host_sees_address_and_port",
        )
        .needs(&[Ipv6]),
        test(
            SOURCE_HERE,
            "keep_source::changes::a_killed_daemon_leaves_nothing_beyond_the_next_or_detach",
        )
        .needs(&[Ipv6]),
        test(
            SOURCE_ABROAD,
            "keep_source::a_server_on_another_host_sees_address_and_port",
        )
        .needs(&[Ipv6]),
        test(
            PATHS,
            "paths::each_carries_bytes_whole_or_is_off_for_a_reason",
        )
        .brief(),
        test(PATHS, "ktls::sockets_with_a_layer_above_tcp_are_copied")
            .since(KTLS)
            .needs(&[Types, Memory]),
        test(
            REWRITE,
            "rewrite::the_app_s_own_socket_goes_there_and_payload_is_whole",
        )
        .special(),
        test(
            CONTAINERS,
            "containers::a_container_that_runs_is_captured_from_the_start",
        )
        .since((5, 14))
        .needs(&[Ipv6]),
        test(WATCH, "watch::outcomes::made_or_refused").needs(&[Ipv6, Types, Memory]),
        test(EXEC, "exec::so_does_a_static_program").brief(),
        test(NEEDS, "needs::arrivals_by_interface").needs(&[Types]),
        test(NEEDS, "needs::containers_with_networks_of_their_own"),
        test(NEEDS, "needs::executables").needs(&[Memory]).brief(),
        test(
            NEEDS,
            "needs::a_little_locked_memory_is_enough_where_maps_do_not_count",
        ),
    ]
};

pub(super) const FORWARD: &str = "forward";
pub(super) const SELECTORS: &str = "selectors";
pub(super) const FAILURE: &str = "failure";
pub(super) const ROUTER: &str = "router";
pub(super) const SIDECAR: &str = "sidecar";
pub(super) const REVERSE: &str = "reverse";
pub(super) const BY_INTERFACE: &str = "reverse by interface";
pub(super) const STEER: &str = "steer";
pub(super) const GATEWAY: &str = "gateway";
pub(super) const SOURCE_LOOPBACK: &str = "source on loopback";
pub(super) const SOURCE_HERE: &str = "source on this host";
pub(super) const SOURCE_ABROAD: &str = "source elsewhere";
pub(super) const SOURCE_GATEWAY: &str = "source in a gateway";
pub(super) const PATHS: &str = "paths";
pub(super) const REWRITE: &str = "rewrite";
pub(super) const EXEC: &str = "exec";
pub(super) const CONTAINERS: &str = "containers";
pub(super) const WATCH: &str = "watch";
pub(super) const NEEDS: &str = "needs";

const fn test(subject: &'static str, name: &'static str) -> Test {
    Test {
        subject,
        name,
        since: FLOOR,
        needs: &[],
        is_brief: false,
        is_special: false,
    }
}

impl Test {
    const fn since(self, since: (u32, u32)) -> Self {
        Self { since, ..self }
    }

    const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    const fn brief(self) -> Self {
        Self {
            is_brief: true,
            ..self
        }
    }

    const fn special(self) -> Self {
        Self {
            is_special: true,
            ..self
        }
    }

    /// Whether a kernel of this release is new enough. A test that is not run for any other reason is one that failed.
    pub(super) fn runs_on(&self, release: &str) -> bool {
        version(release) >= self.since
    }
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Programs of this machine that tests run.
pub(super) const PROGRAMS: [&str; 2] = ["ip", "tc"];

/// Kernel modules that tests need, and culvert, and since which kernel: those of filters are loaded when they are asked for where
/// there is `modprobe`.
const MODULES: [(&str, (u32, u32)); 5] = [
    ("veth", FLOOR),
    ("8021q", FLOOR),
    ("sch_ingress", FLOOR),
    ("cls_bpf", FLOOR),
    ("tls", KTLS),
];

/// Those for a kernel of this release.
pub(super) fn modules(release: &str) -> Vec<&'static str> {
    let own = version(release);
    let known = MODULES.iter().filter(|(_, since)| own >= *since);
    known.map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_age_excuses() {
        let test = Test {
            since: (6, 4),
            ..test("", "")
        };
        assert!(!test.runs_on("5.10.0-46-cloud-amd64"));
        assert!(!test.runs_on("6.1.0-56-cloud-amd64"));
        assert!(test.runs_on("6.12.117+deb12-cloud-amd64"));
        assert!(test.runs_on("7.3.4+deb13-cloud-amd64"));
    }

    #[test]
    fn each_test_is_named_once() {
        for (number, one) in TESTS.iter().enumerate() {
            let again = TESTS.iter().skip(number + 1);
            assert!(
                !again.into_iter().any(|other| one.name == other.name),
                "{}",
                one.name
            );
        }
    }
}
