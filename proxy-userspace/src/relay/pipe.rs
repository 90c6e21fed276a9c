//! Kernel pipes for the splice path, pooled per thread.
//!
//! A pipe costs two files and some kernel memory, so a connection has one only while bytes wait in it. A pipe in the
//! pool is always empty: bytes of one connection can never come out in another.

use std::{
    cell::RefCell,
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::{pipe2, read},
};

/// Size to ask for, in bytes; what an unprivileged user may have by default (`fs.pipe-max-size`).
const WANTED_SIZE: usize = 1024 * 1024;
/// Size below which a pipe saves nothing. Above its page quota a user gets pipes of one or two pages
/// (`fs.pipe-user-pages-soft`).
const LEAST_SIZE: usize = 64 * 1024;
/// Empty pipes kept per thread.
const POOL_SIZE: usize = 64;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe and how many bytes are in it.
#[derive(Debug)]
pub(super) struct Pipe {
    read_end: OwnedFd,
    write_end: OwnedFd,
    size: usize,
    held: usize,
}

impl Pipe {
    /// An empty pipe from the pool, or a new one. `None` where there are no files left for it, or only tiny ones.
    pub(super) fn acquire() -> Option<Self> {
        let pooled = POOL.try_with(|pool| pool.borrow_mut().pop());
        pooled.ok().flatten().or_else(Self::open)
    }

    /// Back to the pool, if it is empty and there is room; otherwise closed.
    pub(super) fn release(self) {
        if self.held > 0 {
            return;
        }
        // Fails while the thread ends, and then the pipe goes with it.
        _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < POOL_SIZE {
                pool.push(self);
            }
        });
    }

    fn open() -> Option<Self> {
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        let wanted = i32::try_from(WANTED_SIZE).ok()?;
        // May be refused (quota) or rounded; what counts is what it is now.
        _ = fcntl(&write_end, FcntlArg::F_SETPIPE_SZ(wanted));
        let size = usize::try_from(fcntl(&write_end, FcntlArg::F_GETPIPE_SZ).ok()?).ok()?;
        (size >= LEAST_SIZE).then_some(Self {
            read_end,
            write_end,
            size,
            held: 0,
        })
    }

    /// Bytes in the pipe.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves what waits on a socket into the pipe, without waiting for more.
    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>) -> nix::Result<usize> {
        let room = self.size.saturating_sub(self.held);
        let moved = splice(socket, None, &self.write_end, None, room, flags())?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves what is in the pipe to a socket, as far as it accepts it.
    pub(super) fn drain(&mut self, socket: BorrowedFd<'_>) -> nix::Result<usize> {
        let moved = splice(&self.read_end, None, socket, None, self.held, flags())?;
        self.held = self.held.saturating_sub(moved);
        Ok(moved)
    }

    /// Takes everything out of the pipe, in order.
    pub(super) fn read_all(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.held];
        let mut filled = 0;
        while self.held > 0 {
            let rest = bytes.get_mut(filled..).unwrap_or_default();
            match read(&self.read_end, rest)? {
                0 => return Err(Errno::EPIPE.into()),
                count => {
                    filled += count;
                    self.held = self.held.saturating_sub(count);
                }
            }
        }
        Ok(bytes)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsFd, os::unix::net::UnixStream};

    use super::*;

    fn pooled() -> usize {
        POOL.with_borrow(Vec::len)
    }

    /// A pipe that holds `text`.
    fn filled(text: &[u8]) -> Pipe {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        writer.write_all(text).unwrap();
        let mut pipe = Pipe::acquire().unwrap();
        assert_eq!(pipe.fill(reader.as_fd()), Ok(text.len()));
        pipe
    }

    #[test]
    fn only_empty_pipes_are_pooled() {
        filled(b"of another connection").release();
        assert_eq!(pooled(), 0);
        let mut pipe = filled(b"read");
        assert_eq!(pipe.read_all().unwrap(), b"read");
        pipe.release();
        assert_eq!(pooled(), 1);
        let reused = Pipe::acquire().unwrap();
        assert_eq!((pooled(), reused.held()), (0, 0));
        assert_eq!(read(&reused.read_end, &mut [0]), Err(Errno::EAGAIN));
    }

    #[test]
    fn the_pool_is_bounded() {
        let pipes: Vec<Pipe> = (0..POOL_SIZE + 5).filter_map(|_| Pipe::acquire()).collect();
        assert_eq!(pipes.len(), POOL_SIZE + 5);
        pipes.into_iter().for_each(Pipe::release);
        assert_eq!(pooled(), POOL_SIZE);
    }

    #[test]
    fn what_a_sink_leaves_stays_in_order() {
        let mut pipe = filled(b"taken and left");
        let (writer, reader) = UnixStream::pair().unwrap();
        let taken = splice(&pipe.read_end, None, &writer, None, 6, flags()).unwrap();
        pipe.held -= taken;
        assert_eq!(pipe.read_all().unwrap(), b"and left");
        assert_eq!(pipe.held(), 0);
        drop(reader);
    }
}
