//! What a running daemon is told to give no new connections, over its admin socket.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    runtime::{Builder, Runtime},
    time::sleep,
};

use crate::{
    admin,
    cli::{DaemonArg, DrainArgs, RestoreArgs},
    drain::{Request, Restored},
    paint,
    status::{DrainStatus, Status},
};

/// How often is looked whether connections are left.
const POLL: Duration = Duration::from_millis(100);

pub(super) fn drain(args: &DrainArgs) -> Result<()> {
    let place = place(&args.daemon);
    let timeout = args.timeout.map(|timeout| timeout.as_millis());
    let wanted = Request {
        target: args.target.clone(),
        timeout_ms: timeout.map(|millis| u64::try_from(millis).unwrap_or(u64::MAX)),
    };
    let runtime = runtime()?;
    let json = runtime.block_on(admin::tell(place, admin::DRAIN, &wanted))?;
    let drained: DrainStatus = serde_json::from_slice(&json).context(OTHER_VERSION)?;
    paint::print(format_args!("{}\n", drained.text()));
    if args.wait && !drained.done {
        let done = runtime.block_on(await_end(place, &drained.target))?;
        paint::print(format_args!("{}\n", done.text()));
    }
    Ok(())
}

pub(super) fn restore(args: &RestoreArgs) -> Result<()> {
    let wanted = Request {
        target: args.target.clone(),
        timeout_ms: None,
    };
    let json = runtime()?.block_on(admin::tell(place(&args.daemon), admin::RESTORE, &wanted))?;
    let restored: Restored = serde_json::from_slice(&json).context(OTHER_VERSION)?;
    paint::print(format_args!("{}: restored\n", restored.target));
    Ok(())
}

/// Waits until nothing is left.
async fn await_end(place: &Path, target: &str) -> Result<DrainStatus> {
    loop {
        sleep(POLL).await;
        let json = admin::ask(place, admin::STATUS).await?;
        let status: Status = serde_json::from_slice(&json).context(OTHER_VERSION)?;
        match status
            .drains
            .into_iter()
            .find(|drain| drain.target == target)
        {
            Some(drain) if drain.done => return Ok(drain),
            Some(_) => {}
            None => bail!(
                "{target} is not drained any more: somebody restored it, or a reload removed it"
            ),
        }
    }
}

/// Why an answer is not understood.
pub(super) const OTHER_VERSION: &str = "the daemon is of another version";

pub(super) fn place(daemon: &DaemonArg) -> &Path {
    daemon
        .admin
        .as_deref()
        .unwrap_or(Path::new(admin::DEFAULT_PLACE))
}

pub(super) fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("cannot start the runtime")
}
