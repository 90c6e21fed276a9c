//! `PostgreSQL`, with `psql` and `pgbench`.

use std::process::{Command, Stdio};

use culvert_tests::{
    Sandbox, eventually,
    peer::postgres::{Postgres, program},
    process::output,
    sandbox::SERVER_V4,
    ways::{Way, assert_taken, await_ended, rules, ways},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{await_service, by_every_way};

const PORT: u16 = 5432;
/// Why connections end: neither end waits for the last word of the other's TLS, so whoever comes second finds the other gone.
const REASONS: [&str; 3] = ["done", "upstream_reset", "downstream_reset"];

fn client(mut command: Command, host: &str, port: &str) -> Command {
    command.args(["-h", host, "-p", port, "-U", "postgres"]);
    for (name, value) in [
        ("PGDATABASE", "postgres"),
        ("PGCONNECT_TIMEOUT", "20"),
        // Those who want it say so.
        ("PGSSLMODE", "disable"),
    ] {
        command.env(name, value);
    }
    command
}

fn by(sandbox: &Sandbox, way: Way, name: &str) -> Command {
    client(sandbox.command(program(name)), &way.host(), &way.port())
}

fn start(sandbox: &Sandbox) -> Postgres {
    let server = Postgres::start(PORT, |name| sandbox.outsider(name));
    await_service("PostgreSQL", || {
        client(
            sandbox.outsider(program("pg_isready")),
            "127.0.0.1",
            &PORT.to_string(),
        )
    });
    server
}

/// Has a client do statements, and returns what it says: a line for each row, without decoration.
fn sql(mut client: Command, statements: &str) -> String {
    client.args([
        "-X",
        "-q",
        "-A",
        "-t",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        statements,
    ]);
    output(&mut client).trim_end().to_owned()
}

/// Asks the server itself.
fn ask(sandbox: &Sandbox, statements: &str) -> String {
    let psql = sandbox.outsider(program("psql"));
    sql(client(psql, "127.0.0.1", &PORT.to_string()), statements)
}

/// What TPC-B leaves behind: every sum of money is the same, and each transaction has a line.
fn assert_balanced(sandbox: &Sandbox, transactions: usize) {
    let sums = ask(
        sandbox,
        "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
                (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history),
                (select count(*) from pgbench_history)",
    );
    let columns: Vec<_> = sums.split('|').collect();
    assert!(columns[..4].iter().all(|sum| *sum == columns[0]), "{sums}");
    assert_eq!(columns[4], transactions.to_string());
}

#[test]
fn no_transaction_is_lost_or_done_twice() {
    const CLIENTS: usize = 4;
    const EACH: usize = 40;
    let sandbox = Sandbox::new();
    let server = start(&sandbox);
    // One more way: the server's Unix socket.
    let unix = format!(
        "[upstream.unix]\nendpoints = [\"unix:{}\"]\n\
         [[reverse]]\nname = \"unix\"\nlisten = \"{SERVER_V4}:5433\"\nvia = \"unix\"\n",
        server.socket(PORT).display()
    );
    let culvert = sandbox.culvert(&(rules(PORT) + &unix));
    let pgbench = || sandbox.outsider(program("pgbench"));
    let mut fill = client(pgbench(), "127.0.0.1", &PORT.to_string());
    output(fill.args(["-i", "-q", "-s", "2"]));
    let bench = |mut command: Command, more: &[&str]| {
        command.args(["-n", "-c", &CLIENTS.to_string(), "-t", &EACH.to_string()]);
        let said = output(command.args(more));
        let all = CLIENTS * EACH;
        for line in [
            format!("number of transactions actually processed: {all}/{all}"),
            "number of failed transactions: 0 (0.000%)".to_owned(),
        ] {
            assert!(said.contains(&line), "{said}");
        }
        all
    };
    let modes = ["simple", "extended", "prepared"];
    let done: usize = by_every_way(PORT, |way| {
        let mode = modes[usize::from(way.address.port()) % modes.len()];
        let pgbench = by(&sandbox, way, "pgbench");
        let kept = bench(pgbench, &["-M", mode]);
        // Each in a connection of its own, by TLS.
        let mut pgbench = by(&sandbox, way, "pgbench");
        pgbench.env("PGSSLMODE", "require");
        output(pgbench.args(["-n", "-C", "-c", "2", "-t", "10"]));
        kept + 20
    })
    .into_iter()
    .sum();
    let unix = client(
        sandbox.command(program("pgbench")),
        &SERVER_V4.to_string(),
        "5433",
    );
    let done = done + bench(unix, &[]);
    assert_balanced(&sandbox, done);
    let records = assert_taken(&culvert, PORT, &REASONS);
    let replies: u64 = records["both-ways"]
        .iter()
        .map(|record| record.bytes.replies)
        .sum();
    println!("past the relay: {replies} bytes of replies");
}

#[test]
fn tables_are_the_same_after_a_copy_out_and_in() {
    const ROWS: &str =
        "select n, md5(n::text), repeat(chr(97 + n % 26), n % 300) from generate_series(1, 8000) n";
    const DIGEST: &str = "count(*), md5(string_agg(n || a || b, ',' order by n))";
    let sandbox = Sandbox::new();
    let _server = start(&sandbox);
    let culvert = sandbox.culvert(&rules(PORT));
    ask(
        &sandbox,
        &format!("create table source (n, a, b) as {ROWS}"),
    );
    let expected = ask(&sandbox, &format!("select {DIGEST} from source"));
    by_every_way(PORT, |way| {
        let table = format!("\"{}\"", way.name);
        let file = sandbox.directory().join(way.name);
        let file = file.display();
        let psql = || by(&sandbox, way, "psql");
        sql(psql(), &format!("\\copy source to '{file}'"));
        sql(
            psql(),
            &format!("create table {table} (n int, a text, b text)"),
        );
        sql(psql(), &format!("\\copy {table} from '{file}'"));
        assert_eq!(
            ask(&sandbox, &format!("select {DIGEST} from {table}")),
            expected,
            "{}",
            way.name
        );
        let encrypted = || {
            let mut psql = psql();
            psql.env("PGSSLMODE", "require");
            psql
        };
        assert_eq!(
            sql(
                encrypted(),
                "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
            ),
            "t"
        );
        if way.name == "steer" {
            let client = sql(psql(), "select host(inet_client_addr())");
            assert_eq!(client, way.host(), "as it is without us");
        }
    });
    assert_taken(&culvert, PORT, &REASONS);
}

/// Whoever gives up is known to the server at once, and so is whoever asks it to.
#[test]
fn the_server_notices_a_client_that_vanishes() {
    let sandbox = Sandbox::new();
    let _server = start(&sandbox);
    let culvert = sandbox.culvert(&rules(PORT));
    let sleeping = || {
        ask(
            &sandbox,
            "select count(*) from pg_stat_activity where query like '%sleep(1234)'",
        )
    };
    let begin = |way: Way| {
        let mut psql = by(&sandbox, way, "psql");
        psql.args(["-X", "-c", "select 1, pg_sleep(1234)"]);
        psql.stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let all = ways(PORT);
    let mut clients: Vec<_> = all.iter().map(|way| begin(*way)).collect();
    let count = all.len().to_string();
    eventually("all of them to wait", || {
        (sleeping() == count).then_some(())
    });
    for client in &mut clients {
        client.kill().unwrap();
        client.wait().unwrap();
    }
    eventually("nobody to wait", || (sleeping() == "0").then_some(()));

    for way in all {
        let client = begin(way);
        eventually("it to wait", || (sleeping() == "1").then_some(()));
        // It has a second connection tell the server.
        kill(
            Pid::from_raw(i32::try_from(client.id()).unwrap()),
            Signal::SIGINT,
        )
        .unwrap();
        let output = client.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("canceling statement due to user request"),
            "{}: {said}",
            way.name
        );
    }
    await_ended(&culvert);
}
