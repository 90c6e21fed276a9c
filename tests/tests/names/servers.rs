//! Clients and servers that nobody here wrote: curl, OpenSSL and nginx. TLS is ended by the servers alone.

use std::{fs, process::Command};

use culvert_tests::{
    Sandbox, eventually, peer,
    process::{Running, attempt, output},
    sandbox::{OTHER_V4, SERVER_V4},
};

use super::{counted, host, rule, sni};

/// Ports of nginx on [`SERVER_V4`]: TLS twice, HTTP twice.
const TLS: [u16; 2] = [8441, 8442];
const HTTP: [u16; 2] = [8081, 8082];
/// HTTP/2 without TLS, and nothing else.
const H2: u16 = 8083;

/// nginx that answers by the name of the server that was reached, and has a page of some length.
fn nginx(sandbox: &Sandbox, page: &str) -> Running {
    let place = sandbox.directory().display().to_string();
    fs::create_dir(format!("{place}/www")).unwrap();
    fs::write(format!("{place}/www/page"), page).unwrap();
    for server in ["one", "two"] {
        let mut openssl = Command::new("openssl");
        openssl
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args(["-nodes", "-days", "2", "-subj", &format!("/CN={server}")])
            .args(["-keyout", &format!("{place}/{server}.key"), "-out"])
            .arg(format!("{place}/{server}.pem"));
        output(&mut openssl);
    }
    let server = |listen: &str, name: &str, more: &str| {
        format!(
            "server {{ listen {SERVER_V4}:{listen}; root {place}/www; {more} \
             location = /who {{ return 200 \"{name} $http_host$ssl_server_name\"; }} }}\n"
        )
    };
    let tls = |name: &str| {
        format!("ssl_certificate {place}/{name}.pem; ssl_certificate_key {place}/{name}.key;")
    };
    let servers = [
        server(&format!("{} ssl http2", TLS[0]), "one", &tls("one")),
        server(&format!("{} ssl http2", TLS[1]), "two", &tls("two")),
        server(&HTTP[0].to_string(), "one", ""),
        server(&HTTP[1].to_string(), "two", ""),
        server(&format!("{H2} http2"), "h2", ""),
    ];
    let mut command = sandbox.outsider("nginx");
    let nginx = peer::nginx(sandbox.directory(), &servers.concat(), &mut command);
    let url = format!("http://{SERVER_V4}:{}/who", HTTP[0]);
    eventually("nginx", || {
        let mut curl = sandbox.command("curl");
        attempt(curl.args(["-sS", "--max-time", "5", &url]))
            .status
            .success()
            .then_some(())
    });
    nginx
}

fn page() -> String {
    let lines: Vec<_> = (0..40_000).map(|line| format!("line {line}")).collect();
    lines.join("\n")
}

fn at(port: u16) -> String {
    format!("{SERVER_V4}:{port}")
}

/// curl to a name, whose address is [`OTHER_V4`].
fn curl(sandbox: &Sandbox, url: &str, arguments: &[&str]) -> Command {
    let mut command = sandbox.command("curl");
    command
        .args(["-sSk", "--max-time", "20", "--noproxy", "*"])
        .args(["--connect-to", &format!("::{OTHER_V4}:")])
        .args(arguments)
        .arg(url);
    command
}

#[test]
fn tls_goes_where_its_server_name_leads() {
    let sandbox = Sandbox::new();
    let page = page();
    let _nginx = nginx(&sandbox, &page);
    let names = [
        sni("www.example.com", "", &at(TLS[0])),
        sni("*.example.com", "", &at(TLS[1])),
        sni("*.deep.example.com", ", alpn = \"h2\"", &at(TLS[0])),
        sni("b\u{fc}cher.example", "", &at(TLS[1])),
        sni("refused.example", "", "refuse"),
    ];
    let culvert = sandbox.culvert(&rule(443, &at(TLS[0]), &names, ""));
    let mut count = 0;
    for (name, arguments, server, alpn) in [
        ("www.example.com", ["--http1.1"], "one", "http/1.1"),
        ("other.example.com", ["--http2"], "two", "h2,http/1.1"),
        ("a.deep.example.com", ["--http2"], "one", "h2,http/1.1"),
        ("a.deep.example.com", ["--http1.1"], "two", "http/1.1"),
        ("example.com", ["--http1.1"], "one", "http/1.1"),
        ("xn--bcher-kva.example", ["--http1.1"], "two", "http/1.1"),
    ] {
        let who = output(&mut curl(
            &sandbox,
            &format!("https://{name}/who"),
            &arguments,
        ));
        assert_eq!(who.split(' ').next(), Some(server), "{name}: {who}");
        assert!(who.ends_with(name), "the server sees the name: {who}");
        count += 1;
        let record = culvert.await_records(count).remove(count - 1);
        assert_eq!(record.name.as_deref(), Some(name));
        assert_eq!(record.alpn.as_deref(), Some(alpn));
        assert_eq!(record.reason, "done");
    }
    let fetched = output(&mut curl(&sandbox, "https://www.example.com/page", &[]));
    assert!(fetched == page, "{} bytes", fetched.len());
    let refused = attempt(&mut curl(&sandbox, "https://refused.example/who", &[]));
    assert!(!refused.status.success());
    let record = culvert.await_records(count + 2).remove(count + 1);
    assert_eq!(record.reason, "name_refused");
    assert_eq!((record.peer, record.up), (None, 0));
    assert_eq!(counted(&sandbox, &culvert)["named"], 8);
}

/// The certificate is the server's own: nothing stands between it and the client.
#[test]
fn openssl_sees_the_certificate_of_the_server() {
    let sandbox = Sandbox::new();
    let _nginx = nginx(&sandbox, "");
    let names = [sni("two.example", "", &at(TLS[1]))];
    let culvert = sandbox.culvert(&rule(443, &at(TLS[0]), &names, ""));
    for (arguments, subject) in [
        (["-servername", "two.example"].as_slice(), "CN = two"),
        (&["-servername", "TWO.example", "-tls1_2"], "CN = two"),
        (&["-servername", "else.example"], "CN = one"),
        (&["-noservername"], "CN = one"),
    ] {
        let mut command = sandbox.command("openssl");
        command
            .args(["s_client", "-connect", &format!("{OTHER_V4}:443")])
            .args(arguments);
        let shown = output(&mut command);
        assert!(shown.contains(&format!("subject={subject}\n")), "{shown}");
    }
    let records = culvert.await_records(4);
    let names: Vec<_> = records
        .iter()
        .map(|record| record.name.as_deref())
        .collect();
    assert_eq!(
        names,
        [
            Some("two.example"),
            Some("two.example"),
            Some("else.example"),
            None
        ]
    );
    let counted = counted(&sandbox, &culvert);
    assert_eq!(
        (&counted["named"], &counted["unnamed"]),
        (&3.into(), &1.into())
    );
}

#[test]
fn http_goes_where_its_host_leads() {
    let sandbox = Sandbox::new();
    let page = page();
    let _nginx = nginx(&sandbox, &page);
    let names = [
        host("one.example", &at(HTTP[0])),
        host("*.two.example", &at(HTTP[1])),
        host(&OTHER_V4.to_string(), &at(HTTP[1])),
        host("h2.example", &at(H2)),
    ];
    let culvert = sandbox.culvert(&rule(80, "refuse", &names, ""));
    for (url, arguments, answer) in [
        ("http://one.example/who", [].as_slice(), "one one.example"),
        ("http://a.b.two.example/who", &[], "two a.b.two.example"),
        ("http://192.0.2.2/who", &[], "two 192.0.2.2"),
        (
            "http://x/who",
            &["-H", "Host: ONE.example:80"],
            "one ONE.example:80",
        ),
        (
            "http://h2.example/who",
            &["--http2-prior-knowledge"],
            "h2 h2.example",
        ),
    ] {
        let mut command = curl(&sandbox, url, arguments);
        assert_eq!(output(&mut command), answer, "{url}");
    }
    for name in ["one.example", "h2.example"] {
        let how: &[&str] = if name == "h2.example" {
            &["--http2-prior-knowledge"]
        } else {
            &[]
        };
        let fetched = output(&mut curl(&sandbox, &format!("http://{name}/page"), how));
        assert!(fetched == page, "{} bytes from {name}", fetched.len());
    }
    for record in culvert.await_records(7) {
        assert!(record.name.is_some() && record.alpn.is_none(), "{record:?}");
        assert_eq!(record.reason, "done");
    }
    // No entry takes these, and the rule refuses what no entry takes.
    for arguments in [["-H", "Host: else.example"], ["-H", "Host:"]] {
        assert!(
            !attempt(&mut curl(&sandbox, "http://x/who", &arguments))
                .status
                .success()
        );
    }
    for record in culvert.await_records(9).drain(7..) {
        assert_eq!(record.reason, "name_refused");
    }
}
