//! Programs that nobody here wrote, through the relay.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{fs, net::SocketAddr};

use culvert_tests::{
    Sandbox, eventually,
    process::{Running, attempt, output},
    rules::ALL,
    sandbox::SERVER_V4,
};

const BODY: &str = "a page that nginx serves";
const CLIENT: &str = "
import asyncio, sys
async def fetch(host, port):
    reader, writer = await asyncio.open_connection(host, port)
    assert writer.get_extra_info('peername') == (host, port)
    writer.write(b'GET / HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n')
    await writer.drain()
    body = (await reader.read()).split(b'\\r\\n\\r\\n', 1)[1]
    writer.close()
    return body
async def main(host, port):
    bodies = await asyncio.gather(*(fetch(host, port) for _ in range(50)))
    assert len(set(bodies)) == 1, bodies
    print(bodies[0].decode(), end='')
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
";

#[test]
fn nginx_serves_curl_and_asyncio_through_the_relay() {
    let sandbox = Sandbox::new();
    let home = sandbox.directory();
    fs::write(home.join("index.html"), BODY).unwrap();
    let server = SocketAddr::from((SERVER_V4, 8080));
    let home = home.display();
    let config = format!(
        "daemon off; master_process off; pid {home}/nginx.pid; error_log {home}/error.log;
         events {{}}
         http {{ access_log off; client_body_temp_path {home}/a; proxy_temp_path {home}/b; fastcgi_temp_path {home}/c;
                 uwsgi_temp_path {home}/d; scgi_temp_path {home}/e; server {{ listen {server}; root {home}; }} }}"
    );
    let file = sandbox.directory().join("nginx.conf");
    fs::write(&file, config).unwrap();
    let _nginx = Running::start(sandbox.outsider("nginx").arg("-c").arg(&file));
    let url = format!("http://{server}/");
    eventually("nginx", || {
        let mut curl = sandbox.outsider("curl");
        attempt(curl.args(["-sS", &url]))
            .status
            .success()
            .then_some(())
    });

    let culvert = sandbox.culvert(ALL);
    let fetched = output(sandbox.command("curl").args(["-sS", &url]));
    assert_eq!(fetched, BODY);
    let (host, port) = (server.ip().to_string(), server.port().to_string());
    let fetched = output(
        sandbox
            .command("python3")
            .args(["-c", CLIENT, &host, &port]),
    );
    assert_eq!(fetched, BODY);
    let records = culvert.await_records(51);
    assert!(records.iter().all(|record| record.reason == "done"));
}
