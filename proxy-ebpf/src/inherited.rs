//! Socket storage that whoever is accepted inherits from the listener: a kind of map that aya has no type for.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{bpf_map_type::BPF_MAP_TYPE_SK_STORAGE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
};

/// `BPF_F_NO_PREALLOC`, which such maps have to have, and `BPF_F_CLONE` (kernel 5.4).
const FLAGS: usize = 1 | 1 << 9;

/// Its fields are what the loader reads in the type information; none is ever read.
#[repr(C)]
pub struct InheritedStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: placeholders that the loader replaces; nobody follows them.
unsafe impl<T> Sync for InheritedStorage<T> {}

impl<T> InheritedStorage<T> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// Whether a socket has some. (From `tc`: kernel 5.10 for sockets that a look-up found.)
    #[inline(always)]
    pub fn has(&self, sk: *mut bpf_sock) -> bool {
        let map: *mut c_void = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the caller's pointer is one that a context or a look-up gave and that was compared with null, or the
        // verifier refuses the program; the helper returns null for what is no full socket.
        unsafe { !bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), 0).is_null() }
    }
}
