//! `status`: nodes, jobs and incidents on one screen, opened by one sentence.

use super::section;
use crate::output::{
    screen::Screen,
    style::Style,
    text::{capital, list, plural, sentence},
    units,
    views::{IncidentView, JobView, NodeView, StatusView},
};

/// Older incidents are left to `clusterctl events`: the screen is for now.
const SHOWN_INCIDENTS: usize = 5;

/// Finished jobs shown beside the unfinished ones, for the same reason.
const SHOWN_FINISHED_JOBS: usize = 3;

/// `status`.
pub fn status(status: &StatusView, screen: &Screen) -> String {
    // Ages are told by the controller's clock, which made the moments.
    let now = status.controller.now_at.map_or(screen.now, |at| at.0);
    let screen = &Screen { now, ..screen.clone() };
    let mut lines = opening(status, screen);

    section(&mut lines, screen, "Nodes");
    if status.nodes.is_empty() {
        lines.extend(screen.sentence("  ", super::nodes::NO_NODES, Style::Plain));
    } else {
        lines.extend(super::nodes::table(&status.nodes, 2, screen));
        for node in &status.nodes {
            if let Some(words) = super::nodes::boot(node) {
                let first = format!("  {}  ", node.id);
                lines.extend(screen.sentence(&first, &capital(&sentence(&words)), Style::Plain));
            }
        }
    }

    // With nobody there it would say again what stands above.
    if let Some(found) =
        status.doctor.filter(|found| found.fails + found.warns > 0 && !status.nodes.is_empty())
    {
        let style = if found.fails > 0 { Style::Warn } else { Style::Plain };
        let text = format!("{} See: clusterctl doctor", super::doctor::count(found.fails, found.warns));
        lines.extend(screen.sentence("  ", &text, style));
    }

    let (unfinished, finished): (Vec<JobView>, Vec<JobView>) =
        status.jobs.iter().cloned().partition(|job| !job.is_finished());
    section(&mut lines, screen, "Jobs");
    if status.jobs.is_empty() {
        let text = "None yet. Submit one with: clusterctl submit prompts.jsonl --model MODEL";
        lines.extend(screen.sentence("  ", text, Style::Plain));
    } else {
        let shown: Vec<JobView> =
            unfinished.into_iter().chain(finished.into_iter().take(SHOWN_FINISHED_JOBS)).collect();
        lines.extend(super::jobs::table(&shown, 2, screen));
        for job in shown.iter().filter(|job| !job.is_finished()) {
            if let Some(words) = super::forecast::standing(job, screen) {
                lines.extend(screen.sentence(
                    &format!("  {}  ", job.id),
                    &capital(&sentence(&words)),
                    Style::Plain,
                ));
            }
        }
        if shown.len() < status.jobs.len() {
            lines.extend(screen.sentence("  ", "Older ones: clusterctl jobs --all", Style::Dim));
        }
    }

    if !status.incidents.is_empty() {
        section(&mut lines, screen, "Incidents of the last 24 hours");
        for incident in status.incidents.iter().take(SHOWN_INCIDENTS) {
            lines.extend(incident_lines(incident, screen));
        }
        if let Some(more) = status.incidents.len().checked_sub(SHOWN_INCIDENTS).filter(|more| *more > 0) {
            lines.extend(screen.sentence("  ", &format!("… and {more} more: clusterctl events"), Style::Dim));
        }
    }

    lines.push(String::new());
    lines.extend(screen.sentence("", &controller(status, screen), Style::Dim));
    super::text(&lines)
}

fn opening(status: &StatusView, screen: &Screen) -> Vec<String> {
    if status.healthy {
        // Just after a start nobody has connected yet: nothing is wrong, and nothing is well either.
        let is_early = !status.nodes.is_empty() && status.nodes.iter().all(|node| node.state != "ready");
        let (word, style) =
            if is_early { ("Nothing is wrong yet", Style::Plain) } else { ("All is well", Style::Good) };
        let text = format!("{word}: {}, {}.", nodes_words(&status.nodes), jobs_words(&status.jobs));
        return screen.sentence("", &text, style);
    }
    let text = match status.problems.len() {
        0 => "Something needs your eye, but the controller does not say what; see clusterctl events."
            .to_owned(),
        1 => "One thing needs your eye:".to_owned(),
        n => format!("{n} things need your eye:"),
    };
    let mut lines = screen.sentence("", &text, Style::Bad);
    for problem in &status.problems {
        lines.extend(screen.sentence("• ", &capital(&sentence(problem)), Style::Plain));
    }
    lines
}

/// "2 of 3 nodes ready"
fn nodes_words(nodes: &[NodeView]) -> String {
    let ready = nodes.iter().filter(|node| node.state == "ready").count();
    match nodes.len() {
        0 => "no nodes yet".to_owned(),
        1 if ready == 1 => "1 node ready".to_owned(),
        n if ready == n => format!("{n} nodes ready"),
        n => format!("{ready} of {n} nodes ready"),
    }
}

/// "1 job running and 2 waiting", "no jobs to do"
fn jobs_words(jobs: &[JobView]) -> String {
    let mut parts = Vec::new();
    for (state, word) in [
        ("running", "running"),
        ("queued", "waiting"),
        ("paused", "paused"),
        ("cancelling", "being cancelled"),
    ] {
        let n = jobs.iter().filter(|job| job.state == state).count() as u64;
        if n > 0 {
            parts.push(if parts.is_empty() {
                format!("{} {word}", plural(n, "job", "jobs"))
            } else {
                format!("{} {word}", units::count(n))
            });
        }
    }
    if parts.is_empty() { "no jobs to do".to_owned() } else { list(&parts) }
}

fn incident_lines(incident: &IncidentView, screen: &Screen) -> Vec<String> {
    let when = incident.opened_at.map(|at| screen.moment(at.0)).unwrap_or_default();
    let style = if incident.closed_at.is_none() { Style::Warn } else { Style::Plain };
    screen.sentence(&format!("  {when}  "), &incident_words(incident, screen), style)
}

/// What is noticed within this is noticed at once, for a person.
const WORTH_TELLING_MS: u64 = 1_000;

/// What was seen, what was done, how the job went on and it ended, what it cost.
pub(crate) fn incident_words(incident: &IncidentView, screen: &Screen) -> String {
    let mut text = String::new();
    if incident.closed_at.is_none() {
        text.push_str("Open: ");
    }
    let place: Vec<String> = [&incident.node, &incident.job]
        .into_iter()
        .flatten()
        .filter(|name| !incident.summary.contains(name.as_str()))
        .cloned()
        .collect();
    if !place.is_empty() {
        text.push_str(&format!("{}: ", place.join(", ")));
    }
    text.push_str(&capital(&sentence(&incident.summary)));
    let way = incident.went_on_as.as_ref().map(|way| {
        let after = incident.first_token_after_ms.map(|ms| format!(" after {}", units::duration(ms)));
        format!("The job went on with {way}{}", after.unwrap_or_default())
    });
    for part in [&incident.action, &way, &incident.outcome].into_iter().flatten() {
        text.push(' ');
        text.push_str(&capital(&sentence(part)));
    }
    let mut cost = Vec::new();
    if let Some(ms) = incident.noticed_after_ms.filter(|ms| *ms >= WORTH_TELLING_MS) {
        cost.push(format!("noticed after {}", units::duration(ms)));
    }
    if incident.times > 1 {
        let last = incident.last_at.map(|at| format!(", last at {}", screen.moment(at.0).trim_start()));
        cost.push(format!("{} times{}", incident.times, last.unwrap_or_default()));
    }
    if incident.rows_requeued > 0 {
        cost.push(format!("{} handed out again", plural(incident.rows_requeued, "row", "rows")));
    }
    if incident.tokens_lost > 0 {
        cost.push(format!("{} to generate again", plural(incident.tokens_lost, "token", "tokens")));
    }
    if incident.tokens_saved > 0 {
        cost.push(format!("{} kept", plural(incident.tokens_saved, "token", "tokens")));
    }
    if !cost.is_empty() {
        text.push_str(&format!(" ({})", list(&cost)));
    }
    text
}

fn controller(status: &StatusView, screen: &Screen) -> String {
    let controller = &status.controller;
    let mut text = format!("Controller {} at {}", controller.version, controller.address);
    if let Some(at) = controller.started_at {
        text.push_str(&format!(", up for {}", units::duration(screen.since_ms(at.0))));
    }
    if let Some(available) = controller.disk_available_bytes {
        text.push_str(&format!(", {} of disk free", units::bytes(available)));
    }
    text.push('.');
    text
}
