//! The least that sending a packet on can cost: a program that has it leave by another interface, and does nothing else.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use culvert_tests::bytecode::{call, descriptor, instruction, load};
use nix::net::if_::if_nametoindex;

const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
/// `bpf_redirect`.
const REDIRECT: u32 = 23;

/// Has what comes in by one interface of this thread's network namespace leave by another, as it is, as long as this is held.
pub(crate) fn pass(from: &str, to: &str) -> Result<OwnedFd> {
    let code = [
        instruction(0xb7, 1, 0, if_nametoindex(to)?),
        instruction(0xb7, 2, 0, 0),
        instruction(0x85, 0, 0, REDIRECT),
        instruction(0x95, 0, 0, 0),
    ];
    let program = load(PROG_TYPE_SCHED_CLS, TCX_INGRESS, &code)?;
    let interface = if_nametoindex(from)?;
    let mut attributes = [
        program.as_raw_fd().unsigned_abs(),
        interface,
        TCX_INGRESS,
        0,
    ];
    // SAFETY: the attributes are numbers.
    let made = unsafe { call(LINK_CREATE, &mut attributes) };
    let made = made.context("cannot attach a program by tcx (before kernel 6.6?)")?;
    // SAFETY: the kernel has just made it.
    Ok(unsafe { descriptor(made) })
}
