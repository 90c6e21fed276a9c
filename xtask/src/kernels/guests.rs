//! Which kernels are booted, how, and which of the kernel tests run there: these tables, and nothing else.
//!
//! What is chosen shows that everything does its main job on a kernel. The rest of the tests is for the running one.

/// A machine.
pub(super) struct Guest {
    /// Of its kernel: the newest of Debian's that begins so.
    pub(super) series: &'static str,
    /// What is special about it, for the table.
    pub(super) setting: &'static str,
    /// Added to the kernel's command line.
    pub(super) arguments: &'static str,
    /// Whether there are hierarchies of cgroup v1 beside that of v2.
    pub(super) hybrid_cgroups: bool,
    /// Which tests run: all of them, or those that need nothing that is switched off here.
    is_whole: bool,
}

/// All machines.
pub(super) static GUESTS: [Guest; 5] = [
    Guest {
        setting: "cgroup v1 and v2, 64 KiB of locked memory",
        hybrid_cgroups: true,
        ..plain("5.10")
    },
    plain("6.1"),
    plain("6.12"),
    Guest {
        setting: "no IPv6, locked down to confidentiality",
        arguments: "ipv6.disable=1 lockdown=confidentiality",
        is_whole: false,
        ..plain("6.12")
    },
    plain("7"),
];

const fn plain(series: &'static str) -> Guest {
    Guest {
        series,
        setting: "",
        arguments: "",
        hybrid_cgroups: false,
        is_whole: true,
    }
}

impl Guest {
    /// The tests that are for this machine, whatever its kernel.
    pub(super) fn tests(&self, filter: Option<&str>) -> Vec<&'static Test> {
        let is_wanted = |test: &&Test| {
            (self.is_whole || test.needs_little)
                && filter.is_none_or(|part| test.name.contains(part))
        };
        TESTS.iter().filter(is_wanted).collect()
    }
}

/// A test of `culvert-tests`.
pub(super) struct Test {
    /// What it is about.
    pub(super) subject: &'static str,
    /// The test program.
    pub(super) program: &'static str,
    /// Its name there.
    pub(super) name: &'static str,
    /// The oldest kernel that has what it tests.
    pub(super) since: (u32, u32),
    /// It does without IPv6, and without reading the kernel's memory.
    needs_little: bool,
}

/// What every kernel in use has.
const FLOOR: (u32, u32) = (5, 10);

/// All tests that guests run.
pub(super) static TESTS: [Test; 16] = [
    test("forward", "intercept", "ipv4").needs_little(),
    test("forward", "intercept", "ipv6"),
    test("forward", "truth", "the_original_destination"),
    test(
        "forward",
        "unreachable",
        "a_rule_that_refuses_fails_the_connect_itself",
    )
    .needs_little(),
    test(
        "forward",
        "processes",
        "its_threads_children_and_grandchildren",
    ),
    test(
        "forward",
        "isolation",
        "in_another_network_namespace_the_fail_mode_decides",
    ),
    test(
        "crash",
        "crash",
        "after_a_kill_every_new_connection_goes_direct",
    )
    .needs_little(),
    test(
        "crash",
        "crash",
        "after_a_kill_rules_that_refuse_refuse_until_detached",
    ),
    test(
        "crash",
        "crash",
        "a_hung_relay_counts_as_failed_until_it_goes_on",
    ),
    test(
        "reverse",
        "reverse",
        "a_service_keeps_its_port_while_the_relay_stands_before_it",
    ),
    test("reverse", "reverse", "both_roles_at_once").needs_little(),
    test(
        "reverse",
        "reverse_crash",
        "after_a_kill_rules_that_refuse_refuse_until_detached",
    ),
    test(
        "reverse",
        "reverse_steer",
        "the_service_sees_the_client_itself",
    ),
    test(
        "paths",
        "rewrite",
        "the_app_s_own_socket_goes_there_and_payload_is_whole",
    ),
    test("exec", "exec", "a_command_goes_through_the_proxy").needs_little(),
    test("exec", "exec", "without_its_proxy_nothing_gets_out").needs_little(),
];

const fn test(subject: &'static str, program: &'static str, name: &'static str) -> Test {
    Test {
        subject,
        program,
        name,
        since: FLOOR,
        needs_little: false,
    }
}

impl Test {
    const fn needs_little(self) -> Self {
        Self {
            needs_little: true,
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
pub(super) const PROGRAMS: [&str; 2] = ["ip", "curl"];

/// Kernel modules that tests need.
pub(super) const MODULES: [&str; 1] = ["veth"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_age_excuses() {
        let test = Test {
            since: (6, 4),
            ..test("", "", "")
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
            let is_same = |other: &Test| (one.program, one.name) == (other.program, other.name);
            assert!(!again.into_iter().any(is_same), "{}", one.name);
        }
    }
}
