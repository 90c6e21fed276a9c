//! What each path costs on this machine, and which `path = "auto"` takes.

use std::future::pending;

use serde::Serialize;

use super::check::Check;
use crate::{
    intercept::{Events, Redirects, prove_redirects},
    paint::one_line,
    privileges,
    relay::{COMPARED, Calibration, Kind, Promotion, measure},
    upstream::NoExemption,
};

/// A path, measured. The names of the fields are those of the JSON report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PathCost {
    /// What connections are used for.
    pub(super) kind: &'static str,
    /// How their bytes are moved.
    pub(super) path: &'static str,
    /// How much work is done in the time in which the copy path does one of it.
    pub(super) relative: f64,
    /// Whether `auto` takes it.
    pub(super) is_best: bool,
}

/// Tests the sockmap path and measures all of them.
pub(super) fn examine() -> (Vec<Check>, Vec<PathCost>) {
    // Our own sockets: nothing of ours intercepts them here.
    let exempt = |_: &_, _| Ok(());
    let (sockmap, measured) = match provable() {
        Ok((promotion, mut events)) => {
            let serving = async {
                let _never = events.serve().await;
            };
            let measured = measure(Some(&promotion), serving, &exempt);
            events.leave_runtime();
            (Check::ok(SOCKMAP, "every test of it passes"), measured)
        }
        Err(check) => (check, measure(None, pending(), &exempt)),
    };
    let mut checks = vec![sockmap];
    match measured {
        Ok(measured) => {
            checks.extend(Kind::ALL.map(|kind| of_kind(&measured, kind)));
            (checks, costs(&measured))
        }
        Err(error) => {
            checks.push(Check::unchecked("paths", error.to_string()));
            (checks, Vec::new())
        }
    }
}

const SOCKMAP: &str = "sockmap";

/// The kernel side of the sockmap path, if this kernel moves bytes from socket to socket as the relay would.
fn provable() -> Result<(Promotion, Events), Check> {
    if privileges::require().is_err() {
        return Err(Check::unchecked(
            SOCKMAP,
            "loading programs takes the privileges above",
        ));
    }
    let copies = |why| Check::warning(SOCKMAP, format!("`path = \"sockmap\"` copies: {why}"));
    let (redirects, mut events) = Redirects::alone().map_err(|error| copies(one_line(&error)))?;
    match prove_redirects(&redirects, &mut events, &NoExemption) {
        Ok(()) => Ok((Promotion::new(redirects), events)),
        Err(test) => Err(copies(format!("the test of {test} fails on this kernel"))),
    }
}

fn of_kind(measured: &Calibration, kind: Kind) -> Check {
    Check::ok(format!("auto_{}", kind.label()), measured.sentence(kind))
}

fn costs(measured: &Calibration) -> Vec<PathCost> {
    let of_kind = |kind| {
        let best = measured.best(kind, |_| true);
        COMPARED.into_iter().filter_map(move |path| {
            Some(PathCost {
                kind: kind.label(),
                path: path.label(),
                relative: measured.relative(kind, path)?,
                is_best: path == best,
            })
        })
    };
    Kind::ALL.into_iter().flat_map(of_kind).collect()
}
