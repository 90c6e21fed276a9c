//! What first bytes say, however they are cut; and looking at them on real sockets.

mod http;
mod sockets;
mod table;
mod tls;

use proptest::prelude::*;

use super::*;

/// What whole bytes say.
fn whole(bytes: &[u8]) -> Flight {
    match judge(bytes) {
        Sight::Whole(flight) => flight,
        other => panic!("{other:?} of {}", bytes.escape_ascii()),
    }
}

/// The name in them.
fn name(bytes: &[u8]) -> Option<String> {
    whole(bytes).name.map(|name| name.as_str().to_owned())
}

fn alpn(flight: &Flight) -> Vec<&[u8]> {
    flight.alpn().collect()
}

fn is_malformed(bytes: &[u8]) -> bool {
    matches!(judge(bytes), Sight::Malformed(_))
}

/// Whatever is there of them, more is wanted, and never more than they are: who waits for that would wait for ever.
fn assert_patient(bytes: &[u8]) {
    for count in 0..bytes.len() {
        match judge(&bytes[..count]) {
            Sight::More(wanted) => assert!(
                (count + 1..=bytes.len()).contains(&wanted),
                "{count} of {} bytes, and {wanted} are wanted",
                bytes.len()
            ),
            other => panic!("{other:?} of {count} of {} bytes", bytes.len()),
        }
    }
}

/// Beginnings from which random bytes get far.
const BEGINNINGS: [&[u8]; 8] = [
    b"",
    b"\x16\x03\x01",
    b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03",
    b"GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\nHost: ",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x20\x01\x04\0\0\0\x01",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_bytes_are_too_much(
        beginning in proptest::sample::select(BEGINNINGS.as_slice()),
        rest in proptest::collection::vec(any::<u8>(), 0..512),
    ) {
        let bytes = [beginning, &rest].concat();
        if let Sight::More(wanted) = judge(&bytes) {
            prop_assert!(wanted > bytes.len());
        }
    }

    #[test]
    fn one_wrong_byte_is_no_catastrophe(
        hello in proptest::sample::select(tls::captured().to_vec()),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
        keep in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = hello.to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(keep.index(bytes.len() + 1));
        if let Sight::More(wanted) = judge(&bytes) {
            prop_assert!(wanted > bytes.len());
        }
    }
}

#[test]
fn what_is_neither_has_no_name() {
    for bytes in [
        b"SSH-2.0-OpenSSH_9.2\r\n".as_slice(),
        b"*1\r\n$4\r\nPING\r\n",
        b"EHLO example.com\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"\x16\x02\x01",
        b"\x80\x2e\x01\x03\x01",
        b"0123456789012345678901234567890123456789",
    ] {
        assert_eq!(whole(bytes), Flight::default(), "{}", bytes.escape_ascii());
    }
    assert_eq!(judge(b""), Sight::More(1));
}
