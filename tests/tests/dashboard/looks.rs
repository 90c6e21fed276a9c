//! Whether people can read the page: on a telephone, on a desk, by day and by night.

use std::{
    collections::BTreeSet,
    env, fs,
    net::{Ipv6Addr, SocketAddr},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use culvert_tests::{
    Sandbox,
    app::Socket,
    browser::{Browser, Device},
    daemon::Settings,
    eventually::{eventually, in_time},
    kernel::has_ipv6,
    peer::Server,
    process::Running,
    sandbox::{OTHER_V4, SERVER_V4, SERVER_V6},
};

use super::{SERVICE, connect};

const READABLE: &str = include_str!("readable.js");
const PAGE: &str = "http://127.0.0.1:9465/";
const IS_LIVE: &str = "document.querySelector('#state').textContent === 'live'";
/// An address as long as they get, where nobody is.
const LONG: Ipv6Addr = Ipv6Addr::new(
    0x2001, 0xdb8, 0x1234, 0x5678, 0x9abc, 0xdef0, 0x1234, 0x5678,
);
/// Names a directory that pictures of the page are put into, for whoever wants to see it.
const PICTURES: &str = "CULVERT_PICTURES";

const PHONE: Device = Device {
    width: 360,
    height: 740,
    is_phone: true,
    is_dark: false,
};
const DESK: Device = Device {
    width: 1280,
    height: 800,
    is_phone: false,
    is_dark: false,
};

/// A browser beside a daemon with as much to show as there may be, and text as long as it gets.
fn with_much(work: impl FnOnce(&mut Browser)) {
    let sandbox = Sandbox::new();
    let [server, other] = [SERVER_V4, OTHER_V4].map(|ip| sandbox.within(|| Server::echo((ip, 0))));
    let server_v6 = has_ipv6().then(|| sandbox.within(|| Server::echo((SERVER_V6, 0))));
    let mut endpoints = vec![
        server.address().to_string(),
        format!("{} weight=200", other.address()),
        // Nobody.
        format!("{SERVER_V4}:9"),
    ];
    endpoints.extend(server_v6.iter().map(|server| server.address().to_string()));
    let rules = format!(
        "[upstream.web]\nendpoints = {endpoints:?}\nhealth = {{ tcp = true, interval = \"100ms\" }}\n\
         [upstream.a-proxy-with-a-name-that-is-rather-long]\nurl = \"socks5://proxy.internal.example.com:1080\"\n\
         [[forward]]\nname = \"everything-that-the-build-servers-ask-of-the-web\"\n\
         match = {{ dest = [\"198.51.100.0/24\", \"{LONG}\", \"203.0.113.0/24\", \"!203.0.113.7\"], port = [80, 443, \"8000-8999\"] }}\nvia = \"web\"\n\
         [[forward]]\nname = \"proxied\"\nmatch = {{ dest = \"192.0.2.77\", exe = \"/usr/bin/python3\", uid = \"nobody\" }}\n\
         via = \"a-proxy-with-a-name-that-is-rather-long\"\n\
         [[reverse]]\nname = \"site\"\nlisten = [\"{OTHER_V4}:443\", \"198.51.100.0/24:8000-8999\"]\nvia = \"original\"\n\
         [[forward]]\nname = \"refused\"\nmatch = {{ dest = \"192.0.2.78\" }}\nvia = \"refuse\"\n"
    );
    let culvert = sandbox.culvert_with(&Settings::daemon("dashboard = \"9465\""), &rules);
    let app = sandbox.app();
    let mut services: Vec<SocketAddr> = vec![SERVICE.parse().unwrap(); 5];
    services.extend(has_ipv6().then(|| SocketAddr::from((LONG, 443))));
    let open: Vec<Socket<'_>> = services
        .iter()
        .map(|service| {
            let socket = app.tcp(*service);
            socket.connect(*service).unwrap();
            socket.exchange(1, 3_000_000).unwrap();
            socket
        })
        .collect();
    connect(&app).close();
    // A name without a place to break it, and as long as the kernel keeps it.
    let program = sandbox.directory().join("WWWWWWWWWWWWWWW");
    fs::copy("/bin/bash", &program).unwrap();
    let mut connects = sandbox.command(&program);
    connects.args(["-c", "exec 3<>/dev/tcp/198.51.100.9/80 && read <&3"]);
    let _connects = Running::start(&mut connects);
    eventually("all connections, and an endpoint that is down", || {
        let status = culvert.status();
        let all = status["connections"]["live"] == services.len() + 1;
        let endpoints = status["groups"][0]["endpoints"].as_array().unwrap();
        let is_down = endpoints.iter().any(|one| one["state"] == "down");
        (all && is_down).then_some(())
    });
    work(&mut Browser::start(&sandbox));
    for socket in open {
        socket.close();
    }
}

/// Waits until the page has what it shows, also in its charts.
fn await_page(browser: &mut Browser) {
    browser.open(PAGE);
    browser.await_true(IS_LIVE);
    browser.await_true("history.made.length > 1");
}

fn keep_picture(browser: &mut Browser, name: &str) {
    if let Some(directory) = env::var_os(PICTURES) {
        let picture = BASE64.decode(browser.picture()).unwrap();
        fs::write(
            Path::new(&directory).join(name).with_extension("png"),
            picture,
        )
        .unwrap();
    }
}

/// What keeps somebody with a device from reading the page.
fn wrong(browser: &mut Browser, device: Device) -> Vec<String> {
    let Device {
        is_phone, is_dark, ..
    } = device;
    let wrong = browser.evaluate(&format!("{READABLE}({is_phone}, {is_dark})"));
    let lines = wrong.as_array().unwrap().iter();
    lines
        .map(|line| line.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn it_is_readable_on_telephones_and_desks_by_day_and_by_night() {
    with_much(|browser| {
        for (kind, device) in [("phone", PHONE), ("desk", DESK)] {
            for (scheme, is_dark) in [("light", false), ("dark", true)] {
                browser.take(Device { is_dark, ..device });
                await_page(browser);
                keep_picture(browser, &format!("{kind}-{scheme}"));
                let wrong = wrong(browser, Device { is_dark, ..device });
                assert_eq!(wrong, [""; 0], "{kind}, {scheme}");
            }
        }
    });
}

#[test]
fn it_turns_dark_and_narrow_while_it_is_open() {
    with_much(|browser| {
        browser.take(DESK);
        await_page(browser);
        for device in [
            Device {
                is_dark: true,
                ..DESK
            },
            Device {
                is_dark: true,
                ..PHONE
            },
            DESK,
        ] {
            browser.take(device);
            // Its next look draws the charts anew.
            let is_right = in_time(|| wrong(browser, device).is_empty().then_some(()));
            assert!(
                is_right.is_some(),
                "{device:?}: {:#?}",
                wrong(browser, device)
            );
        }
    });
}

#[test]
fn a_finger_sorts_filters_and_pauses() {
    with_much(|browser| {
        browser.take(PHONE);
        await_page(browser);
        let rows = "document.querySelectorAll('#connections tr:has(td:not(.none))').length";
        browser.await_true(&format!("{rows} > 5"));
        browser.tap("#filter");
        browser.type_in("wwww");
        browser.await_true(&format!("{rows} === 1"));
        browser.await_true(
            "document.querySelector('#connections td').textContent.includes('WWWWWWWWWWWWWWW')",
        );
        browser.tap("#pause");
        browser.await_true("document.querySelector('#state').textContent === 'paused'");
        browser.tap("#pause");
        browser.await_true(IS_LIVE);
        // What is chosen in a list that the telephone draws itself.
        browser.evaluate(
            "(() => { const sort = document.querySelector('#sort'); sort.value = 'bytes'; \
             sort.dispatchEvent(new Event('change')); })()",
        );
        browser.await_true(&format!("{rows} === 1"));
    });
}

#[test]
fn it_asks_its_daemon_and_nobody_else() {
    with_much(|browser| {
        await_page(browser);
        browser.await_true("history.made.length > 2");
        let requests = browser.told("Network.requestWillBeSent");
        let asked: BTreeSet<_> = requests
            .iter()
            .map(|request| request["request"]["url"].as_str().unwrap())
            .collect();
        let paths = ["", "page.js", "page.css", "v1/status", "v1/rules"];
        for path in paths.map(|path| format!("{PAGE}{path}")) {
            assert!(asked.contains(&*path), "{path} not in {asked:?}");
        }
        // The icon is in the page.
        let mut others = asked
            .iter()
            .filter(|url| !url.starts_with(PAGE) && !url.starts_with("data:"));
        assert_eq!(others.next(), None);
        // Such as what its policy forbids, and what is missing.
        for kind in [
            "Log.entryAdded",
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
        ] {
            let complaints = browser.told(kind);
            assert!(complaints.is_empty(), "{complaints:#?}");
        }
    });
}
