//! What valid configurations mean.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use proxy_userspace::{
    config::{AccessLog, LogFormat, LogTarget, summary, upstream_from_urls},
    relay::Worth,
    rule::{Calibrate, FailMode, IngressHook, Match, PathChoice, ReverseVia, Selector, Via},
    upstream::{Host, Scheme, Upstream},
};
use secrecy::ExposeSecret;

use crate::world::{SECRET, parse, valid};

const EXAMPLE: &str = include_str!("../../examples/culvert.toml");

fn rule(matches: &str) -> Match {
    let text = format!("[[forward]]\nname = \"a\"\nvia = \"direct\"\nmatch = {matches}\n");
    valid(&text).config.forward.remove(0).matches
}

fn upstream(section: &str) -> Upstream {
    let text = format!("[upstream.u]\n{section}\n[[forward]]\nname = \"a\"\nvia = \"u\"\n");
    Upstream::clone(&valid(&text).config.upstreams["u"])
}

#[test]
fn the_example_is_valid_and_its_summary_is_as_written_down() {
    let loaded = valid(EXAMPLE);
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert_eq!(summary(&loaded.config), include_str!("example.txt"));
}

#[test]
fn rules_for_what_arrives_are_read() {
    let listen = |text: &str| {
        let text = format!("[[reverse]]\nname = \"a\"\nlisten = {text}\nvia = \"original\"\n");
        let rule = valid(&text).config.reverse.remove(0);
        let shown = rule.listen.iter();
        let shown: Vec<String> = shown
            .map(|listen| format!("{} {:?}", listen.net, listen.ports))
            .collect();
        shown.join(", ")
    };
    for (text, expected) in [
        ("\"192.0.2.1:80\"", "192.0.2.1/32 80..=80"),
        ("\"0.0.0.0:80\"", "0.0.0.0/0 80..=80"),
        ("\"[::]:80\"", "::/0 80..=80"),
        ("\"*:1-65535\"", "0.0.0.0/0 1..=65535, ::/0 1..=65535"),
        ("\"[2001:db8::/32]:7\"", "2001:db8::/32 7..=7"),
        ("\"[2001:db8::]/32:7\"", "2001:db8::/32 7..=7"),
        (
            "[\"192.0.2.0/24:7-9\", \"[::1]:7\"]",
            "192.0.2.0/24 7..=9, ::1/128 7..=7",
        ),
    ] {
        assert_eq!(listen(text), expected, "{text}");
    }
    let via = |text: &str| {
        let text = format!(
            "[upstream.web]\nurl = \"direct://\"\n[[reverse]]\nname = \"a\"\nlisten = \"*:80\"\nvia = {text}\n\
             [[forward]]\nname = \"b\"\nvia = \"web\"\n"
        );
        valid(&text).config.reverse.remove(0).via
    };
    for (text, expected) in [
        ("\"direct\"", ReverseVia::Direct),
        ("\"refuse\"", ReverseVia::Refuse),
        ("\"original\"", ReverseVia::Original),
        ("\"web\"", ReverseVia::Upstream("web".into())),
        (
            "\"[::1]:25\"",
            ReverseVia::Address("[::1]:25".parse().unwrap()),
        ),
    ] {
        assert_eq!(via(text), expected);
    }
    let full = valid(EXAMPLE).config.reverse.remove(0);
    assert_eq!(full.connect_timeout, Duration::from_secs(5));
    assert_eq!(full.interface.include, ["eth0"]);
    assert_eq!(full.on_relay_failure, FailMode::Direct);
}

#[test]
fn names_are_read() {
    let names = |entries: &str, more: &str| {
        let text = format!(
            "[upstream.web]\nurl = \"direct://\"\n[[reverse]]\nname = \"a\"\nlisten = \"*:80\"\nvia = \"refuse\"\n\
             names = {entries}\n{more}\n"
        );
        let loaded = valid(&text);
        assert_eq!(loaded.warnings, Vec::<String>::new());
        loaded.config.reverse.into_iter().next().unwrap()
    };
    // An upstream that only an entry names is used; one entry is a list of one.
    let rule = names("{ sni = \"Straße.example\", via = \"web\" }", "");
    assert!(rule.is_relayed(), "to know the name");
    let read = rule.names.unwrap();
    assert_eq!(read.entries[0].pattern.to_string(), "xn--strae-oqa.example");
    assert_eq!(read.entries[0].to, ReverseVia::Upstream("web".into()));
    assert_eq!(
        (&read.unnamed, &read.malformed),
        (&None, &ReverseVia::Refuse)
    );
    assert_eq!(read.limits.bytes, 16 * 1024);
    assert_eq!(read.limits.time, Duration::from_secs(1));
    let more = "unnamed = \"original\"\nmalformed = \"[::1]:80\"\npeek_timeout = \"1m\"\npeek_bytes = \"512B\"";
    let entries = "[{ host = [\"A.example.\", \"*.B.example\", \"*\", \"[2001:DB8:0:0::1]\"], via = \"web\" },
                    { sni = \"*\", alpn = \"h2\", via = \"refuse\" }, { sni = \"*\", via = \"web\" }]";
    let read = names(entries, more).names.unwrap();
    let shown: Vec<_> = read
        .entries
        .iter()
        .map(|entry| format!("{} {} {:?}", entry.kind.label(), entry.pattern, entry.alpn))
        .collect();
    assert_eq!(
        shown,
        [
            "host a.example []",
            "host *.b.example []",
            "host * []",
            "host [2001:db8::1] []",
            "sni * [\"h2\"]",
            "sni * []"
        ]
    );
    assert_eq!(read.unnamed, Some(ReverseVia::Original));
    assert_eq!(
        read.malformed,
        ReverseVia::Address("[::1]:80".parse().unwrap())
    );
    assert_eq!(read.limits.bytes, 512);
    assert_eq!(read.limits.time, Duration::from_mins(1));
}

#[test]
fn an_empty_file_has_the_defaults_of_the_example() {
    let loaded = valid("");
    let mut example = valid(EXAMPLE).config.daemon;
    assert!(example.access_log.take().is_some());
    assert!(example.metrics.take().is_some());
    assert!(example.health.take().is_some());
    assert!(example.dashboard.take().is_some());
    assert_eq!(loaded.config.daemon, example);
    assert!(loaded.config.forward.is_empty() && loaded.config.upstreams.is_empty());
    let text = summary(&loaded.config);
    assert!(
        text.contains("access log         none\n  admin socket       /run/culvert/admin.sock\n  metrics            none\n  dashboard          none\n  health             none\n\nupstreams\n  none\n"),
        "{text}"
    );
}

#[test]
fn the_daemon_section_is_read() {
    let text = "[daemon]\ncgroup = \"/user.slice/\"\nworkers = 2\nmax_connections = 1\nmax_pending = 0x10\n\
                idle_timeout = \"2m\"\ndrain_timeout = \"0s\"\nconnect_timeout = \"500ms\"\n\
                heartbeat_timeout = \"1s\"\ncalibrate = \"demand\"\ningress = \"clsact\"\npromote = { bytes = \"4 MiB\", reads = 0 }\nadmin = \"/run/a.sock\"\n\
                access_log = { path = \"/var/log/a.log\", format = \"text\", sample = 10, rate = 500 }\n";
    let daemon = valid(text).config.daemon;
    assert_eq!(daemon.cgroup, "user.slice");
    assert_eq!(
        (
            daemon.workers.get(),
            daemon.max_connections,
            daemon.max_pending
        ),
        (2, 1, 16)
    );
    assert_eq!(daemon.idle_timeout, Some(Duration::from_mins(2)));
    assert_eq!(daemon.drain_timeout, Duration::ZERO);
    assert_eq!(daemon.connect_timeout, Duration::from_millis(500));
    assert_eq!(daemon.handshake_timeout, Duration::from_secs(10));
    assert_eq!(daemon.heartbeat_timeout, Duration::from_secs(1));
    let (bytes, reads) = (4 << 20, 0);
    assert_eq!(daemon.promote, Worth { bytes, reads });
    assert_eq!(daemon.calibrate, Calibrate::OnDemand);
    assert_eq!(daemon.ingress, IngressHook::Clsact);
    assert_eq!(daemon.admin, Some(PathBuf::from("/run/a.sock")));
    assert_eq!(
        valid("[daemon]\nadmin = \"off\"\n").config.daemon.admin,
        None
    );
    let target = LogTarget::File(PathBuf::from("/var/log/a.log"));
    let format = LogFormat::Text;
    let (sample, rate) = (NonZeroU32::new(10).unwrap(), NonZeroU32::new(500));
    let log = AccessLog {
        sample,
        rate,
        ..AccessLog::whole(target, format)
    };
    assert_eq!(daemon.access_log, Some(log));
}

#[test]
fn the_timeouts_of_the_daemon_are_those_of_its_upstreams() {
    let text = "[daemon]\nconnect_timeout = \"1s\"\nhandshake_timeout = \"2s\"\n\
                [upstream.a]\nurl = \"http://h\"\n[upstream.b]\nurl = \"http://h\"\nconnect_timeout = \"3s\"\n";
    let upstreams = valid(text).config.upstreams;
    let timeouts = |name: &str| {
        (
            upstreams[name].connect_timeout,
            upstreams[name].handshake_timeout,
        )
    };
    assert_eq!(
        timeouts("a"),
        (Duration::from_secs(1), Duration::from_secs(2))
    );
    assert_eq!(
        timeouts("b"),
        (Duration::from_secs(3), Duration::from_secs(2))
    );
}

#[test]
fn a_rule_is_read() {
    let rule = valid("[[forward]]\nname = \"a.b-c_1\"\nvia = \"refuse\"\n")
        .config
        .forward
        .remove(0);
    assert_eq!((rule.name.as_ref(), &rule.via), ("a.b-c_1", &Via::Refuse));
    assert_eq!(
        (rule.on_relay_failure, rule.path),
        (FailMode::Direct, PathChoice::Auto)
    );
    assert_eq!(rule.matches, Match::default());
}

#[test]
fn the_shortcut_may_be_part_of_the_choice() {
    let path = |lines: &str| {
        let text = format!(
            "[upstream.a]\nurl = \"direct://\"\n[[forward]]\nname = \"a\"\nvia = \"a\"\n{lines}\n"
        );
        valid(&text).config.forward.remove(0).path
    };
    assert_eq!(path("allow_shortcut = true"), PathChoice::AutoOrShortcut);
    assert_eq!(path("allow_shortcut = false"), PathChoice::Auto);
    assert_eq!(
        path("path = \"auto\"\nallow_shortcut = true"),
        PathChoice::AutoOrShortcut
    );
}

#[test]
fn what_needs_no_relay_may_be_part_of_the_choice() {
    let rule = |group: &str, lines: &str| {
        let text = format!(
            "[upstream.a]\nendpoints = \"10.0.0.1:80\"\n{group}\n[[forward]]\nname = \"a\"\nvia = \"a\"\n{lines}\n"
        );
        let rule = valid(&text).config.forward.remove(0);
        (rule.path, rule.rewrite)
    };
    let hashed = "balance = \"maglev\"";
    assert_eq!(rule("", "allow_rewrite = true"), (PathChoice::Auto, true));
    assert_eq!(rule("", "allow_rewrite = false"), (PathChoice::Auto, false));
    assert_eq!(
        rule(hashed, "allow_rewrite = true"),
        (PathChoice::Auto, false)
    );
    let both = "path = \"auto\"\nallow_rewrite = true\nallow_shortcut = true";
    assert_eq!(rule("", both), (PathChoice::Auto, true));
    assert_eq!(rule(hashed, both), (PathChoice::AutoOrShortcut, false));

    let steered = |lines: &str| {
        let text = format!(
            "[[reverse]]\nname = \"a\"\nlisten = \"*:80\"\nvia = \"127.0.0.1:8080\"\n{lines}\n"
        );
        valid(&text).config.reverse.remove(0).steered_to().is_some()
    };
    assert!(steered("allow_steer = true"));
    assert!(!steered("allow_steer = false"));
    assert!(!steered("allow_steer = true\nkeep_source = true"));
}

#[test]
fn selectors_are_one_value_or_many() {
    let matches = rule(
        "{ uid = [0, \"alice\", \"5-6\", \"!33\", 0xff], gid = \"wheel\", pid = 1, port = \"!80\" }",
    );
    assert_eq!(matches.uid.include, [0..=0, 1000..=1000, 5..=6, 255..=255]);
    assert_eq!(matches.uid.exclude, [33..=33]);
    assert_eq!(matches.gid.include, [998..=998]);
    assert_eq!(matches.pid.include, [1]);
    let but_80 = Selector {
        include: vec![],
        exclude: vec![80..=80],
    };
    assert_eq!(matches.port, but_80);
    let matches = rule(
        "{ exe = [\"/usr//bin/curl\", \"!/bin/sh\"], cgroup = [\"/system.slice/a.service/\", \"b.scope\"] }",
    );
    assert_eq!(matches.exe.include, [PathBuf::from("/usr/bin/curl")]);
    assert_eq!(matches.exe.exclude, [PathBuf::from("/bin/sh")]);
    assert_eq!(
        matches.cgroup.include,
        ["system.slice/a.service", "b.scope"]
    );
    let matches = rule("{ dest = [\"10.0.0.0/8\", \"192.0.2.1\", \"::1\", \"!2001:db8::/32\"] }");
    let nets = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| text.parse().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        matches.dest.include,
        nets(&["10.0.0.0/8", "192.0.2.1/32", "::1/128"])
    );
    assert_eq!(matches.dest.exclude, nets(&["2001:db8::/32"]));
}

#[test]
fn urls_have_default_ports_and_decoded_credentials() {
    let cases = [
        ("socks5://10.0.0.5", Scheme::Socks5, "10.0.0.5", 1080),
        ("http://10.0.0.5/", Scheme::Http, "10.0.0.5", 8080),
        ("http://10.0.0.5:80", Scheme::Http, "10.0.0.5", 80),
        ("https://[2001:db8::7]", Scheme::Https, "2001:db8::7", 443),
        (
            "HTTPS://[::ffff:10.0.0.5]:8443",
            Scheme::Https,
            "10.0.0.5",
            8443,
        ),
    ];
    for (url, scheme, address, port) in cases {
        let hop = upstream(&format!("url = \"{url}\"")).hops.remove(0);
        let host = Host::Ip(address.parse().unwrap());
        assert_eq!(
            (hop.scheme, hop.host, hop.port),
            (scheme, host, port),
            "{url}"
        );
        assert!(hop.credentials.is_none() && hop.ca_file.is_none());
    }
    let hop = upstream("url = \"http://a%40b:p%3A%2F%20w@Proxy.Example.COM.:1\"")
        .hops
        .remove(0);
    assert_eq!(hop.host, Host::Name("proxy.example.com".to_owned()));
    let credentials = hop.credentials.unwrap();
    assert_eq!(credentials.user, "a@b");
    assert_eq!(credentials.password.expose_secret(), "p:/ w");
}

#[test]
fn credentials_come_from_keys_too() {
    let sections = [
        "url = \"socks5://alice:s3cr3t@h\"",
        "url = \"socks5://alice@h\"\npassword_file = \"/etc/culvert/password\"",
        "url = \"socks5://h\"\nusername = \"alice\"\npassword_env = \"CULVERT_PASSWORD\"",
        "url = [\"socks5://h\"]\nusername = \"alice\"\npassword_env = \"CULVERT_PASSWORD\"",
        "url = [{ url = \"socks5://h\", username = \"alice\", password_env = \"CULVERT_PASSWORD\" }]",
    ];
    for section in sections {
        let upstream = upstream(section);
        let credentials = upstream.hops[0].credentials.clone().unwrap();
        assert_eq!(credentials.user, "alice", "{section}");
        assert_eq!(credentials.password.expose_secret(), SECRET, "{section}");
        assert!(!format!("{upstream:?}").contains(SECRET), "{upstream:?}");
    }
    let hop = upstream("url = \"http://h\"\nusername = \"alice\"")
        .hops
        .remove(0);
    assert_eq!(hop.credentials.unwrap().password.expose_secret(), "");
}

#[test]
fn chains_keep_their_order() {
    let upstream = upstream(
        "url = [\"http://a\", { url = \"https://b\", ca_file = \"/etc/culvert/ca.pem\" }, \"socks5://c\"]",
    );
    let hosts: Vec<Host> = upstream.hops.iter().map(|hop| hop.host.clone()).collect();
    assert_eq!(
        hosts,
        ["a", "b", "c"].map(|name| Host::Name(name.to_owned()))
    );
    assert_eq!(
        upstream.hops[1].ca_file,
        Some(PathBuf::from("/etc/culvert/ca.pem"))
    );
}

#[test]
fn live_rules_are_not_called_dead() {
    let cases = [
        // Loopback is left alone by rules that do not name it.
        ("{}", "{ dest = \"127.0.0.1\" }"),
        ("{ dest = [\"0.0.0.0/0\", \"::/0\"] }", "{ dest = \"::1\" }"),
        // Both families.
        ("{ dest = \"::/0\" }", "{ dest = \"10.0.0.0/8\" }"),
        ("{ dest = \"0.0.0.0/0\" }", "{}"),
        ("{ port = [80, \"82-65535\"] }", "{ port = \"80-82\" }"),
        ("{ uid = \"!0\" }", "{ uid = 0 }"),
        // One executable may have several paths.
        ("{ exe = \"!/bin/sh\" }", "{ exe = \"/bin/dash\" }"),
        // A process may descend from both.
        ("{ pid = [7, \"!8\"] }", "{ pid = 7 }"),
        ("{ cgroup = \"a/b\" }", "{ cgroup = \"a\" }"),
        ("{ cgroup = \"a\" }", "{ cgroup = \"ab\" }"),
    ];
    for (first, second) in cases {
        valid(&format!(
            "[[forward]]\nname = \"a\"\nvia = \"direct\"\nmatch = {first}\n\
             [[forward]]\nname = \"b\"\nvia = \"refuse\"\nmatch = {second}\n"
        ));
    }
}

#[test]
fn an_upstream_with_errors_is_still_known_to_rules() {
    let text = "[upstream.a]\nurl = \"ftp://h\"\n[[forward]]\nname = \"a\"\nvia = \"a\"\n";
    let report = parse(text).unwrap_err().to_string();
    assert_eq!(report.matches("error:").count(), 1, "{report}");
}

#[test]
fn colours_are_for_those_who_ask() {
    let Err(proxy_userspace::config::ConfigError::Invalid(report)) = parse("x = 1") else {
        panic!("must be refused");
    };
    assert_eq!(report.count(), 1);
    assert!(!report.to_string().contains('\u{1b}'));
    assert!(report.styled().contains('\u{1b}'));
}

#[test]
fn urls_of_the_command_line_are_an_upstream() {
    let urls = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    let upstream = upstream_from_urls(&urls(&["http://a", "socks5://u:p@b"])).unwrap();
    assert_eq!(upstream.hops.len(), 2);
    assert!(upstream.hops[1].credentials.is_some());
    assert!(upstream_from_urls(&[]).unwrap().hops.is_empty());
    assert!(
        upstream_from_urls(&urls(&["direct://"]))
            .unwrap()
            .hops
            .is_empty()
    );
    let cases = [
        (
            vec!["http://a", "10.0.0.5:1080"],
            "proxy URL 2: the proxy URL has no scheme; did you mean `socks5://10.0.0.5:1080`?",
        ),
        (
            vec!["direct://", "http://a"],
            "proxy URL 1: `direct://` cannot be part of a chain",
        ),
        (
            vec!["socks5://u:s3cr3t@h:x"],
            "proxy URL 1: the proxy URL has a bad port; a port is from 1 to 65535",
        ),
        (
            vec!["http://a"; 9],
            "proxy URL 9: the chain has more than 8 proxies",
        ),
    ];
    for (texts, expected) in cases {
        assert_eq!(
            upstream_from_urls(&urls(&texts)).unwrap_err().to_string(),
            expected
        );
    }
}

#[test]
fn a_port_alone_is_one_of_loopback() {
    let metrics = |text: &str| {
        let file = format!("[daemon]\nmetrics = \"{text}\"\n");
        valid(&file)
            .config
            .daemon
            .metrics
            .map(|address| address.to_string())
    };
    assert_eq!(metrics("9464").as_deref(), Some("127.0.0.1:9464"));
    assert_eq!(metrics("[::]:9464").as_deref(), Some("[::]:9464"));
    assert_eq!(metrics("off"), None);
}
