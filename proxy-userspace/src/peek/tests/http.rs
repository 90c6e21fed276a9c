//! Heads of requests, of HTTP/1 and HTTP/2.

use loona_hpack::Encoder;

use super::*;

fn request(lines: &str) -> Vec<u8> {
    let lines = lines.replace('\n', "\r\n");
    format!("{lines}\r\n\r\n").into_bytes()
}

#[test]
fn the_host_is_read() {
    for (lines, host) in [
        (
            "GET / HTTP/1.1\nHost: www.example.com",
            Some("www.example.com"),
        ),
        (
            "GET / HTTP/1.1\nAccept: */*\nhOST:\tWWW.Example.com:8080 ",
            Some("www.example.com"),
        ),
        ("POST /a?b HTTP/1.0\nhost: a.example.", Some("a.example")),
        ("GET / HTTP/1.1\nHost: 192.0.2.1:80", Some("192.0.2.1")),
        (
            "GET / HTTP/1.1\nHost: [2001:DB8:0::1]:80",
            Some("[2001:db8::1]"),
        ),
        // RFC 9112 section 3.2: what the target says counts.
        (
            "GET http://b.example:8080/x HTTP/1.1\nHost: a.example",
            Some("b.example"),
        ),
        (
            "CONNECT c.example:443 HTTP/1.1\nHost: c.example:443",
            Some("c.example"),
        ),
        ("OPTIONS * HTTP/1.1\nHost: d.example", Some("d.example")),
        (
            "GET /{}|[]\"\\ HTTP/1.1\nHost: e.example",
            Some("e.example"),
        ),
        ("GET / HTTP/1.0", None),
        ("PUT / HTTP/1.0", None),
        ("P / HTTP/1.0", None),
        ("PRI * HTTP/1.1\nHost: f.example", Some("f.example")),
        ("GET / HTTP/1.1\nAccept: */*", None),
        ("GET / HTTP/1.1\nHost:", None),
    ] {
        let bytes = request(lines);
        assert_eq!(whole(&bytes).kind, Some(Kind::Host));
        assert_eq!(name(&bytes).as_deref(), host, "{lines:?}");
        assert_patient(&bytes);
    }
}

#[test]
fn only_the_first_request_counts() {
    let two = [
        request("GET / HTTP/1.1\nHost: a.example"),
        request("GET / HTTP/1.1\nHost: b.example"),
    ]
    .concat();
    assert_eq!(name(&two).as_deref(), Some("a.example"));
    let with_body = [
        request("POST / HTTP/1.1\nHost: a.example\nContent-Length: 4"),
        b"\0\x01\x02\x03".to_vec(),
    ]
    .concat();
    assert_eq!(name(&with_body).as_deref(), Some("a.example"));
    // As old clients send them before a request.
    assert_eq!(
        name(b"\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n").as_deref(),
        Some("a.example")
    );
}

#[test]
fn what_is_wrong_with_a_request_is_malformed() {
    for lines in [
        "GET / HTTP/1.1\nHost: a.example\nHost: b.example",
        "GET / HTTP/1.1\nHost: a b",
        "GET / HTTP/1.1\nHost: user@",
        "GET / HTTP/1.1\nHost: user@a.example",
        "GET http://user@a.example/ HTTP/1.1\nHost: a.example",
        "GET http:///{ HTTP/1.1\nHost: a.example",
        "GET / HTTP/1.1\nHost: b\u{fc}cher.example",
        "GET / HTTP/1.1\nHost: [::1",
        "GET / HTTP/1.1\nHost : a.example",
        "GET / HTTP/1.1\nHo\0st: a.example",
        "GET / HTTP/9.9\nHost: a.example",
    ] {
        assert!(is_malformed(&request(lines)), "{lines:?}");
    }
    let many: Vec<_> = (0..200).map(|line| format!("X-{line}: 1")).collect();
    assert!(is_malformed(&request(&format!(
        "GET / HTTP/1.1\n{}",
        many.join("\n")
    ))));
}

#[test]
fn a_head_without_an_end_wants_more_for_ever() {
    let mut head = b"GET / HTTP/1.1\r\nCookie: ".to_vec();
    head.resize(crate::rule::MOST_PEEKED, b'x');
    assert_eq!(judge(&head), Sight::More(head.len() + 1));
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

fn settings() -> Vec<u8> {
    frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])
}

fn coded(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields = fields
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    Encoder::new().encode(fields)
}

const FIELDS: [(&str, &str); 5] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "WWW.Example.com:8080"),
    ("user-agent", "test"),
];

#[test]
fn the_authority_of_the_first_request_is_read() {
    let plain = frame(1, 0x5, 1, &coded(&FIELDS));
    let between = [
        frame(8, 0, 0, &[0, 1, 0, 0]),
        frame(2, 0, 3, &[0, 0, 0, 0, 9]),
        frame(0xbb, 0, 0, b"unknown"),
        plain.clone(),
    ]
    .concat();
    let padded = [vec![3], vec![0, 0, 0, 0, 9], coded(&FIELDS), vec![0; 3]].concat();
    let padded = frame(1, 0x4 | 0x8 | 0x20, 1, &padded);
    let block = coded(&FIELDS);
    let (first, rest) = block.split_at(3);
    let (second, third) = rest.split_at(5);
    let continued = [
        frame(1, 0, 1, first),
        frame(9, 0, 1, second),
        frame(9, 4, 1, third),
    ]
    .concat();
    for frames in [plain, between, padded, continued] {
        let bytes = [PREFACE, &settings(), &frames].concat();
        assert_eq!(whole(&bytes).kind, Some(Kind::Host));
        assert_eq!(name(&bytes).as_deref(), Some("www.example.com"));
        assert_patient(&bytes);
        // More of the connection is not looked at.
        let more = [bytes.as_slice(), b"\xff\xff\xff\xff"].concat();
        assert_eq!(whole(&more), whole(&bytes));
    }
}

#[test]
fn host_stands_in_for_a_missing_authority() {
    let of = |fields: &[(&str, &str)]| {
        let bytes = [PREFACE, &settings(), &frame(1, 4, 1, &coded(fields))].concat();
        name(&bytes)
    };
    assert_eq!(
        of(&[(":method", "GET"), ("host", "a.example")]).as_deref(),
        Some("a.example")
    );
    assert_eq!(
        of(&[("host", "a.example"), (":authority", "b.example")]).as_deref(),
        Some("b.example")
    );
    assert_eq!(of(&[(":method", "GET")]), None);
}

#[test]
fn what_is_wrong_with_http_2_is_malformed() {
    let request = frame(1, 4, 1, &coded(&FIELDS));
    let cases = [
        request.clone(),
        [settings(), frame(0, 0, 1, b"data")].concat(),
        [settings(), frame(9, 4, 1, &coded(&FIELDS))].concat(),
        [
            settings(),
            frame(1, 0, 1, b""),
            frame(9, 4, 3, &coded(&FIELDS)),
        ]
        .concat(),
        [settings(), frame(1, 0, 1, b""), settings()].concat(),
        [settings(), frame(1, 0xc, 1, &[9, 0x82])].concat(),
        [settings(), frame(1, 0x24, 1, &[0, 0])].concat(),
        [settings(), frame(1, 4, 1, &[0xff, 0xff, 0xff, 0xff, 0x7f])].concat(),
        [settings(), frame(1, 4, 1, &coded(&[(":authority", "a b")]))].concat(),
        // A table larger than we said, which is nothing.
        [settings(), frame(1, 4, 1, &[0x3f, 0xe2, 0x1f, 0x82])].concat(),
        vec![0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0],
    ];
    for frames in cases {
        let bytes = [PREFACE, &frames].concat();
        assert!(
            is_malformed(&bytes),
            "{:?} {}",
            judge(&bytes),
            frames.escape_ascii()
        );
    }
}

/// A field in the coder's table takes one byte more each time: what is looked at costs time, and never memory.
#[test]
fn short_code_for_long_fields_is_no_flood() {
    let long = "x".repeat(3000);
    let mut block = vec![0x40, 1, b'a', 0x7f, 0xb9, 0x16];
    block.extend(long.as_bytes());
    block.extend(std::iter::repeat_n(0x80 + 62, (1 << 14) - block.len()));
    let bytes = [PREFACE, &settings(), &frame(1, 4, 1, &block)].concat();
    assert_eq!(name(&bytes), None);
}
