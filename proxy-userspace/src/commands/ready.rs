//! `culvert ready`: for probes, and for whoever starts something that must not run uncaptured.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::time::sleep;

use super::remote::{OTHER_VERSION, place, runtime};
use crate::{admin, cli::ReadyArgs, paint, status::readiness::Readiness};

/// How often is asked again.
const POLL: Duration = Duration::from_millis(100);

/// # Errors
/// With the reason why connections are not captured.
pub(super) fn run(args: &ReadyArgs) -> Result<()> {
    let deadline = args.wait.map(|time| Instant::now() + *time);
    runtime()?.block_on(async {
        loop {
            let answer = ask(args).await;
            match (answer, deadline) {
                (Ok(sentence), _) => {
                    paint::print(format_args!("{sentence}\n"));
                    return Ok(());
                }
                (Err(_), Some(deadline)) if Instant::now() < deadline => sleep(POLL).await,
                (Err(error), _) => return Err(error),
            }
        }
    })
}

async fn ask(args: &ReadyArgs) -> Result<String> {
    if let Some(address) = args.health {
        let said = admin::probe(address).await?;
        return Ok(String::from_utf8_lossy(&said).trim_end().to_owned());
    }
    let json = admin::ask(place(&args.daemon), admin::READY).await?;
    let readiness: Readiness = serde_json::from_slice(&json).context(OTHER_VERSION)?;
    if !readiness.ready {
        bail!(readiness.sentence());
    }
    Ok(readiness.sentence())
}
