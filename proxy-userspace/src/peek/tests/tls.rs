//! The `ClientHello`: of OpenSSL, as it was on the wire, and of rustls.

use std::sync::Arc;

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName, server::Acceptor,
};

use super::*;

const OPENSSL: &[u8] = include_bytes!("openssl-3.0-tls1.3.bin");
const OPENSSL_OLD: &[u8] = include_bytes!("openssl-3.0-tls1.0.bin");
const OPENSSL_UNNAMED: &[u8] = include_bytes!("openssl-3.0-unnamed.bin");
const ECH: u16 = 0xfe0d;
/// Of the values that mean nothing (RFC 8701).
const GREASE: [u16; 3] = [0x0a0a, 0x8a8a, 0xfafa];

pub(super) fn captured() -> [&'static [u8]; 3] {
    [OPENSSL, OPENSSL_OLD, OPENSSL_UNNAMED]
}

fn of_rustls(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let mut config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// The bytes of the message, which are in one record.
fn message(hello: &[u8]) -> &[u8] {
    &hello[5..]
}

/// In records of at most so many bytes.
fn in_records(message: &[u8], length: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 1], length.as_slice(), part].concat()
    };
    message.chunks(length).flat_map(record).collect()
}

/// With one more extension: `first` before all others, or behind them.
fn with_extension(hello: &[u8], first: bool, kind: u16, content: &[u8]) -> Vec<u8> {
    let mut body = message(hello)[4..].to_vec();
    let session = 34;
    let suites = session + 1 + usize::from(body[session]);
    let compressions =
        suites + 2 + usize::from(u16::from_be_bytes([body[suites], body[suites + 1]]));
    let length = compressions + 1 + usize::from(body[compressions]);
    let mut extensions = body.split_off(length).split_off(2);
    let content_length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let added = [&kind.to_be_bytes(), content_length.as_slice(), content].concat();
    let at = if first { 0 } else { extensions.len() };
    extensions.splice(at..at, added);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1], &length[1..], &body].concat();
    in_records(&message, 1 << 14)
}

fn server_name(kind: u8, name: &[u8]) -> Vec<u8> {
    let length = u16::try_from(name.len()).unwrap();
    let list = (length + 3).to_be_bytes();
    [list.as_slice(), &[kind], &length.to_be_bytes(), name].concat()
}

#[test]
fn the_name_and_the_protocols_are_read() {
    let flight = whole(OPENSSL);
    assert_eq!(flight.kind, Some(Kind::Sni));
    assert_eq!(
        name(OPENSSL).as_deref(),
        Some("www.example.com"),
        "in lower case"
    );
    assert_eq!(alpn(&flight), [b"h2".as_slice(), b"http/1.1"]);
    let hello = of_rustls("a.example.org", &[b"acme-tls/1"]);
    assert_eq!(name(&hello).as_deref(), Some("a.example.org"));
    assert_eq!(alpn(&whole(&hello)), [b"acme-tls/1"]);
}

#[test]
fn without_a_name_it_is_still_tls() {
    for hello in [OPENSSL_UNNAMED.to_vec(), of_rustls("192.0.2.1", &[])] {
        assert_eq!(
            whole(&hello),
            Flight {
                kind: Some(Kind::Sni),
                ..Flight::default()
            }
        );
    }
}

#[test]
fn cut_anywhere_it_is_waited_for() {
    for hello in captured()
        .map(<[u8]>::to_vec)
        .into_iter()
        .chain([of_rustls("b.example", &[b"h2"])])
    {
        assert_patient(&hello);
    }
}

#[test]
fn records_of_any_length_are_one_message() {
    for length in 1..=message(OPENSSL).len() {
        let hello = in_records(message(OPENSSL), length);
        assert_eq!(
            name(&hello).as_deref(),
            Some("www.example.com"),
            "records of {length} bytes"
        );
        if [1, 2, 3, 4, 5, 100].contains(&length) {
            assert_patient(&hello);
        }
    }
    // What comes behind it is not looked at.
    let more = [OPENSSL, b"anything".as_slice()].concat();
    assert_eq!(whole(&more), whole(OPENSSL));
}

/// As long as with keys of a post-quantum algorithm, and as long as a limit allows.
#[test]
fn long_ones_are_read_whole() {
    for length in [1200, 20_000, 40_000] {
        let padded = with_extension(OPENSSL, true, 21, &vec![0; length]);
        assert!(padded.len() > length);
        assert_eq!(name(&padded).as_deref(), Some("www.example.com"));
    }
}

#[test]
fn grease_and_what_nobody_knows_is_passed_over() {
    for kind in GREASE.into_iter().chain([0x1234, 0xffff]) {
        for content in [b"".as_slice(), b"\0", b"anything"] {
            for first in [false, true] {
                let hello = with_extension(OPENSSL, first, kind, content);
                assert_eq!(whole(&hello), whole(OPENSSL), "{kind:#x}");
            }
        }
    }
    // Of suites, groups and versions, too: the first suite.
    let mut hello = OPENSSL.to_vec();
    let suite = 5 + 4 + 34 + 1 + usize::from(hello[5 + 4 + 34]) + 2;
    hello[suite..suite + 2].copy_from_slice(&[0xda, 0xda]);
    assert_eq!(whole(&hello), whole(OPENSSL));
}

/// The outer `ClientHello` has the name of the front, and the inner one is sealed (RFC 9849).
#[test]
fn of_an_encrypted_one_the_outer_name_is_read() {
    // Outer, HKDF-SHA256 and AES-128-GCM, some configuration, then the key and what is sealed.
    let mut sealed = vec![0, 0, 1, 0, 1, 42, 0, 32];
    sealed.extend([7; 32]);
    sealed.extend([0, 144]);
    sealed.extend([9; 144]);
    let hello = with_extension(&of_rustls("front.example", &[b"h2"]), false, ECH, &sealed);
    assert_eq!(name(&hello).as_deref(), Some("front.example"));
    assert_patient(&hello);
}

/// Why it is not rustls that reads them: what a client of TLS 1.0 says is for the server to refuse.
#[test]
fn old_clients_are_read_though_rustls_refuses_them() {
    assert_eq!(name(OPENSSL_OLD).as_deref(), Some("old.example.com"));
    let accept = |mut hello: &[u8]| {
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut hello).unwrap();
        acceptor
            .accept()
            .map(|accepted| accepted.is_some())
            .map_err(|(error, _)| error)
    };
    assert_eq!(accept(OPENSSL), Ok(true));
    assert!(accept(OPENSSL_OLD).is_err());
}

#[test]
fn names_are_brought_to_one_form() {
    for (sent, read) in [
        ("Example.COM.", Some("example.com")),
        ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
        ("_dmarc.example", Some("_dmarc.example")),
        ("192.0.2.1", Some("192.0.2.1")),
        ("localhost", Some("localhost")),
        ("b\u{fc}cher.example", None),
        ("", None),
        (".", None),
        ("a..b", None),
        ("a b", None),
        ("a\nb", None),
        ("*.example.com", None),
    ] {
        let hello = with_extension(OPENSSL_UNNAMED, true, 0, &server_name(0, sent.as_bytes()));
        match read {
            Some(read) => assert_eq!(name(&hello).as_deref(), Some(read)),
            None => assert!(is_malformed(&hello), "{sent:?}"),
        }
    }
}

#[test]
fn what_is_no_clienthello_is_malformed() {
    let twice = with_extension(OPENSSL, true, 0, &server_name(0, b"a.example"));
    let other_type = with_extension(OPENSSL_UNNAMED, true, 0, &server_name(1, b"a.example"));
    let mut server_hello = OPENSSL.to_vec();
    server_hello[5] = 2;
    let mut longer_than_a_record = OPENSSL.to_vec();
    longer_than_a_record[3] = 0x40;
    let mut short = OPENSSL.to_vec();
    short[8] -= 1;
    let alert_between = [
        &in_records(message(OPENSSL), 100)[..105],
        &[21, 3, 1, 0, 2, 1, 0],
    ]
    .concat();
    for hello in [
        twice,
        other_type,
        server_hello,
        longer_than_a_record,
        short,
        alert_between,
        b"\x16\x03\x01\0\0".to_vec(),
        with_extension(OPENSSL_UNNAMED, true, 0, b""),
        with_extension(OPENSSL_UNNAMED, true, 0, b"\0\x09\0\0\x06"),
        with_extension(OPENSSL_UNNAMED, true, 16, b"\0\x09\x08h2"),
    ] {
        assert!(is_malformed(&hello), "{:?}", judge(&hello));
    }
}
