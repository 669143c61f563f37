//! Figures, their bounds, and whether they are kept.

use std::fmt;

/// What a figure must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Shown for what it tells.
    None,
}

impl Bound {
    fn kept(self, figure: f64) -> Option<bool> {
        match self {
            Self::AtMost(bound) => Some(figure <= bound),
            Self::AtLeast(bound) => Some(figure >= bound),
            Self::None => None,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => f.pad(&format!("<= {bound}")),
            Self::AtLeast(bound) => f.pad(&format!(">= {bound}")),
            Self::None => f.pad("-"),
        }
    }
}

/// The lines of the report, printed as they come and once more at the end.
#[derive(Debug)]
pub(crate) struct Table {
    quick: bool,
    lines: Vec<String>,
    missed: bool,
}

impl Table {
    /// An empty one.
    pub(crate) fn new(quick: bool) -> Self {
        Self { quick, lines: Vec::new(), missed: false }
    }

    /// Adds a figure with its unit.
    pub(crate) fn add(&mut self, what: &str, figure: f64, unit: &str, bound: Bound) {
        let verdict = match bound.kept(figure) {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "",
        };
        self.missed |= verdict == "MISSED";
        let shown = format!("{} {unit}", rounded(figure));
        self.line(format!("{what:<58} {shown:>18}  {bound:<10} {verdict}").trim_end().to_owned());
    }

    /// Says why a part could not be measured.
    pub(crate) fn skipped(&mut self, part: &str, reason: &str) {
        self.line(format!("{part}: not measured: {reason}"));
    }

    /// Whether a bound was missed.
    pub(crate) fn missed(&self) -> bool {
        self.missed
    }

    /// Prints the whole.
    pub(crate) fn print(&self) {
        println!();
        println!("{:<58} {:>18}  {:<10} verdict", "figure", "measured", "bound");
        for line in &self.lines {
            println!("{line}");
        }
        if self.quick {
            println!("Short form: smaller sizes and fewer rounds than the bounds are meant for.");
        }
    }

    fn line(&mut self, line: String) {
        eprintln!("{line}");
        self.lines.push(line);
    }
}

fn rounded(figure: f64) -> String {
    match figure.abs() {
        size if size >= 1000.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.3}"),
    }
}

/// The middle of some figures.
pub(crate) fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => figures[count / 2],
        count => f64::midpoint(figures[count / 2 - 1], figures[count / 2]),
    }
}
