//! A server that answers as a runtime does, in the bytes that the protocol says.

use std::{convert::Infallible, path::PathBuf};

use http_body_util::combinators::UnsyncBoxBody;
use hyper::{Method, Response, header::HeaderValue, server::conn::http2::Builder, service};
use tempfile::TempDir;
use tokio::net::UnixListener;

use super::*;

/// A field of a message that has a length.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    // A length beyond seven bits takes another byte.
    let length = [length & 0x7f | 0x80, length >> 7];
    [&[number << 3 | 2], &length[..], content].concat()
}

/// A field that is a number.
fn number(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

fn container(id: &str, pod: &str, name: &str, state: u8) -> Vec<u8> {
    let label = [
        field(1, b"io.kubernetes.container.name"),
        field(2, b"other"),
    ];
    let parts = [
        field(1, id.as_bytes()),
        field(2, pod.as_bytes()),
        field(3, &[field(1, name.as_bytes()), number(2, 3)].concat()),
        // The image, when it was made, and labels.
        field(4, &field(1, b"registry/image")),
        number(6, state),
        number(7, 100),
        field(8, &label.concat()),
    ];
    field(1, &parts.concat())
}

fn pod(id: &str, namespace: &str, name: &str) -> Vec<u8> {
    let metadata = [
        field(1, name.as_bytes()),
        field(2, b"uid"),
        field(3, namespace.as_bytes()),
    ];
    let parts = [
        field(1, id.as_bytes()),
        field(2, &metadata.concat()),
        number(3, 1),
    ];
    field(1, &parts.concat())
}

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// An answer with this message, and the status behind it.
fn answer(message: &[u8]) -> Reply {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = Bytes::from([&[0], &length[..], message].concat());
    let trailers = HeaderMap::from_iter([(
        "grpc-status".parse().unwrap(),
        HeaderValue::from_static("0"),
    )]);
    let body = Full::new(body).with_trailers(async move { Some(Ok(trailers)) });
    let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
    response.body(body.boxed_unsync()).unwrap()
}

/// An answer that is only a status.
fn refusal(code: &'static str, text: &'static str) -> Reply {
    let response = Response::builder()
        .header(CONTENT_TYPE, "application/grpc")
        .header("grpc-status", code)
        .header("grpc-message", text);
    response.body(Full::default().boxed_unsync()).unwrap()
}

/// What answers at a socket, until it is dropped.
struct Runtime(TempDir);

impl Runtime {
    fn start(reply: impl Fn(&str) -> Reply + Clone + Send + Sync + 'static) -> Self {
        let runtime = Self(tempfile::tempdir().unwrap());
        let listener = UnixListener::bind(runtime.socket()).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let reply = reply.clone();
                let served = service::service_fn(move |request: Request<_>| {
                    let reply = reply.clone();
                    async move { Ok::<_, Infallible>(replied(request, &reply).await) }
                });
                let connection = Builder::new(TokioExecutor::new());
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), served));
            }
        });
        runtime
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("socket")
    }
}

/// The reply to a request, which has to be one.
async fn replied(request: Request<hyper::body::Incoming>, reply: &impl Fn(&str) -> Reply) -> Reply {
    assert_eq!(request.method(), Method::POST);
    assert_eq!(request.headers()[CONTENT_TYPE], "application/grpc");
    assert_eq!(request.headers()[TE], "trailers");
    let method = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap();
    assert_eq!(*body.to_bytes(), [0; PREFIX], "a message without a field");
    reply(method.strip_prefix("/runtime.v1.RuntimeService/").unwrap())
}

fn lists(method: &str) -> Reply {
    let message = match method {
        "ListContainers" => [
            container(&id('a'), "p1", "app", 1),
            container(&id('b'), "p2", "app", 0),
            container(&id('c'), "p1", "old", 2),
            container(&id('d'), "p3", "orphan", 1),
            container("no-id", "p1", "strange", 1),
        ]
        .concat(),
        "ListPodSandbox" => [pod("p1", "shop", "web-0"), pod("p2", "shop", "web-1")].concat(),
        other => panic!("{other}"),
    };
    answer(&message)
}

#[tokio::test]
async fn containers_are_known_by_their_names_and_those_of_their_pods() {
    let runtime = Runtime::start(lists);
    let listed = containers(&runtime.socket()).await.unwrap();
    let called = |name: &str| -> Vec<char> {
        let called = listed.iter().filter(|it| it.is_called(name));
        called.map(|it| it.id.chars().next().unwrap()).collect()
    };
    for (name, expected) in [
        ("app", &['a', 'b'][..]),
        ("web-0/app", &['a']),
        ("shop/web-1/app", &['b']),
        ("orphan", &['d']),
        // Neither part of a name, nor a name with too much before it.
        ("ap", &[]),
        ("web-0", &[]),
        ("shop/web-0", &[]),
        ("web-2/app", &[]),
        ("office/web-0/app", &[]),
        ("x/shop/web-0/app", &[]),
        ("/orphan", &[]),
        ("//orphan", &[]),
        // It has ended.
        ("old", &[]),
        ("strange", &[]),
    ] {
        assert_eq!(called(name), expected, "{name}");
    }
    let whole: Vec<_> = listed.iter().map(Listed::whole).collect();
    let expected = [Some("shop/web-0/app"), Some("shop/web-1/app"), None];
    assert_eq!(whole, expected.map(|it| it.map(str::to_owned)));
}

#[tokio::test]
async fn what_is_no_answer_is_told_as_that() {
    let broken = |body: &'static [u8]| {
        move |_: &str| {
            let trailers = HeaderMap::from_iter([(
                "grpc-status".parse().unwrap(),
                HeaderValue::from_static("0"),
            )]);
            let body = Full::new(Bytes::from_static(body));
            let body = body.with_trailers(async move { Some(Ok(trailers)) });
            Response::new(body.boxed_unsync())
        }
    };
    let runtimes = [
        (
            // As containerd without its plugin, and escaped as gRPC has it.
            Runtime::start(|_| refusal("12", "unknown service runtime.v1.RuntimeService%21")),
            "ListContainers: status 12, unknown service runtime.v1.RuntimeService!",
        ),
        (
            Runtime::start(|_| Response::new(Full::default().boxed_unsync())),
            "no answer of gRPC",
        ),
        // Compressed, cut off, too long, and no message.
        (
            Runtime::start(broken(&[1, 0, 0, 0, 0])),
            "no answer of a runtime",
        ),
        (
            Runtime::start(broken(&[0, 0, 0, 0])),
            "no answer of a runtime",
        ),
        (
            Runtime::start(broken(&[0, 0, 0, 0, 0, 0])),
            "no answer of a runtime",
        ),
        (
            Runtime::start(broken(&[0, 0, 0, 0, 1, 0xff])),
            "no answer of a runtime",
        ),
    ];
    for (runtime, part) in runtimes {
        let answered = containers(&runtime.socket()).await;
        let Err(Silence::Away(why)) = answered else {
            panic!("{part}: {answered:?}");
        };
        assert!(why.contains(part), "{part}: {why}");
    }
    let nowhere = tempfile::tempdir().unwrap();
    let answered = containers(&nowhere.path().join("socket")).await;
    assert!(matches!(answered, Err(Silence::Absent)), "{answered:?}");
}

#[tokio::test]
async fn who_does_not_speak_it_is_not_waited_for() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.1 400 Bad Request\r\n\r\n";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
        }
    });
    let answered = containers(&socket).await;
    assert!(matches!(answered, Err(Silence::Away(_))), "{answered:?}");
}
