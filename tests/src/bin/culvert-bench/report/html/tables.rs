//! What is read and not looked at.

use maud::{Markup, html};

use super::chart::class;
use crate::{
    comparison::{Comparison, Verdict},
    report::text::ratio,
    results::Results,
    summary::Table,
};

/// Every figure of a work.
pub(super) fn figures(table: &Table<'_>) -> Markup {
    let best = table.best_peer.unwrap_or("the best peer");
    let by_cpu = table.rows.iter().any(|row| row.by_cpu.is_some());
    html! {
        div.wide {
            table {
                thead {
                    tr {
                        th { }
                        th { "of direct" }
                        th { "of " (best) }
                        @if by_cpu { th { "by CPU" } }
                        @for metric in &table.metrics { th { (metric.heading()) } }
                    }
                }
                tbody {
                    @for row in &table.rows {
                        tr class=(class(row.family)) {
                            th scope="row" { (row.name) }
                            td { (ratio(row.of_direct)) }
                            td { (ratio(row.of_best_peer)) }
                            @if by_cpu { td { (ratio(row.by_cpu)) } }
                            @for metric in &table.metrics {
                                td {
                                    @if let Some(spread) = row.figures.get(metric) {
                                        (metric.print(spread.median))
                                        " " small { "(" (metric.print(spread.lowest)) " .. " (metric.print(spread.highest)) ")" }
                                    } @else { "–" }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What is to be reached.
pub(super) fn targets(results: &Results) -> Markup {
    html! {
        @if !results.targets.is_empty() {
            section {
                h2 { "Targets" }
                p { "Bounds that were set before anything was measured, and the medians of this run. Of the paths that auto chooses among the best is known only afterwards, so chance favours it." }
                div.wide {
                    table {
                        thead { tr { th { "work" } th { "contender" } th { } th { "target" } th { "measured" } th { } } }
                        tbody {
                            @for target in &results.targets {
                                tr class=(if target.is_met() { "better" } else { "worse" }) {
                                    th scope="row" { (target.work) }
                                    th scope="row" { (target.contender) }
                                    td { (target.subject()) }
                                    td { (target.wanted()) }
                                    td { (target) }
                                    td { strong { (target.verdict()) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What the hooks cost.
pub(super) fn intercept(results: &Results) -> Markup {
    let costs = crate::intercept::summary(&results.intercept);
    html! {
        @if !costs.is_empty() {
            section {
                h2 { "What interception costs each connection" }
                p { "Time in the hooks for each connection of the client, as the kernel measures its programs; that of the relay's own connections is in it." }
                div.wide {
                    table {
                        thead { tr { th { } th { "rules" } th { "prefixes of each" } th { "ns" } th { "programs run" } } }
                        tbody {
                            @for cost in &costs {
                                tr {
                                    th scope="row" { (cost.outcome) }
                                    td { (cost.rules) }
                                    td { (cost.prefixes) }
                                    td { (format!("{:.0}", cost.nanoseconds.median)) " " small { (format!("({:.0} .. {:.0})", cost.nanoseconds.lowest, cost.nanoseconds.highest)) } }
                                    td { (format!("{:.0}", cost.runs.median)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Against an earlier run.
pub(super) fn comparison(comparison: Option<&Comparison>) -> Markup {
    html! {
        @if let Some(comparison) = comparison {
            section {
                h2 { "Since " (comparison.earlier) }
                p { "Changes of the ratio; marked are those beyond the spread of both runs." }
                @for remark in &comparison.remarks { p { strong { (remark) } } }
                div.wide {
                    table {
                        thead { tr { th { "work" } th { "contender" } th { "ratio to" } th { "then" } th { "now" } th { "change" } th { } } }
                        tbody {
                            @for change in &comparison.changes {
                                tr class=(change.verdict.class()) {
                                    th scope="row" { (change.work) }
                                    th scope="row" { (change.contender) }
                                    td { (change.base) }
                                    td { (ratio(Some(change.then))) }
                                    td { (ratio(Some(change.now))) }
                                    td { (format!("{:+.0} %", change.percent())) }
                                    td { @if change.verdict != Verdict::WithinSpread { strong { (change.verdict) } } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Which way culvert's connections really went.
pub(super) fn ways(results: &Results) -> Markup {
    html! {
        @if !results.ways.is_empty() {
            section {
                h2 { "Which way culvert's connections went" }
                p { "By its close records. Where the path is not the one that was asked for, the figures above are those of the path it took." }
                details {
                    summary { (results.ways.len()) " lines" }
                    div.wide {
                        table {
                            thead { tr { th { } th { "work" } th { "what the records say" } } }
                            tbody {
                                @for way in &results.ways {
                                    tr class=[way.is_other.then_some("worse")] {
                                        th scope="row" { (way.contender) }
                                        td { (way.work) }
                                        td { (way.describe()) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What was not measured.
pub(super) fn missing(results: &Results) -> Markup {
    html! {
        @if !results.missing.is_empty() || !results.failures.is_empty() {
            section {
                h2 { "What is missing" }
                ul {
                    @for missing in &results.missing {
                        li { strong { (missing.name) } ": " (missing.reason) }
                    }
                    @for failure in &results.failures {
                        li { strong { (failure.contender) } ", " (failure.work) ", round " (failure.round) ": " (failure.error) }
                    }
                }
            }
        }
    }
}

/// How each contender was set up.
pub(super) fn configurations(results: &Results) -> Markup {
    html! {
        section {
            h2 { "Versions and configurations" }
            @for entrant in &results.contenders {
                details {
                    summary { (entrant.name) " " small { (entrant.version) } }
                    @if !entrant.configuration.is_empty() {
                        pre { (entrant.configuration) }
                    }
                }
            }
        }
    }
}
