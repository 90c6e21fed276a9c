use super::*;
use crate::{
    balance::Method,
    group::{Address, Limits, Member, Settings, SettingsByName, Source, health::HealthRules},
    live::Begun,
    rule::{FailMode, PathChoice, Selector},
};

const MINUTE: Duration = Duration::from_mins(1);

fn listens(texts: &[&str]) -> Vec<Listen> {
    let one = |text: &&str| config::listens_of(text).expect("something to listen on");
    texts.iter().flat_map(one).collect()
}

fn rule(name: &str, listen: &[&str]) -> Reverse {
    Reverse {
        name: name.into(),
        listen: listens(listen),
        source: Selector::default(),
        interface: Selector::default(),
        via: ReverseVia::Original,
        names: None,
        connect_timeout: MINUTE,
        accept_proxy: Vec::new(),
        send_proxy: None,
        keep_source: false,
        on_relay_failure: FailMode::Direct,
        path: PathChoice::Auto,
        steer: false,
    }
}

fn settings(endpoints: &[&str]) -> Arc<Settings> {
    let source = |text: &&str| match text.strip_prefix("dns:") {
        None => Source::Address(Address::Tcp(text.parse().unwrap())),
        Some(name) => Source::Name {
            name: name.strip_suffix(":80").unwrap().into(),
            port: 80,
        },
    };
    Arc::new(Settings {
        members: endpoints
            .iter()
            .map(|text| Member {
                source: source(text),
                weight: 1,
            })
            .collect(),
        method: Method::RoundRobin,
        health: HealthRules::default(),
        check: None,
        limits: Limits::default(),
        send_proxy: None,
        keep_source: false,
        connect_timeout: MINUTE,
    })
}

fn groups(of: &[(&str, &[&str])]) -> (SettingsByName, Groups) {
    let settings: SettingsByName = of
        .iter()
        .map(|(name, endpoints)| ((*name).into(), settings(endpoints)))
        .collect();
    let groups = Groups::default().with(&settings);
    (settings, groups)
}

fn found(text: &str, rules: &[Reverse], groups: &Groups) -> String {
    match Target::find(text, rules, groups) {
        Ok(target) => target.to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_meant_is_found_as_it_is_written_in_the_file() {
    let rules = [
        rule("site", &["192.0.2.1:80", "192.0.2.1:443"]),
        rule("all", &["*:80", "[2001:db8::/64]:8000-8999"]),
    ];
    let (_, groups) = groups(&[(
        "web",
        &["10.0.0.1:80", "[2001:db8::1]:80", "dns:web.test:80"],
    )]);
    for (text, expected) in [
        ("site", "site"),
        ("192.0.2.1:443", "site/192.0.2.1:443"),
        ("site/192.0.2.1:80", "site/192.0.2.1:80"),
        ("*:80", "all/*:80"),
        ("[2001:db8::]/64:8000-8999", "all/[2001:db8::]/64:8000-8999"),
        ("10.0.0.1:80", "web/10.0.0.1:80"),
        ("web/10.0.0.1:80", "web/10.0.0.1:80"),
        ("[2001:DB8:0::1]:80", "web/[2001:db8::1]:80"),
        ("dns:web.test:80", "web/dns:web.test:80"),
        ("web/dns:web.test:80", "web/dns:web.test:80"),
    ] {
        assert_eq!(found(text, &rules, &groups), expected);
    }
    for text in [
        "",
        "/",
        "web",
        "web/",
        "10.0.0.2:80",
        "site/10.0.0.1:80",
        "192.0.2.1:81",
        "all/192.0.2.1:80",
    ] {
        let error = Target::find(text, &rules, &groups).unwrap_err();
        assert_eq!(error, DrainError::Unknown(text.to_owned()));
    }
}

#[test]
fn what_may_be_several_things_is_asked_for() {
    let rules = [
        rule("site", &["10.0.0.1:80"]),
        rule("other", &["10.0.0.1:80"]),
    ];
    let (_, groups) = groups(&[("one", &["10.0.0.1:80"]), ("two", &["10.0.0.1:80"])]);
    assert_eq!(
        found("10.0.0.1:80", &rules, &groups),
        "\"10.0.0.1:80\" can be one/10.0.0.1:80 or two/10.0.0.1:80 or site/10.0.0.1:80 or other/10.0.0.1:80; say which"
    );
    for text in ["two/10.0.0.1:80", "other/10.0.0.1:80"] {
        assert_eq!(found(text, &rules, &groups), text);
    }
}

#[test]
fn what_is_drained_of_a_rule_says_direct_in_its_place() {
    let rules = [
        rule("first", &["*:80"]),
        rule("site", &["192.0.2.1:80", "192.0.2.1:443"]),
    ];
    let (_, groups) = groups(&[]);
    let mut drains = Drains::default();
    assert!(matches!(drains.rules(&rules), Cow::Borrowed(_)));
    let part = Target::find("192.0.2.1:443", &rules, &groups).unwrap();
    drains.begin(part.clone(), MINUTE, &groups);
    let in_force = drains.rules(&rules).into_owned();
    let shown: Vec<_> = in_force
        .iter()
        .map(|rule| (&*rule.name, rule.via.clone(), rule.listen.clone()))
        .collect();
    let direct = ReverseVia::Direct;
    assert_eq!(
        shown,
        [
            ("first", ReverseVia::Original, listens(&["*:80"])),
            ("site", ReverseVia::Original, listens(&["192.0.2.1:80"])),
            ("site", direct.clone(), listens(&["192.0.2.1:443"])),
        ]
    );
    let whole = Target::find("site", &rules, &groups).unwrap();
    drains.begin(whole.clone(), MINUTE, &groups);
    let in_force = drains.rules(&rules).into_owned();
    assert_eq!(in_force.len(), 2);
    assert_eq!(
        (&in_force[1].via, &in_force[1].listen),
        (&direct, &rules[1].listen)
    );
    for target in [&whole, &part] {
        assert_eq!(drains.end(target, &groups), Ok(()));
        let error = DrainError::NotDrained(target.to_string());
        assert_eq!(drains.end(target, &groups), Err(error));
    }
    assert_eq!(*drains.rules(&rules), rules);
}

#[test]
fn a_reload_keeps_it_as_long_as_it_is_listed() {
    let rules = [
        rule("site", &["192.0.2.1:80"]),
        rule("other", &["192.0.2.2:80"]),
    ];
    let (mut settings, groups) = groups(&[("web", &["10.0.0.1:80", "10.0.0.2:80"])]);
    let mut drains = Drains::default();
    for text in ["site", "192.0.2.2:80", "10.0.0.1:80", "10.0.0.2:80"] {
        let target = Target::find(text, &rules, &groups).unwrap();
        drains.begin(target, MINUTE, &groups);
    }
    let names = |drains: &Drains| {
        let status = drains.status(&Live::default(), &groups);
        status
            .into_iter()
            .map(|drain| drain.target)
            .collect::<Vec<_>>()
    };
    groups.change(&settings);
    drains.keep_listed(&rules, &groups);
    assert_eq!(names(&drains).len(), 4);
    settings.insert("web".into(), self::settings(&["10.0.0.2:80"]));
    groups.change(&settings);
    let rules = [
        rule("site", &["192.0.2.3:80"]),
        rule("other", &["192.0.2.3:80"]),
    ];
    drains.keep_listed(&rules, &groups);
    assert_eq!(names(&drains), ["site", "web/10.0.0.2:80"]);
}

#[test]
fn connections_are_left_alone_until_the_time_is_over() {
    let rules = [rule("site", &["192.0.2.0/24:80"])];
    let (_, groups) = groups(&[]);
    let mut drains = Drains::default();
    let target = Target::find("site", &rules, &groups).unwrap();
    let live = Arc::new(Live::default());
    let enter = |role, rule: &str, to: &str| {
        live.enter(Begun {
            role,
            rule: rule.into(),
            client: ([198, 51, 100, 7], 4000).into(),
            orig_dst: to.parse().unwrap(),
            at: Duration::ZERO,
            process: None,
        })
    };
    let ours = enter(Role::Reverse, "site", "192.0.2.1:80");
    let _others = [
        enter(Role::Forward, "site", "192.0.2.1:80"),
        enter(Role::Reverse, "other", "192.0.2.1:80"),
    ];
    drains.begin(target.clone(), MINUTE, &groups);
    drains.sweep(&live, &groups);
    let told = |entry: &crate::live::Entry| {
        let ended = std::pin::pin!(entry.ended());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        ended.poll(&mut context).is_ready()
    };
    let [status] = drains.status(&live, &groups).try_into().unwrap();
    assert!(
        !told(&ours) && !status.done && status.live == 1,
        "{status:?}"
    );
    assert!((1..=60_000).contains(&status.left_ms), "{status:?}");
    // Said again, with another time.
    drains.begin(target, Duration::ZERO, &groups);
    assert!(drains.next().is_some());
    drains.sweep(&live, &groups);
    assert!(told(&ours));
    drop(ours);
    // Handshakes that had begun.
    let [status] = drains.status(&live, &groups).try_into().unwrap();
    assert_eq!((status.live, status.left_ms), (0, 0));
    std::thread::sleep(HANDSHAKE);
    drains.sweep(&live, &groups);
    let [status] = drains.status(&live, &groups).try_into().unwrap();
    assert!(status.done && drains.next().is_none(), "{status:?}");
}
