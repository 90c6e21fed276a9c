use std::{path::PathBuf, time::Duration};

use super::*;
use crate::config::{self, Origin, System};

const APP: u32 = 7;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn relayed() -> (Step, Observed) {
    let destination = at("[::ffff:192.0.2.20]:8080");
    let step = Step {
        destination,
        expected: Expected::Relayed {
            rule: "watched",
            through_proxy: false,
        },
    };
    let observed = Observed {
        seen: Seen::Connected {
            local: at("[::ffff:127.0.0.1]:5000"),
            peer: destination,
            elapsed: Duration::from_millis(1),
            error: None,
        },
        verdicts: Some(vec!["relayed"]),
        served: Some(Served {
            destination: at("192.0.2.20:8080"),
            client: at("192.0.2.20:6000"),
            error: None,
        }),
        asked: None,
        closed: Some(Closed {
            rule: Some("watched".into()),
            pid: APP,
            orig_dst: Some(at("192.0.2.20:8080")),
            upstream: Some("relay".into()),
            path: Some("copy".into()),
            up: payload::SIZE as u64,
            down: payload::SIZE as u64,
            intercept_us: 1,
            connect_us: 1,
            handshake_us: 0,
            reason: "done".into(),
        }),
    };
    (step, observed)
}

fn found(step: &Step, observed: &Observed) -> Vec<String> {
    differences(step, observed, APP, Errno::ECONNREFUSED)
}

#[test]
fn a_relayed_connection_as_it_has_to_be_has_no_differences() {
    let (step, observed) = relayed();
    assert_eq!(found(&step, &observed), Vec::<String>::new());
}

#[test]
fn every_side_of_a_relayed_connection_is_checked() {
    type Spoil = fn(&mut Observed);
    let spoils: [(Spoil, &str); 8] = [
        (|it| it.verdicts = Some(vec!["direct"]), "counted"),
        (|it| it.served = None, "saw no such connection"),
        (
            |it| it.served.as_mut().unwrap().destination = at("192.0.2.21:8080"),
            "arrived at",
        ),
        (
            |it| it.served.as_mut().unwrap().client = at("127.0.0.1:5000"),
            "nothing was in between",
        ),
        (
            |it| it.served.as_mut().unwrap().error = Some("short".into()),
            "did not get all bytes",
        ),
        (
            |it| it.asked = Some(at("192.0.2.20:8080")),
            "proxy was asked",
        ),
        (
            |it| it.closed.as_mut().unwrap().down -= 1,
            "close record is",
        ),
        (|it| it.closed = None, "no close record"),
    ];
    for (spoil, says) in spoils {
        let (step, mut observed) = relayed();
        spoil(&mut observed);
        let found = found(&step, &observed).join("; ");
        assert!(found.contains(says), "{says}: {found}");
    }
}

#[test]
fn a_listener_in_place_of_the_destination_is_a_lie() {
    let (step, mut observed) = relayed();
    if let Seen::Connected { peer, .. } = &mut observed.seen {
        *peer = at("127.0.0.1:40000");
    }
    let found = found(&step, &observed);
    assert!(
        found[0].contains("getpeername() said 127.0.0.1:40000"),
        "{found:?}"
    );
}

#[test]
fn a_refused_connection_has_to_fail_with_the_right_error_and_reach_nobody() {
    let step = Step {
        destination: at("192.0.2.66:8080"),
        expected: Expected::Refused,
    };
    let refused = |errno: Errno| Observed {
        seen: Seen::NotConnected(errno as i32),
        verdicts: Some(vec!["refused"]),
        served: None,
        asked: None,
        closed: None,
    };
    assert!(found(&step, &refused(Errno::ECONNREFUSED)).is_empty());
    assert!(found(&step, &refused(Errno::ETIMEDOUT))[0].contains("ECONNREFUSED"));
    let (_, reached) = relayed();
    let found = found(
        &step,
        &Observed {
            verdicts: Some(vec!["refused"]),
            ..reached
        },
    );
    assert!(
        found.iter().any(|it| it.contains("the origin was reached")),
        "{found:?}"
    );
}

#[test]
fn the_configuration_is_valid_and_has_a_rule_for_each_verdict() {
    let origin = Origin {
        path: PathBuf::from("demo.toml"),
        mode: 0o600,
    };
    let loaded = config::parse(CONFIG, &origin, &System).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let names: Vec<_> = loaded
        .config
        .forward
        .iter()
        .map(|rule| &*rule.name)
        .collect();
    assert_eq!(names, ["intranet", "blocked", "abroad", "watched"]);
}

#[test]
fn without_ipv6_there_are_no_ipv6_steps_but_one_of_each_kind() {
    assert_eq!(steps(true).len(), 8);
    let v4 = steps(false);
    assert!(v4.iter().all(|step| step.destination.is_ipv4()));
    assert_eq!(v4.len(), 5);
    assert!(last_step().unwrap().expected == Expected::Direct);
}
