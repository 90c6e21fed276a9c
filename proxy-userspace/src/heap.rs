//! The memory of the program: mimalloc's, which `main` chooses.
//!
//! For each connection tokio has two registrations and a task aligned to 128 bytes. With glibc 2.36 these took a tenth of the
//! instructions that the relay needs for a short connection, and the gaps between them added up: under mixed traffic the daemon grew by
//! some 120 bytes with each.

/// Gives back what is free now, after work that will not come again soon: reading the kernel's types at the start takes 20 MB.
pub fn give_back() {
    // SAFETY: may be called by any thread at any time, and knows only memory that is mimalloc's.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
