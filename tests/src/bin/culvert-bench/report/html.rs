//! In a browser: one file that needs nothing else, neither a script nor a host.

mod chart;
mod tables;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::{
    comparison::Comparison,
    results::Results,
    summary::{self, Table},
};

const STYLE: &str = include_str!("html/style.css");

/// Work that belongs together: how its names begin, a heading, and what its bars mean.
const SECTIONS: [(&str, &str, &str); 5] = [
    (
        "rr-",
        "Request and response",
        "A message goes to the server, and as many bytes come back before the next is sent. Bars: exchanges in a second as a share of direct.",
    ),
    (
        "bulk-",
        "Bulk",
        "As fast as it goes, without pauses. Bars: bytes in a second as a share of direct.",
    ),
    (
        "connect-",
        "New connections",
        "Connect, one byte to and fro, close. Bars: connections in a second as a share of direct.",
    ),
    (
        "idle",
        "Idle connections",
        "What a connection costs on which nothing happens. Bars: memory of the proxy for each, shorter is better.",
    ),
    (
        "slow-reader",
        "A server that does not read",
        "A client sends until nothing more is taken. Bars: what was taken and lies in no socket's queue, shorter is better.",
    ),
];

/// The whole report.
pub(crate) fn render(results: &Results, comparison: Option<&Comparison>) -> String {
    let compared = summary::tables(results);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "culvert beside its peers" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (heading(results))
                main {
                    (glance(&compared))
                    (tables::targets(results))
                    @for (prefix, title, what) in SECTIONS {
                        (section(&compared, prefix, title, what))
                    }
                    (tables::intercept(results))
                    (tables::comparison(comparison))
                    (tables::ways(results))
                    (tables::missing(results))
                    (how_to_read(results))
                    (tables::configurations(results))
                }
                footer { "Made by " code { "cargo xtask bench" } "." }
            }
        }
    };
    page.into_string()
}

fn heading(results: &Results) -> Markup {
    let machine = &results.machine;
    let [begun, ended] = machine.load;
    html! {
        header {
            h1 { "culvert beside its peers" }
            p.lead {
                @if results.pinned {
                    "Client, proxy and server share one core, so rates show what the work costs the processor."
                } @else {
                    "Client, proxy and server run on all cores."
                }
            }
            dl {
                div { dt { "Date" } dd { (machine.date) } }
                div { dt { "culvert" } dd { (machine.revision) } }
                div { dt { "Kernel" } dd { (machine.kernel) } }
                div { dt { "Processor" } dd { (machine.processor) ", " (machine.cores) " cores" } }
                div { dt { "Memory" } dd { (machine.memory_mib) " MiB" } }
                div { dt { "Threads" } dd { "proxy " (results.relay_threads) ", client " (results.load_threads) ", server " (results.load_threads) } }
                div { dt { "Rounds" } dd { (results.effort.rounds) } }
                div { dt { "Load, begin and end" } dd { (begun) ", " (ended) } }
            }
        }
    }
}

/// Every work in a line, with a dot for every contender.
fn glance(compared: &[Table<'_>]) -> Markup {
    let lines: Vec<_> = compared.iter().filter_map(chart::Strip::of).collect();
    if lines.is_empty() {
        return html! {};
    }
    let widest = lines.iter().map(chart::Strip::highest).fold(1.0, f64::max);
    html! {
        section {
            h2 { "At a glance" }
            p { "A dot is a contender: its rate as a share of the direct connection's, which is the line." }
            p.legend {
                span.culvert { "culvert" }
                span.peer { "peers" }
                span.direct { "direct" }
            }
            div.strips {
                @for line in &lines { (line.draw(widest)) }
            }
        }
    }
}

fn section(compared: &[Table<'_>], prefix: &str, title: &str, what: &str) -> Markup {
    let tables: Vec<_> = compared
        .iter()
        .filter(|table| table.work.name.starts_with(prefix))
        .collect();
    if tables.is_empty() {
        return html! {};
    }
    html! {
        section {
            h2 { (title) }
            p { (what) }
            div.charts {
                @for table in &tables {
                    figure {
                        figcaption { (table.work.title) }
                        (chart::bars(table))
                        details {
                            summary { "All figures" }
                            (tables::figures(table))
                        }
                    }
                }
            }
        }
    }
}

fn how_to_read(results: &Results) -> Markup {
    html! {
        section {
            h2 { "How to read this" }
            ul {
                li { "The result is the ratios. Rounds go through the contenders in turn, and each figure is divided by that of the direct connection of the same round; shown are the median of the rounds, and as a thin line the lowest and the highest. Absolute figures depend on the machine and what else it did." }
                li { "Two contenders whose thin lines overlap may be equally fast." }
                li { "A relayed connection is two TCP connections. Where one core does everything, half of direct is about what a relay can reach; only a path that leaves out one of the two goes beyond." }
                li { "“-redirect” is the transparent form: nftables redirects the client's connections to the proxy. nginx, HAProxy and the plain tokio relay then have a fixed server; redsocks asks the kernel for the original destination and a SOCKS proxy, microsocks, for the connection. culvert-copy-socks uses the same microsocks." }
                li { "“CPU relay” is the processor time of the proxy's processes, “CPU all” that of client, proxy, server and the kernel's own threads, in seconds for a GB, or for a million messages or connections." }
                li { "“by CPU” is what direct takes of the processors for the same work as a share of what a contender takes, everything counted. It says more than rates do while the machine has other work." }
                li { "Quantiles are of all exchanges or connections of a round; with 64 connections each waits for the others' turns." }
                li { "culvert keeps close records, but not while new connections are counted; no other proxy logs anything." }
                @if results.effort.rounds < 5 {
                    li { strong { "With so few rounds the figures say only that everything runs." } }
                }
                @for remark in &results.remarks { li { (remark) } }
            }
        }
    }
}
