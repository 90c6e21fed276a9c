//! The kernel side of the sockmap path: the verdict program, its maps, and who has which redirect.
//!
//! A slot is two neighbouring indices. At the even one are, in the sockmap, the downstream socket and, among the redirects,
//! the direction that it is the source of; at the odd one the same of upstream. So each direction's target is the other
//! index of its slot.

mod proof;

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::Waker,
};

use atomic_waker::AtomicWaker;
use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, SockMap},
    programs::{SkSkb, sk_skb::SkSkbLink},
};
use proxy_common::{Redirect as Shared, RelaySide, mode, names};
use tokio::net::TcpStream;

use super::{
    Events, Features, InterceptError, Overlap, Settings,
    handles::{duplicate, map_error, typed},
    memory::Memory,
    object,
};
use crate::{
    relay::{Accelerator, FIRST_WINDOW, Pair, Redirect, Refusal},
    socket,
};

pub use proof::prove;

/// Most bytes that all connections together may have between the redirect and the target's send queue: kernel memory that
/// no socket buffer bounds.
const BUDGET: u64 = 512 * 1024 * 1024;

/// The redirects of all workers.
pub struct Redirects {
    maps: Mutex<Maps>,
    free: Mutex<VecDeque<u32>>,
    /// Bytes of [`BUDGET`] that connections have taken.
    taken: AtomicU64,
    slots: Slots,
    ears: Arc<Ears>,
    myself: Weak<Self>,
}

/// The maps that sockets are entered into.
struct Maps {
    /// The program on the sockmap; dropping it detaches.
    _attached: SkSkbLink,
    redirect_of: HashMap<MapData, u64, u32>,
    pairs: SockMap<MapData>,
}

/// Who waits for events of the kernel's.
struct Ears {
    /// One for each redirect.
    wakers: Box<[AtomicWaker]>,
    /// Whether events are passed on.
    are_open: AtomicBool,
}

impl Ears {
    fn wake(&self, index: u64) {
        let index = usize::try_from(index).ok();
        if let Some(waker) = index.and_then(|index| self.wakers.get(index)) {
            waker.wake();
        }
    }
}

/// Passes events on, as long as it is there.
struct Listening(Arc<Ears>);

impl Drop for Listening {
    fn drop(&mut self) {
        // First, so that who is woken does not rely on events again.
        self.0.are_open.store(false, Release);
        for waker in &self.0.wakers {
            waker.wake();
        }
    }
}

/// Without the thousands of slots and wakers.
impl fmt::Debug for Redirects {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Redirects")
            .field("free", &self.free())
            .finish_non_exhaustive()
    }
}

impl Redirects {
    /// Loads the verdict program and attaches it to the sockmap, which is empty yet. May be called again when what it returned is
    /// gone.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<(Arc<Self>, Events), InterceptError> {
        const NAME: &str = names::VERDICT;
        let pairs = SockMap::try_from(Map::SockMap(duplicate(ebpf, names::PAIRS)?))
            .map_err(map_error("open", names::PAIRS))?;
        let program: &mut SkSkb = ebpf
            .program_mut(NAME)
            .and_then(|program| program.try_into().ok())
            .ok_or(InterceptError::Missing(NAME))?;
        if program.fd().is_err() {
            program.load().map_err(super::load_error(NAME))?;
        }
        let attached = program
            .attach(pairs.fd())
            .and_then(|id| program.take_link(id))
            .map_err(super::attach_error(NAME))?;

        let slots = Slots::map(&duplicate(ebpf, names::REDIRECTS)?)?;
        let ears = Arc::new(Ears {
            wakers: (0..slots.redirects).map(|_| AtomicWaker::new()).collect(),
            are_open: AtomicBool::new(true),
        });
        let listening = Listening(Arc::clone(&ears));
        let wake = move |index| listening.0.wake(index);
        let events = Events::new(ebpf, names::REDIRECT_EVENTS, Box::new(wake))?;
        let maps = Maps {
            _attached: attached,
            redirect_of: typed(duplicate(ebpf, names::REDIRECT_OF)?, names::REDIRECT_OF)?,
            pairs,
        };
        let redirects = Arc::new_cyclic(|myself| Self {
            maps: Mutex::new(maps),
            free: Mutex::new((0..slots.redirects / 2).collect()),
            taken: AtomicU64::new(0),
            slots,
            ears,
            myself: Weak::clone(myself),
        });
        Ok((redirects, events))
    }

    /// Without any hook: for trying the path.
    ///
    /// # Errors
    /// When the kernel refuses the object or the program, or a feature it needs is missing.
    pub fn alone() -> Result<(Arc<Self>, Events), InterceptError> {
        Self::alone_with(Overlap::Cut)
    }

    /// As [`Redirects::alone`], for tests of what the verdict program does about an overlap.
    ///
    /// # Errors
    /// As above.
    pub fn alone_with(overlap: Overlap) -> Result<(Arc<Self>, Events), InterceptError> {
        let features = Features::probe();
        features.allow_redirects()?;
        let settings = Settings {
            overlap,
            ..Settings::UNCONFIGURED
        };
        let mut ebpf = object::load(settings, &features, &[])?;
        Self::new(&mut ebpf)
    }

    /// Takes from the budget.
    fn reserve(&self, bytes: u64) -> bool {
        let take = |taken: u64| taken.checked_add(bytes).filter(|taken| *taken <= BUDGET);
        self.taken.try_update(Relaxed, Relaxed, take).is_ok()
    }

    /// Slots that no connection has.
    #[must_use]
    pub fn free(&self) -> usize {
        lock(&self.free).len()
    }
}

impl Accelerator for Redirects {
    fn admit(&self, downstream: &TcpStream, upstream: &TcpStream) -> Result<Pair, Refusal> {
        let redirects = self.myself.upgrade().ok_or(Refusal::Off)?;
        let cookie = |stream| socket::cookie(stream).map_err(|_| Refusal::Socket);
        let cookies = [cookie(downstream)?, cookie(upstream)?];
        if !self.reserve(2 * FIRST_WINDOW) {
            return Err(Refusal::Budget);
        }
        let Some(number) = lock(&self.free).pop_front() else {
            self.taken.fetch_sub(2 * FIRST_WINDOW, Relaxed);
            return Err(Refusal::Full);
        };
        // From here on dropping it takes out whatever was entered.
        let slot = Slot {
            redirects,
            even: 2 * number,
            cookies,
            taken: AtomicU64::new(2 * FIRST_WINDOW),
        };
        let whole = slot.enter(downstream, upstream)?;
        let slot = Arc::new(slot);
        let redirect = |index| -> Arc<dyn Redirect> {
            Arc::new(Handle {
                index,
                slot: Arc::clone(&slot),
            })
        };
        Ok(Pair {
            up: redirect(slot.even),
            down: redirect(slot.even + 1),
            whole,
        })
    }
}

/// The redirects of one connection. Dropping it gives them back.
#[derive(Debug)]
struct Slot {
    redirects: Arc<Redirects>,
    even: u32,
    cookies: [u64; 2],
    /// Bytes of the budget.
    taken: AtomicU64,
}

impl Slot {
    /// Enters both sockets. Returns whether the kernel took the second one as well: once the first one is in, it stays,
    /// because bytes may have been passed that taking it out would lose (`sk_psock_drop()` in `net/core/skmsg.c`).
    fn enter(&self, downstream: &TcpStream, upstream: &TcpStream) -> Result<bool, Refusal> {
        let mut maps = lock(&self.redirects.maps);
        for (index, cookie) in (self.even..).zip(self.cookies) {
            self.redirects.slots.reset(index);
            maps.redirect_of
                .insert(cookie, index, 0)
                .map_err(|_| Refusal::Full)?;
        }
        maps.pairs
            .set(self.even, downstream, 0)
            .map_err(|_| Refusal::Socket)?;
        Ok(maps.pairs.set(self.even + 1, upstream, 0).is_ok())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut maps = lock(&self.redirects.maps);
        for (index, cookie) in (self.even..).zip(self.cookies) {
            // A socket that was closed, or not entered, is not there.
            _ = maps.pairs.clear_index(&index);
            _ = maps.redirect_of.remove(&cookie);
        }
        drop(maps);
        let taken = self.taken.load(Relaxed);
        self.redirects.taken.fetch_sub(taken, Relaxed);
        lock(&self.redirects.free).push_back(self.even / 2);
    }
}

/// One direction of a connection.
#[derive(Debug)]
struct Handle {
    index: u32,
    slot: Arc<Slot>,
}

impl Handle {
    fn word(&self, of: impl FnOnce(*mut Shared) -> *mut u64) -> &AtomicU64 {
        // SAFETY: the field is aligned and lies in the mapping, which `slot` keeps. The verdict program is the only other
        // one that uses it, by loads and stores of the whole word.
        unsafe { AtomicU64::from_ptr(of(self.slot.redirects.slots.redirect(self.index))) }
    }

    fn half_word(&self, of: impl FnOnce(*mut Shared) -> *mut u32) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(of(self.slot.redirects.slots.redirect(self.index))) }
    }
}

/// A pointer to a field of a redirect in shared memory.
macro_rules! field {
    ($half:ident $(. $field:ident)+) => {
        // SAFETY: the pointer is that of a redirect in the mapping.
        |redirect: *mut Shared| unsafe { &raw mut (*redirect).$half$(.$field)+ }
    };
}

impl Redirect for Handle {
    fn redirected(&self) -> u64 {
        self.word(field!(kernel.redirected)).load(Relaxed)
    }

    fn passed(&self) -> u64 {
        self.word(field!(kernel.passed)).load(Relaxed)
    }

    fn repairs(&self) -> u32 {
        self.half_word(field!(kernel.sequence.repairs))
            .load(Relaxed)
    }

    fn is_faulty(&self) -> bool {
        self.half_word(field!(kernel.sequence.faults)).load(Relaxed) > 0
    }

    fn is_in_kernel(&self) -> bool {
        self.half_word(field!(kernel.mode)).load(Relaxed) == mode::KERNEL
    }

    fn grant(&self, limit: u64, notice_at: u64) {
        self.word(field!(relay.notice_at)).store(notice_at, Relaxed);
        self.word(field!(relay.limit)).store(limit, Relaxed);
    }

    fn resume(&self, passed: u64) {
        self.word(field!(relay.resume_at)).store(passed, Relaxed);
    }

    fn reserve(&self, bytes: u64) -> bool {
        let reserved = self.slot.redirects.reserve(bytes);
        if reserved {
            self.slot.taken.fetch_add(bytes, Relaxed);
        }
        reserved
    }

    fn register(&self, waker: &Waker) {
        let wakers = &self.slot.redirects.ears.wakers;
        if let Some(registered) = wakers.get(self.index as usize) {
            registered.register(waker);
        }
    }

    fn is_heard(&self) -> bool {
        self.slot.redirects.ears.are_open.load(Acquire)
    }
}

/// The array of redirects in our memory. Every access to one goes through atomics, or is of the one owner of its slot before the
/// kernel knows the redirect.
#[derive(Debug)]
struct Slots {
    memory: Memory<Shared>,
    redirects: u32,
}

impl Slots {
    fn map(data: &MapData) -> Result<Self, InterceptError> {
        let redirects = data
            .info()
            .map_err(map_error("read", names::REDIRECTS))?
            .max_entries();
        let memory = Memory::map(data, redirects as usize);
        let memory = memory.map_err(|source| InterceptError::Handle {
            map: names::REDIRECTS,
            source,
        })?;
        Ok(Self { memory, redirects })
    }

    /// A redirect, by an index that came from the free list.
    fn redirect(&self, index: u32) -> *mut Shared {
        let index = index.min(self.redirects.saturating_sub(1)) as usize;
        // SAFETY: within the mapping, which has at least one redirect.
        unsafe { self.memory.start().as_ptr().add(index) }
    }

    /// Makes a redirect that nobody uses ready for use: everything is passed to the relay.
    fn reset(&self, index: u32) {
        let fresh = Shared {
            relay: RelaySide {
                resume_at: RelaySide::NEVER,
                target: index ^ 1,
                ..RelaySide::default()
            },
            ..Shared::default()
        };
        // SAFETY: in the mapping, aligned, and of a slot that is the caller's and that the kernel does not know yet.
        unsafe { self.redirect(index).write_volatile(fresh) };
    }
}

/// A panic cannot leave either of the two half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
