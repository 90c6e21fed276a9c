//! How much there was: by destination, and where a configuration was asked by what that says.

use std::{cmp::Reverse, collections::HashMap, fmt::Write as _, net::SocketAddr};

use proxy_common::Sighting;
use serde::Serialize;

use super::{
    line::{destination, has_failed, protocol},
    outlook::Outlook,
};
use crate::paint::{Paint, Table};

/// Destinations that are counted one by one, at most.
const CAPACITY: usize = 16_384;

/// What was seen. The names of the fields stay.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summary {
    /// `summary`.
    event: &'static str,
    /// Connections that were told of.
    connections: u64,
    /// Of these, the ones that were not made.
    failed: u64,
    /// Connections that there was no room to tell of.
    lost: u64,
    /// By destination, those with most connections first.
    destinations: Vec<Destination>,
    /// Connections to more destinations than are counted one by one.
    elsewhere: u64,
}

/// What was seen of one destination.
#[derive(Debug, Serialize)]
struct Destination {
    #[serde(rename = "destination")]
    address: SocketAddr,
    protocol: &'static str,
    connections: u64,
    failed: u64,
    #[serde(flatten)]
    outlook: Option<Outlook>,
}

/// Counts while it goes on.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counted: HashMap<(SocketAddr, &'static str, Option<Outlook>), Count>,
    all: Count,
    elsewhere: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    connections: u64,
    failed: u64,
}

impl Count {
    fn add(&mut self, failed: bool) {
        self.connections += 1;
        self.failed += u64::from(failed);
    }
}

impl Tally {
    pub(super) fn add(&mut self, sighting: &Sighting, outlook: Option<&Outlook>) {
        let failed = has_failed(sighting);
        self.all.add(failed);
        let key = (destination(sighting), protocol(sighting), outlook.cloned());
        if self.counted.len() >= CAPACITY && !self.counted.contains_key(&key) {
            self.elsewhere += 1;
        } else {
            self.counted.entry(key).or_default().add(failed);
        }
    }

    pub(super) fn sum(self, lost: u64) -> Summary {
        let of_one = |((address, protocol, outlook), count): (_, Count)| Destination {
            address,
            protocol,
            connections: count.connections,
            failed: count.failed,
            outlook,
        };
        let mut destinations: Vec<_> = self.counted.into_iter().map(of_one).collect();
        destinations.sort_by_key(|it| (Reverse(it.connections), it.address, it.protocol));
        Summary {
            event: "summary",
            connections: self.all.connections,
            failed: self.all.failed,
            lost,
            destinations,
            elsewhere: self.elsewhere,
        }
    }
}

impl Summary {
    /// For people.
    pub(super) fn text(&self, paint: Paint) -> String {
        let asked = self.destinations.iter().any(|it| it.outlook.is_some());
        let mut heads = vec!["destination", "protocol", "connections", "failed"];
        if asked {
            heads.push("configuration");
        }
        let mut table = Table::new(&heads).right(&[2, 3]);
        for it in &self.destinations {
            let cells = [
                it.address.to_string(),
                it.protocol.to_owned(),
                it.connections.to_string(),
                it.failed.to_string(),
            ];
            match &it.outlook {
                Some(outlook) => {
                    let [a, b, c, d] = cells;
                    table.row([a, b, c, d, outlook.to_string()]);
                }
                None => table.row(cells),
            }
        }
        let mut text = format!(
            "\n{}connections {}, failed {}, lost {}\n",
            table.text(paint),
            self.connections,
            self.failed,
            self.lost
        );
        if self.elsewhere > 0 {
            // Writing to a string cannot fail.
            _ = writeln!(text, "to further destinations {}", self.elsewhere);
        }
        text
    }
}
