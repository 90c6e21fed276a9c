//! How long a question and its answer take through a router: both ends are of one thread, so that nobody waits to be woken.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::Result;
use culvert_tests::netns::Netns;

/// Bytes of each.
const LENGTH: usize = 64;

/// A connection through a router, both ends of it.
pub(crate) struct Exchange {
    client: TcpStream,
    server: TcpStream,
}

impl Exchange {
    /// From one host to a port of another.
    pub(crate) fn between(client: &Netns, server: &Netns, to: (IpAddr, u16)) -> Result<Self> {
        let listener = server.within(|| TcpListener::bind(to))?;
        let client = client.within(|| TcpStream::connect(to))?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
        }
        Ok(Self { client, server })
    }

    /// How long each of so many took, the shortest first.
    pub(crate) fn times(&mut self, count: u32) -> Result<Vec<Duration>> {
        let mut bytes = [7; LENGTH];
        let mut times = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let begun = Instant::now();
            self.client.write_all(&bytes)?;
            self.server.read_exact(&mut bytes)?;
            self.server.write_all(&bytes)?;
            self.client.read_exact(&mut bytes)?;
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        Ok(times)
    }
}

/// What so many of a thousand do not exceed.
pub(crate) fn quantile(sorted: &[Duration], of_thousand: usize) -> Duration {
    let at = sorted.len() * of_thousand / 1000;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}
