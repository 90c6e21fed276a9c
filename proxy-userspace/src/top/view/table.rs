//! Tables that fit into the screen: of the columns only those that there is room for, the most important first.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Rect},
    style::{Modifier, Style},
    text::{Line, Text},
    widgets::{Row, Table},
};

use super::Theme;
use crate::paint::Tone;

/// One of the things that are shown of each line.
pub(super) struct Column<T: ?Sized> {
    head: &'static str,
    /// Letters that it needs, and that it takes where there is room.
    letters: (usize, usize),
    align: Alignment,
    /// What does not fit is left out, the highest first.
    rank: u8,
    cell: Cell<T>,
}

/// What it says of a line.
type Cell<T> = fn(&T) -> String;

impl<T: ?Sized> Column<T> {
    /// Of text: its head, the letters that it needs and those that it takes where there is room, and how soon it is left out.
    pub(super) const fn left(
        head: &'static str,
        letters: (usize, usize),
        rank: u8,
        cell: Cell<T>,
    ) -> Self {
        Self {
            head,
            letters,
            align: Alignment::Left,
            rank,
            cell,
        }
    }

    /// Of numbers.
    pub(super) const fn right(
        head: &'static str,
        letters: (usize, usize),
        rank: u8,
        cell: Cell<T>,
    ) -> Self {
        Self {
            align: Alignment::Right,
            ..Self::left(head, letters, rank, cell)
        }
    }
}

/// What is shown in one.
pub(super) struct Shown<'a, T: ?Sized> {
    /// In the order in which they stand.
    pub(super) columns: &'a [Column<T>],
    /// Heads of what it is sorted by; they are there in any case.
    pub(super) sorted_by: &'a [&'static str],
    /// The lines that there is room for.
    pub(super) lines: Vec<(&'a T, Style)>,
    /// Which of them is chosen.
    pub(super) chosen: Option<usize>,
}

/// Draws one, below its heads.
pub(super) fn draw<T: ?Sized>(
    frame: &mut Frame<'_>,
    area: Rect,
    shown: &Shown<'_, T>,
    theme: Theme,
) {
    let width = usize::from(area.width);
    let columns = chosen(shown.columns, shown.sorted_by, width);
    let cells: Vec<Vec<_>> = shown
        .lines
        .iter()
        .map(|(line, _)| columns.iter().map(|column| (column.cell)(line)).collect())
        .collect();
    let widths = widths(&columns, &cells, width);
    let heads = columns.iter().zip(&widths).map(|(column, width)| {
        let mut style = theme.of(Tone::Strong);
        if shown.sorted_by.contains(&column.head) {
            style = style.add_modifier(Modifier::UNDERLINED);
        }
        let line = Line::styled(fit(column.head, *width), style);
        Text::from(line.alignment(column.align))
    });
    let rows = cells.into_iter().zip(&shown.lines).enumerate();
    let rows = rows.map(|(number, (cells, (_, style)))| {
        let cells = cells.iter().zip(&columns).zip(&widths);
        let row = Row::new(cells.map(|((cell, column), width)| {
            Text::from(Line::raw(fit(cell, *width)).alignment(column.align))
        }));
        row.style(if shown.chosen == Some(number) {
            style.add_modifier(Modifier::REVERSED)
        } else {
            *style
        })
    });
    let constraints = widths
        .iter()
        .map(|width| Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX)));
    let table = Table::new(rows, constraints).header(Row::new(heads));
    frame.render_widget(table, area);
}

/// Those that there is room for, in the order in which they stand.
fn chosen<'a, T: ?Sized>(
    columns: &'a [Column<T>],
    sorted_by: &[&str],
    width: usize,
) -> Vec<&'a Column<T>> {
    let rank = |column: &&Column<T>| (!sorted_by.contains(&column.head), column.rank);
    let mut by_rank: Vec<_> = columns.iter().collect();
    by_rank.sort_by_key(rank);
    let mut used = 0;
    let room = |column: &&&Column<T>| {
        used += column.letters.0 + usize::from(used > 0);
        used <= width
    };
    let last = by_rank.iter().take_while(room).last().map(rank);
    let fits = |column: &&Column<T>| last.is_some_and(|last| rank(column) <= last);
    columns.iter().filter(fits).collect()
}

/// How wide they are: what they need, and what is left over for those that have more to say, the most important first.
fn widths<T: ?Sized>(columns: &[&Column<T>], cells: &[Vec<String>], width: usize) -> Vec<usize> {
    let mut widths: Vec<_> = columns.iter().map(|column| column.letters.0).collect();
    let gaps = columns.len().saturating_sub(1);
    let mut left = width.saturating_sub(widths.iter().sum::<usize>() + gaps);
    let mut by_rank: Vec<_> = (0..columns.len()).collect();
    by_rank.sort_by_key(|at| columns.get(*at).map(|column| column.rank));
    for at in by_rank {
        let (Some(column), Some(width)) = (columns.get(at), widths.get_mut(at)) else {
            continue;
        };
        let letters = cells.iter().filter_map(|row| row.get(at));
        let wanted = letters.map(|cell| cell.chars().count()).max().unwrap_or(0);
        let more = wanted
            .min(column.letters.1)
            .saturating_sub(*width)
            .min(left);
        *width += more;
        left -= more;
    }
    widths
}

/// A text of so many letters at most: what is cut off is seen to be.
fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain(['…']).take(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(head: &'static str, least: usize, rank: u8) -> Column<str> {
        Column::left(head, (least, 2 * least), rank, str::to_owned)
    }

    #[test]
    fn the_least_important_is_left_out_and_what_it_is_sorted_by_stays() {
        let columns = [column("a", 10, 0), column("b", 5, 2), column("c", 5, 1)];
        let heads = |width, sorted: &[&str]| -> Vec<_> {
            let chosen = chosen(&columns, sorted, width);
            chosen.iter().map(|column| column.head).collect()
        };
        assert_eq!(heads(22, &[]), ["a", "b", "c"]);
        assert_eq!(heads(21, &[]), ["a", "c"]);
        assert_eq!(heads(21, &["b"]), ["a", "b"]);
        assert_eq!(heads(9, &[]), [""; 0]);
    }

    #[test]
    fn what_is_left_over_goes_to_who_has_more_to_say() {
        let columns = [column("a", 4, 1), column("b", 4, 0)];
        let columns: Vec<_> = columns.iter().collect();
        let cells = vec![vec!["12345678".to_owned(), "123456".to_owned()]];
        assert_eq!(widths(&columns, &cells, 9), [4, 4]);
        assert_eq!(widths(&columns, &cells, 12), [5, 6]);
        assert_eq!(widths(&columns, &cells, 90), [8, 6]);
    }

    #[test]
    fn what_is_cut_off_is_seen_to_be() {
        assert_eq!(fit("whole", 5), "whole");
        assert_eq!(fit("naïveté", 5), "naïv…");
        assert_eq!(fit("x", 0), "");
    }
}
