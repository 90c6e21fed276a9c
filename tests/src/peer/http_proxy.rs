//! An HTTP proxy that knows CONNECT (RFC 9110, section 9.3.6) and notes what it is asked for.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
};

use super::{Server, socks5::relay};

/// A proxy that connects where it is told and relays.
#[derive(Debug)]
pub struct HttpProxy {
    server: Server,
    requests: Arc<Mutex<Vec<SocketAddr>>>,
}

impl HttpProxy {
    /// Serves on `address` until dropped; port 0 is a free one.
    pub fn start(address: impl Into<SocketAddr>) -> Self {
        let requests: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let noted = Arc::clone(&requests);
        let server = Server::start(address, move |stream| serve(stream, &noted));
        Self { server, requests }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What it was asked to connect to so far, in order.
    pub fn requests(&self) -> Vec<SocketAddr> {
        self.requests.lock().expect("requests").clone()
    }
}

fn serve(mut client: TcpStream, requests: &Mutex<Vec<SocketAddr>>) -> io::Result<()> {
    // A client that speaks before it has the answer would lose what it said to this buffer; ours may not.
    let mut head = BufReader::new(client.try_clone()?).lines();
    let request = head.next().expect("a request")?;
    let destination = request
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("not a CONNECT: {request}"));
    for line in head {
        if line?.is_empty() {
            break;
        }
    }
    requests.lock().expect("requests").push(destination);
    let Ok(server) = TcpStream::connect::<SocketAddr>(destination) else {
        return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n");
    };
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    relay(&client, &server)
}
