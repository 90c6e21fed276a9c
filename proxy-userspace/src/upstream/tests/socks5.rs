use std::net::Ipv6Addr;

use tokio::io::AsyncWriteExt;

use super::*;

/// A request and its reply.
type Line = (Vec<u8>, Vec<u8>);

const BOUND: [u8; 10] = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// The script of a proxy that wants no credentials and gives this reply.
fn open(reply: &[u8]) -> Vec<Line> {
    vec![(vec![5, 1, 0], vec![5, 0]), request(reply)]
}

/// The script up to the verdict on the credentials.
fn password(verdict: u8) -> Vec<Line> {
    let length = u8::try_from(PASSWORD.len()).expect("short");
    let sent = [&[1, 5], USER.as_bytes(), &[length], PASSWORD.as_bytes()].concat();
    vec![(vec![5, 2, 0, 2], vec![5, 2]), (sent, vec![1, verdict])]
}

/// The request for [`elsewhere`] and its reply.
fn request(reply: &[u8]) -> Line {
    (vec![5, 1, 0, 1, 192, 0, 2, 7, 0x01, 0xbb], reply.to_vec())
}

fn replying(code: u8) -> Vec<u8> {
    let mut reply = BOUND.to_vec();
    reply[1] = code;
    reply
}

async fn refused(with: bool, lines: Vec<Line>, reason: CloseReason, tells: &str) {
    let proxy = Scripted::talking(lines).await;
    let plain = hop(Scheme::Socks5, proxy.address);
    let hop = if with { with_credentials(plain) } else { plain };
    let outcome = dialer().dial(&upstream([hop]), elsewhere()).await;
    assert_failed(outcome, reason, &[&proxy.address.to_string(), tells]);
    proxy.finish().await;
}

#[tokio::test]
async fn words_behind_the_reply_are_the_destinations() {
    for bound in [
        &BOUND[..],
        &[
            5, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 4, 56,
        ],
        b"\x05\x00\x00\x03\x0aproxy.test\x04\x38",
    ] {
        let reply = [bound, peer::GREETING.as_bytes()].concat();
        let proxy = Scripted::talking(open(&reply)).await;
        let upstream = upstream([hop(Scheme::Socks5, proxy.address)]);
        let outcome = dialer().dial(&upstream, elsewhere()).await;
        assert_eq!(
            first_words(outcome, peer::GREETING.len()).await,
            peer::GREETING
        );
        proxy.finish().await;
    }
}

#[tokio::test]
async fn a_reply_may_come_byte_by_byte() {
    let proxy = Scripted::new(async |mut stream| {
        for (request, reply) in open(&[&BOUND[..], peer::GREETING.as_bytes()].concat()) {
            peer::expect(&mut stream, &request).await;
            peer::dribble(&mut stream, &reply).await;
        }
        peer::until_closed(stream).await;
    })
    .await;
    let upstream = upstream([hop(Scheme::Socks5, proxy.address)]);
    let outcome = dialer().dial(&upstream, elsewhere()).await;
    assert_eq!(
        first_words(outcome, peer::GREETING.len()).await,
        peer::GREETING
    );
    proxy.finish().await;
}

#[tokio::test]
async fn credentials_are_sent_where_they_are_wanted_and_nowhere_else() {
    let reply = [&BOUND[..], b"hi"].concat();
    let mut wanted = password(0);
    wanted.push(request(&reply));
    let unwanted = vec![(vec![5, 2, 0, 2], vec![5, 0]), request(&reply)];
    for script in [wanted, unwanted] {
        let proxy = Scripted::talking(script).await;
        let upstream = upstream([with_credentials(hop(Scheme::Socks5, proxy.address))]);
        let outcome = dialer().dial(&upstream, elsewhere()).await;
        assert_eq!(first_words(outcome, 2).await, "hi");
        proxy.finish().await;
    }
}

#[tokio::test]
async fn ipv6_destinations_go_out_as_ipv6_and_mapped_ones_as_ipv4() {
    let mapped = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped();
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
    let as_v6 = [&[5, 1, 0, 4], &v6.octets()[..], &[0x01, 0xbb]].concat();
    let (as_v4, _) = request(&[]);
    for (destination, expected) in [(v6, as_v6), (mapped, as_v4)] {
        let reply = [&BOUND[..], b"hi"].concat();
        let greeting = (vec![5, 1, 0], vec![5, 0]);
        let proxy = Scripted::talking(vec![greeting, (expected, reply)]).await;
        let upstream = upstream([hop(Scheme::Socks5, proxy.address)]);
        let destination = SocketAddr::new(destination.into(), 443);
        let outcome = dialer().dial(&upstream, destination).await;
        assert_eq!(first_words(outcome, 2).await, "hi");
        proxy.finish().await;
    }
}

#[tokio::test]
async fn a_proxy_that_does_not_take_the_login_refuses() {
    let refuses = CloseReason::ProxyRefused;
    refused(
        true,
        password(1),
        refuses,
        "does not accept the user name and password",
    )
    .await;
    let nothing_offered = |with: bool| {
        let hello = if with {
            vec![5, 2, 0, 2]
        } else {
            vec![5, 1, 0]
        };
        vec![(hello, vec![5, 0xff])]
    };
    refused(true, nothing_offered(true), refuses, "accepts neither").await;
    refused(
        false,
        nothing_offered(false),
        refuses,
        "add them to the upstream's url",
    )
    .await;
    let demanding = vec![(vec![5, 1, 0], vec![5, 2])];
    refused(false, demanding, refuses, "add them to the upstream's url").await;
}

#[tokio::test]
async fn credentials_that_socks5_cannot_carry_are_not_sent() {
    let proxy = Scripted::talking(Vec::new()).await;
    let mut hop = with_credentials(hop(Scheme::Socks5, proxy.address));
    hop.credentials = hop.credentials.map(|credentials| Credentials {
        user: "u".repeat(256),
        ..credentials
    });
    assert_failed(
        dialer().dial(&upstream([hop]), elsewhere()).await,
        CloseReason::ProxyRefused,
        &["cannot be sent", "username length"],
    );
    proxy.heard_nothing().await;
}

#[tokio::test]
async fn each_reply_code_has_its_meaning() {
    for (code, reason, tells) in [
        (1, CloseReason::ProxyRefused, "general failure"),
        (2, CloseReason::ProxyRefused, "rules do not allow it"),
        (
            3,
            CloseReason::DestinationUnreachable,
            "network unreachable",
        ),
        (4, CloseReason::DestinationUnreachable, "host unreachable"),
        (5, CloseReason::DestinationRefused, "connection refused"),
        (6, CloseReason::DestinationUnreachable, "TTL expired"),
        (7, CloseReason::ProxyRefused, "does not support CONNECT"),
        (8, CloseReason::ProxyRefused, "this kind of address"),
        (9, CloseReason::ProxyProtocol, "not SOCKS5"),
        (255, CloseReason::ProxyProtocol, "not SOCKS5"),
    ] {
        refused(false, open(&replying(code)), reason, tells).await;
    }
}

#[tokio::test]
async fn what_is_not_socks5_breaks_the_protocol() {
    let greeted = |reply: &[u8]| vec![(vec![5, 1, 0], reply.to_vec())];
    for script in [
        greeted(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        greeted(&[4, 0]),
        greeted(&[5, 1]),
        open(&[4, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        open(&[5, 0, 9, 1, 0, 0, 0, 0, 0, 0]),
        open(&[5, 0, 0, 7, 0, 0, 0, 0, 0, 0]),
        open(b"\x05\x00\x00\x03\x02\xff\xfe\x00\x00"),
    ] {
        refused(
            false,
            script,
            CloseReason::ProxyProtocol,
            "its answer is not SOCKS5",
        )
        .await;
    }
}

#[tokio::test]
async fn a_reply_that_stops_short_breaks_the_protocol() {
    for length in 1..BOUND.len() {
        let proxy = Scripted::new(async move |mut stream| {
            for (request, reply) in open(&BOUND[..length]) {
                peer::expect(&mut stream, &request).await;
                stream.write_all(&reply).await.expect("a reply goes out");
            }
        })
        .await;
        let upstream = upstream([hop(Scheme::Socks5, proxy.address)]);
        assert_failed(
            dialer().dial(&upstream, elsewhere()).await,
            CloseReason::ProxyProtocol,
            &["closed the connection"],
        );
        proxy.finish().await;
    }
}
