//! What differs between the IPv4 and the IPv6 form of a hook: where the address is in the context.

use aya_ebpf::programs::SockAddrContext;
use proxy_common::{Addr, BePort, Family};

/// IPv4 or IPv6.
pub struct Version {
    pub family: u16,
}

/// IPv4.
pub const V4: Version = Version { family: Family::V4 };
/// IPv6.
pub const V6: Version = Version { family: Family::V6 };

impl Version {
    /// Address in the context: the destination of `connect()`, the peer of `getpeername()`.
    #[inline(always)]
    pub fn addr(&self, ctx: &SockAddrContext) -> (Addr, BePort) {
        let raw = ctx.sock_addr;
        // SAFETY: the context is valid while the program runs. Volatile, word by word: the verifier knows these
        // fields only as single accesses, and LLVM would make one copy of them.
        unsafe {
            let port = BePort((*raw).user_port as u16);
            if self.family == Family::V4 {
                return (Addr::from_v4_word((*raw).user_ip4), port);
            }
            let words = (&raw const (*raw).user_ip6).cast::<u32>();
            let words = [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ];
            (Addr::from_words(words), port)
        }
    }

    /// Replaces the address in the context.
    #[inline(always)]
    pub fn set_addr(&self, ctx: &SockAddrContext, addr: Addr, port: BePort) {
        let raw = ctx.sock_addr;
        let [a, b, c, d] = addr.words();
        // SAFETY: as above; the fields are writable in `connect` and `getpeername` hooks.
        unsafe {
            if self.family == Family::V4 {
                (*raw).user_ip4 = d;
            } else {
                let words = (&raw mut (*raw).user_ip6).cast::<u32>();
                words.write_volatile(a);
                words.add(1).write_volatile(b);
                words.add(2).write_volatile(c);
                words.add(3).write_volatile(d);
            }
            (*raw).user_port = u32::from(port.0);
        }
    }
}
