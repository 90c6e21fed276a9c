//! What a selected connection is to the app: as if nobody stood between.

use culvert_tests::{Sandbox, peer::Server, sandbox::SERVER_V4};

/// Everything through the relay.
const ALL: &str = r#"
[upstream.relay]
url = "direct://"
[[forward]]
name = "all"
match = { port = "1-65535" }
via = "relay"
"#;

#[test]
fn a_connection_goes_through_the_relay() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.assert_echo();
    assert_eq!(socket.peer(), Ok(server.address()));
    socket.close();
    assert_eq!(culvert.the_record().orig_dst, Some(server.address()));
    assert!(culvert.maps().records().is_empty());
}
