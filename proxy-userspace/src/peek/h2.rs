//! The first request of HTTP/2 without TLS, where the client knows that the server speaks it ("prior knowledge", RFC 9113
//! section 3.3). Over TLS the name is in the `ClientHello`.
//!
//! A client may send its first request at once. One that waits for the server's SETTINGS says no name before we must have
//! chosen a server, and so has none.

use hyper::http::uri::Authority;
use loona_hpack::Decoder;

use crate::rule::Kind;

use super::{Flight, Sight, http::of_authority};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// Longest frame that a client may send before it has seen our settings, and largest table that its coder may use (RFC 9113
/// section 6.5.2).
const LONGEST_FRAME: usize = 1 << 14;
const CODER_TABLE: usize = 4096;
/// Types of frames, RFC 9113 section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
/// Flags of [`HEADERS`].
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Bytes of what [`PRIORITY`] announces.
const PRIORITY_LENGTH: usize = 5;

/// Whether the bytes may go on as HTTP/2 does.
pub(super) fn may_be(bytes: &[u8]) -> bool {
    PREFACE.starts_with(bytes) || bytes.starts_with(PREFACE)
}

pub(super) fn judge(bytes: &[u8]) -> Sight {
    if bytes.len() < PREFACE.len() {
        // It may still be a request of HTTP/1, and a short one: `PUT`.
        return Sight::More(bytes.len() + 1);
    }
    let mut walk = Walk {
        bytes,
        at: PREFACE.len(),
    };
    match walk.request() {
        Ok(block) => named(&block).map_or_else(Sight::Malformed, Sight::Whole),
        Err(sight) => sight,
    }
}

/// From frame to frame.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    content: &'a [u8],
}

impl<'a> Walk<'a> {
    /// The next frame, whole.
    fn frame(&mut self) -> Result<Frame<'a>, Sight> {
        let content_at = self.at + FRAME_HEADER;
        let header = self.bytes.get(self.at..content_at);
        let Some(&[high, middle, low, kind, flags, s1, s2, s3, s4]) = header else {
            return Err(Sight::More(content_at));
        };
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if length > LONGEST_FRAME {
            return Err(Sight::Malformed("it has a frame that is too long"));
        }
        self.at = content_at + length;
        let content = self.bytes.get(content_at..self.at);
        Ok(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes([s1, s2, s3, s4]),
            content: content.ok_or(Sight::More(self.at))?,
        })
    }

    /// The fields of the first request, still coded.
    fn request(&mut self) -> Result<Vec<u8>, Sight> {
        const WRONG: Sight = Sight::Malformed("HTTP/2 does not begin like that");
        if self.frame()?.kind != SETTINGS {
            return Err(WRONG);
        }
        let first = loop {
            let frame = self.frame()?;
            match frame.kind {
                HEADERS => break frame,
                DATA | RST_STREAM | PUSH_PROMISE | CONTINUATION => return Err(WRONG),
                _ => {}
            }
        };
        let mut block = fields(&first).ok_or(WRONG)?.to_vec();
        let mut is_last = first.flags & END_HEADERS != 0;
        while !is_last {
            let next = self.frame()?;
            if next.kind != CONTINUATION || next.stream != first.stream {
                return Err(WRONG);
            }
            block.extend_from_slice(next.content);
            is_last = next.flags & END_HEADERS != 0;
        }
        Ok(block)
    }
}

/// The fields in a frame, without what stands around them.
fn fields<'a>(frame: &Frame<'a>) -> Option<&'a [u8]> {
    let mut content = frame.content;
    if frame.flags & PADDED != 0 {
        let (padding, rest) = content.split_first()?;
        content = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
    }
    if frame.flags & PRIORITY != 0 {
        content = content.get(PRIORITY_LENGTH..)?;
    }
    Some(content)
}

/// What the request is for: `:authority`, or `host` where that is missing (RFC 9113 section 8.3.1).
fn named(block: &[u8]) -> Result<Flight, &'static str> {
    let mut coder = Decoder::new();
    coder.set_max_allowed_table_size(CODER_TABLE);
    let (mut authority, mut host) = (None, None);
    coder
        // Only looks: fields may be many times as long as their code, so they are not gathered.
        .decode_with_cb(block, |name, value| {
            let found = match &*name {
                b":authority" => &mut authority,
                b"host" => &mut host,
                _ => return,
            };
            found.get_or_insert_with(|| {
                let value = Authority::try_from(&*value).ok();
                value.as_ref().and_then(of_authority)
            });
        })
        .map_err(|_| "its fields are not coded as they must be")?;
    let name = match authority.or(host) {
        None => None,
        Some(None) => return Err("its authority is no name"),
        Some(name) => name,
    };
    Ok(Flight {
        kind: Some(Kind::Host),
        name,
        ..Flight::default()
    })
}
