//! Text that no honest agent would send.

use crate::Random;

/// Some of it: longer than a format may be wide, obeyed by terminals, misleading, not a name.
pub(super) fn hostile_text(random: &mut Random) -> String {
    match random.below(12) {
        0 => "x".repeat(70_000),
        1 => "\u{1f600}".repeat(20_000),
        2 => "\x1b[31mred\x1b]0;title\x07\x1b[2J".to_owned(),
        3 => "\u{9b}31mred\u{9d}0;title\u{9c}\u{85}".to_owned(),
        4 => "\u{202e}gpj.exe\u{2066}\u{200f}\u{2028}\u{61c}".to_owned(),
        5 => "two\nlines\r\nand\ttabs\x7f".to_owned(),
        6 => "nul\0nul".to_owned(),
        7 => "../../../outside/file".to_owned(),
        8 => "/etc/passwd".to_owned(),
        9 => String::new(),
        10 => "\n".repeat(5000),
        _ => "plain".to_owned(),
    }
}
