//! The answer to `submit`.

use crate::output::{
    screen::Screen,
    style::Style,
    text::{capital, plural, sentence},
    units,
    views::SubmitView,
};

/// `submit`. `source` is what was submitted: a path, or "standard input".
pub fn submitted(view: &SubmitView, source: &str, watching: bool, screen: &Screen) -> String {
    match &view.job {
        Some(job) => {
            let name = job.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            let rows = plural(job.rows_total, "row", "rows");
            let mut lines =
                screen.sentence("", &format!("Accepted as job {}{name}: {rows}.", job.id), Style::Good);
            if let Some(detail) = &job.detail {
                lines.extend(screen.sentence("", &capital(&sentence(detail)), Style::Plain));
            }
            if let Some(at) = job.deadline_at {
                let text = format!("Its deadline is {}.", screen.coming(at.0));
                lines.extend(screen.sentence("", &text, Style::Plain));
            }
            let misses = job.forecast.as_ref().and_then(|forecast| forecast.rows_left_at_deadline);
            if misses.is_some_and(|rows| rows > 0)
                && let Some(words) = super::forecast::outlook(job, screen)
            {
                lines.extend(screen.sentence("", &capital(&sentence(&words)), Style::Warn));
            }
            if !watching {
                let next = format!(
                    "Watch it: clusterctl watch {0} · Read its results: clusterctl results {0}",
                    job.id
                );
                lines.extend(screen.sentence("", &next, Style::Dim));
            }
            super::text(&lines)
        }
        None => super::text(&rejected(view, source, screen)),
    }
}

fn rejected(view: &SubmitView, source: &str, screen: &Screen) -> Vec<String> {
    let mut text = format!("Refused: nothing of {source} was kept.");
    if view.error_count > 0 {
        let unit = |n| {
            if view.counted_in == "row" { plural(n, "prompt", "prompts") } else { plural(n, "line", "lines") }
        };
        let is = if view.error_count == 1 { "is" } else { "are" };
        text.push_str(&format!(" {} {is} wrong.", unit(view.error_count)));
    }
    let mut lines = screen.sentence("", &text, Style::Bad);
    if let Some(problem) = &view.problem {
        lines.extend(screen.sentence("", &capital(&sentence(problem)), Style::Plain));
    }
    let number_columns = view.errors.iter().map(|e| units::count(e.line).len()).max().unwrap_or(0);
    for error in &view.errors {
        let word = if view.counted_in == "row" { "prompt" } else { "line" };
        let first = format!("  {word} {:>number_columns$}  ", units::count(error.line));
        lines.extend(screen.sentence(&first, &error.problem, Style::Plain));
    }
    let more = view.error_count.saturating_sub(view.errors.len() as u64);
    if more > 0 && !view.errors.is_empty() {
        lines.extend(screen.sentence("  ", &format!("… and {} more.", units::count(more)), Style::Plain));
    }
    lines
}
