//! Many sockets on one thread.

use std::{io, os::fd::AsFd, time::Duration};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

/// Sockets that are served for one system call.
const EVENTS: usize = 256;

/// What a task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Its socket to be ready for this.
    Ready(EpollFlags),
    /// The same, of another socket than before, which is closed.
    Reopened(EpollFlags),
    /// Nothing more.
    End,
}

/// Something done on one socket.
pub(crate) trait Task: AsFd {
    /// What the tasks of a thread have in common.
    type Shared;

    /// Goes on as far as the socket allows.
    fn ready(&mut self, ready: EpollFlags, shared: &mut Self::Shared) -> io::Result<Want>;
}

/// The tasks of one thread. Level-triggered: a task may leave bytes in its socket and is called again.
pub(crate) struct Reactor<T: Task> {
    epoll: Epoll,
    tasks: Vec<Option<(T, EpollFlags)>>,
    free: Vec<usize>,
    pub(crate) shared: T::Shared,
    events: Vec<EpollEvent>,
}

impl<T: Task> Reactor<T> {
    pub(crate) fn new(shared: T::Shared) -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            tasks: Vec::new(),
            free: Vec::new(),
            shared,
            events: vec![EpollEvent::empty(); EVENTS],
        })
    }

    pub(crate) fn add(&mut self, task: T, wanted: EpollFlags) -> io::Result<()> {
        let place = self.free.pop().unwrap_or(self.tasks.len());
        self.epoll.add(&task, event(place, wanted))?;
        match self.tasks.get_mut(place) {
            Some(free) => *free = Some((task, wanted)),
            None => self.tasks.push(Some((task, wanted))),
        }
        Ok(())
    }

    /// Serves its tasks until all have ended. Fails when for so long none of their sockets is ready.
    pub(crate) fn finish(&mut self, patience: Duration) -> Result<()> {
        let timeout = EpollTimeout::try_from(patience)?;
        while let left @ 1.. = self.tasks.len() - self.free.len() {
            if self.turn(timeout)? == 0 {
                bail!("nothing happened for {patience:?} on the {left} connections that are left");
            }
        }
        Ok(())
    }

    /// Waits until sockets are ready and serves them, or until the time is over. How many were ready.
    pub(crate) fn turn(&mut self, timeout: EpollTimeout) -> io::Result<usize> {
        let count = loop {
            match self.epoll.wait(&mut self.events, timeout) {
                Err(Errno::EINTR) => {}
                waited => break waited?,
            }
        };
        for event in self.events.iter().take(count) {
            let place = usize::try_from(event.data()).unwrap_or(usize::MAX);
            let Some(entry) = self.tasks.get_mut(place) else {
                continue;
            };
            let Some((task, wanted)) = entry else {
                continue;
            };
            match task.ready(event.events(), &mut self.shared)? {
                Want::Ready(now) if now == *wanted => {}
                Want::Ready(now) => {
                    self.epoll.modify(&*task, &mut self::event(place, now))?;
                    *wanted = now;
                }
                Want::Reopened(now) => {
                    self.epoll.add(&*task, self::event(place, now))?;
                    *wanted = now;
                }
                Want::End => {
                    *entry = None;
                    self.free.push(place);
                }
            }
        }
        Ok(count)
    }
}

fn event(place: usize, wanted: EpollFlags) -> EpollEvent {
    EpollEvent::new(wanted, place as u64)
}

/// Whether a call succeeded, or has to be made again when the socket is ready.
pub(crate) fn attempt(call: io::Result<usize>) -> io::Result<Option<usize>> {
    match call {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
