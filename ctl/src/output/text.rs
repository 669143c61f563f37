//! Text on a screen: display width, cutting, wrapping, and making foreign text harmless.
//!
//! Widths are terminal columns (wide East Asian characters take two, combining marks none), never bytes or chars.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The mark of text that was cut.
const ELLIPSIS: char = '…';

/// Columns `text` takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// Which end of a text that is too long is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The end: names and sentences.
    Tail,
    /// The beginning: paths and model names, which differ at their end.
    Head,
}

/// `text` in at most `max_columns`, with "…" where something is missing.
pub fn clip(text: &str, max_columns: usize, cut: Cut) -> Cow<'_, str> {
    if width(text) <= max_columns {
        return Cow::Borrowed(text);
    }
    if max_columns == 0 {
        return Cow::Borrowed("");
    }
    let room = max_columns - 1;
    let fits = |chars: &mut dyn Iterator<Item = char>| {
        let mut used = 0;
        chars
            .take_while(|c| {
                used += c.width().unwrap_or(0);
                used <= room
            })
            .collect::<Vec<char>>()
    };
    Cow::Owned(match cut {
        Cut::Tail => {
            let mut kept = fits(&mut text.chars()).into_iter().collect::<String>();
            kept.truncate(kept.trim_end().len());
            kept.push(ELLIPSIS);
            kept
        }
        Cut::Head => {
            let kept = fits(&mut text.chars().rev());
            std::iter::once(ELLIPSIS).chain(kept.into_iter().rev()).collect()
        }
    })
}

/// `text` with spaces after it up to `columns`.
pub fn pad_right(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// `text` with spaces before it up to `columns`.
pub fn pad_left(text: &str, columns: usize) -> String {
    format!("{}{text}", " ".repeat(columns.saturating_sub(width(text))))
}

/// Breaks `text` at spaces into lines of at most `max_columns`; `first` opens the first line, and as many spaces open
/// the others. A word longer than a line is broken inside. Without a limit it is one line.
pub fn wrap(first: &str, text: &str, max_columns: Option<usize>) -> Vec<String> {
    let Some(max_columns) = max_columns else {
        return vec![format!("{first}{text}")];
    };
    let indent_columns = width(first);
    // Below this a hanging indent leaves no room for words.
    let room = max_columns.saturating_sub(indent_columns).max(8);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && width(&line) + 1 + width(word) > room {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        let mut used = width(&line);
        for c in word.chars() {
            let columns = c.width().unwrap_or(0);
            if used + columns > room {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.push(c);
            used += columns;
        }
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    let indent = " ".repeat(indent_columns);
    lines
        .iter()
        .enumerate()
        .map(|(i, line)| {
            format!("{}{line}", if i == 0 { first } else { indent.as_str() }).trim_end().to_owned()
        })
        .collect()
}

/// `text` on one line without control characters: what another program wrote must not steer the terminal.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\r' | '\t' => cleaned.push(' '),
            // A whole escape sequence (colours, as a rule) goes: ESC [ parameters final.
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                while chars.next_if(|c| ('\x20'..='\x3f').contains(c)).is_some() {}
                chars.next_if(|c| ('\x40'..='\x7e').contains(c));
            }
            c if is_harmful(c) => cleaned.push('\u{fffd}'),
            c => cleaned.push(c),
        }
    }
    Cow::Owned(cleaned.trim_end().to_owned())
}

/// Control characters, and the marks that reorder text (bidirectional overrides).
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// "1 job", "2 jobs".
pub fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", super::units::count(n), if n == 1 { one } else { many })
}

/// "a", "a and b", "a, b and c".
pub fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

/// `text` beginning with a capital, as another program's words do not. A name (a word with more than letters in it) stays.
pub fn capital(text: &str) -> String {
    let word = text.split(' ').next().unwrap_or("");
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if word.chars().all(|c| c.is_ascii_lowercase()) => {
            first.to_uppercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// `text` ending in a full stop or another closing mark.
pub fn sentence(text: &str) -> String {
    let text = text.trim_end();
    if text.is_empty() || text.ends_with(['.', '!', '?', ':', '…']) {
        text.to_owned()
    } else {
        format!("{text}.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_by_columns_not_bytes() {
        assert_eq!(clip("nightly", 7, Cut::Tail), "nightly");
        assert_eq!(clip("nightly", 5, Cut::Tail), "nigh…");
        assert_eq!(clip("mlx-community/Qwen3", 8, Cut::Head), "…y/Qwen3");
        // Two columns each: three of them need six, and five leave room for two and the mark.
        assert_eq!(clip("夜勤表", 6, Cut::Tail), "夜勤表");
        assert_eq!(clip("夜勤表", 5, Cut::Tail), "夜勤…");
        assert_eq!(clip("夜勤表", 4, Cut::Tail), "夜…");
        assert_eq!(clip("abc", 1, Cut::Head), "…");
        assert_eq!(clip("abc", 0, Cut::Head), "");
    }

    #[test]
    fn wraps_with_a_hanging_indent() {
        assert_eq!(
            wrap("• ", "Node mini-2 has been silent", Some(16)),
            ["• Node mini-2", "  has been", "  silent"]
        );
        assert_eq!(wrap("", "abcdefghijkl", Some(8)), ["abcdefgh", "ijkl"]);
        assert_eq!(wrap("", "", Some(8)), [""]);
        assert_eq!(wrap("• ", "no limit at all", None), ["• no limit at all"]);
        for line in wrap("12:00  ", "夜間に 夜勤表を 見る 夜間に 夜勤表を 見る", Some(20)) {
            assert!(width(&line) <= 20, "{line}");
        }
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(clean("plain"), "plain");
        assert_eq!(clean("a\x1b[1;31mb\nc\u{202e}d\x07"), "ab c\u{fffd}d\u{fffd}");
        assert_eq!(clean("cut \x1b[3"), "cut");
        assert_eq!(clean("\x1b]0;title"), "\u{fffd}]0;title");
    }

    #[test]
    fn lists_and_plurals_read_like_sentences() {
        assert_eq!(plural(1, "job", "jobs"), "1 job");
        assert_eq!(plural(1200, "job", "jobs"), "1,200 jobs");
        assert_eq!(list(&["a".into(), "b".into(), "c".into()]), "a, b and c");
        assert_eq!(sentence("It ended"), "It ended.");
        assert_eq!(sentence("It ended!"), "It ended!");
        assert_eq!(capital("there is no job j9"), "There is no job j9");
        assert_eq!(capital("mini-3 is silent"), "mini-3 is silent");
        assert_eq!(capital(""), "");
    }
}
