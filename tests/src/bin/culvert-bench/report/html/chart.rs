//! Charts of which only the bars are drawn: text stays text, so that it can be read on any width.

use maud::{Markup, html};

use crate::{
    contender::Family,
    metric::Metric,
    summary::{Row, Spread, Table},
};

/// The width of a drawing in its own units; it is stretched to the room there is.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 20.0;

/// A bar for every contender.
pub(super) fn bars(table: &Table<'_>) -> Markup {
    let bars: Vec<_> = table
        .rows
        .iter()
        .filter_map(|row| Some((row, Bar::of(row, table.work.headline)?)))
        .collect();
    let highest = bars.iter().map(|(_, bar)| bar.spread.highest);
    let widest = highest.fold(f64::MIN_POSITIVE, f64::max);
    let best = best(&bars, table.work.headline);
    html! {
        div.bars {
            @for (row, bar) in &bars {
                div class={ "bar " (class(row.family)) @if best.contains(&row.name) { " best" } } {
                    span.name { (row.name) }
                    (bar.draw(widest))
                    span.value { (bar.text) }
                }
            }
        }
    }
}

/// The best of culvert and the best of the peers.
fn best<'a>(bars: &[(&Row<'a>, Bar)], headline: Metric) -> Vec<&'a str> {
    let of = |family| {
        let bars = bars.iter().filter(move |(row, _)| row.family == family);
        let better = bars.max_by(|(_, one), (_, other)| {
            let order = one.spread.median.total_cmp(&other.spread.median);
            if headline.is_better_higher() {
                order
            } else {
                order.reverse()
            }
        });
        better.map(|(row, _)| row.name)
    };
    [of(Family::Culvert), of(Family::Peer)]
        .into_iter()
        .flatten()
        .collect()
}

struct Bar {
    spread: Spread,
    /// Whether the end of direct's bar is worth a mark.
    is_ratio: bool,
    text: String,
}

impl Bar {
    /// The ratio to direct where there is one, else the figure itself.
    fn of(row: &Row<'_>, headline: Metric) -> Option<Self> {
        if let (Some(spread), true) = (row.of_direct, headline.is_better_higher()) {
            let text = format!("{:.2}", spread.median);
            return Some(Self {
                spread,
                is_ratio: true,
                text,
            });
        }
        let spread = *row.figures.get(&headline)?;
        Some(Self {
            spread,
            is_ratio: false,
            text: format!("{} {}", headline.print(spread.median), headline.unit()),
        })
    }

    fn draw(&self, widest: f64) -> Markup {
        let at = |value: f64| format!("{:.1}", (value / widest).max(0.0) * WIDTH);
        let Spread {
            median,
            lowest,
            highest,
        } = self.spread;
        html! {
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" aria-hidden="true" {
                rect.fill x="0" y="3" width=(at(median)) height="14" rx="2" {}
                @if self.is_ratio {
                    line.one x1=(at(1.0)) x2=(at(1.0)) y1="0" y2=(HEIGHT) {}
                }
                line.spread x1=(at(lowest)) x2=(at(highest)) y1="10" y2="10" {}
                @for end in [lowest, highest] {
                    line.spread x1=(at(end)) x2=(at(end)) y1="6" y2="14" {}
                }
            }
        }
    }
}

/// One work with a dot for every contender.
pub(super) struct Strip<'a> {
    title: &'a str,
    dots: Vec<(&'a str, Family, f64)>,
}

impl<'a> Strip<'a> {
    /// None for work of which direct is no measure.
    pub(super) fn of(table: &'a Table<'_>) -> Option<Self> {
        if !table.work.headline.is_better_higher() {
            return None;
        }
        let dots = table
            .rows
            .iter()
            .filter_map(|row| Some((row.name, row.family, row.of_direct?.median)));
        let mut dots: Vec<_> = dots.collect();
        // Whoever is drawn last is on top.
        dots.sort_by_key(|(_, family, _)| match family {
            Family::Direct => 0,
            Family::Peer => 1,
            Family::Culvert => 2,
        });
        Some(Self {
            title: &table.work.title,
            dots,
        })
    }

    pub(super) fn highest(&self) -> f64 {
        let values = self.dots.iter().map(|(.., value)| *value);
        values.fold(0.0, f64::max)
    }

    pub(super) fn draw(&self, widest: f64) -> Markup {
        let at = |value: f64| format!("{:.1}", value / widest * (WIDTH - 16.0) + 8.0);
        html! {
            div.strip {
                span.name { (self.title) }
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" aria-hidden="true" {
                    line.track x1="0" x2=(WIDTH) y1="10" y2="10" {}
                    line.one x1=(at(1.0)) x2=(at(1.0)) y1="0" y2=(HEIGHT) {}
                    @for (name, family, value) in &self.dots {
                        @if *family != Family::Direct {
                            // A line without length and with round ends stays round when the drawing is stretched.
                            line class={ "dot " (class(*family)) } x1=(at(*value)) x2=(at(*value)) y1="10" y2="10" {
                                title { (name) ": " (format!("{value:.2}")) }
                            }
                        }
                    }
                }
                span.value {
                    @for (family, (name, value)) in self.leaders() {
                        span class=(class(family)) { (name) " " b { (format!("{value:.2}")) } }
                    }
                }
            }
        }
    }

    /// The best of culvert and the best peer.
    fn leaders(&self) -> Vec<(Family, (&'a str, f64))> {
        let best = |family: Family| {
            let dots = self.dots.iter().filter(|(_, of, _)| *of == family);
            let best = dots.max_by(|(.., one), (.., other)| one.total_cmp(other));
            best.map(|(name, _, value)| (family, (*name, *value)))
        };
        [best(Family::Culvert), best(Family::Peer)]
            .into_iter()
            .flatten()
            .collect()
    }
}

pub(super) fn class(family: Family) -> &'static str {
    match family {
        Family::Direct => "direct",
        Family::Culvert => "culvert",
        Family::Peer => "peer",
    }
}
