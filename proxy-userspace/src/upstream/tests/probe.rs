//! What speaks for a server that is checked, and what against it.

use tokio::io::AsyncWriteExt;

use super::{tls::Authority, *};
use crate::upstream::{HttpProbe, Probe, ProbeError, TlsProbe};

fn http(status: std::ops::RangeInclusive<u16>) -> HttpProbe {
    HttpProbe {
        path: "/healthz?full=1".to_owned(),
        host: None,
        expected: vec![status],
    }
}

/// Connects to a server and probes it, as if it was called `own`.
async fn probe(server: &Scripted, own: &str, probe: &Probe) -> Result<(), ProbeError> {
    let dialer = Dialer::new(Arc::new(NoExemption));
    let limit = Duration::from_secs(10);
    let connected = dialer.connect(server.address, limit).await;
    let stream = connected.expect("a connection").stream;
    dialer.probe(stream, &Host::Name(own.into()), probe).await
}

/// Answers a request by this.
async fn answering(answer: &'static str) -> Scripted {
    Scripted::new(async move |mut stream| {
        let head = peer::read_head(&mut stream).await;
        assert!(
            head.starts_with("GET /healthz?full=1 HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(head.contains("\r\nhost: web.test\r\n"), "{head}");
        stream
            .write_all(answer.as_bytes())
            .await
            .expect("an answer");
    })
    .await
}

#[tokio::test]
async fn a_status_speaks_for_it_or_against_it() {
    let wanted = |status| Probe {
        tls: None,
        http: Some(http(status)),
    };
    let answer = "HTTP/1.1 204 Fine\r\n\r\n";
    let server = answering(answer).await;
    probe(&server, "web.test", &wanted(200..=299))
        .await
        .expect("it is well");
    let server = answering(answer).await;
    let error = probe(&server, "web.test", &wanted(200..=200)).await;
    assert!(matches!(error, Err(ProbeError::Status(204))), "{error:?}");
    let server = answering("220 mail.test ESMTP\r\n").await;
    let error = probe(&server, "web.test", &wanted(200..=299)).await;
    assert!(matches!(error, Err(ProbeError::Http(_))), "{error:?}");
    let server = answering("").await;
    let error = probe(&server, "web.test", &wanted(200..=299)).await;
    assert!(
        matches!(error, Err(ProbeError::Http(_))),
        "it hung up: {error:?}"
    );
}

#[tokio::test]
async fn a_certificate_must_be_for_its_name() {
    let authority = Authority::certifying(&["web.test"]);
    let serve = async || {
        let acceptor = authority.acceptor();
        Scripted::new(async move |stream| {
            if let Ok(mut tls) = acceptor.accept(stream).await {
                assert_eq!(
                    tls.get_ref().1.alpn_protocol(),
                    None,
                    "it may speak anything"
                );
                peer::read_head(&mut tls).await;
                let answer = b"HTTP/1.1 200 OK\r\n\r\n";
                tls.write_all(answer).await.expect("an answer");
            }
        })
        .await
    };
    let trusting = |name: Option<&str>| Probe {
        tls: Some(TlsProbe {
            name: name.map(|name| Host::Name(name.into())),
            ca_file: Some(authority.file.path().to_owned()),
        }),
        http: Some(http(200..=200)),
    };
    probe(&serve().await, "web.test", &trusting(None))
        .await
        .expect("its own name");
    probe(&serve().await, "10.0.0.1", &trusting(Some("web.test")))
        .await
        .expect("the name that is asked for");
    let error = probe(&serve().await, "other.test", &trusting(None)).await;
    assert!(matches!(error, Err(ProbeError::Tls(_))), "{error:?}");
    let system = Probe {
        tls: Some(TlsProbe::default()),
        http: None,
    };
    let error = probe(&serve().await, "web.test", &system).await;
    assert!(
        matches!(error, Err(ProbeError::Tls(_) | ProbeError::Trust(_))),
        "nobody vouches for it: {error:?}"
    );
}
