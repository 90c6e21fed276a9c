//! The way that a packet goes: what the kernel is asked for it, and what it answers.

use core::mem::transmute;

use aya_ebpf::bindings::bpf_fib_lookup;

use crate::headers::Ports;

/// What is in the place of an answer. Zeros would be written by a call, byte for byte.
pub const NO_HARDWARE: [u32; 3] = [1, 2, 3];

/// The question of `bpf_fib_lookup`, which becomes its answer: `struct bpf_fib_lookup` in whole words.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Way {
    /// `AF_INET` or `AF_INET6`, of the next hop.
    pub family: u8,
    pub protocol: u8,
    pub ports: Ports,
    /// How long the packet is. From 5.12 on it is compared with what the route lets through.
    pub length: u16,
    /// By which it came, then by which it leaves.
    pub interface: u32,
    /// Type of service, or class and flow.
    pub class: u32,
    /// Of IPv4 the first word.
    pub source: [u32; 4],
    /// The destination, then the next hop. Of IPv4 the first word.
    pub hop: [u32; 4],
    pub table: u32,
    /// Addresses of Ethernet: from, and to.
    pub hardware: [u32; 3],
}

const _: () = assert!(size_of::<Way>() == size_of::<bpf_fib_lookup>());

impl Way {
    /// Of IPv4: where the packet comes from.
    #[inline(always)]
    pub const fn source(&self) -> u32 {
        self.source[0]
    }

    /// The way that an answer would go, before this one is looked up.
    #[inline(always)]
    pub const fn back(&self) -> Self {
        Self {
            source: self.hop,
            hop: self.source,
            ..*self
        }
    }

    /// All that the look-up reads, but for the length, which it only compares.
    #[inline(always)]
    pub const fn question(&self) -> [u64; 6] {
        let way = Self { length: 0, ..*self };
        // SAFETY: the same bytes, without padding, of which each pattern is a value.
        let words = unsafe { transmute::<Self, [u64; 8]>(way) };
        let [question @ .., _, _] = words;
        question
    }

    /// With what matters of the answer.
    #[inline(always)]
    pub const fn answered(&self, interface: u32, hardware: [u32; 3]) -> Self {
        Self {
            interface,
            hardware,
            ..*self
        }
    }

    /// The beginning of a frame that is sent this way, after it is looked up.
    #[inline(always)]
    pub const fn addresses(&self) -> [[u16; 3]; 2] {
        // SAFETY: the same bytes, of which each pattern is a value.
        let [from, to] = unsafe { transmute::<[u32; 3], [[u16; 3]; 2]>(self.hardware) };
        [to, from]
    }
}
