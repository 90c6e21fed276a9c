//! nginx and `HAProxy`, with `wrk`, `curl` and `openssl`.

use std::{fs, path::Path, process::Command};

use culvert_tests::{
    Sandbox, eventually,
    peer::{haproxy, nginx, nginx_with},
    process::{Running, attempt, output, run},
    sandbox::{OTHER_V4, SERVER_V4},
    ways::{Way, assert_taken, rules},
};

use super::{await_service, by_every_way, wrk::wrk};

const PORT: u16 = 8080;
/// Debian has it in a package of its own.
const STREAM: &str = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;";

fn page(lines: usize) -> String {
    let lines: Vec<_> = (0..lines).map(|line| format!("line {line}")).collect();
    lines.join("\n")
}

fn curl(sandbox: &Sandbox, url: &str) -> Command {
    let mut command = sandbox.command("curl");
    command.args(["-sSfk", "--max-time", "20", "--noproxy", "*", url]);
    command
}

#[test]
fn every_answer_is_whole_by_every_way() {
    let sandbox = Sandbox::new();
    let root = sandbox.directory().join("www");
    fs::create_dir(&root).unwrap();
    let (small, large) = (page(2000), page(150_000));
    fs::write(root.join("small"), &small).unwrap();
    fs::write(root.join("large"), &large).unwrap();
    // New connections come all the time.
    let server = format!(
        "keepalive_requests 20; client_max_body_size 10m;
         server {{ listen 0.0.0.0:{PORT}; root {}; dav_methods PUT; }}",
        root.display()
    );
    let _nginx = nginx(sandbox.directory(), &server, &mut sandbox.outsider("nginx"));
    await_service("nginx", || {
        curl(&sandbox, &format!("http://127.0.0.1:{PORT}/small"))
    });
    let culvert = sandbox.culvert(&rules(PORT));
    by_every_way(PORT, |way| {
        let Way { name, address, .. } = way;
        let at = |path: &str| format!("http://{address}/{path}");
        wrk(&sandbox, sandbox.command("wrk"), 2, 4, &at("small"), &small).assert_flawless(name);
        // One connection for several, and several connections at once.
        let mut several = curl(&sandbox, &at("large"));
        several.args([&at("small"), &at("large")]);
        assert!(
            output(&mut several) == [&*large, &small, &large].concat(),
            "{name}"
        );
        let mut parts = curl(&sandbox, &at("large"));
        parts.args(["--range", "1000000-1200000"]);
        assert!(output(&mut parts) == large[1_000_000..=1_200_000], "{name}");
        let upload = sandbox.directory().join("www/large");
        output(curl(&sandbox, &at(name)).arg("--upload-file").arg(upload));
        assert!(
            fs::read_to_string(root.join(name)).unwrap() == large,
            "{name}"
        );
    });
    // What it has asked for when its time is over, `wrk` does not wait for.
    let records = assert_taken(&culvert, PORT, &["done", "downstream_reset"]);
    let replies: u64 = records["both-ways"]
        .iter()
        .map(|record| record.bytes.replies)
        .sum();
    println!("past the relay: {replies} bytes of replies");
}

/// A `HAProxy` that is told by a header what it answers: the client, its destination, the name and the number of the connection.
fn telling(sandbox: &Sandbox, name: &str, port: u16, more: &str) -> Running {
    let sections = format!(
        "frontend {name}\n  mode http\n  bind 127.0.0.1:{port} accept-proxy {more}\n  \
         http-request return status 200 content-type text/plain lf-string \
         \"%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_authority] %[fc_pp_unique_id]\"\n"
    );
    let file = sandbox.directory().join(format!("{name}.cfg"));
    haproxy(&file, &sections, &mut sandbox.outsider("haproxy"))
}

/// A certificate and its key in one file, as `HAProxy` wants them.
fn certificate(directory: &Path) -> String {
    let [key, certificate, both] =
        ["key.pem", "certificate.pem", "both.pem"].map(|name| directory.join(name));
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=haproxy",
            "-keyout",
            &key.to_string_lossy(),
            "-out",
            &certificate.to_string_lossy(),
        ],
    );
    let text = [&certificate, &key].map(|path| fs::read_to_string(path).unwrap());
    fs::write(&both, text.concat()).unwrap();
    both.to_string_lossy().into_owned()
}

#[test]
fn haproxy_reads_all_that_a_header_tells() {
    let sandbox = Sandbox::new();
    let pem = certificate(sandbox.directory());
    let _plain = telling(&sandbox, "plain", 8081, "");
    let _encrypted = telling(&sandbox, "encrypted", 8082, &format!("ssl crt {pem}"));
    // A check is a connection like any other to it, with a header of its own.
    let group = |name: &str, port: u16, version: &str, health: &str| {
        format!(
            "[upstream.{name}]\nendpoints = [\"127.0.0.1:{port}\"]\nsend_proxy = \"{version}\"\n\
             health = {{ {health}, interval = \"100ms\" }}\n"
        )
    };
    for version in ["v1", "v2"] {
        let rules = [
            group("plain", 8081, version, "http = \"/\""),
            group(
                "encrypted",
                8082,
                version,
                &format!(
                    "tls = \"haproxy\", http = \"/\", ca_file = \"{}\"",
                    sandbox.directory().join("certificate.pem").display()
                ),
            ),
            format!("[[reverse]]\nname = \"http\"\nlisten = \"{OTHER_V4}:80\"\nvia = \"plain\"\n"),
            format!(
                "[[reverse]]\nname = \"https\"\nlisten = \"{OTHER_V4}:443\"\nvia = \"refuse\"\n\
                 names = [ {{ sni = \"*.example.com\", via = \"encrypted\" }} ]\n"
            ),
        ];
        let culvert = sandbox.culvert(&rules.concat());
        await_service("HAProxy", || curl(&sandbox, &format!("http://{OTHER_V4}/")));
        await_service("HAProxy with TLS", || named(&sandbox, "www.example.com"));
        let before = culvert.await_records(2).len();
        let answers = [
            output(&mut curl(&sandbox, &format!("http://{OTHER_V4}/"))),
            output(&mut named(&sandbox, "www.example.com")),
        ];
        let records = culvert.await_records(before + 2);
        for (answer, (name, port)) in answers.iter().zip([("http", 80), ("https", 443)]) {
            let mut records = records[before..].iter();
            let record = records
                .find(|record| record.rule.as_deref() == Some(name))
                .unwrap();
            let [authority, id] = if version == "v1" {
                ["", ""]
            } else {
                let authority = if port == 443 { "www.example.com" } else { "" };
                [authority, record.unique_id.as_deref().unwrap()]
            };
            let client = record.client;
            let expected = format!(
                "{} {} {OTHER_V4} {port} {authority} {id}",
                client.ip(),
                client.port()
            );
            assert_eq!(*answer, expected, "{version}");
        }
        // Whoever asks for nothing that is listed gets nothing.
        assert!(
            !attempt(&mut named(&sandbox, "www.example.net"))
                .status
                .success()
        );
    }
}

/// curl to a name at [`OTHER_V4`].
fn named(sandbox: &Sandbox, name: &str) -> Command {
    let mut command = curl(sandbox, &format!("https://{name}/"));
    command.args(["--connect-to", &format!("::{OTHER_V4}:")]);
    command
}

/// What senders before the relay say of the client, services behind it are told.
#[test]
fn the_client_is_known_at_the_end_of_a_chain_of_proxies() {
    let sandbox = Sandbox::new();
    let server = "server { listen 127.0.0.1:8081 proxy_protocol; \
                  location / { return 200 \"$proxy_protocol_addr:$proxy_protocol_port\"; } }";
    let senders = [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority check-send-proxy check inter 50ms",
        "send-proxy-v2-ssl-cn check-send-proxy check inter 50ms",
    ];
    let front = |(count, words): (usize, &&str)| {
        let port = 9001 + count;
        format!(
            "listen front-{port}\n  bind {OTHER_V4}:{port}\n  unique-id-format %[uuid()]\n  source {SERVER_V4}\n  \
             server one {SERVER_V4}:80 {words}\n"
        )
    };
    let sections: String = senders.iter().enumerate().map(front).collect();
    let file = sandbox.directory().join("senders.cfg");
    let _haproxy = haproxy(&file, &sections, &mut sandbox.outsider("haproxy"));
    // And nginx is a sender, too.
    let stream = format!(
        "{STREAM} stream {{ server {{ listen {OTHER_V4}:9000; proxy_bind {SERVER_V4};
                                     proxy_pass {SERVER_V4}:80; proxy_protocol on; }} }}"
    );
    let _nginx = nginx_with(
        sandbox.directory(),
        &stream,
        server,
        &mut sandbox.outsider("nginx"),
    );
    let culvert = sandbox.culvert(&format!(
        "[[reverse]]\nname = \"site\"\nlisten = \"{SERVER_V4}:80\"\nvia = \"127.0.0.1:8081\"\nsend_proxy = \"v2\"\n\
         accept_proxy = [\"{SERVER_V4}\"]\n"
    ));
    for port in 9000..=9004 {
        let told = eventually("the sender", || {
            let mut curl = curl(&sandbox, &format!("http://{OTHER_V4}:{port}/"));
            // The address that it has without us is one of its own.
            curl.args([
                "--interface",
                &OTHER_V4.to_string(),
                "-w",
                " %{local_ip}:%{local_port}",
            ]);
            let output = attempt(&mut curl);
            let text = String::from_utf8(output.stdout).unwrap();
            output.status.success().then_some(text)
        });
        let (told, local) = told.split_once(' ').unwrap();
        assert_eq!(told, local, "by the sender at {port}");
    }
    // Checks of senders come with a header that speaks of nobody.
    assert!(!culvert.log().contains("PROXY header"), "{}", culvert.log());
    for record in culvert.records() {
        assert_eq!(
            record.sender.map(|sender| sender.ip()),
            Some(SERVER_V4.into())
        );
    }
}
