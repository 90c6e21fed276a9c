use tokio::io::AsyncWriteExt;

use super::*;
use crate::upstream::http::MAX_HEAD;

const REQUEST: &str = "CONNECT 192.0.2.7:443 HTTP/1.1\r\nHost: 192.0.2.7:443\r\n\r\n";
/// The request with credentials, "alice:correct-horse" in base64.
const WITH_CREDENTIALS: &str = "CONNECT 192.0.2.7:443 HTTP/1.1\r\nHost: 192.0.2.7:443\r\n\
    Proxy-Authorization: Basic YWxpY2U6Y29ycmVjdC1ob3JzZQ==\r\n\r\n";

async fn answering(answer: impl Into<Vec<u8>>) -> Scripted {
    Scripted::talking(vec![(REQUEST.into(), answer.into())]).await
}

async fn assert_refused(answer: &str, reason: CloseReason, tells: &str) {
    let proxy = answering(answer).await;
    let upstream = upstream([hop(Scheme::Http, proxy.address)]);
    let outcome = dialer().dial(&upstream, elsewhere()).await;
    assert_failed(outcome, reason, &[&proxy.address.to_string(), tells]);
    proxy.finish().await;
}

#[tokio::test]
async fn words_behind_the_answer_are_the_destinations() {
    for head in [
        "HTTP/1.1 200 Connection established\r\n\r\n",
        "HTTP/1.0 200 OK\r\nProxy-Agent: x\r\n\r\n",
        // A length means nothing in an answer to CONNECT.
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\n\n",
    ] {
        let proxy = answering([head, peer::GREETING].concat()).await;
        let upstream = upstream([hop(Scheme::Http, proxy.address)]);
        let outcome = dialer().dial(&upstream, elsewhere()).await;
        assert_eq!(
            first_words(outcome, peer::GREETING.len()).await,
            peer::GREETING
        );
        proxy.finish().await;
    }
}

#[tokio::test]
async fn an_answer_may_come_byte_by_byte() {
    let proxy = Scripted::new(async |mut stream| {
        peer::expect(&mut stream, REQUEST.as_bytes()).await;
        let head = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nVia: x\r\n\r\n";
        peer::dribble(&mut stream, [head, peer::GREETING].concat().as_bytes()).await;
        peer::until_closed(stream).await;
    })
    .await;
    let upstream = upstream([hop(Scheme::Http, proxy.address)]);
    let outcome = dialer().dial(&upstream, elsewhere()).await;
    assert_eq!(
        first_words(outcome, peer::GREETING.len()).await,
        peer::GREETING
    );
    proxy.finish().await;
}

#[tokio::test]
async fn credentials_go_in_the_first_request() {
    let answer = b"HTTP/1.1 200 OK\r\n\r\nhi".to_vec();
    let proxy = Scripted::talking(vec![(WITH_CREDENTIALS.into(), answer)]).await;
    let upstream = upstream([with_credentials(hop(Scheme::Http, proxy.address))]);
    assert_eq!(
        first_words(dialer().dial(&upstream, elsewhere()).await, 2).await,
        "hi"
    );
    proxy.finish().await;
}

#[tokio::test]
async fn a_user_name_that_http_cannot_carry_is_not_sent() {
    let proxy = Scripted::talking(Vec::new()).await;
    let mut hop = with_credentials(hop(Scheme::Http, proxy.address));
    hop.credentials = hop.credentials.map(|credentials| Credentials {
        user: "a:b".into(),
        ..credentials
    });
    assert_failed(
        dialer().dial(&upstream([hop]), elsewhere()).await,
        CloseReason::ProxyRefused,
        &["cannot be sent", "colon"],
    );
    proxy.heard_nothing().await;
}

#[tokio::test]
async fn ipv6_destinations_stand_in_brackets() {
    let destination: SocketAddr = "[2001:db8::9]:443".parse().expect("an address");
    let request = "CONNECT [2001:db8::9]:443 HTTP/1.1\r\nHost: [2001:db8::9]:443\r\n\r\n";
    let answer = b"HTTP/1.1 200 OK\r\n\r\nhi".to_vec();
    let proxy = Scripted::talking(vec![(request.into(), answer)]).await;
    let upstream = upstream([hop(Scheme::Http, proxy.address)]);
    assert_eq!(
        first_words(dialer().dial(&upstream, destination).await, 2).await,
        "hi"
    );
    proxy.finish().await;
}

#[tokio::test]
async fn each_status_has_its_meaning() {
    for (status, reason, tells) in [
        (
            "407 Auth",
            CloseReason::ProxyRefused,
            "add them to the upstream's url",
        ),
        ("301 Moved", CloseReason::ProxyRefused, "status 301"),
        ("403 Forbidden", CloseReason::ProxyRefused, "status 403"),
        ("405 Not Allowed", CloseReason::ProxyRefused, "status 405"),
        ("500 Oops", CloseReason::ProxyRefused, "status 500"),
        (
            "502 Bad Gateway",
            CloseReason::DestinationUnreachable,
            "status 502",
        ),
        (
            "503 Unavailable",
            CloseReason::DestinationUnreachable,
            "status 503",
        ),
        (
            "504 Timeout",
            CloseReason::DestinationUnreachable,
            "destination 192.0.2.7:443",
        ),
        ("101 Switching", CloseReason::ProxyProtocol, "status 101"),
        ("099 Low", CloseReason::ProxyProtocol, "status 99"),
        ("600 High", CloseReason::ProxyProtocol, "status 600"),
    ] {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno");
        assert_refused(&answer, reason, tells).await;
    }
}

#[tokio::test]
async fn a_proxy_that_does_not_take_the_login_refuses() {
    let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n".to_vec();
    let proxy = Scripted::talking(vec![(WITH_CREDENTIALS.into(), answer)]).await;
    let upstream = upstream([with_credentials(hop(Scheme::Http, proxy.address))]);
    assert_failed(
        dialer().dial(&upstream, elsewhere()).await,
        CloseReason::ProxyRefused,
        &["does not accept the user name and password"],
    );
    proxy.finish().await;
}

#[tokio::test]
async fn what_is_not_http_breaks_the_protocol() {
    for answer in [
        "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        "\r\n\r\n",
        "\n\n",
    ] {
        assert_refused(answer, CloseReason::ProxyProtocol, "its answer is not HTTP").await;
    }
    let crowded = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(65));
    assert_refused(
        &crowded,
        CloseReason::ProxyProtocol,
        "its answer is not HTTP",
    )
    .await;
}

#[tokio::test]
async fn an_answer_has_an_end() {
    let padded = |length: usize| {
        let frame = "HTTP/1.1 200 OK\r\nX: \r\n\r\n".len();
        format!(
            "HTTP/1.1 200 OK\r\nX: {}\r\n\r\n",
            "x".repeat(length - frame)
        )
    };
    let proxy = answering([&padded(MAX_HEAD), "hi"].concat()).await;
    let upstream = upstream([hop(Scheme::Http, proxy.address)]);
    assert_eq!(
        first_words(dialer().dial(&upstream, elsewhere()).await, 2).await,
        "hi"
    );
    proxy.finish().await;

    for endless in [
        padded(MAX_HEAD + 1),
        "x".repeat(MAX_HEAD + 1),
        "HTTP/1.1 100 Continue\r\n\r\n".repeat(MAX_HEAD / 25 + 1),
    ] {
        assert_refused(
            &endless,
            CloseReason::ProxyProtocol,
            "longer than 16384 bytes",
        )
        .await;
    }
}

#[tokio::test]
async fn an_answer_that_stops_short_breaks_the_protocol() {
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    for length in 1..head.len() {
        let proxy = Scripted::new(async move |mut stream| {
            peer::expect(&mut stream, REQUEST.as_bytes()).await;
            stream
                .write_all(&head.as_bytes()[..length])
                .await
                .expect("half an answer");
        })
        .await;
        let upstream = upstream([hop(Scheme::Http, proxy.address)]);
        assert_failed(
            dialer().dial(&upstream, elsewhere()).await,
            CloseReason::ProxyProtocol,
            &["closed the connection"],
        );
        proxy.finish().await;
    }
}
