//! The resolver against a name server on loopback, and what becomes of several addresses.

use std::{
    fs,
    net::Ipv6Addr,
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType},
};
use socket2::Socket;
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, UdpSocket},
    time::Instant,
};

use super::*;
use crate::upstream::names::{Files, Names};

/// Counts TCP sockets.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Exempt for Counter {
    fn exempt(&self, _: &Socket, _: SocketAddr) -> std::io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Configuration files of a resolver's own.
struct System {
    folder: TempDir,
    port: u16,
}

impl System {
    fn new(hosts: &str, port: u16) -> Self {
        let folder = TempDir::new().expect("a folder");
        fs::write(folder.path().join("resolv.conf"), "nameserver 127.0.0.1\n").expect("a file");
        fs::write(folder.path().join("hosts"), hosts).expect("a file");
        Self { folder, port }
    }

    fn files(&self) -> Files {
        Files {
            resolv_conf: self.folder.path().join("resolv.conf"),
            hosts: self.folder.path().join("hosts"),
            port: self.port,
        }
    }

    fn names(&self) -> Names {
        Names::new(Arc::new(NoExemption), self.files())
    }
}

/// A name server that knows `proxy.test`, over UDP only that the answer does not fit, and half of `half.test`.
async fn name_server() -> u16 {
    // The same port may be taken for the other protocol.
    let (tcp, udp) = loop {
        let tcp = TcpListener::bind(loopback(0)).await.expect("a listener");
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("its address")).await {
            break (tcp, udp);
        }
    };
    let port = tcp.local_addr().expect("its address").port();
    tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((length, client)) = udp.recv_from(&mut query).await {
            let Some(mut answer) = answer(&query[..length]) else {
                continue;
            };
            if answer.queries[0].name().to_utf8() == "proxy.test." {
                answer.metadata.truncation = true;
                answer.answers.clear();
            }
            let bytes = answer.to_vec().expect("a message");
            udp.send_to(&bytes, client).await.expect("an answer");
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut query = vec![0; length.into()];
                    stream.read_exact(&mut query).await.expect("a query");
                    let answer = answer(&query).expect("a name for TCP");
                    let bytes = answer.to_vec().expect("a message");
                    let length = u16::try_from(bytes.len()).expect("a short message");
                    let framed = [&length.to_be_bytes()[..], &bytes].concat();
                    stream.write_all(&framed).await.expect("an answer");
                }
            });
        }
    });
    port
}

fn answer(query: &[u8]) -> Option<Message> {
    let mut answer = Message::from_vec(query).expect("a query").into_response();
    let query = answer.queries.first().expect("a question").clone();
    let name = query.name().to_utf8();
    let data = match query.query_type() {
        RecordType::A => RData::A(Ipv4Addr::LOCALHOST.into()),
        RecordType::AAAA if name.starts_with("half.") => return None,
        RecordType::AAAA => RData::AAAA(Ipv6Addr::LOCALHOST.into()),
        other => panic!("a query for {other}"),
    };
    if ["proxy.test.", "half.test."].contains(&name.as_str()) {
        answer.add_answer(Record::from_rdata(query.name().clone(), 60, data));
    } else {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    Some(answer)
}

fn both() -> Vec<IpAddr> {
    vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]
}

#[tokio::test]
async fn an_answer_too_long_for_udp_comes_through_an_exempt_socket() {
    let system = System::new("", name_server().await);
    let counter = Arc::new(Counter::default());
    let names = Names::new(Arc::<Counter>::clone(&counter), system.files());
    assert_eq!(names.lookup("proxy.test").await.expect("addresses"), both());
    let sockets = counter.0.load(Ordering::Relaxed);
    assert_ne!(sockets, 0);
    // The second time the cache knows.
    assert_eq!(names.lookup("proxy.test").await.expect("addresses"), both());
    assert_eq!(counter.0.load(Ordering::Relaxed), sockets);
}

#[tokio::test]
async fn a_question_without_an_answer_does_not_hold_up_the_other() {
    let system = System::new("", name_server().await);
    let begun = Instant::now();
    let found = system
        .names()
        .lookup("half.test")
        .await
        .expect("an address");
    assert_eq!(found, [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    // A name server has five seconds by default.
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_name_nobody_knows_is_the_proxys_and_not_the_destinations() {
    let system = System::new("", name_server().await);
    let mut hop = with_credentials(hop(Scheme::Socks5, loopback(1080)));
    hop.host = Host::Name("unknown.test".into());
    let dialer = Dialer::with_files(Arc::new(NoExemption), system.files());
    assert_failed(
        dialer.dial(&upstream([hop]), elsewhere()).await,
        CloseReason::ProxyUnreachable,
        &[
            "cannot resolve the host of proxy socks5://unknown.test:1080",
            "no address for unknown.test",
        ],
    );
}

#[tokio::test]
async fn a_silent_name_server_takes_the_connect_timeout() {
    let silent = UdpSocket::bind(loopback(0)).await.expect("a socket");
    let port = silent.local_addr().expect("its address").port();
    let system = System::new("", port);
    let dialer = Dialer::with_files(Arc::new(NoExemption), system.files());
    let mut upstream = upstream([hop(Scheme::Socks5, loopback(1080))]);
    upstream.hops[0].host = Host::Name("proxy.test".into());
    // Less than the resolver's own patience of five seconds.
    upstream.connect_timeout = Duration::from_secs(4);
    let asked = async {
        silent.recv_from(&mut [0; 512]).await.expect("a query");
    };
    let outcome = after_limit(dialer.dial(&upstream, elsewhere()), asked).await;
    assert_failed(
        outcome,
        CloseReason::ProxyUnreachable,
        &[
            "no connection to proxy socks5://proxy.test:1080",
            "connect timeout of 4s",
        ],
    );
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_counts_from_its_last_change() {
    let hosts = "192.0.2.1 proxy.test\n2001:db8::1 proxy.test\n192.0.2.3 proxy.test\n";
    let system = System::new(hosts, 1);
    let names = system.names();
    let before = names.lookup("Proxy.test").await.expect("addresses");
    assert_eq!(
        before,
        ["2001:db8::1", "192.0.2.1", "192.0.2.3"]
            .map(|ip| ip.parse::<IpAddr>().expect("an address"))
    );

    let hosts = fs::File::create(system.folder.path().join("hosts")).expect("the file");
    fs::write(system.folder.path().join("hosts"), "192.0.2.2 proxy.test\n").expect("the file");
    // Clocks of file systems tick slowly.
    hosts.set_modified(SystemTime::UNIX_EPOCH).expect("a time");
    let after = names.lookup("proxy.test").await.expect("addresses");
    assert_eq!(after, [IpAddr::from([192, 0, 2, 2])]);
}

#[tokio::test]
async fn missing_files_leave_the_local_name_server() {
    let system = System::new("", name_server().await);
    for file in ["resolv.conf", "hosts"] {
        fs::remove_file(system.folder.path().join(file)).expect("the file was there");
    }
    assert_eq!(
        system
            .names()
            .lookup("proxy.test")
            .await
            .expect("addresses"),
        both()
    );
}

#[tokio::test]
async fn useless_files_are_named() {
    let system = System::new("", 1);
    let path = system.folder.path().join("resolv.conf");
    fs::write(&path, "nameserver nowhere\n").expect("the file");
    let error = system
        .names()
        .lookup("proxy.test")
        .await
        .expect_err("no name server");
    assert!(
        told(&error).contains(&format!("cannot use {}", path.display())),
        "{error}"
    );

    fs::remove_file(&path).expect("the file was there");
    fs::create_dir(&path).expect("a folder in its place");
    let error = system
        .names()
        .lookup("proxy.test")
        .await
        .expect_err("no file");
    assert!(
        told(&error).contains(&format!("cannot read {}", path.display())),
        "{error}"
    );
}

/// A dialer that knows `proxy.test` by both loopback addresses.
fn of_both_families() -> (System, Dialer) {
    let system = System::new("127.0.0.1 proxy.test\n::1 proxy.test\n", 1);
    let dialer = Dialer::with_files(Arc::new(NoExemption), system.files());
    (system, dialer)
}

/// A proxy on 127.0.0.1 that refuses with status 403, known as `proxy.test`.
fn forbidding(listener: TcpListener) -> Upstream {
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        peer::read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            .await
            .expect("an answer");
        peer::drain(stream).await;
    });
    let mut hop = with_credentials(hop(Scheme::Http, address));
    hop.host = Host::Name("proxy.test".into());
    upstream([hop])
}

#[tokio::test]
async fn an_address_that_refuses_leaves_the_next_one() {
    let listener = TcpListener::bind(loopback(0)).await.expect("a listener");
    let (_system, dialer) = of_both_families();
    let outcome = dialer.dial(&forbidding(listener), elsewhere()).await;
    assert_failed(outcome, CloseReason::ProxyRefused, &["status 403"]);
}

#[tokio::test]
async fn an_address_that_swallows_packets_leaves_the_next_one_its_time() {
    // The same port may be taken for the other family.
    let (_full, listener) = loop {
        let (address, full) = peer::swallowing((Ipv6Addr::LOCALHOST, 0).into());
        if let Ok(listener) = TcpListener::bind(loopback(address.port())).await {
            break (full, listener);
        }
    };
    let (_system, dialer) = of_both_families();
    let mut upstream = forbidding(listener);
    upstream.connect_timeout = Duration::from_secs(2);
    let begun = Instant::now();
    let outcome = dialer.dial(&upstream, elsewhere()).await;
    assert!(begun.elapsed() < upstream.connect_timeout);
    assert_failed(outcome, CloseReason::ProxyRefused, &["status 403"]);
}

#[tokio::test]
async fn no_address_that_answers_is_an_unreachable_proxy() {
    let (_system, dialer) = of_both_families();
    let (nobody, _port) = peer::nobody();
    let mut hop = with_credentials(hop(Scheme::Http, nobody));
    hop.host = Host::Name("proxy.test".into());
    let last = format!("at 127.0.0.1:{}", hop.port);
    assert_failed(
        dialer.dial(&upstream([hop]), elsewhere()).await,
        CloseReason::ProxyUnreachable,
        &[
            "cannot connect to proxy http://proxy.test:",
            &last,
            "refused",
        ],
    );
}
