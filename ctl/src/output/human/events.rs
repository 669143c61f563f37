//! Lines of `events` and `logs`.

use crate::output::{
    screen::Screen,
    style::Style,
    text::clean,
    views::{EventView, LogLineView},
};

/// From this width on a terminal shows the event's word (for programs) beside its sentence.
const KIND_FROM_COLUMNS: usize = 100;

/// One event; on a terminal a long message goes on below its beginning.
pub fn event(event: &EventView, screen: &Screen) -> Vec<String> {
    let mut first = match event.at {
        Some(at) => format!("{}  ", screen.log_moment(at.0)),
        None => String::new(),
    };
    first.push_str(&format!("{:<7}  ", event.severity));
    if screen.at_least(KIND_FROM_COLUMNS) {
        first.push_str(&format!("{:<18}  ", event.kind));
    }
    let place: Vec<&str> = [&event.node, &event.job]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .filter(|name| !event.message.contains(name))
        .collect();
    let message = match place.as_slice() {
        [] => event.message.clone(),
        place => format!("{}: {}", place.join(", "), event.message),
    };
    let style = match event.severity {
        "warning" => Style::Warn,
        "error" => Style::Bad,
        _ => Style::Plain,
    };
    screen.sentence(&first, &message, style)
}

/// One line of a log. It is not cut: a terminal breaks it where it must, and it can be copied whole.
pub fn log_line(line: &LogLineView, screen: &Screen) -> String {
    let mut place = line.source.clone();
    if let Some(node) = &line.node {
        place = if place.is_empty() { node.clone() } else { format!("{node} {place}") };
    }
    let time = line.at.map(|at| format!("{} ", screen.log_moment(at.0))).unwrap_or_default();
    let place = if place.is_empty() { String::new() } else { format!("[{place}] ") };
    // A file gets the bytes as they are; a terminal must not be steered by them.
    let text = if screen.width.is_some() { clean(&line.text).into_owned() } else { line.text.clone() };
    format!("{}{text}", screen.paint(Style::Dim, &format!("{time}{place}")))
}
