//! A look at the connections that are open: which of them, in which order, and what they have moved.

use std::{sync::Arc, sync::PoisonError, time::Duration};

use super::{Live, Open, Query};
use crate::{
    clock,
    record::comm_text,
    socket::{Condition, Handle},
    status::connections::{ConnectionStatus, List, Sort},
};

/// Looks that follow each other sooner see the same rate: over less time it would be chance.
const SHORTEST: Duration = Duration::from_millis(400);

/// What a connection had moved when somebody looked, and how fast that was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    at: Duration,
    bytes: [u64; 2],
    rates: [u64; 2],
    over: Duration,
}

impl Sample {
    /// Of a connection that begins.
    pub(super) const fn of_nothing(at: Duration) -> Self {
        Self {
            at,
            bytes: [0; 2],
            rates: [0; 2],
            over: Duration::ZERO,
        }
    }

    /// Another look.
    fn renew(&mut self, now: Duration, bytes: [u64; 2]) {
        let over = now.saturating_sub(self.at);
        if over < SHORTEST {
            return;
        }
        let per_second = |now: u64, before: u64| {
            let moved = u128::from(now.saturating_sub(before)) * 1_000_000;
            u64::try_from(moved / over.as_micros().max(1)).unwrap_or(u64::MAX)
        };
        *self = Self {
            at: now,
            bytes,
            rates: [
                per_second(bytes[0], self.bytes[0]),
                per_second(bytes[1], self.bytes[1]),
            ],
            over,
        };
    }
}

impl Live {
    /// Those that a query selects.
    #[must_use]
    pub fn look(&self, query: &Query) -> List {
        let now = clock::monotonic();
        let found = self.find(|open| query.selects(open));
        let matching = found.len();
        let mut seen: Vec<_> = found
            .into_iter()
            .map(|open| Seen::new(open, now, query.sort))
            .collect();
        // Who is shown first, and then in order: most are not shown where there are many.
        let end = query.offset.saturating_add(query.limit);
        if end < seen.len() && end > 0 {
            seen.select_nth_unstable_by_key(end - 1, Seen::rank);
        }
        seen.truncate(end);
        seen.sort_unstable_by_key(Seen::rank);
        let shown = seen.iter().skip(query.offset);
        List {
            matching: matching as u64,
            connections: shown.map(|seen| seen.status(now)).collect(),
        }
    }
}

/// A connection that was looked at.
struct Seen {
    open: Arc<Open>,
    sample: Sample,
    bytes: [u64; 2],
    /// What it is sorted by.
    weight: u64,
}

impl Seen {
    fn new(open: Arc<Open>, now: Duration, sort: Sort) -> Self {
        open.progress.look();
        let bytes = [open.progress.up(), open.progress.down()];
        let sample = {
            let mut sample = open.seen.lock().unwrap_or_else(PoisonError::into_inner);
            sample.renew(now, bytes);
            *sample
        };
        let weight = match sort {
            Sort::Id => 0,
            Sort::Rate => sample.rates[0].saturating_add(sample.rates[1]),
            Sort::Bytes => bytes[0].saturating_add(bytes[1]),
            Sort::Age => micros(now.saturating_sub(open.begun.at)),
            Sort::Rtt => {
                let ends = conditions(&open).into_iter().flatten();
                ends.map(|end| micros(end.rtt)).sum()
            }
        };
        Self {
            open,
            sample,
            bytes,
            weight,
        }
    }

    /// The largest first, and of equal ones the older.
    fn rank(&self) -> (std::cmp::Reverse<u64>, u64) {
        (std::cmp::Reverse(self.weight), self.open.id)
    }

    fn status(&self, now: Duration) -> ConnectionStatus {
        let Open {
            begun, progress, ..
        } = &*self.open;
        let reached = self.open.reached.get();
        let process = begun.process.as_ref();
        let [downstream, upstream] = conditions(&self.open);
        let rtt = |end: Option<Condition>| end.map(|end| micros(end.rtt));
        let backlog = |from: Option<Condition>, to: Option<Condition>| {
            let unsent = to.map_or(0, |to| to.unsent);
            from.or(to)
                .map(|_| from.map_or(0, |from| from.unread) + unsent)
        };
        ConnectionStatus {
            id: self.open.id,
            age_ms: micros(now.saturating_sub(begun.at)) / 1000,
            role: begun.role.label().to_owned(),
            rule: begun.rule.to_string(),
            client: begun.client.to_string(),
            pid: process.map(|caller| caller.pid),
            uid: process.map(|caller| caller.uid),
            comm: process.map(|caller| comm_text(&caller.comm).to_string()),
            to: begun.orig_dst.to_string(),
            name: self.open.name.get().map(ToString::to_string),
            upstream: reached.map(|reached| reached.upstream.to_string()),
            peer: reached.and_then(|reached| Some(reached.peer?.to_string())),
            endpoint: reached.and_then(|reached| Some(reached.endpoint.as_deref()?.to_owned())),
            path: reached.map(|_| progress.path().label().to_owned()),
            path_reason: progress.reason().map(|reason| reason.label().to_owned()),
            up: self.bytes[0],
            down: self.bytes[1],
            up_rate: self.sample.rates[0],
            down_rate: self.sample.rates[1],
            rate_ms: micros(self.sample.over) / 1000,
            downstream_rtt_us: rtt(downstream),
            upstream_rtt_us: rtt(upstream),
            up_backlog: backlog(downstream, upstream),
            down_backlog: backlog(upstream, downstream),
            promotions: progress.promotions(),
            demotions: progress.demotions(),
        }
    }
}

/// How the two sides of a connection are. Asks the kernel some times, so it is for those that are shown.
fn conditions(open: &Open) -> [Option<Condition>; 2] {
    let Some(reached) = open.reached.get() else {
        return [None; 2];
    };
    let [downstream, upstream] = &reached.sockets;
    [downstream, upstream].map(|socket| socket.as_ref().and_then(Handle::look))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::begun, *};

    #[test]
    fn a_rate_is_what_was_moved_since_somebody_looked() {
        let mut sample = Sample::of_nothing(Duration::from_secs(10));
        sample.renew(Duration::from_secs(12), [4000, 0]);
        assert_eq!((sample.rates, sample.over.as_secs()), ([2000, 0], 2));
        sample.renew(Duration::from_millis(12_100), [9000, 9000]);
        assert_eq!(sample.rates, [2000, 0], "too soon");
        sample.renew(Duration::from_secs(13), [5000, 7]);
        assert_eq!(sample.rates, [1000, 7]);
    }

    #[test]
    fn of_many_only_so_many_are_told_of_in_order() {
        let live = Arc::new(Live::default());
        let entries: Vec<_> = (0..10_000)
            .map(|number| live.enter(begun(if number % 2 == 0 { "even" } else { "odd" })))
            .collect();
        let list = live.look(&Query::parse("rule=odd&limit=3").unwrap());
        assert_eq!(list.matching, 5000);
        let ids = |list: &List| {
            list.connections
                .iter()
                .map(|one| one.id)
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(&list), [entries[1].id, entries[3].id, entries[5].id]);
        assert_eq!(live.look(&Query::default()).connections.len(), 1000);
        let list = live.look(&Query::parse("rule=odd&limit=2&offset=4998").unwrap());
        assert_eq!(ids(&list), [entries[9997].id, entries[9999].id]);
        for beyond in ["offset=9999999", "offset=18446744073709551615&limit=1"] {
            let list = live.look(&Query::parse(beyond).unwrap());
            assert_eq!((list.matching, list.connections.len()), (10_000, 0));
        }
        let none = live.look(&Query::parse("limit=0").unwrap());
        assert_eq!((none.matching, none.connections.len()), (10_000, 0));
    }
}
