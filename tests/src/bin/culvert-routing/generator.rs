//! Packets out of nothing: the kernel makes them, has a program of ours write their headers anew, since whoever routes them changes
//! those, and receives them by an interface (`BPF_F_TEST_XDP_LIVE_FRAMES`, kernel 5.18). That costs a fraction of what sending by a
//! socket does, so what is measured is mostly routing.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use culvert_tests::bytecode::{call, instruction, load};

/// The shortest frame.
const FRAME: usize = 60;
/// Of those, the bytes that are written for each packet: the headers, but for the last two bytes of UDP's.
const WRITTEN: usize = 40;
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
    frame: [u8; FRAME],
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
        source: Ipv4Addr,
        dest: Ipv4Addr,
        protocol: Protocol,
    ) -> Result<Self> {
        let frame = frame(hardware, source, dest, protocol);
        let program = load(PROG_TYPE_XDP, 0, &code(&frame)).context("cannot load the generator")?;
        Ok(Self {
            program,
            frame,
            interface,
        })
    }

    /// Has so many packets come in; returns when all are routed.
    pub(crate) fn run(&self, packets: u32) -> Result<()> {
        let length = u32::try_from(FRAME)?;
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
fn frame(hardware: [u8; 6], source: Ipv4Addr, dest: Ipv4Addr, protocol: Protocol) -> [u8; FRAME] {
    let mut ip = [0; 20];
    ip[0] = 0x45;
    ip[3] = 46;
    ip[8] = 64;
    ip[9] = match protocol {
        Protocol::Udp => 17,
        Protocol::Tcp => 6,
    };
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..].copy_from_slice(&dest.octets());
    let words = ip
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let [.., high, low] = (!((sum & 0xffff) + (sum >> 16))).to_be_bytes();
    [ip[10], ip[11]] = [high, low];
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&hardware);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].copy_from_slice(&ip);
    // From and to port 4000; 26 bytes of UDP, or the first of a number of TCP.
    frame[34..40].copy_from_slice(&[0x0f, 0xa0, 0x0f, 0xa0, 0, 26]);
    if protocol == Protocol::Tcp {
        // Five words, ACK, a window.
        frame[46..50].copy_from_slice(&[0x50, 0x10, 0xff, 0xff]);
    }
    frame
}

/// Writes the beginning of the frame and passes it on.
fn code(frame: &[u8; FRAME]) -> Vec<u64> {
    let mut code = vec![
        // r6, r3 = beginning and end of the data; r4 = r6 + WRITTEN
        instruction(0x61, 0x16, 0, 0),
        instruction(0x61, 0x13, 4, 0),
        instruction(0xbf, 0x64, 0, 0),
        instruction(0x07, 0x04, 0, 40),
        // if r4 > r3 skip the writes
        instruction(0x2d, 0x34, 22, 0),
    ];
    for (at, bytes) in frame[..WRITTEN].chunks(8).enumerate() {
        let half = |from: usize| {
            u32::from_le_bytes([
                bytes[from],
                bytes[from + 1],
                bytes[from + 2],
                bytes[from + 3],
            ])
        };
        let offset = u16::try_from(at * 8).expect("a small number");
        code.extend([
            instruction(0x18, 0x05, 0, half(0)),
            instruction(0, 0, 0, half(4)),
            instruction(0x7b, 0x56, offset, 0),
        ]);
    }
    // r0 = any number below 64: the last byte of the destination, by which the checksum becomes smaller.
    code.extend([
        instruction(0x85, 0, 0, 7),
        instruction(0x57, 0, 0, 63),
        instruction(0x73, 0x06, 33, 0),
        instruction(
            0xb7,
            0x05,
            0,
            u32::from(u16::from_be_bytes([frame[24], frame[25]])),
        ),
        instruction(0x1f, 0x05, 0, 0),
        instruction(0xdc, 0x05, 0, 16),
        instruction(0x6b, 0x56, 24, 0),
    ]);
    // XDP_PASS
    code.extend([instruction(0xb7, 0, 0, 2), instruction(0x95, 0, 0, 0)]);
    code
}
