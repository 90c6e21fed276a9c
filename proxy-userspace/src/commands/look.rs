//! What a running daemon tells of itself: its connections, rules and upstreams, and their numbers.

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::time::sleep;
use url::form_urlencoded::Serializer;

use super::remote::{OTHER_VERSION, place, runtime};
use crate::{
    admin,
    cli::{ConnsArgs, DaemonArg, EndArgs, StatusArgs, TopArgs},
    failure::Failure,
    paint::{self, Paint},
    status::{
        Status,
        connections::{End, List, Sort},
        rules::Rules,
        upstreams::Upstreams,
    },
    top,
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between the two looks that it takes to tell a rate.
const GLANCE: Duration = Duration::from_millis(500);
/// The cursor to the first letter, and nothing on the screen from there on (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

pub(super) fn conns(args: &ConnsArgs) -> Result<()> {
    let path = path_of(args)?;
    let place = place(&args.daemon);
    let runtime = runtime()?;
    runtime.block_on(async {
        if !args.watch {
            if args.sort.as_deref() == Some("rate") {
                admin::ask(place, &path).await?;
                sleep(GLANCE).await;
            }
            return show(place, &path, args, "").await;
        }
        let clear = if io::stdout().is_terminal() && !args.json {
            CLEAR
        } else {
            ""
        };
        loop {
            show(place, &path, args, clear).await?;
            sleep(INTERVAL).await;
        }
    })
}

async fn show(place: &Path, path: &str, args: &ConnsArgs, before: &str) -> Result<()> {
    let json = admin::ask(place, path).await?;
    let text = answered(
        &json,
        args.json,
        |json| serde_json::from_slice(json),
        List::text,
    )?;
    paint::write(format_args!("{before}{text}")).context("cannot write to standard output")
}

/// The question that the arguments are.
fn path_of(args: &ConnsArgs) -> Result<String> {
    let mut query = Serializer::new(String::new());
    for filter in &args.filter {
        let (key, value) = filter.split_once('=').ok_or_else(|| {
            Failure::usage(format!(
                "the filter {filter:?} is not written KEY=VALUE, such as rule=web"
            ))
        })?;
        query.append_pair(key, value);
    }
    let limit = args.limit.map(|limit| limit.to_string());
    for (key, value) in [("sort", &args.sort), ("limit", &limit)] {
        if let Some(value) = value {
            query.append_pair(key, value);
        }
    }
    Ok(format!("{}?{}", admin::CONNECTIONS, query.finish()))
}

pub(super) fn top(args: &TopArgs) -> Result<()> {
    let wanted = top::Wanted {
        filter: args.filter.join(" "),
        sort: args.sort.as_deref().and_then(Sort::named),
    };
    top::run(place(&args.daemon), wanted)
}

pub(super) fn end(args: &EndArgs) -> Result<()> {
    let wanted = End { id: args.id };
    let told = admin::tell(place(&args.daemon), admin::END, &wanted);
    let ended: End = serde_json::from_slice(&runtime()?.block_on(told)?).context(OTHER_VERSION)?;
    paint::print(format_args!("{}: reset\n", ended.id));
    Ok(())
}

pub(super) fn status(args: &StatusArgs) -> Result<()> {
    ask(
        args,
        admin::STATUS,
        |json| serde_json::from_slice(json),
        Status::text,
    )
}

pub(super) fn rules(args: &StatusArgs) -> Result<()> {
    ask(
        args,
        admin::RULES,
        |json| serde_json::from_slice(json),
        Rules::text,
    )
}

pub(super) fn upstreams(args: &StatusArgs) -> Result<()> {
    ask(
        args,
        admin::UPSTREAMS,
        |json| serde_json::from_slice(json),
        Upstreams::text,
    )
}

pub(super) fn metrics(daemon: &DaemonArg) -> Result<()> {
    let text = runtime()?.block_on(admin::ask(place(daemon), admin::METRICS))?;
    paint::print(String::from_utf8_lossy(&text));
    Ok(())
}

/// How an answer is understood.
type Read<T> = fn(&[u8]) -> serde_json::Result<T>;

fn ask<T>(
    args: &StatusArgs,
    path: &str,
    read: Read<T>,
    text: impl Fn(&T, Paint) -> String,
) -> Result<()> {
    let json = runtime()?.block_on(admin::ask(place(&args.daemon), path))?;
    paint::print(answered(&json, args.json, read, text)?);
    Ok(())
}

/// An answer as it is to be shown.
fn answered<T>(
    json: &[u8],
    as_json: bool,
    read: Read<T>,
    text: impl Fn(&T, Paint) -> String,
) -> Result<String> {
    if as_json {
        // As the daemon says it, also what this program is too old to know.
        return Ok(format!("{}\n", String::from_utf8_lossy(json)));
    }
    let answer = read(json).context("the daemon is of another version; try --json")?;
    Ok(text(&answer, Paint::for_stdout()))
}
