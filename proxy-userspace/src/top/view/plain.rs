//! For terminals whose fonts have little beyond ASCII: the console of Linux, and those of old.

use ratatui::buffer::Buffer;

/// Whether what calls itself so is one of these.
pub(in crate::top) fn is_needed(terminal: &str) -> bool {
    ["linux", "ansi", "dumb"].contains(&terminal) || is_old(terminal)
}

/// Whether it shows no colours either.
pub(in crate::top) fn is_old(terminal: &str) -> bool {
    terminal.starts_with("vt")
}

/// Has what was drawn be of ASCII; what others wrote, such as a name, stays.
pub(super) fn redraw(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        if let Some(plain) = plain(cell.symbol()) {
            cell.set_symbol(plain);
        }
    }
}

fn plain(symbol: &str) -> Option<&'static str> {
    Some(match symbol {
        "▁" => "_",
        "▂" => ".",
        "▃" => ",",
        "▄" | "─" => "-",
        "▅" => "=",
        "▆" | "┌" | "┐" | "└" | "┘" => "+",
        "▇" => "*",
        "█" => "#",
        "│" => "|",
        "↑" => "^",
        "↓" => "v",
        "…" => "~",
        _ => return None,
    })
}
