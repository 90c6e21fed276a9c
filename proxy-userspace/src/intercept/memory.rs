//! Maps that are in our memory, too (`BPF_F_MMAPABLE`, Linux 5.5).

use std::{io, num::NonZeroUsize, os::fd::AsFd as _, ptr::NonNull};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The beginning of an array.
#[derive(Debug)]
pub(super) struct Memory<T> {
    start: NonNull<T>,
    bytes: NonZeroUsize,
}

// SAFETY: it is plain shared memory, which who has a pointer into it accesses as what it points at allows.
unsafe impl<T: Sync> Send for Memory<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Memory<T> {}

impl<T> Memory<T> {
    /// So many elements.
    pub(super) fn map(data: &MapData, elements: usize) -> io::Result<Self> {
        let bytes = elements * size_of::<T>();
        let bytes = NonZeroUsize::new(bytes.next_multiple_of(page_size()))
            .ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let descriptor = data.fd().as_fd();
        // SAFETY: a new mapping, anywhere, of the map's own memory.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, descriptor, 0) }?;
        Ok(Self {
            start: start.cast(),
            bytes,
        })
    }

    /// Where they begin. Valid as long as this is.
    pub(super) const fn start(&self) -> NonNull<T> {
        self.start
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `map`, and nothing that points into it outlives this.
        _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}

fn page_size() -> usize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(4096)
}
