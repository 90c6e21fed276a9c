//! Moves a connection from path to path: when the rule's path may be taken, and for `auto` also which it is.
//!
//! The copy path can be left at any time, and the pipes of the splice path, too. A socket in a sockmap cannot be spliced, and
//! does not leave it: what is there stays there.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{
    Kind, Pair, Path, Paths, Progress, Promotion, Reason, Refusal, Relay, Side,
    direction::Direction, kind::Watch, meter::Meter, passage::Passage, shortcut::Obstacle,
    sockmap::RedirectPassage,
};
use crate::socket;

/// What one connection may change to, and why it has not.
#[derive(Debug, Default)]
pub(super) struct Steering {
    paths: Option<Arc<Paths>>,
    course: Course,
    reason: Option<Reason>,
    /// Why it may not enter the sockmap, once that was tried.
    refusal: Option<Refusal>,
    /// Times that a direction was given to the splice path, and that it came back.
    promotions: u16,
    demotions: u16,
    /// Whether whoever runs it lets it rest.
    pub(super) may_rest: bool,
}

/// What is watched.
#[derive(Debug, Default)]
enum Course {
    /// Nothing: the path stays.
    #[default]
    Stay,
    /// Whether the connection is worth the sockmap path.
    AwaitPromotion,
    /// What the connection is, and what is best for that.
    Follow(Watch),
}

impl Steering {
    pub(super) fn allow(&mut self, paths: Arc<Paths>) {
        self.paths = Some(paths);
    }

    /// No other path.
    pub(super) fn stay(&mut self, reason: Reason) {
        self.course = Course::Stay;
        self.reason = Some(reason);
    }

    /// The sockmap path, once it is worth it. It is tried once.
    pub(super) fn await_promotion(&mut self, now: Path) {
        (self.course, self.reason) = match (&self.paths, now) {
            (_, Path::Sockmap) => (Course::Stay, None),
            (None, _) => (Course::Stay, Some(Reason::Refused(Refusal::Off))),
            (Some(_), _) => (Course::AwaitPromotion, Some(Reason::Short)),
        };
    }

    /// Whatever is best.
    pub(super) fn follow(&mut self, progress: &Progress, reads: u32) {
        if self.paths.is_none() {
            return self.stay(Reason::Unmeasured);
        }
        self.course = Course::Follow(Watch::new(progress, reads));
        self.reason = Some(Reason::Short);
    }

    /// The kernel has refused to splice, and would again.
    pub(super) fn no_splice(&mut self) {
        self.stay(Reason::NoSplice);
    }
}

impl Relay {
    /// Why the connection was not on a better path than it was.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        if self.progress.left_shortcut() {
            Some(Reason::Shortcut(Obstacle::Stream))
        } else if self.is_on_shortcut() {
            None
        } else if self.passages().any(Passage::is_held_up) {
            Some(Reason::SlowReceiver)
        } else {
            self.steering.reason
        }
    }

    fn is_on_shortcut(&self) -> bool {
        matches!(self.progress.path(), Path::Shortcut | Path::BothWays)
    }

    /// Reads of both sides.
    pub(super) fn reads(&self) -> u32 {
        self.up.reads().saturating_add(self.down.reads())
    }

    /// The path to begin with where it may change: that of the sockmap cannot be left.
    pub(super) fn first_path(&self) -> Path {
        if self.passages().next().is_some() {
            Path::Sockmap
        } else {
            Path::Copy
        }
    }

    /// Changes the path if that is due. Returns whether the sockets were put into the sockmap.
    pub(super) fn steer<D: Side, U: Side>(&mut self, downstream: &D, upstream: &U) -> bool {
        let reads = self.reads();
        let Some(paths) = &self.steering.paths else {
            return false;
        };
        match &mut self.steering.course {
            Course::Stay => false,
            Course::AwaitPromotion => match paths.sockmap() {
                Ok(promotion) => {
                    let due = self.is_due(promotion).then(|| promotion.clone());
                    due.is_some_and(|promotion| self.promote(&promotion, downstream, upstream))
                }
                Err(reason) => {
                    self.steering.reason = Some(reason);
                    false
                }
            },
            Course::Follow(watch) => match watch.look(&paths.window, &self.progress, reads) {
                Some(kind) => {
                    let is_steady = watch.is_steady();
                    self.follow(kind, is_steady, downstream, upstream)
                }
                None => false,
            },
        }
    }

    /// Whether the connection is worth the sockmap path, and may take it.
    fn is_due(&self, promotion: &Promotion) -> bool {
        let much = self.progress.total() >= promotion.bytes
            || self.up.reads().max(self.down.reads()) >= promotion.reads;
        much && self.up.is_open() && self.down.is_open()
    }

    /// Takes the path that is best for a kind.
    fn follow<D: Side, U: Side>(
        &mut self,
        kind: Kind,
        is_steady: bool,
        downstream: &D,
        upstream: &U,
    ) -> bool {
        let Some(paths) = self.steering.paths.clone() else {
            return false;
        };
        let Some(measured) = paths.measured() else {
            paths.ask(self.progress.total(), self.reads());
            self.steering.reason = Some(Reason::Unmeasured);
            return false;
        };
        let sockmap = self.sockmap_for_all(&paths);
        let best = measured.best(kind, |path| path != Path::Sockmap || sockmap.is_ok());
        let now = self.progress.relay_path();
        self.steering.reason = match (best, now) {
            (best, Path::Sockmap) => (best != Path::Sockmap).then_some(Reason::Entered),
            (Path::Splice, _) => None,
            _ => sockmap.err().or(Some(Reason::Measured)),
        };
        match (best, now) {
            (Path::Sockmap, Path::Copy | Path::Splice) => match sockmap {
                // It cannot be left, so nothing is entered by a first impression. And what is in a pipe goes first. Then
                // the next window sees to it.
                Ok(promotion) if is_steady && self.up.is_open() && self.down.is_open() => {
                    self.promote(promotion, downstream, upstream)
                }
                _ => false,
            },
            (Path::Splice, Path::Copy) => {
                if downstream.plain().is_some() && upstream.plain().is_some() {
                    self.take_path(Path::Splice);
                    self.steering.promotions = self.steering.promotions.saturating_add(2);
                } else {
                    self.steering.stay(Reason::Refused(Refusal::NotPlain));
                }
                false
            }
            (Path::Copy, Path::Splice) => {
                self.take_path(Path::Copy);
                self.steering.demotions = self.steering.demotions.saturating_add(2);
                false
            }
            _ => false,
        }
    }

    /// The kernel side of the sockmap path, where this connection may take it by choice.
    fn sockmap_for_all<'a>(&self, paths: &'a Paths) -> Result<&'a Promotion, Reason> {
        match self.steering.refusal {
            Some(refusal) => Err(Reason::Refused(refusal)),
            // The app's own socket may still be sending past us, which the accounts of the sockmap path do not know.
            None if self.lane.is_some() => Err(Reason::Shortcut(Obstacle::Stream)),
            None => paths.sockmap(),
        }
    }

    /// Puts both sockets under the verdict program; returns whether that was possible. Until each direction was read empty
    /// nothing changes.
    fn promote<D: Side, U: Side>(
        &mut self,
        promotion: &Promotion,
        downstream: &D,
        upstream: &U,
    ) -> bool {
        let entered = self.enter(promotion, downstream, upstream);
        match entered {
            Ok(()) => {
                self.take_path(Path::Sockmap);
                self.steering.reason = None;
            }
            Err(refusal) => {
                tracing::debug!(%refusal, "a connection does not take the sockmap path");
                self.steering.refusal = Some(refusal);
                self.steering.reason = Some(Reason::Refused(refusal));
            }
        }
        if matches!(self.steering.course, Course::AwaitPromotion) {
            self.steering.course = Course::Stay;
        }
        entered.is_ok()
    }

    fn enter<D: Side, U: Side>(
        &mut self,
        promotion: &Promotion,
        downstream: &D,
        upstream: &U,
    ) -> Result<(), Refusal> {
        let (Some(downstream), Some(upstream)) = (downstream.plain(), upstream.plain()) else {
            return Err(Refusal::NotPlain);
        };
        let Pair { up, down, whole } = promotion.accelerator.admit(downstream, upstream)?;
        self.progress.measure_by(Meter::Redirects {
            up: Arc::downgrade(&up),
            down: Arc::downgrade(&down),
        });
        let gone = |_| Refusal::Socket;
        let up = RedirectPassage::new(up, upstream, whole).map_err(gone)?;
        let down = RedirectPassage::new(down, downstream, whole).map_err(gone)?;
        self.up.take_passage(Box::new(up));
        self.down.take_passage(Box::new(down));
        for socket in [downstream, upstream] {
            socket::handle_waiting(socket).map_err(gone)?;
        }
        if !whole {
            return Err(Refusal::Socket);
        }
        Ok(())
    }

    /// Brings up to date what went by which path. What the kernel moved wakes nobody.
    pub(crate) fn count(&self) {
        self.up.count_kernel(&self.progress.redirected_up);
        self.down.count_kernel(&self.progress.redirected_down);
        let reason = self.reason().map_or(0, Reason::number);
        self.progress.reason.store(reason, Relaxed);
        let sum = |of: fn(&dyn Passage) -> u32| self.passages().map(of).sum::<u32>();
        let progress = &self.progress;
        let Steering {
            promotions,
            demotions,
            ..
        } = self.steering;
        progress.promotions.store(
            sum(|passage| passage.promotions()) + u32::from(promotions),
            Relaxed,
        );
        progress.demotions.store(
            sum(|passage| passage.demotions()) + u32::from(demotions),
            Relaxed,
        );
        progress
            .repairs
            .store(sum(|passage| passage.repairs()), Relaxed);
        let spliced = self.up.spliced() + self.down.spliced();
        progress.spliced.store(spliced, Relaxed);
    }

    fn passages(&self) -> impl Iterator<Item = &dyn Passage> {
        [&self.up, &self.down]
            .into_iter()
            .filter_map(Direction::passage)
    }
}
