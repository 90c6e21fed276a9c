//! Packets out of nothing: the kernel makes them, has a program of ours write their headers anew, since whoever routes them changes
//! those, and receives them by an interface (`BPF_F_TEST_XDP_LIVE_FRAMES`, kernel 5.18). That costs a fraction of what sending by a
//! socket does, so what is measured is mostly routing.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use culvert_tests::bytecode::{call, instruction, load};

/// The shortest frame.
const SHORTEST: usize = 60;
const ETHERNET: usize = 14;
/// Bytes behind the headers of IP: 26 of UDP, or a header of TCP and some that are its.
const CONTENT: u8 = 26;
const PROG_TEST_RUN: libc::c_int = 10;
const PROG_TYPE_XDP: u32 = 6;
const LIVE_FRAMES: u32 = 2;

/// What packets are of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Datagrams.
    Udp,
    /// Segments of connections that are open.
    Tcp,
}

/// Makes packets that come in by one interface, from one address to any of 64.
pub(crate) struct Generator {
    program: OwnedFd,
    frame: Vec<u8>,
    interface: u32,
}

/// `struct bpf_attr` as it is for running.
#[repr(C)]
#[derive(Default)]
struct Run {
    program: u32,
    result: u32,
    data_len: u32,
    data_out_len: u32,
    data: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_len: u32,
    context_out_len: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    reserved: u32,
}

/// `struct xdp_md`.
#[repr(C)]
#[derive(Default)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    interface: u32,
    queue: u32,
    leaves_by: u32,
}

impl Generator {
    /// For an interface of the network namespace of this thread, by its number and hardware address. `dest` is the first of the
    /// addresses, which end in zeros.
    pub(crate) fn new(
        interface: u32,
        hardware: [u8; 6],
        (source, dest): (IpAddr, IpAddr),
        protocol: Protocol,
    ) -> Result<Self> {
        let frame = frame(hardware, (source, dest), protocol);
        let program = load(PROG_TYPE_XDP, 0, &code(&frame)).context("cannot load the generator")?;
        Ok(Self {
            program,
            frame,
            interface,
        })
    }

    /// Has so many packets come in; returns when all are routed.
    pub(crate) fn run(&self, packets: u32) -> Result<()> {
        let length = u32::try_from(self.frame.len())?;
        let context = Context {
            data_end: length,
            interface: self.interface,
            ..Context::default()
        };
        let mut run = Run {
            program: u32::try_from(self.program.as_raw_fd())?,
            data_len: length,
            data: self.frame.as_ptr() as u64,
            repeat: packets,
            context_len: u32::try_from(size_of::<Context>())?,
            context: (&raw const context) as u64,
            flags: LIVE_FRAMES,
            ..Run::default()
        };
        // SAFETY: the frame and the context are as long as is said, and are only read.
        unsafe { call(PROG_TEST_RUN, &mut run) }
            .context("the kernel makes no packets (before 5.18?)")?;
        Ok(())
    }
}

/// A packet of a few bytes; what it holds has no checksum.
fn frame(hardware: [u8; 6], hosts: (IpAddr, IpAddr), protocol: Protocol) -> Vec<u8> {
    let number = match protocol {
        Protocol::Udp => 17,
        Protocol::Tcp => 6,
    };
    let (kind, ip) = match hosts {
        (IpAddr::V4(source), IpAddr::V4(dest)) => {
            let mut ip = vec![0x45, 0, 0, 20 + CONTENT, 0, 0, 0, 0, 64, number, 0, 0];
            ip.extend(source.octets());
            ip.extend(dest.octets());
            let words = ip
                .chunks(2)
                .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
            let sum: u32 = words.sum();
            let [.., high, low] = (!((sum & 0xffff) + (sum >> 16))).to_be_bytes();
            [ip[10], ip[11]] = [high, low];
            ([8, 0], ip)
        }
        (source, dest) => {
            let mut ip = vec![0x60, 0, 0, 0, 0, CONTENT, number, 64];
            for address in [source, dest] {
                if let IpAddr::V6(address) = address {
                    ip.extend(address.octets());
                }
            }
            ([0x86, 0xdd], ip)
        }
    };
    // From and to port 4000; a length of UDP, or the first of a number of TCP.
    let mut content = vec![0x0f, 0xa0, 0x0f, 0xa0, 0, CONTENT];
    content.resize(CONTENT.into(), 0);
    if protocol == Protocol::Tcp {
        // Five words, ACK, a window.
        content[12..16].copy_from_slice(&[0x50, 0x10, 0xff, 0xff]);
    }
    let mut frame = [&hardware[..], &[2, 0, 0, 0, 0, 1], &kind, &ip, &content].concat();
    frame.resize(frame.len().max(SHORTEST), 0);
    frame
}

/// Writes the beginning of the frame, up to the ports of what it holds, and passes it on.
fn code(frame: &[u8]) -> Vec<u64> {
    let is_v4 = frame[ETHERNET] >> 4 == 4;
    // Whole words of 8 bytes, and the last byte of the destination.
    let (written, last) = if is_v4 { (40_u32, 33) } else { (56, 53) };
    let words = frame.chunks_exact(8).take(written as usize / 8);
    let writes: Vec<_> = words
        .zip(0_u16..)
        .flat_map(|(bytes, number)| {
            let half = |at: usize| {
                u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            [
                instruction(0x18, 0x05, 0, half(0)),
                instruction(0, 0, 0, half(4)),
                instruction(0x7b, 0x56, number * 8, 0),
            ]
        })
        // r0 = any number below 64, which the last byte of the destination becomes.
        .chain([
            instruction(0x85, 0, 0, 7),
            instruction(0x57, 0, 0, 63),
            instruction(0x73, 0x06, last, 0),
        ])
        .collect();
    // By which the checksum of IPv4 becomes smaller.
    let sum = u32::from(u16::from_be_bytes([frame[24], frame[25]]));
    let summing = [
        instruction(0xb7, 0x05, 0, sum),
        instruction(0x1f, 0x05, 0, 0),
        instruction(0xdc, 0x05, 0, 16),
        instruction(0x6b, 0x56, 24, 0),
    ];
    let work = [&writes[..], if is_v4 { &summing } else { &[] }].concat();
    let past = u16::try_from(work.len()).expect("a few");
    let begin = [
        // r6, r3 = beginning and end of the data; r4 = r6 + what is written
        instruction(0x61, 0x16, 0, 0),
        instruction(0x61, 0x13, 4, 0),
        instruction(0xbf, 0x64, 0, 0),
        instruction(0x07, 0x04, 0, written),
        // if r4 > r3 skip the work
        instruction(0x2d, 0x34, past, 0),
    ];
    // XDP_PASS
    let end = [instruction(0xb7, 0, 0, 2), instruction(0x95, 0, 0, 0)];
    [&begin[..], &work, &end].concat()
}
