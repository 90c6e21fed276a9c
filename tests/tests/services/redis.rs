//! Redis, with `redis-cli` and `redis-benchmark`.

use std::{fmt::Write as _, fs, process::Command};

use culvert_tests::{
    Payload, Sandbox, eventually,
    peer::redis,
    process::output,
    ways::{Way, assert_taken, rules, ways},
};

use super::{await_service, by_every_way};

const PORT: u16 = 6379;
const REPLICA: u16 = 6380;

/// A client of Redis.
fn client(mut command: Command, host: &str, port: &str) -> Command {
    command.args(["-h", host, "-p", port]);
    command
}

fn by(sandbox: &Sandbox, way: Way, program: &str) -> Command {
    client(sandbox.command(program), &way.host(), &way.port())
}

/// Asks a server itself.
fn ask(sandbox: &Sandbox, port: u16, words: &[&str]) -> String {
    let mut cli = client(
        sandbox.outsider("redis-cli"),
        "127.0.0.1",
        &port.to_string(),
    );
    let answer = output(cli.args(words));
    answer.trim_end().to_owned()
}

fn start(sandbox: &Sandbox, port: u16) -> culvert_tests::process::Running {
    let server = redis(
        sandbox.directory(),
        port,
        &mut sandbox.outsider("redis-server"),
    );
    await_service("Redis", || {
        let mut cli = client(
            sandbox.outsider("redis-cli"),
            "127.0.0.1",
            &port.to_string(),
        );
        cli.arg("ping");
        cli
    });
    server
}

/// Text that no other key has, of a length that its number decides.
fn value(seed: u64, number: u64) -> String {
    let length = usize::try_from(number * number * 7 % 20_000).unwrap();
    let bytes = Payload {
        seed: seed << 32 | number,
    }
    .prefix(length / 2);
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

#[test]
fn what_was_written_is_read_back_and_counters_count() {
    const KEYS: u64 = 150;
    const INCREMENTS: u64 = 1000;
    let sandbox = Sandbox::new();
    let _redis = start(&sandbox, PORT);
    let culvert = sandbox.culvert(&rules(PORT));
    by_every_way(PORT, |way| {
        let Way { name, .. } = way;
        let seed = way.address.port().into();
        let key = |number| format!("{name}:{number}");
        // In one go, as bulk.
        let mut commands = String::new();
        for number in 0..KEYS {
            let (key, value) = (key(number), value(seed, number));
            write!(
                commands,
                "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n",
                key.len(),
                value.len()
            )
            .unwrap();
        }
        let file = sandbox.directory().join(name);
        fs::write(&file, commands).unwrap();
        let piped = by(&sandbox, way, "redis-cli")
            .arg("--pipe")
            .stdin(fs::File::open(&file).unwrap())
            .output()
            .unwrap();
        let piped = String::from_utf8_lossy(&piped.stdout).into_owned();
        assert!(
            piped.contains(&format!("errors: 0, replies: {KEYS}")),
            "{name}: {piped}"
        );
        // All at once, and each by itself.
        let mut cli = by(&sandbox, way, "redis-cli");
        cli.args(["--raw", "MGET"]).args((0..KEYS).map(key));
        let read = output(&mut cli);
        for (number, line) in (0..).zip(read.lines()) {
            assert!(line == value(seed, number), "{name}: the value of {number}");
        }
        assert_eq!(read.lines().count() as u64, KEYS, "{name}");
        // As many as were asked for, exactly.
        let (counter, count) = (format!("count:{name}"), INCREMENTS.to_string());
        let mut bench = by(&sandbox, way, "redis-benchmark");
        bench.args(["-q", "-c", "8", "-n", &count, "INCR", &counter]);
        output(&mut bench);
        assert_eq!(ask(&sandbox, PORT, &["GET", &counter]), count, "{name}");
        let mut bench = by(&sandbox, way, "redis-benchmark");
        bench.args(["-q", "-c", "8", "-P", "16", "-d", "3000", "-n", "1000"]);
        bench.args(["-t", "ping_mbulk,set,get,mset"]);
        let said = output(&mut bench);
        assert_eq!(
            said.matches("requests per second").count(),
            4,
            "{name}: {said}"
        );
    });
    // The benchmark leaves with answers of others of its connections on the way.
    let records = assert_taken(&culvert, PORT, &["done", "downstream_reset"]);
    let replies = |name: &str| -> u64 { records[name].iter().map(|r| r.bytes.replies).sum() };
    println!("past the relay: {} bytes of replies", replies("both-ways"));
}

/// A connection on which the server speaks for as long as it lives.
#[test]
fn a_replica_gets_the_same_data() {
    let sandbox = Sandbox::new();
    let _redis = start(&sandbox, PORT);
    let culvert = sandbox.culvert(&rules(PORT));
    // Its own connections are intercepted.
    let _replica = redis(
        sandbox.directory(),
        REPLICA,
        &mut sandbox.command("redis-server"),
    );
    await_service("the replica", || {
        let mut cli = client(
            sandbox.outsider("redis-cli"),
            "127.0.0.1",
            &REPLICA.to_string(),
        );
        cli.arg("ping");
        cli
    });
    ask(&sandbox, PORT, &["DEBUG", "POPULATE", "5000", "key", "200"]);
    for way in ways(PORT) {
        ask(&sandbox, REPLICA, &["REPLICAOF", &way.host(), &way.port()]);
        eventually("the replica to be linked", || {
            ask(&sandbox, REPLICA, &["INFO", "replication"])
                .contains("master_link_status:up")
                .then_some(())
        });
        let mut bench = by(&sandbox, way, "redis-benchmark");
        output(bench.args([
            "-q",
            "-c",
            "4",
            "-n",
            "500",
            "-r",
            "5000",
            "-d",
            "500",
            "-t",
            "set,lpush",
        ]));
        let digest = ask(&sandbox, PORT, &["DEBUG", "DIGEST"]);
        eventually("the same data", || {
            (ask(&sandbox, REPLICA, &["DEBUG", "DIGEST"]) == digest).then_some(())
        });
        ask(&sandbox, REPLICA, &["REPLICAOF", "NO", "ONE"]);
    }
    assert_taken(&culvert, PORT, &["done"]);
}
