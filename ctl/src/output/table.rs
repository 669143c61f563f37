//! Tables that fit the screen: columns are shortened first, then dropped, and a line never wraps.
//!
//! Without a width (a pipe, a file) every column is there in full.

use super::{
    screen::Screen,
    style::Style,
    text::{Cut, clean, clip, pad_left, pad_right, width},
};

/// Between two columns.
const GAP_COLUMNS: usize = 2;

/// What a column is called and how it gives way.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    header: &'static str,
    right: bool,
    /// 0 is never dropped; of the others the highest goes first.
    drop_order: u8,
    /// May be cut down to this many columns, at this end.
    flexible: Option<(usize, Cut)>,
}

impl Column {
    /// A column on the left edge of its cells that is never cut nor dropped.
    pub const fn new(header: &'static str) -> Self {
        Column { header, right: false, drop_order: 0, flexible: None }
    }

    /// Numbers: aligned at their right edge.
    pub const fn right(mut self) -> Self {
        self.right = true;
        self
    }

    /// Leaves a screen that is too narrow; the highest `order` first.
    pub const fn droppable(mut self, order: u8) -> Self {
        self.drop_order = order;
        self
    }

    /// May be cut down to `min_columns`.
    pub const fn flexible(mut self, min_columns: usize, cut: Cut) -> Self {
        self.flexible = Some((min_columns, cut));
        self
    }
}

/// A piece of a table: text and its meaning.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// `text` with a meaning.
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        let text = text.into();
        Cell { text: clean(&text).into_owned(), style }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell::styled(text, Style::Plain)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell::styled(text, Style::Plain)
    }
}

/// Rows under headers.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    headers: bool,
}

impl Table {
    /// An empty table.
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Table { columns: columns.into(), rows: Vec::new(), headers: true }
    }

    /// Leaves the line of headers out.
    pub fn without_headers(mut self) -> Self {
        self.headers = false;
        self
    }

    /// Adds a row: a cell a column, in order.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells: Vec<Cell> = cells.into_iter().collect();
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// The lines, each opened by `indent` spaces, none wider than the screen. Columns without any content are left out.
    pub fn lines(&self, indent: usize, screen: &Screen) -> Vec<String> {
        let layout = self.layout(screen.width.map(|columns| columns.saturating_sub(indent)));
        let mut lines = Vec::with_capacity(self.rows.len() + 1);
        if self.headers {
            let headers = self.columns.iter().map(|c| Cell::styled(c.header, Style::Dim)).collect::<Vec<_>>();
            lines.push(self.line(&headers, &layout, indent, screen));
        }
        lines.extend(self.rows.iter().map(|row| self.line(row, &layout, indent, screen)));
        lines
    }

    /// The columns that stay, with their widths.
    fn layout(&self, room: Option<usize>) -> Vec<(usize, usize)> {
        let mut layout: Vec<(usize, usize)> = (0..self.columns.len())
            .filter_map(|c| {
                let content =
                    self.rows.iter().filter_map(|row| row.get(c)).map(|cell| width(&cell.text)).max();
                let header = if self.headers { width(self.columns[c].header) } else { 0 };
                content.filter(|columns| *columns > 0).map(|columns| (c, columns.max(header)))
            })
            .collect();
        let Some(room) = room else { return layout };
        let total = |layout: &[(usize, usize)]| {
            layout.iter().map(|(_, columns)| columns + GAP_COLUMNS).sum::<usize>().saturating_sub(GAP_COLUMNS)
        };
        let least = |layout: &[(usize, usize)]| {
            let given_up: usize = layout
                .iter()
                .filter_map(|&(c, columns)| {
                    self.columns[c].flexible.map(|(min, _)| columns.saturating_sub(min))
                })
                .sum();
            total(layout) - given_up
        };
        while least(&layout) > room {
            let last = layout.iter().map(|(c, _)| *c).filter(|c| self.columns[*c].drop_order > 0);
            match last.max_by_key(|c| self.columns[*c].drop_order) {
                Some(dropped) => layout.retain(|(c, _)| *c != dropped),
                None => break,
            }
        }
        // The widest flexible column gives a column at a time, so that all of them stay readable.
        while total(&layout) > room {
            let widest = layout
                .iter_mut()
                .filter(|(c, columns)| self.columns[*c].flexible.is_some_and(|(min, _)| *columns > min))
                .max_by_key(|(_, columns)| *columns);
            match widest {
                Some((_, columns)) => *columns -= 1,
                None => break,
            }
        }
        layout
    }

    fn line(&self, cells: &[Cell], layout: &[(usize, usize)], indent: usize, screen: &Screen) -> String {
        let mut line = " ".repeat(indent);
        // What is left of the screen: the last resort where even the columns that must stay are too wide.
        let mut room = screen.width.map_or(usize::MAX, |columns| columns.saturating_sub(indent));
        for (i, &(c, columns)) in layout.iter().enumerate() {
            let Some(cell) = cells.get(c) else { continue };
            let column = self.columns[c];
            let cut = column.flexible.map_or(Cut::Tail, |(_, cut)| cut);
            let text = clip(&cell.text, columns.min(room), cut);
            let padded = if column.right {
                pad_left(&text, columns.min(room))
            } else if i + 1 == layout.len() {
                text.into_owned()
            } else {
                pad_right(&text, columns.min(room))
            };
            let painted = padded.trim_matches(' ');
            line.push_str(&padded.replacen(painted, &screen.paint(cell.style, painted), 1));
            room = room.saturating_sub(columns);
            if i + 1 < layout.len() {
                line.push_str(&" ".repeat(GAP_COLUMNS.min(room)));
                room = room.saturating_sub(GAP_COLUMNS);
            }
        }
        line.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new([
            Column::new("JOB"),
            Column::new("NAME").flexible(6, Cut::Tail),
            Column::new("ROWS").right(),
            Column::new("CREATED").droppable(2),
            Column::new("MODEL").flexible(8, Cut::Head).droppable(1),
        ]);
        table.row([
            "j7".into(),
            "nightly-evaluation".into(),
            "1,204".into(),
            "18:12".into(),
            "org/Qwen3-0.6B".into(),
        ]);
        table.row(["j12".into(), "夜勤表".into(), "7".into(), "Nov 9 08:00".into(), "org/Llama".into()]);
        table
    }

    #[test]
    fn a_pipe_gets_everything() {
        insta::assert_snapshot!(table().lines(0, &Screen::plain(None)).join("\n"), @r"
        JOB  NAME                 ROWS  CREATED      MODEL
        j7   nightly-evaluation  1,204  18:12        org/Qwen3-0.6B
        j12  夜勤表                  7  Nov 9 08:00  org/Llama
        ");
    }

    #[test]
    fn columns_shrink_then_go_and_lines_never_pass_the_edge() {
        insta::assert_snapshot!(table().lines(0, &Screen::plain(Some(48))).join("\n"), @r"
        JOB  NAME          ROWS  CREATED      MODEL
        j7   nightly-ev…  1,204  18:12        …wen3-0.6B
        j12  夜勤表           7  Nov 9 08:00  org/Llama
        ");
        insta::assert_snapshot!(table().lines(2, &Screen::plain(Some(34))).join("\n"), @r"
          JOB  NAME        ROWS  MODEL
          j7   nightly-…  1,204  …en3-0.6B
          j12  夜勤表         7  org/Llama
        ");
        for columns in 0..80 {
            for line in table().lines(1, &Screen::plain(Some(columns))) {
                assert!(width(&line) <= columns.max(1), "{columns}: {line:?}");
            }
        }
    }

    #[test]
    fn a_column_without_content_is_left_out() {
        let mut table = Table::new([Column::new("A"), Column::new("B"), Column::new("C")]);
        table.row(["1".into(), "".into(), "3".into()]);
        assert_eq!(table.lines(0, &Screen::plain(None)), ["A  C", "1  3"]);
    }
}
