//! The self-test of the sockmap path, on connections of its own over loopback, with the real program and, where it matters, the
//! real relay. Takes some tenths of a second.
//!
//! Kernel versions are never consulted. Each test is of something that the path relies on, and that some kernel has not kept.
//! What cannot be tried, such as the overlap without `CAP_NET_ADMIN`, counts as failed: an unproven path is not used.

mod bound;
mod ends;
mod flow;
mod order;
mod refusals;

use std::{io, sync::Arc, thread, time::Duration};

use tokio::{runtime::Builder, time::timeout};

use self::flow::Bench;
use super::{Events, Redirects};
use crate::{paint::one_line, upstream::Exempt};

/// How long one test may take, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tries everything. `exempt` keeps its connections from being intercepted by ourselves.
///
/// # Errors
/// The name of the test that fails here.
pub fn prove(
    redirects: &Arc<Redirects>,
    events: &mut Events,
    exempt: &dyn Exempt,
) -> Result<(), &'static str> {
    let bench = Bench::new(redirects, exempt);
    // A runtime of its own: the caller may be within one.
    thread::scope(|scope| {
        let tests = scope.spawn(|| {
            let runtime = Builder::new_current_thread().enable_all().build();
            let outcome = runtime.map_err(|_| "runtime")?.block_on(async {
                tokio::select! {
                    _ = events.serve() => Err("events"),
                    outcome = all(&bench) => outcome,
                }
            });
            events.leave_runtime();
            outcome
        });
        tests.join().unwrap_or(Err("panic"))
    })
}

async fn all(bench: &Bench<'_>) -> Result<(), &'static str> {
    passes("waiting bytes", order::waiting_bytes(bench)).await?;
    passes("sequence numbers", order::sequence_numbers(bench)).await?;
    passes("overlap", order::overlap(bench)).await?;
    passes("messages", order::messages(bench)).await?;
    passes("queue lengths", ends::queue_lengths(bench)).await?;
    passes("missing target", ends::missing_target(bench)).await?;
    passes("ends", ends::both_ends(bench)).await?;
    passes("resets", ends::resets(bench)).await?;
    passes("bound", bound::slow_reader(bench)).await?;
    // To be loaded takes as long as it takes, and is not what is tested.
    let loaded = Redirects::alone().map_err(io::Error::other);
    let tests = async {
        let (somebody_else, _events) = loaded?;
        refusals::foreign_sockmap(bench, &somebody_else).await
    };
    passes("foreign sockmap", tests).await?;
    passes("upper layer", refusals::upper_layer(bench)).await
}

async fn passes(
    name: &'static str,
    test: impl Future<Output = io::Result<bool>>,
) -> Result<(), &'static str> {
    match timeout(PATIENCE, test).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(name),
        Err(_) => {
            tracing::warn!(test = name, "a test of the sockmap path takes too long");
            Err(name)
        }
        Ok(Err(error)) => {
            tracing::warn!(
                error = one_line(&error),
                test = name,
                "cannot test the sockmap path"
            );
            Err(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{intercept::Overlap, upstream::NoExemption};

    fn expect(overlap: Overlap, outcome: Result<(), &'static str>) {
        match Redirects::alone_with(overlap) {
            Ok((redirects, mut events)) => {
                assert_eq!(prove(&redirects, &mut events, &NoExemption), outcome);
            }
            Err(error) => {
                let strict = std::env::var_os("PROXY_TEST_STRICT").is_some();
                assert!(!strict, "needs root: {error}");
                eprintln!("skipped: needs root ({error})");
            }
        }
    }

    #[test]
    fn the_program_passes() {
        expect(Overlap::Cut, Ok(()));
    }

    #[tokio::test]
    async fn multipath_sockets_are_refused() {
        let Ok((redirects, _events)) = Redirects::alone() else {
            let strict = std::env::var_os("PROXY_TEST_STRICT").is_some();
            assert!(!strict, "needs root");
            return eprintln!("skipped: needs root");
        };
        let bench = Bench::new(&redirects, &NoExemption);
        assert!(refusals::multipath(&bench).await.unwrap());
    }

    #[test]
    fn a_program_that_delivers_an_overlap_fails_the_test_of_it() {
        expect(Overlap::Deliver, Err("overlap"));
    }
}
