//! Where human output goes: how wide, in which colours, at what time.

use jiff::{Timestamp, tz::TimeZone};

use super::{
    style::Style,
    text::{Cut, clip, wrap},
    units,
};

/// Everything a renderer may know about the world; renderers are pure functions of a view and this.
#[derive(Debug, Clone)]
pub struct Screen {
    /// Columns of the terminal; none for a pipe or file, which get full text.
    pub width: Option<usize>,
    /// Rows of the terminal.
    pub height: Option<usize>,
    /// Whether to colour.
    pub color: bool,
    /// Now, for "3 min ago" and for leaving out today's date.
    pub now: Timestamp,
    /// The person's time zone.
    pub tz: TimeZone,
}

impl Screen {
    /// No colour, a fixed moment, UTC: for tests.
    #[doc(hidden)]
    pub fn plain(width: Option<usize>) -> Self {
        // 2026-11-20T18:30:00Z
        let now = Timestamp::from_second(1_795_199_400).unwrap_or_default();
        Screen { width, height: None, color: false, now, tz: TimeZone::UTC }
    }

    /// `text` in the colour of its meaning.
    pub fn paint(&self, style: Style, text: &str) -> String {
        style.paint(text, self.color)
    }

    /// Whether the screen has at least so many columns; a pipe has any number.
    pub fn at_least(&self, columns: usize) -> bool {
        self.width.is_none_or(|width| width >= columns)
    }

    /// A sentence broken at the edge of the screen, in the colour of its meaning.
    pub fn sentence(&self, first: &str, text: &str, style: Style) -> Vec<String> {
        wrap(first, &super::text::clean(text), self.width)
            .iter()
            .map(|line| self.paint(style, line))
            .collect()
    }

    /// A line cut at the edge of the screen.
    pub fn clip(&self, text: &str) -> String {
        match self.width {
            Some(width) => clip(text, width, Cut::Tail).into_owned(),
            None => text.to_owned(),
        }
    }

    /// The age of a moment: "3 min ago".
    pub fn ago(&self, at: Timestamp) -> String {
        units::ago(self.since_ms(at))
    }

    /// Milliseconds from `at` to now; 0 when `at` is yet to come (clocks differ).
    pub fn since_ms(&self, at: Timestamp) -> u64 {
        u64::try_from(self.now.as_millisecond().saturating_sub(at.as_millisecond())).unwrap_or(0)
    }

    /// A moment in the person's time zone: "18:12", "Nov 19 18:12".
    pub fn moment(&self, at: Timestamp) -> String {
        units::moment(at, self.now, &self.tz)
    }

    /// A moment to come: "05:40" when it is the next one.
    pub fn coming(&self, at: Timestamp) -> String {
        units::coming(at, self.now, &self.tz)
    }

    /// The time that opens a line of a log: short on a terminal, complete in a pipe.
    pub fn log_moment(&self, at: Timestamp) -> String {
        match self.width {
            Some(_) => units::log_moment(at, self.now, &self.tz),
            None => units::full_moment(at, &self.tz),
        }
    }
}

impl Screen {
    /// Pieces of one line in their colours, cut at the edge of the screen.
    pub fn clip_painted(&self, pieces: &[(&str, Style)]) -> String {
        let mut room = self.width.unwrap_or(usize::MAX);
        let mut line = String::new();
        for (text, style) in pieces {
            let text = super::text::clean(text);
            let kept = clip(&text, room, Cut::Tail);
            room -= super::text::width(&kept).min(room);
            line.push_str(&self.paint(*style, &kept));
        }
        line
    }
}
