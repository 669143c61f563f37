//! Views rendered for people: sentences and tables, as pure functions of a view and a [`super::Screen`].
//!
//! Rules: a screen opens with a sentence that says how things are; nothing is wider than the screen; a pipe gets full,
//! plain text; colour repeats what words already say.

pub mod doctor;
pub mod events;
pub mod explain;
mod forecast;
pub mod install;
pub mod jobs;
pub mod nodes;
pub mod plan;
pub mod report;
pub mod status;
pub mod submit;
pub mod watch;

use super::{screen::Screen, style::Style};

/// A heading after an empty line.
fn section(lines: &mut Vec<String>, screen: &Screen, title: &str) {
    lines.push(String::new());
    lines.push(screen.paint(Style::Strong, &screen.clip(title)));
}

/// The beginning of a line that tells one thing about something.
fn fact(name: &str) -> String {
    format!("  {name:<11} ")
}

/// Lines as the text that is printed.
pub(crate) fn text(lines: &[String]) -> String {
    let mut text = lines.join("\n");
    text.push('\n');
    text
}
