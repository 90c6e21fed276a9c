//! The `ClientHello` of TLS, whatever version it offers.
//!
//! Not by rustls' `Acceptor`: that one decides like a server, and refuses what clients of TLS 1.1 and older say (no
//! `signature_algorithms`). A `ClientHello` that only we dislike is still for the server to answer. `tls-parser` reads
//! without judging; GREASE (RFC 8701) and extensions that nobody knows are bytes to pass over. With Encrypted Client Hello
//! what is read is the outer name, which is the only one that anybody but the server can see.

use tls_parser::{
    SNIType, TlsExtension, TlsRecordType, nom, parse_tls_extension_alpn_content,
    parse_tls_extension_sni_content, parse_tls_handshake_client_hello, parse_tls_record_header,
};

use crate::rule::{Kind, Name};

use super::{Flight, Sight};

/// The type of the record that holds a `ClientHello`, and the first byte of the connection.
pub(super) const HANDSHAKE: u8 = 22;
/// The major version of every TLS so far, and of SSL 3, which no record changes any more (RFC 8446 section 5.1).
const MAJOR: u8 = 3;
const RECORD_HEADER: usize = 5;
/// Longest plaintext of a record (RFC 8446 section 5.1).
const LONGEST_RECORD: u16 = 1 << 14;
/// The type of the message.
const CLIENT_HELLO: u8 = 1;
const MESSAGE_HEADER: usize = 4;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

pub(super) fn judge(bytes: &[u8]) -> Sight {
    match bytes.get(1) {
        None => return Sight::More(2),
        Some(&MAJOR) => {}
        // Something else that begins with this byte.
        Some(_) => return Sight::Whole(Flight::default()),
    }
    match message(bytes) {
        Err(sight) => sight,
        Ok(message) => match flight(&message) {
            Some(Ok(flight)) => Sight::Whole(flight),
            Some(Err(why)) => Sight::Malformed(why),
            None => Sight::Malformed("no ClientHello is like that"),
        },
    }
}

/// Puts the message together, which may go over many records (RFC 8446 section 5.1).
fn message(bytes: &[u8]) -> Result<Vec<u8>, Sight> {
    let mut message = Vec::new();
    let mut missing = MESSAGE_HEADER;
    let mut rest = bytes;
    loop {
        let Ok((behind, header)) = parse_tls_record_header(rest) else {
            let at = bytes.len() - rest.len();
            return Err(Sight::More(at + RECORD_HEADER + missing));
        };
        let of_message = header.record_type == TlsRecordType::Handshake;
        if !of_message || header.len == 0 || header.len > LONGEST_RECORD {
            return Err(Sight::Malformed("no record of a ClientHello is like that"));
        }
        let length = usize::from(header.len);
        let (part, behind) = behind.split_at(length.min(behind.len()));
        message.extend_from_slice(part);
        let wanted = wanted(&message)?;
        missing = wanted.saturating_sub(message.len());
        if missing == 0 {
            message.truncate(wanted);
            return Ok(message);
        }
        if part.len() < length {
            return Err(Sight::More(bytes.len() + missing));
        }
        rest = behind;
    }
}

/// How long the message is, or as much of it as tells that.
fn wanted(message: &[u8]) -> Result<usize, Sight> {
    match *message {
        [kind, ..] if kind != CLIENT_HELLO => {
            Err(Sight::Malformed("the first message is no ClientHello"))
        }
        [_, high, middle, low, ..] => {
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            Ok(MESSAGE_HEADER + length)
        }
        _ => Ok(MESSAGE_HEADER),
    }
}

/// What the message says; `None` where it is not as the format has it.
fn flight(message: &[u8]) -> Option<Result<Flight, &'static str>> {
    let body = message.get(MESSAGE_HEADER..)?;
    let (behind, hello) = parse_tls_handshake_client_hello(body).ok()?;
    if !behind.is_empty() {
        return None;
    }
    let mut flight = Flight {
        kind: Some(Kind::Sni),
        ..Flight::default()
    };
    let mut rest = hello.ext.unwrap_or_default();
    while !rest.is_empty() {
        let (behind, (kind, content)) = extension(rest).ok()?;
        rest = behind;
        match kind {
            SERVER_NAME => {
                let (_, TlsExtension::SNI(names)) =
                    parse_tls_extension_sni_content(content).ok()?
                else {
                    return None;
                };
                if flight.name.is_some() {
                    return Some(Err("it has two server names"));
                }
                match names.as_slice() {
                    [(SNIType::HostName, name)] => match Name::of(name) {
                        Some(name) => flight.name = Some(name),
                        None => return Some(Err("its server name is no name")),
                    },
                    _ => return Some(Err("it has not one server name")),
                }
            }
            ALPN => {
                let (behind, _) = parse_tls_extension_alpn_content(content).ok()?;
                if !behind.is_empty() {
                    return None;
                }
                flight.alpn = content.get(2..)?.to_vec();
            }
            _ => {}
        }
    }
    Some(Ok(flight))
}

fn extension(bytes: &[u8]) -> nom::IResult<&[u8], (u16, &[u8])> {
    use nom::{multi::length_data, number::complete::be_u16, sequence::pair};
    pair(be_u16, length_data(be_u16))(bytes)
}
