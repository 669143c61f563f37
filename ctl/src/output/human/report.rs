//! `report`: the morning page, as Markdown that reads well in a terminal too.
//!
//! On a terminal lines are broken at its edge, and a table that does not fit becomes a list. In a pipe or a file nothing is
//! broken, so that it can be mailed or kept.

use super::{forecast, jobs::job_sentence, status::incident_words};
use crate::output::{
    screen::Screen,
    style::Style,
    text::{capital, clean, list, pad_left, pad_right, plural, sentence, width},
    units,
    views::{IncidentView, ReportView, ReportedJobView, ReportedNodeView, WayView, WorkView},
};

/// `report`.
pub fn report(report: &ReportView, screen: &Screen) -> String {
    // Ages are told by the controller's clock, which made the moments.
    let now = report.until_at.map_or(screen.now, |at| at.0);
    let screen = &Screen { now, ..screen.clone() };
    let mut lines = title(report, screen);
    lines.push(String::new());
    lines.extend(paragraph("", &report.verdict, screen));

    heading(&mut lines, "To do today", screen);
    if report.to_do.is_empty() {
        lines.push("Nothing.".to_owned());
    }
    for to_do in &report.to_do {
        lines.extend(paragraph("- ", to_do, screen));
    }

    heading(&mut lines, "Jobs", screen);
    if report.jobs.is_empty() {
        lines.push("None.".to_owned());
    }
    lines.extend(report.jobs.iter().flat_map(|reported| job_lines(reported, screen)));
    if report.jobs_left_out > 0 {
        let more = format!("… and {} more: clusterctl jobs --all", units::count(report.jobs_left_out));
        lines.extend(paragraph("- ", &more, screen));
    }

    heading(&mut lines, "Nodes", screen);
    if report.nodes.is_empty() {
        lines.extend(paragraph("", super::nodes::NO_NODES, screen));
    } else {
        lines.extend(node_lines(&report.nodes, screen));
    }

    heading(&mut lines, "Incidents", screen);
    if report.incidents.is_empty() {
        lines.push("None.".to_owned());
    }
    lines.extend(report.incidents.iter().flat_map(|incident| incident_lines(incident, screen)));
    super::text(&lines)
}

fn title(report: &ReportView, screen: &Screen) -> Vec<String> {
    // Who reads it in a file a week later does not know which day it was.
    let full = |at: Option<crate::output::views::At>| {
        at.map(|at| at.0.to_zoned(screen.tz.clone()).strftime("%Y-%m-%d %H:%M").to_string())
    };
    let text = match (full(report.since_at), full(report.until_at)) {
        (Some(since), Some(until)) => format!("Nightshift, {since} to {until}"),
        (None, Some(until)) => format!("Nightshift, until {until}"),
        _ => "Nightshift".to_owned(),
    };
    vec![screen.paint(Style::Strong, &screen.clip(&format!("# {text}")))]
}

fn heading(lines: &mut Vec<String>, title: &str, screen: &Screen) {
    lines.push(String::new());
    lines.push(screen.paint(Style::Strong, &screen.clip(&format!("## {title}"))));
    lines.push(String::new());
}

/// A sentence, or an item of a list, broken at the edge of the screen.
fn paragraph(first: &str, text: &str, screen: &Screen) -> Vec<String> {
    screen.sentence(first, &harmless(&capital(&sentence(text))), Style::Plain)
}

/// What other programs wrote must not become markup: an error can hold anything.
fn harmless(text: &str) -> String {
    clean(text).replace('<', "\\<").replace('*', "\\*").replace("](", "]\\(")
}

fn job_lines(reported: &ReportedJobView, screen: &Screen) -> Vec<String> {
    let ReportedJobView { job, work, ways } = reported;
    let mut lines = paragraph("- ", &job_sentence(job), screen);
    let tokens = (job.prompt_tokens + job.completion_tokens > 0).then(|| {
        format!(
            "{} read and {} written",
            plural(job.prompt_tokens, "token", "tokens"),
            units::count(job.completion_tokens)
        )
    });
    let by_fallback = (job.rows_by_fallback > 0).then(|| {
        let model = job.fallback_model.as_deref().unwrap_or("the fallback model");
        format!(
            "{} answered by {model} in place of {}",
            plural(job.rows_by_fallback, "row", "rows"),
            job.model
        )
    });
    let again = (job.rows_requeued > 0)
        .then(|| format!("{} handed out again after faults", plural(job.rows_requeued, "row", "rows")));
    let window = job.window.as_ref().filter(|_| !job.is_finished());
    let facts = [
        Some(format!("Model {}", job.model)),
        tokens,
        ran(ways),
        (work.len() > 1).then(|| by_node(work)),
        by_fallback,
        again,
        job.finished_at.map(|at| format!("Ended {}", screen.moment(at.0))),
        window.map(|window| format!("Window {window}")),
        forecast::deadline(job, screen).map(|deadline| format!("Deadline {deadline}")),
        forecast::outlook(job, screen),
    ];
    for fact in facts.into_iter().flatten() {
        lines.extend(paragraph("  - ", &fact, screen));
    }
    lines
}

/// "Ran as independent workers", "Ran as a pipeline over ring (900 rows) and independent workers (300)"
fn ran(ways: &[WayView]) -> Option<String> {
    match ways {
        [] => None,
        [only] => Some(format!("Ran as {}", only.way)),
        [first, others @ ..] => {
            let mut told = vec![format!("{} ({})", first.way, plural(first.rows, "row", "rows"))];
            told.extend(others.iter().map(|way| format!("{} ({})", way.way, units::count(way.rows))));
            Some(format!("Ran as {}", list(&told)))
        }
    }
}

/// "Rows by node: 700 on a at 41.5 tokens/s and 500 on b"
fn by_node(work: &[WorkView]) -> String {
    let told: Vec<String> = work
        .iter()
        .map(|work| {
            let speed = work.tokens_per_s.map(|speed| format!(" at {} tokens/s", units::rate(speed)));
            format!("{} on {}{}", units::count(work.rows), work.node, speed.unwrap_or_default())
        })
        .collect();
    format!("Rows by node: {}", list(&told))
}

/// Headers of the table of nodes; numbers stand at the right.
const COLUMNS: [(&str, bool); 8] = [
    ("Node", false),
    ("State", false),
    ("Rows", true),
    ("Tokens read", true),
    ("Tokens written", true),
    ("Busy", true),
    ("Tokens/s", true),
    ("Incidents", true),
];

fn node_lines(nodes: &[ReportedNodeView], screen: &Screen) -> Vec<String> {
    let rows: Vec<[String; 8]> = nodes.iter().map(cells).collect();
    let widths: Vec<usize> = COLUMNS
        .iter()
        .enumerate()
        .map(|(at, (header, _))| rows.iter().map(|row| width(&row[at])).max().unwrap_or(0).max(width(header)))
        .collect();
    // "| a | b |"
    let total = widths.iter().map(|columns| columns + 3).sum::<usize>() + 1;
    let mut lines = Vec::new();
    if screen.at_least(total) {
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).zip(COLUMNS).map(|((cell, columns), (_, right))| {
                if right { pad_left(cell, *columns) } else { pad_right(cell, *columns) }
            });
            format!("| {} |", padded.collect::<Vec<_>>().join(" | "))
        };
        lines.push(line(&COLUMNS.map(|(header, _)| header.to_owned())));
        let rules = widths.iter().zip(COLUMNS).map(|(columns, (_, right))| {
            if right { format!("{}:", "-".repeat(columns - 1)) } else { "-".repeat(*columns) }
        });
        lines.push(line(&rules.collect::<Vec<_>>()));
        lines.extend(rows.iter().map(|row| line(row)));
    } else {
        for row in &rows {
            let facts = row.iter().zip(COLUMNS).skip(2).filter(|(cell, _)| !cell.is_empty());
            let facts: Vec<String> =
                facts.map(|(cell, (header, _))| format!("{} {cell}", header.to_lowercase())).collect();
            let facts = if facts.is_empty() { String::new() } else { format!(": {}", facts.join(", ")) };
            let text = format!("{} ({}){facts}", row[0], row[1]);
            lines.extend(screen.sentence("- ", &text, Style::Plain));
        }
    }
    let mut remarks = Vec::new();
    for node in nodes {
        let until = node
            .quarantined_until_at
            .map(|at| format!(" (until {}; clusterctl undrain {} ends it)", screen.coming(at.0), node.id));
        if let Some(detail) = &node.detail {
            let text = format!("{}: {detail}{}", node.id, until.unwrap_or_default());
            remarks.extend(paragraph("- ", &text, screen));
        }
    }
    if !remarks.is_empty() {
        lines.push(String::new());
        lines.extend(remarks);
    }
    lines
}

fn cells(node: &ReportedNodeView) -> [String; 8] {
    let count = |n: u64| if n == 0 { String::new() } else { units::count(n) };
    let work = &node.work;
    [
        clean(&node.id).replace('|', "\\|"),
        node.state.to_owned(),
        count(work.rows),
        count(work.prompt_tokens),
        count(work.completion_tokens),
        if work.busy_ms == 0 { String::new() } else { units::duration(work.busy_ms) },
        work.tokens_per_s.map(units::rate).unwrap_or_default(),
        count(node.incidents.into()),
    ]
}

fn incident_lines(incident: &IncidentView, screen: &Screen) -> Vec<String> {
    let when = incident.opened_at.map(|at| screen.moment(at.0)).unwrap_or_default();
    let mut text = format!("{when} {}: {}", incident.fault, incident_words(incident, screen));
    // Where the evidence begins is what the fault was called by whoever saw it.
    if let Some(first) = incident.evidence.first().filter(|first| !text.contains(first.as_str())) {
        text.push_str(&format!(" Evidence: {first}"));
    }
    screen.sentence("- ", &harmless(&text), Style::Plain)
}
