//! Looking at bytes on real sockets: none is taken, none is waited for in vain, and nobody spins.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::*;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
const PATIENT: Limits = Limits {
    bytes: 16 * 1024,
    time: Duration::from_mins(1),
};
const HASTY: Limits = Limits {
    bytes: 16 * 1024,
    time: Duration::from_millis(50),
};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    client.set_nodelay(true).unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// What came is there for who reads next, also when nothing comes any more.
async fn assert_unread(server: &mut TcpStream, bytes: &[u8]) {
    let mut read = vec![0; bytes.len()];
    let reading = timeout(Duration::from_secs(20), server.read_exact(&mut read));
    reading
        .await
        .expect("bytes that nobody was told of")
        .unwrap();
    assert!(read == bytes);
}

#[tokio::test]
async fn bytes_that_come_one_by_one_are_seen_and_stay() {
    for bytes in [REQUEST, tls::captured()[0]] {
        let (mut client, mut server) = pair().await;
        let say = async {
            for byte in bytes {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (seen, ()) = tokio::join!(first_flight(&server, PATIENT), say);
        assert_eq!(seen.unwrap(), Seen::Whole(whole(bytes)));
        assert_unread(&mut server, bytes).await;
    }
}

#[tokio::test]
async fn what_comes_late_is_unread_and_told_of() {
    for bytes in [&REQUEST[..20], &tls::captured()[0][..9], b"G"] {
        let (mut client, mut server) = pair().await;
        client.write_all(bytes).await.unwrap();
        assert_eq!(first_flight(&server, HASTY).await.unwrap(), Seen::Late);
        assert_unread(&mut server, bytes).await;
        // One byte is enough to be told of from now on.
        client.write_all(b"x").await.unwrap();
        assert_unread(&mut server, b"x").await;
    }
    let (_client, server) = pair().await;
    assert_eq!(first_flight(&server, HASTY).await.unwrap(), Seen::Late);
}

#[tokio::test]
async fn an_early_end_is_seen_at_once() {
    for (bytes, seen) in [
        (b"".as_slice(), Seen::Whole(Flight::default())),
        (&REQUEST[..20], Seen::Malformed("it ends too early")),
        (REQUEST, Seen::Whole(whole(REQUEST))),
    ] {
        let (mut client, server) = pair().await;
        let say = async {
            client.write_all(bytes).await.unwrap();
            sleep(Duration::from_millis(20)).await;
            client.shutdown().await.unwrap();
        };
        let (found, ()) = tokio::join!(first_flight(&server, PATIENT), say);
        assert_eq!(found.unwrap(), seen);
    }
}

#[tokio::test]
async fn a_reset_is_an_error() {
    let (client, server) = pair().await;
    let client = client.into_std().unwrap();
    socket2::SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    let say = async move {
        sleep(Duration::from_millis(20)).await;
        drop(client);
    };
    let (found, ()) = tokio::join!(first_flight(&server, PATIENT), say);
    assert_eq!(found.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// Unread bytes up to the most that may be looked at find room, and those beyond are not waited for.
#[tokio::test]
async fn long_beginnings_are_seen_up_to_the_limit() {
    for (length, limit) in [
        (crate::rule::MOST_PEEKED, crate::rule::MOST_PEEKED),
        (8 * 1024, 8 * 1024 - 1),
        (8 * 1024, 8 * 1024),
    ] {
        for piece in [100, 1460, length] {
            let head = b"GET / HTTP/1.1\r\nHost: a.example\r\nCookie: ";
            let mut bytes = head.to_vec();
            bytes.resize(length - 4, b'x');
            bytes.extend(b"\r\n\r\n");
            let (mut client, mut server) = pair().await;
            let limits = Limits {
                bytes: limit,
                ..PATIENT
            };
            let say = async {
                for part in bytes.chunks(piece) {
                    client.write_all(part).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let (found, ()) = tokio::join!(first_flight(&server, limits), say);
            if length > limit {
                assert!(matches!(found.unwrap(), Seen::Malformed(_)));
            } else {
                assert_eq!(
                    found.unwrap(),
                    Seen::Whole(whole(&bytes)),
                    "{length} by {piece}"
                );
            }
            assert_unread(&mut server, &bytes).await;
        }
    }
}

/// `SO_RCVLOWAT` is what keeps a client that sends byte by byte from waking us for each.
#[tokio::test]
async fn nobody_is_woken_before_there_is_enough() {
    let (mut client, server) = pair().await;
    let nothing_yet = server.try_io(Interest::READABLE, || {
        socket::wake_at(&server, 10)?;
        Err::<(), _>(io::ErrorKind::WouldBlock.into())
    });
    assert!(nothing_yet.is_err());
    client.write_all(b"123456789").await.unwrap();
    let woken = timeout(Duration::from_millis(100), server.readable());
    assert!(woken.await.is_err(), "woken for 9 bytes of 10");
    client.write_all(b"0").await.unwrap();
    let woken = timeout(Duration::from_secs(20), server.readable());
    woken.await.expect("10 bytes of 10").unwrap();
}
