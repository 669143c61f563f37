//! `install` and `uninstall`: the steps, and what is left to do.

use crate::output::{
    screen::Screen,
    style::Style,
    views::{InstallView, StepView},
};

/// One step as it is begun.
pub fn step(view: &StepView, screen: &Screen) -> Vec<String> {
    let mut lines = screen.sentence("", &view.what, Style::Plain);
    // To be copied as they are, and so never broken.
    lines.extend(view.commands.iter().map(|command| screen.paint(Style::Dim, &format!("    {command}"))));
    lines
}

/// What comes after the steps; of a dry run, with them.
pub fn end(view: &InstallView, screen: &Screen) -> String {
    let mut lines = Vec::new();
    if view.steps.is_empty() {
        lines.extend(screen.sentence("", "Nothing is to be done.", Style::Plain));
    } else if view.dry_run {
        lines.extend(view.steps.iter().flat_map(|of| step(of, screen)));
    }
    lines.extend(view.notes.iter().flat_map(|note| screen.sentence("# ", note, Style::Dim)));
    for service in &view.services {
        let text = format!("{} runs (pid {}).", service.label, service.pid);
        lines.extend(screen.sentence("", &text, Style::Good));
    }
    lines.extend(view.next_steps.iter().flat_map(|step| screen.sentence("next: ", step, Style::Plain)));
    super::text(&lines)
}
