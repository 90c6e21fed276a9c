//! Which line of a long list is chosen, and which of them are on the screen.

/// A place in a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The line that is chosen.
    pub(super) at: usize,
    /// The first one on the screen.
    pub(super) first: usize,
    /// How many there is room for.
    pub(super) height: usize,
}

impl Cursor {
    /// Goes up or down by some lines.
    pub(super) fn go(&mut self, lines: isize, total: usize) {
        self.at = self.at.saturating_add_signed(lines);
        self.fit(total);
    }

    /// Goes to a line.
    pub(super) fn go_to(&mut self, line: usize, total: usize) {
        self.at = line;
        self.fit(total);
    }

    /// What a page is.
    pub(super) fn page(&self) -> isize {
        isize::try_from(self.height.max(2) - 1).unwrap_or(1)
    }

    /// Keeps it in the list, and on the screen.
    pub(super) fn fit(&mut self, total: usize) {
        self.at = self.at.min(total.saturating_sub(1));
        // No room is left empty while there are lines for it.
        self.first = self.first.min(total.saturating_sub(self.height));
        self.first = self.first.min(self.at);
        self.first = self
            .first
            .max((self.at + 1).saturating_sub(self.height.max(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_chosen_is_on_the_screen() {
        let mut cursor = Cursor {
            height: 10,
            ..Cursor::default()
        };
        cursor.go(12, 100);
        assert_eq!((cursor.at, cursor.first), (12, 3));
        cursor.go(-12, 100);
        assert_eq!((cursor.at, cursor.first), (0, 0));
        cursor.go_to(usize::MAX, 100);
        assert_eq!((cursor.at, cursor.first), (99, 90));
        cursor.fit(5);
        assert_eq!((cursor.at, cursor.first), (4, 0), "the list is shorter");
        cursor.fit(0);
        assert_eq!((cursor.at, cursor.first), (0, 0));
        cursor.height = 0;
        cursor.go(3, 7);
        assert_eq!((cursor.at, cursor.first), (3, 3), "no room at all");
    }
}
