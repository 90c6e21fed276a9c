//! One direction of a connection: what it holds, how far it is, and one turn of work on it.
//!
//! Both paths share this state machine. It reads only when it holds nothing, so a slow sink stops its source, and the
//! end of the source is met only after every byte before it was delivered.

use std::{
    future::Future,
    io, mem,
    os::fd::AsFd as _,
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use tokio::task::yield_now;

use super::{
    Path, Side,
    copy::{self, Rest, Scratch},
    passage::Passage,
    pipe::Pipe,
    receive::{self, Received},
    rest::Resting,
    splice::{self, Filled},
};

/// Reads one direction may do before other connections of the thread get their turn.
const TURN_READS: usize = 16;
/// Bytes one direction may move before other connections of the thread get their turn.
const TURN_BYTES: usize = 1024 * 1024;

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Direction {
    held: Held,
    stage: Stage,
    bulk: Bulk,
    /// The way through the kernel, once the connection was admitted to it.
    passage: Option<Box<dyn Passage>>,
    /// Reads that brought bytes, or `u32::MAX`.
    reads: u32,
    /// Bytes that left a pipe.
    spliced: u64,
    /// Most bytes to read at once.
    read_size: usize,
    /// The sink took bytes it may still keep to itself (TLS records).
    unflushed: bool,
    /// The sink is told the end also where its socket is closed next, which tells it as well.
    tells_each_end: bool,
}

/// Bytes taken from the source that the sink has not accepted.
#[derive(Debug)]
enum Held {
    Nothing,
    Buffer(Rest),
    Pipe(Pipe),
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The source may still send.
    Open,
    /// The source ended and the sink was not told yet.
    Ended,
    /// The sink was told, or is by its close, which is next.
    Finished,
}

/// Whether bytes go through a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bulk {
    /// Not on this path, or the kernel would not.
    Never,
    /// Too few wait to be worth it.
    NotNow,
    /// Many wait.
    Now,
}

/// The end that failed.
#[derive(Debug)]
pub(super) enum Fault {
    Source(io::Error),
    Sink(io::Error),
}

impl Default for Direction {
    fn default() -> Self {
        Self {
            held: Held::Nothing,
            stage: Stage::Open,
            bulk: Bulk::Never,
            passage: None,
            reads: 0,
            spliced: 0,
            read_size: copy::LEAST_READ,
            unflushed: false,
            tells_each_end: false,
        }
    }
}

impl Direction {
    /// From here on by this path. What another path held is delivered first.
    pub(super) fn take_path(&mut self, path: Path) {
        self.bulk = match path {
            Path::Copy | Path::Sockmap | Path::Shortcut | Path::BothWays => Bulk::Never,
            Path::Splice => {
                // A larger read would leave nothing to wait for a pipe.
                self.read_size = self.read_size.min(splice::WORTH_A_PIPE);
                Bulk::NotNow
            }
        };
    }

    /// Whether a direction that was on the splice path had to leave it.
    pub(super) fn fell_back(&self) -> bool {
        self.bulk == Bulk::Never
    }

    /// Whether the sink was told the end.
    pub(super) fn has_told_end(&self) -> bool {
        matches!(self.stage, Stage::Finished)
    }

    /// From here on the sockets may stay open after both directions have ended.
    pub(super) fn tell_each_end(&mut self) {
        self.tells_each_end = true;
    }

    /// Whether the sink learns the end when its socket is closed, as the source did that of the other direction: that is next.
    fn is_told_by_close<T: Side>(&self, sink: &T, told: bool) -> bool {
        told && !self.tells_each_end && self.passage.is_none() && sink.plain().is_some()
    }

    /// Whether more may come, and nothing is in a pipe.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open) && !matches!(self.held, Held::Pipe(_))
    }

    /// Whether more may come, and all that came has been passed on.
    pub(super) fn waits(&self) -> bool {
        matches!((&self.stage, &self.held), (Stage::Open, Held::Nothing)) && !self.unflushed
    }

    /// Whether all that comes goes past the relay, which hears of anything else.
    pub(super) fn is_spared(&self) -> bool {
        self.waits() && self.passage().is_some_and(Passage::is_spared)
    }

    /// Resolves when the relay has something to do that rests meanwhile: for its next turn to find out, also if that is to
    /// meet an error.
    pub(super) fn poll_work(
        &mut self,
        cx: &mut Context<'_>,
        source: &Resting,
        sink: &Resting,
    ) -> Poll<()> {
        // First, so that what the kernel passes after the look wakes us.
        let attended = self
            .passage
            .as_mut()
            .is_some_and(|passage| passage.attend(cx, sink.as_fd()).is_ok());
        if attended && self.is_spared() && source.poll_changed(cx).is_pending() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// Reads that brought bytes.
    pub(super) fn reads(&self) -> u32 {
        self.reads
    }

    /// Bytes that the sink took from a pipe.
    pub(super) fn spliced(&self) -> u64 {
        self.spliced
    }

    /// From here on the kernel may move the bytes.
    pub(super) fn take_passage(&mut self, passage: Box<dyn Passage>) {
        self.passage = Some(passage);
    }

    /// The way through the kernel, once the connection was admitted to it.
    pub(super) fn passage(&self) -> Option<&dyn Passage> {
        self.passage.as_deref()
    }

    /// Counts what the kernel moved.
    pub(super) fn count_kernel(&self, moved: &AtomicU64) {
        if let Some(passage) = &self.passage {
            moved.fetch_max(passage.moved(), Relaxed);
        }
    }

    /// Resolves when what the kernel redirected is in the sink's send queue.
    pub(super) fn poll_settled<T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &T,
    ) -> Poll<io::Result<()>> {
        match (&mut self.passage, sink.plain()) {
            (Some(passage), Some(target)) => passage.poll_settled(cx, target),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Works until an end blocks or the turn is over (`Pending`), the sink was told the end (`Ok`), or an end fails. `told` is
    /// whether the source was told the end of the other direction.
    pub(super) fn poll<S: Side, T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut T,
        told: bool,
        moved: &AtomicU64,
    ) -> Poll<Result<(), Fault>> {
        if let (Some(passage), Some(target)) = (&mut self.passage, sink.plain()) {
            passage.attend(cx, target.as_fd()).map_err(Fault::Source)?;
        }
        let mut taken = 0;
        for _ in 0..TURN_READS {
            ready!(self.poll_deliver(cx, sink, moved)).map_err(Fault::Sink)?;
            match self.stage {
                Stage::Open => taken += ready!(self.poll_take(cx, source, sink, told, moved))?,
                Stage::Ended => {
                    ready!(self.poll_settled(cx, sink)).map_err(Fault::Sink)?;
                    if !self.is_told_by_close(sink, told) {
                        ready!(Pin::new(&mut *sink).poll_shutdown(cx)).map_err(Fault::Sink)?;
                    }
                    self.stage = Stage::Finished;
                }
                Stage::Finished => return Poll::Ready(Ok(())),
            }
            if taken >= TURN_BYTES {
                break;
            }
        }
        give_way(cx);
        Poll::Pending
    }

    /// Passes on what a source had sent before it failed, as far as the sink accepts it at once. Does not tell the end.
    pub(super) fn pass_last_words<S: Side, T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut T,
        moved: &AtomicU64,
    ) {
        let mut scratch = Scratch::take();
        while matches!(self.stage, Stage::Open)
            && matches!(self.poll_deliver(cx, sink, moved), Poll::Ready(Ok(())))
            && let Some(received) = receive::at_once(source, cx, scratch.upto(copy::MOST_READ))
            && let Ok(written) = self.offer(cx, sink, scratch.upto(received))
        {
            count(moved, written);
        }
    }

    /// Gets everything held accepted by the sink. A blocked sink keeps the rest held.
    fn poll_deliver<T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut T,
        moved: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.held {
                Held::Nothing => return Poll::Ready(Ok(())),
                Held::Buffer(rest) => {
                    if let (Some(passage), Some(target)) = (&mut self.passage, sink.plain()) {
                        ready!(passage.poll_settled(cx, target))?;
                    }
                    while !rest.bytes().is_empty() {
                        let written = ready!(copy::poll_write(sink, cx, rest.bytes()))?;
                        rest.advance(written);
                        if let Some(passage) = &mut self.passage {
                            passage.wrote(written);
                        }
                        self.unflushed = true;
                        count(moved, written);
                    }
                    self.held = Held::Nothing;
                }
                Held::Pipe(pipe) => {
                    let held = pipe.held();
                    let outcome = splice::poll_empty(pipe, cx, sink.plain(), moved);
                    self.spliced += (held - pipe.held()) as u64;
                    match outcome {
                        Poll::Ready(Ok(())) => self.release_pipe(),
                        Poll::Ready(Err(error)) if splice::is_unusable(&error) => {
                            self.held = Held::Buffer(Rest::from(pipe.read_all()?));
                            self.bulk = Bulk::Never;
                        }
                        outcome => return outcome,
                    }
                }
            }
        }
    }

    /// Takes bytes from the source once and offers them to the sink. Holds nothing when called.
    ///
    /// Returns how many were taken; at the end of the source 0, and the stage says so.
    fn poll_take<S: Side, T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut T,
        told: bool,
        moved: &AtomicU64,
    ) -> Poll<Result<usize, Fault>> {
        if self.bulk == Bulk::Now
            && let Some(socket) = source.plain()
        {
            match ready!(splice::poll_fill(socket, cx)).map_err(Fault::Source)? {
                Filled::Pipe(pipe) => {
                    let taken = pipe.held();
                    if taken < splice::WORTH_A_PIPE {
                        self.bulk = Bulk::NotNow;
                    }
                    self.held = Held::Pipe(pipe);
                    return Poll::Ready(Ok(taken));
                }
                Filled::Nothing => {}
                Filled::Unusable => self.bulk = Bulk::Never,
            }
        }
        let mut scratch = Scratch::take();
        let Poll::Ready(received) = receive::poll(source, cx, scratch.upto(self.read_size)) else {
            if self.unflushed {
                ready!(Pin::new(&mut *sink).poll_flush(cx)).map_err(Fault::Sink)?;
                self.unflushed = false;
            }
            if let (Some(passage), Some(target)) = (&mut self.passage, sink.plain()) {
                passage.poll_resume(cx, target).map_err(Fault::Sink)?;
            }
            return Poll::Pending;
        };
        let received = received.map_err(Fault::Source)?;
        if received.bytes == 0 {
            let ended = ready!(self.poll_ended(cx, source, told)).map_err(Fault::Source)?;
            if ended {
                self.stage = Stage::Ended;
            }
            return Poll::Ready(Ok(0));
        }
        self.reads = self.reads.saturating_add(1);
        let taken = scratch.upto(received.bytes);
        let written = self.offer(cx, sink, taken).map_err(Fault::Sink)?;
        count(moved, written);
        self.adapt(received, written);
        Poll::Ready(Ok(received.bytes))
    }

    /// Resolves to whether nothing comes in front of an end that was read.
    fn poll_ended<S: Side>(
        &mut self,
        cx: &mut Context<'_>,
        source: &S,
        told: bool,
    ) -> Poll<io::Result<bool>> {
        match (&mut self.passage, source.plain()) {
            (Some(passage), Some(socket)) => passage.poll_ended(cx, socket, told),
            _ => Poll::Ready(Ok(true)),
        }
    }

    /// Writes once and holds what was not accepted. Returns how many bytes were.
    fn offer<T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut T,
        bytes: &[u8],
    ) -> io::Result<usize> {
        let may_write = match (&mut self.passage, sink.plain()) {
            (Some(passage), Some(target)) => {
                passage.took(bytes.len());
                passage.is_settled(target)?
            }
            _ => true,
        };
        let written = if !may_write {
            0
        } else if let Poll::Ready(written) = copy::poll_write(sink, cx, bytes) {
            written?
        } else {
            0
        };
        self.unflushed = true;
        if let Some(passage) = &mut self.passage {
            passage.wrote(written);
        }
        if let Some(rest) = bytes.get(written..)
            && !rest.is_empty()
        {
            self.held = Held::Buffer(Rest::from(rest.to_vec()));
        }
        Ok(written)
    }

    /// Learns from one read how much to read next, and whether by pipe.
    fn adapt(&mut self, received: Received, written: usize) {
        let mut most = copy::MOST_READ;
        if self.bulk != Bulk::Never {
            let many = received
                .waiting
                .is_some_and(|waiting| waiting >= splice::WORTH_A_PIPE);
            self.bulk = if many { Bulk::Now } else { Bulk::NotNow };
            most = splice::WORTH_A_PIPE;
        }
        if written < received.bytes {
            // The receiver is slower than the sender: hold less for it next time.
            self.read_size = (self.read_size / 2).max(copy::LEAST_READ);
        } else if received.bytes == self.read_size {
            self.read_size = (self.read_size * 2).min(most);
        }
    }

    fn release_pipe(&mut self) {
        if let Held::Pipe(pipe) = mem::replace(&mut self.held, Held::Nothing) {
            pipe.release();
        }
    }
}

/// Adds to a count that only one thread writes.
pub(super) fn count(moved: &AtomicU64, bytes: usize) {
    let total = moved.load(Relaxed).wrapping_add(bytes as u64);
    moved.store(total, Relaxed);
}

/// Ends the turn: the task runs again after the others that are ready, and after the sockets were looked at.
///
/// Waking it right here would be unfair: tokio looks at sockets only once in 61 polls while tasks are ready.
fn give_way(cx: &mut Context<'_>) {
    // The first poll hands the waker to the scheduler; there is nothing to wait for beyond that.
    let _: Poll<()> = pin!(yield_now()).poll(cx);
}
