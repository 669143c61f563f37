//! `doctor`: what is to be mended before a night, machine by machine, with the next step under each.

use super::section;
use crate::output::{
    screen::Screen,
    style::Style,
    text::{capital, plural, sentence},
    views::{CableView, CheckView, DoctorView, NodeDoctorView},
};

/// `doctor`; with `all`, what is well stands there, too.
pub fn doctor(view: &DoctorView, all: bool, screen: &Screen) -> String {
    let mut lines = screen.sentence("", &verdict(view), verdict_style(view));
    for node in &view.nodes {
        section(&mut lines, screen, &heading(node));
        checks(&mut lines, &node.checks, all, screen);
    }
    if !view.cables.is_empty() {
        section(&mut lines, screen, "Thunderbolt cables");
        lines.extend(view.cables.iter().flat_map(|of| cable(of, screen)));
    }
    if !view.cluster.is_empty() {
        section(&mut lines, screen, "All nodes together");
        checks(&mut lines, &view.cluster, all, screen);
    }
    super::text(&lines)
}

fn verdict(view: &DoctorView) -> String {
    if view.nodes.is_empty() {
        return super::nodes::NO_NODES.to_owned();
    }
    count(view.fails, view.warns)
}

/// In a sentence.
pub(super) fn count(fails: usize, warns: usize) -> String {
    let fail = plural(
        fails as u64,
        "thing will fail a night or may end it",
        "things will fail a night or may end it",
    );
    let warn = plural(warns as u64, "thing may make it worse", "things may make it worse");
    match (fails, warns) {
        (0, 0) => "Nothing stands in the way of a night.".to_owned(),
        (0, _) => format!("Nothing will end a night; {warn}."),
        (_, 0) => format!("{}.", capital(&fail)),
        (_, _) => format!("{}, and {warn}.", capital(&fail)),
    }
}

fn verdict_style(view: &DoctorView) -> Style {
    match (view.fails, view.warns) {
        (0, 0) if view.nodes.is_empty() => Style::Plain,
        (0, 0) => Style::Good,
        (0, _) => Style::Warn,
        _ => Style::Bad,
    }
}

/// "mini-1, a Mac16,9 with macos 25D125"
fn heading(node: &NodeDoctorView) -> String {
    match (&node.hardware_model, &node.system) {
        (Some(model), Some(system)) => format!("{} ({model}, {system})", node.id),
        (Some(one), None) | (None, Some(one)) => format!("{} ({one})", node.id),
        (None, None) => node.id.clone(),
    }
}

fn checks(lines: &mut Vec<String>, checks: &[CheckView], all: bool, screen: &Screen) {
    let (well, bad): (Vec<&CheckView>, Vec<&CheckView>) =
        checks.iter().partition(|check| check.level == "ok");
    let (fails, warns): (Vec<&CheckView>, Vec<&CheckView>) =
        bad.into_iter().partition(|check| check.level == "fail");
    for check in fails.into_iter().chain(warns) {
        let style = if check.level == "fail" { Style::Bad } else { Style::Warn };
        lines.extend(line(check.level, &check.seen, style, screen));
        lines.extend(step(check.next_step.as_deref(), screen));
    }
    if all {
        lines.extend(well.into_iter().flat_map(|check| line("ok", &check.seen, Style::Plain, screen)));
    } else if !well.is_empty() {
        let names: Vec<&str> = well.iter().map(|check| check.id.as_str()).collect();
        lines.extend(line("ok", &names.join(", "), Style::Plain, screen));
    }
}

/// "  FAIL  It goes to sleep after 10 minutes."
fn line(level: &str, text: &str, style: Style, screen: &Screen) -> Vec<String> {
    let (word, text) = match level {
        "ok" => ("ok", text.to_owned()),
        "fail" => ("FAIL", capital(&sentence(text))),
        other => (other, capital(&sentence(text))),
    };
    screen.sentence(&format!("  {word:<4}  "), &text, style)
}

fn step(next_step: Option<&str>, screen: &Screen) -> Vec<String> {
    let step = next_step.map(|step| screen.sentence("        → ", &capital(&sentence(step)), Style::Plain));
    step.unwrap_or_default()
}

fn cable(cable: &CableView, screen: &Screen) -> Vec<String> {
    let class = match cable.class {
        "rdma" => "ready for RDMA",
        "tcp" => "TCP only",
        "down" => "down",
        other => other,
    };
    let ends =
        format!("{} (port {}) and {} (port {})", cable.a.node, cable.a.port, cable.b.node, cable.b.port);
    let style = if cable.level() == "ok" { Style::Plain } else { Style::Warn };
    let mut lines = screen.sentence(&format!("  {:<4}  ", cable.level()), &format!("{ends}: {class}"), style);
    for flaw in &cable.flaws {
        lines.extend(screen.sentence("        ", &capital(&sentence(&flaw.sentence)), style));
        lines.extend(step(flaw.next_step.as_deref(), screen));
    }
    lines
}
