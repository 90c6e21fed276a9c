//! `send_proxy`: a server that parses strictly learns who connects.

use std::{
    io::{self, Read as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    sync::mpsc,
};

use culvert_tests::{
    Sandbox,
    peer::Server,
    sandbox::{CLIENT_V4, SERVER_V4},
};

use super::{SERVICE, group};

/// A server that wants a PROXY header of a version, strictly by the specification, and echoes what follows.
fn announced(
    sandbox: &Sandbox,
    read: fn(&mut TcpStream) -> Announced,
) -> (Server, mpsc::Receiver<Announced>) {
    let (send, receive) = mpsc::channel();
    let server = sandbox.within(|| {
        Server::start((SERVER_V4, 0), move |mut stream| {
            send.send(read(&mut stream)).unwrap();
            let mut reading = stream.try_clone()?;
            io::copy(&mut reading, &mut stream)?;
            stream.shutdown(Shutdown::Write)
        })
    });
    (server, receive)
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) client: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) unique_id: Option<String>,
}

fn read_v1(stream: &mut TcpStream) -> Announced {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        assert!(line.len() < 107, "too long");
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.extend(byte);
    }
    let line = String::from_utf8(line).unwrap();
    let words: Vec<_> = line.strip_suffix("\r\n").unwrap().split(' ').collect();
    let [b"PROXY", b"TCP4", client, destination, client_port, port] =
        words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>()[..]
    else {
        panic!("{line:?}")
    };
    let address = |ip: &[u8], port: &[u8]| {
        let text = [ip, b":", port].concat();
        String::from_utf8(text).unwrap().parse().unwrap()
    };
    Announced {
        client: address(client, client_port),
        destination: address(destination, port),
        unique_id: None,
    }
}

pub(super) fn read_v2(stream: &mut TcpStream) -> Announced {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head[..12], b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(
        head[12..14],
        [0x21, 0x11],
        "version 2, PROXY, TCP over IPv4"
    );
    let mut rest = vec![0; u16::from_be_bytes([head[14], head[15]]).into()];
    stream.read_exact(&mut rest).unwrap();
    let (addresses, tlvs) = rest.split_at(12);
    let ip = |at: usize| Ipv4Addr::from_octets(addresses[at..at + 4].try_into().unwrap());
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    assert_eq!(tlvs[0], 0x05, "PP2_TYPE_UNIQUE_ID");
    let length = usize::from(u16::from_be_bytes([tlvs[1], tlvs[2]]));
    assert_eq!(tlvs.len(), 3 + length, "nothing behind it");
    Announced {
        client: (ip(0), port(8)).into(),
        destination: (ip(4), port(10)).into(),
        unique_id: Some(String::from_utf8(tlvs[3..].to_vec()).unwrap()),
    }
}

#[test]
fn servers_are_told_who_connects() {
    let sandbox = Sandbox::new();
    let app = sandbox.app();
    for (version, read) in [
        ("v1", read_v1 as fn(&mut TcpStream) -> Announced),
        ("v2", read_v2),
    ] {
        let (server, announced) = announced(&sandbox, read);
        let more = format!("send_proxy = \"{version}\"");
        let culvert = sandbox.culvert(&group(&[server.address().to_string()], &more));
        let socket = app.tcp(SERVICE.into());
        socket.bind((CLIENT_V4, 0).into()).unwrap();
        socket.connect(SERVICE.into()).unwrap();
        socket.exchange(3, 100_000).unwrap();
        let client = socket.local().unwrap();
        socket.close();
        let record = culvert.the_record();
        assert_eq!(record.unique_id.is_some(), version == "v2");
        assert_eq!(record.up, 100_000, "the header is not the app's");
        let expected = Announced {
            client,
            destination: SERVICE.into(),
            unique_id: record.unique_id,
        };
        assert_eq!(announced.recv().unwrap(), expected);
    }
}
