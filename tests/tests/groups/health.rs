//! What endpoints are held for: by checks over TLS, by connections that fail, and by the time that names hold.

use std::{
    net::{SocketAddr, TcpListener},
    process::Stdio,
    time::Duration,
};

use culvert_tests::{
    Sandbox, eventually,
    peer::Server,
    process::{Running, output},
    sandbox::{OTHER_V4, SERVER_V4},
};

use super::{await_state, group, states, status, storm};

#[test]
fn a_check_over_tls_wants_a_handshake() {
    let sandbox = Sandbox::new();
    let at = SocketAddr::from((SERVER_V4, 8443));
    let [key, certificate] = ["key.pem", "cert.pem"].map(|name| sandbox.directory().join(name));
    output(
        sandbox
            .outsider("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ])
            .args([
                "-subj",
                "/CN=web.test",
                "-addext",
                "subjectAltName=DNS:web.test",
            ])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .stderr(Stdio::null()),
    );
    let serve = || {
        let mut command = sandbox.outsider("openssl");
        command
            .args(["s_server", "-www", "-accept", &at.to_string(), "-key"])
            .arg(&key)
            .arg("-cert")
            .arg(&certificate)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Running::start(&mut command)
    };
    let endpoint = at.to_string();
    let health = format!(
        "health = {{ tls = \"web.test\", ca_file = {:?}, interval = \"100ms\", rise = 1, fall = 1 }}",
        certificate.display()
    );
    let culvert = sandbox.culvert(&group(std::slice::from_ref(&endpoint), &health));
    await_state(&sandbox, &culvert, &endpoint, "down");
    let server = serve();
    await_state(&sandbox, &culvert, &endpoint, "up");
    drop(server);
    await_state(&sandbox, &culvert, &endpoint, "down");
    // A port that accepts is not enough, nor is a server of another name.
    let deaf = sandbox.within(|| eventually("the port to be free", || TcpListener::bind(at).ok()));
    let failed = || status(&sandbox, &culvert)["endpoints"][0]["failed_checks"].as_u64();
    let before = failed();
    eventually("checks of what only accepts", || {
        while deaf.accept().is_ok() {
            if failed() > before {
                return Some(());
            }
        }
        None
    });
    assert_eq!(states(&sandbox, &culvert)[&endpoint], "down");
    drop(deaf);
    let _server = serve();
    await_state(&sandbox, &culvert, &endpoint, "up");
    culvert.reload(&group(
        std::slice::from_ref(&endpoint),
        &health.replace("web.test", "other.test"),
    ));
    await_state(&sandbox, &culvert, &endpoint, "down");
}

/// Three of four refuse; connections may eject no more than two.
#[test]
fn with_panic_half_of_the_group_stays_whatever_fails() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let dead = [5, 6, 7].map(|port| SocketAddr::from((SERVER_V4, port)).to_string());
    let endpoints = [dead.to_vec(), vec![server.address().to_string()]].concat();
    let health = |panic: u32| {
        format!(
            "balance = \"round-robin\"\n\
             health = {{ panic = \"{panic}%\", passive = {{ failures = 2, eject = \"1h\" }} }}"
        )
    };
    let culvert = sandbox.culvert(&group(&endpoints, &health(50)));
    let app = sandbox.app();
    assert_eq!(storm(&app, 2, 30), [(0, 60)].into());
    let ejected = || {
        let states = states(&sandbox, &culvert);
        states.values().filter(|state| *state == "ejected").count()
    };
    assert_eq!(ejected(), 2);
    culvert.reload(&group(&endpoints, &health(20)));
    assert_eq!(storm(&app, 2, 30), [(0, 60)].into());
    assert_eq!(ejected(), 3);
}

#[test]
fn a_name_is_asked_for_again_when_its_answer_expires_and_not_before() {
    const HOLDS: u32 = 3;
    let sandbox = Sandbox::new();
    let names = sandbox.name_server();
    let one = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let port = one.address().port();
    let other = sandbox.within(|| Server::echo((OTHER_V4, port)));
    names.set_for("web.test", &[SERVER_V4.into()], HOLDS);
    let culvert = sandbox.culvert(&group(&[format!("dns:web.test:{port}")], ""));
    await_state(&sandbox, &culvert, &one.address().to_string(), "up");
    let asked = eventually("three questions", || {
        let asked = names.asked("web.test");
        (asked.len() >= 3).then_some(asked)
    });
    // A moment less: what is rounded somewhere.
    let least = Duration::from_secs(HOLDS.into()).saturating_sub(Duration::from_millis(100));
    for pair in asked.windows(2) {
        let gap = pair[1] - pair[0];
        assert!(gap >= least, "asked again after {gap:?}");
    }
    names.set_for("web.test", &[OTHER_V4.into()], HOLDS);
    await_state(&sandbox, &culvert, &other.address().to_string(), "up");
    assert_eq!(storm(&sandbox.app(), 1, 10), [(0, 10)].into());
    assert_eq!(other.clients().len(), 10);
}
