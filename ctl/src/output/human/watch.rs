//! The live picture of jobs: bars on a terminal, a line per change in a pipe.

use crate::output::{
    screen::Screen,
    style::Style,
    table::{Cell, Column, Table},
    text::{Cut, capital, clean, clip, sentence, width},
    units,
    views::{JobView, NodeView, SnapshotView},
};

/// A bar wider than this says no more.
const MAX_BAR_COLUMNS: usize = 40;
const MIN_BAR_COLUMNS: usize = 8;

/// The picture of this moment, no taller and no wider than the screen.
pub fn frame(snapshot: &SnapshotView, screen: &Screen) -> Vec<String> {
    let mut lines = Vec::new();
    for job in &snapshot.jobs {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.extend(job_lines(job, screen));
    }
    for node in snapshot.nodes.iter().filter(|node| node.state != "ready") {
        lines.push(screen.paint(Style::Warn, &screen.clip(&node_line(node))));
    }
    // One line stays free for the cursor: a frame that fills the screen would scroll.
    let room = screen.height.unwrap_or(usize::MAX).saturating_sub(1).max(1);
    if lines.len() > room {
        let hidden = lines.len() - (room - 1);
        lines.truncate(room - 1);
        lines.push(screen.paint(Style::Dim, &screen.clip(&format!("… and {hidden} more lines"))));
    }
    lines
}

fn node_line(node: &NodeView) -> String {
    let detail = match (&node.detail, node.state) {
        (Some(detail), _) => detail.clone(),
        (None, "silent") => format!("last heard {}", units::ago(node.silent_ms)),
        (None, _) => String::new(),
    };
    let state = node.state.replace('-', " ");
    if detail.is_empty() {
        format!("{} is {state}.", node.id)
    } else {
        format!("{} is {state}: {detail}", node.id)
    }
}

/// Title, bar and numbers, and a line for each worker.
pub(crate) fn job_lines(job: &JobView, screen: &Screen) -> Vec<String> {
    let columns = screen.width.unwrap_or(100);
    let mut title = job.id.clone();
    if let Some(name) = &job.name {
        title.push_str(&format!(" {name}"));
    }
    let state = format!(" · {}", job.state);
    let head = clip(&title, columns.saturating_sub(width(&state)).max(8), Cut::Tail).into_owned();
    let rest = columns.saturating_sub(width(&head) + width(&state));
    let model = format!(" · {}", job.model);
    let model = if rest >= 16 { clip(&model, rest, Cut::Tail).into_owned() } else { String::new() };
    let mut lines = vec![screen.clip_painted(&[
        (&head, Style::Strong),
        (&state, super::jobs::state_style(job.state)),
        (&model, Style::Dim),
    ])];

    let mut rows = format!("{} of {} rows", units::count(job.rows_done()), units::count(job.rows_total));
    if job.rows_failed > 0 {
        rows.push_str(&format!(", {} failed", units::count(job.rows_failed)));
    }
    let mut pace = Vec::new();
    if !job.is_finished() {
        let rate = units::rate(job.tokens_per_s);
        if !rate.is_empty() {
            pace.push(format!("{rate} tokens/s"));
        }
        pace.extend(job.eta_ms.map(|ms| format!("{} left", units::about(ms))));
    }
    let pace = pace.join(" · ");
    let one_line = if pace.is_empty() { rows.clone() } else { format!("{rows} · {pace}") };
    let bar_room = |text: &str| columns.saturating_sub(width(text) + 1);
    if bar_room(&one_line) >= MIN_BAR_COLUMNS {
        lines.push(format!("{} {one_line}", bar(job, bar_room(&one_line), screen)));
    } else if bar_room(&rows) >= MIN_BAR_COLUMNS {
        lines.push(format!("{} {rows}", bar(job, bar_room(&rows), screen)));
        lines.push(screen.clip(&pace));
    } else {
        lines.push(screen.clip(&rows));
        lines.push(screen.clip(&pace));
    }
    lines.retain(|line| !line.is_empty());
    if let Some(detail) = job.detail.as_ref().filter(|_| job.state != "running") {
        lines.push(screen.paint(Style::Warn, &screen.clip(&capital(&clean(detail)))));
    }
    if let Some(words) = super::forecast::beyond_window(job, screen) {
        lines.push(screen.clip(&capital(&words)));
    }
    lines.extend(worker_lines(job, screen));
    lines
}

/// Done rows as full blocks (failed ones in the colour of warnings), the rest as shade.
fn bar(job: &JobView, room: usize, screen: &Screen) -> String {
    let columns = room.min(MAX_BAR_COLUMNS);
    let share = |rows: u64| match job.rows_total {
        0 => 0,
        total => ((rows as f64 / total as f64) * columns as f64).floor() as usize,
    };
    let done = share(job.rows_done()).min(columns);
    let failed =
        if job.rows_failed > 0 { share(job.rows_failed).max(usize::from(done > 0)).min(done) } else { 0 };
    format!(
        "{}{}{}",
        screen.paint(Style::Good, &"█".repeat(done - failed)),
        screen.paint(Style::Warn, &"█".repeat(failed)),
        screen.paint(Style::Dim, &"░".repeat(columns - done))
    )
}

fn worker_lines(job: &JobView, screen: &Screen) -> Vec<String> {
    if job.is_finished() || job.workers.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new([
        Column::new("").flexible(8, Cut::Tail),
        Column::new(""),
        Column::new("").right(),
        Column::new("").right().droppable(1),
        Column::new("").right().droppable(2),
        Column::new("").droppable(3),
    ])
    .without_headers();
    for worker in &job.workers {
        let rate = units::rate(worker.tokens_per_s);
        table.row([
            worker.node.as_str().into(),
            worker.phase.into(),
            worker.rows().into(),
            if rate.is_empty() { Cell::default() } else { format!("{rate} tok/s").into() },
            worker.peak_memory_bytes.map(units::bytes).unwrap_or_default().into(),
            Cell::styled(worker.pid.map(|pid| format!("pid {pid}")).unwrap_or_default(), Style::Dim),
        ]);
    }
    table.lines(2, screen)
}

/// What changed, for pipes: one line a job.
pub fn change_line(job: &JobView, screen: &Screen) -> String {
    let mut text = super::jobs::job_sentence(job);
    let rate = units::rate(job.tokens_per_s);
    if job.state == "running" && !rate.is_empty() {
        text.push_str(&format!(" {rate} tokens/s."));
    }
    if let Some(words) = super::forecast::beyond_window(job, screen) {
        text.push_str(&format!(" {}", capital(&sentence(&words))));
    }
    text
}
