//! `jobs`, `job ID`, and the sentences about a job that other screens use.

use super::{fact, forecast};
use crate::output::{
    screen::Screen,
    style::Style,
    table::{Cell, Column, Table},
    text::{Cut, capital, clean, list, plural, sentence, width},
    units,
    views::{ForecastView, JobView, WorkerView},
};

/// `jobs`.
pub fn jobs(jobs: &[JobView], all: bool, screen: &Screen) -> String {
    if jobs.is_empty() {
        let text = if all {
            "There are no jobs yet. Submit one with: clusterctl submit prompts.jsonl --model MODEL"
        } else {
            "No job is running or waiting. Finished ones: clusterctl jobs --all"
        };
        return super::text(&screen.sentence("", text, Style::Plain));
    }
    super::text(&table(jobs, 0, screen))
}

/// Jobs, a line each.
pub(crate) fn table(jobs: &[JobView], indent: usize, screen: &Screen) -> Vec<String> {
    let mut table = Table::new([
        Column::new("JOB"),
        Column::new("NAME").flexible(8, Cut::Tail).droppable(1),
        Column::new("STATE"),
        Column::new("ROWS").right(),
        Column::new("FAILED").right().droppable(3),
        Column::new("TOK/S").right().droppable(4),
        Column::new("TIME").droppable(2),
        Column::new("MODEL").flexible(12, Cut::Head).droppable(5),
    ]);
    for job in jobs {
        table.row([
            job.id.as_str().into(),
            job.name.as_deref().unwrap_or("").into(),
            Cell::styled(job.state, state_style(job.state)),
            rows(job).into(),
            Cell::styled(
                if job.rows_failed > 0 { units::count(job.rows_failed) } else { String::new() },
                Style::Warn,
            ),
            units::rate(job.tokens_per_s).into(),
            Cell::styled(time(job, screen), time_style(job)),
            Cell::styled(job.model.as_str(), Style::Dim),
        ]);
    }
    table.lines(indent, screen)
}

/// "1,204 of 2,000", or "2,000" when all are done.
fn rows(job: &JobView) -> String {
    if job.rows_done() == job.rows_total {
        units::count(job.rows_total)
    } else {
        format!("{} of {}", units::count(job.rows_done()), units::count(job.rows_total))
    }
}

/// When it will end, when it ended, or since when it waits.
fn time(job: &JobView, screen: &Screen) -> String {
    match (job.finished_at, job.eta_ms, job.window_opens_at, job.created_at) {
        (Some(at), _, _, _) => format!("ended {}", screen.moment(at.0)),
        (None, Some(eta_ms), _, _) => format!("{} left", units::about(eta_ms)),
        (None, None, Some(at), _) => format!("opens {}", screen.coming(at.0)),
        (None, None, None, Some(at)) => format!("since {}", screen.moment(at.0)),
        (None, None, None, None) => String::new(),
    }
}

/// Late is worth a look.
fn time_style(job: &JobView) -> Style {
    let is_late = |forecast: &ForecastView| {
        forecast.deadline_passed || forecast.rows_left_at_deadline.is_some_and(|rows| rows > 0)
    };
    if !job.is_finished() && job.forecast.as_ref().is_some_and(is_late) { Style::Warn } else { Style::Plain }
}

/// The meaning of a job's state.
pub(crate) fn state_style(state: &str) -> Style {
    match state {
        "running" | "completed" => Style::Good,
        "paused" | "cancelling" => Style::Warn,
        "failed" => Style::Bad,
        "cancelled" => Style::Dim,
        _ => Style::Plain,
    }
}

/// "Job j7 (nightly)"
fn title(job: &JobView) -> String {
    match &job.name {
        Some(name) => format!("Job {} ({name})", job.id),
        None => format!("Job {}", job.id),
    }
}

/// One or two sentences: what the job is doing, how far it is, why.
pub fn job_sentence(job: &JobView) -> String {
    let done = format!("{} of {}", units::count(job.rows_done()), plural(job.rows_total, "row", "rows"));
    let failed = match job.rows_failed {
        0 => String::new(),
        n => format!(", {} with an error", units::count(n)),
    };
    let title = title(job);
    let left = job.eta_ms.map(|ms| format!(", {} left", units::about(ms))).unwrap_or_default();
    let took = match (job.created_at, job.finished_at) {
        (Some(from), Some(to)) => {
            let ms = to.0.as_millisecond().saturating_sub(from.0.as_millisecond());
            format!(" in {}", units::duration(u64::try_from(ms).unwrap_or(0)))
        }
        _ => String::new(),
    };
    let text = match job.state {
        "queued" if job.rows_done() == 0 => {
            format!("{title} is waiting with {}", plural(job.rows_total, "row", "rows"))
        }
        "queued" => format!("{title} is waiting: {done} done{failed}"),
        "running" => format!("{title} is running: {done} done{failed}{left}"),
        "paused" => format!("{title} is paused: {done} done{failed}"),
        "cancelling" => {
            format!("{title} is being cancelled: {done} done{failed}")
        }
        "cancelled" if job.rows_done() == 0 => format!("{title} was cancelled before any row was done"),
        "cancelled" => format!("{title} was cancelled with {done} done{failed}; the answers are kept"),
        "completed" if job.rows_failed == 0 => {
            format!("{title} is complete: {} answered{took}", plural(job.rows_total, "row", "rows"))
        }
        "completed" => format!(
            "{title} is complete: {} answered and {} ended with an error{took}",
            plural(job.rows_succeeded, "row", "rows"),
            units::count(job.rows_failed)
        ),
        "failed" => format!("{title} failed: {done} done{failed}"),
        state => format!("{title} is {state}: {done} done{failed}"),
    };
    match &job.detail {
        Some(detail) => format!("{text}. {}", capital(&sentence(detail))),
        None => sentence(&text),
    }
}

/// `job ID`.
pub fn job(job: &JobView, screen: &Screen) -> String {
    let mut lines = screen.sentence("", &job_sentence(job), state_style(job.state));
    lines.push(String::new());
    let nodes = {
        let mut nodes: Vec<String> = job.workers.iter().map(|w| w.node.clone()).collect();
        nodes.sort();
        nodes.dedup();
        if nodes.is_empty() { String::new() } else { format!(" on {}", list(&nodes)) }
    };
    let mode = job.mode.map(|mode| match mode {
        "independent" => format!("independent workers{nodes}"),
        mode => format!("{mode} over several nodes{nodes}"),
    });
    let speed = (job.tokens_per_s > 0.0 && !job.is_finished()).then(|| {
        format!("{} tokens/s, {} rows/s", units::rate(job.tokens_per_s), rows_per_s(job.rows_per_s))
    });
    let tokens = (job.prompt_tokens + job.completion_tokens > 0).then(|| {
        format!("{} read, {} written", units::count(job.prompt_tokens), units::count(job.completion_tokens))
    });
    let again = (job.rows_requeued > 0)
        .then(|| format!("{} handed out again after faults", plural(job.rows_requeued, "row", "rows")));
    let dropped = (job.duplicate_results > 0)
        .then(|| format!("{} dropped", plural(job.duplicate_results, "second result", "second results")));
    let moment = |at: Option<crate::output::views::At>| {
        at.map(|at| format!("{} ({})", screen.moment(at.0), screen.ago(at.0)))
    };
    let facts = [
        ("Model", Some(job.model.clone())),
        ("Fallback", fallback(job)),
        ("Mode", mode),
        ("Speed", speed),
        ("Tokens", tokens),
        ("In flight", (job.rows_in_flight > 0).then(|| plural(job.rows_in_flight, "row", "rows"))),
        ("Faults", again),
        ("Doubles", dropped),
        ("Priority", (job.priority != 0).then(|| job.priority.to_string())),
        ("Batch", job.max_batch_rows.map(|n| format!("{} together", plural(n.into(), "row", "rows")))),
        (
            "Max tokens",
            job.default_max_tokens.map(|n| format!("{} where a row says nothing", units::count(n.into()))),
        ),
        ("Window", forecast::window(job, screen)),
        ("Deadline", forecast::deadline(job, screen)),
        ("Forecast", forecast::outlook(job, screen).map(|words| capital(&sentence(&words)))),
        ("Submitted", moment(job.created_at)),
        ("Started", moment(job.started_at)),
        ("Ended", moment(job.finished_at)),
    ];
    for (name, value) in facts {
        if let Some(value) = value {
            lines.extend(screen.sentence(&fact(name), &value, Style::Plain));
        }
    }
    let errors_path = job.errors_path.as_ref().filter(|_| job.rows_failed > 0);
    for (name, path) in [("Results", job.results_path.as_ref()), ("Errors", errors_path)] {
        if let Some(path) = path {
            lines.extend(path_lines(&fact(name), path, screen));
        }
    }
    if !job.workers.is_empty() {
        lines.push(String::new());
        lines.push(screen.paint(Style::Strong, "Workers"));
        lines.extend(workers(&job.workers, 2, screen));
    }
    if !job.plan_reasons.is_empty() {
        lines.push(String::new());
        lines.push(screen.paint(Style::Strong, "Why it runs this way"));
        for reason in &job.plan_reasons {
            lines.extend(screen.sentence("  • ", &capital(&sentence(reason)), Style::Plain));
        }
    }
    super::text(&lines)
}

/// A path is never broken, so that it can be copied: one that is too long stands on a line of its own.
pub(crate) fn path_lines(first: &str, path: &str, screen: &Screen) -> Vec<String> {
    let path = clean(path);
    if screen.width.is_none_or(|columns| width(first) + width(&path) <= columns) {
        vec![format!("{first}{path}")]
    } else {
        vec![first.trim_end().to_owned(), path.into_owned()]
    }
}

/// What stands in for the model, when, and how much of it has.
fn fallback(job: &JobView) -> Option<String> {
    let model = job.fallback_model.as_ref()?;
    let policy = match job.fallback_policy.as_deref() {
        Some("never") => "never used".to_owned(),
        Some("at-once") => "used as soon as the model cannot run anywhere".to_owned(),
        Some(policy) => format!("used {policy} in which the model cannot run anywhere"),
        None => String::new(),
    };
    let now = if job.on_fallback { "; it answers now" } else { "" };
    let answered = match job.rows_by_fallback {
        0 => String::new(),
        rows => format!("; {} answered by it", plural(rows, "row", "rows")),
    };
    Some(format!("{model}, {policy}{now}{answered}"))
}

fn rows_per_s(rate: f64) -> String {
    if rate >= 1.0 { units::rate(rate) } else { format!("{rate:.2}") }
}

/// Workers, a line each.
fn workers(workers: &[WorkerView], indent: usize, screen: &Screen) -> Vec<String> {
    let mut table = Table::new([
        Column::new("NODE").flexible(8, Cut::Tail),
        Column::new("PHASE"),
        Column::new("ROWS").right(),
        Column::new("TOK/S").right().droppable(1),
        Column::new("PEAK MEMORY").right().droppable(2),
        Column::new("STARTED").droppable(3),
        Column::new("PID").right().droppable(4),
        Column::new("EPOCH").right().droppable(5),
    ]);
    let has_ranks = workers.iter().any(|worker| worker.rank > 0);
    for worker in workers {
        let rank = if has_ranks { format!(" (rank {})", worker.rank) } else { String::new() };
        table.row([
            format!("{}{rank}", worker.node).into(),
            worker.phase.into(),
            worker.rows_in_figures().into(),
            units::rate(worker.tokens_per_s).into(),
            worker.peak_memory_bytes.map(units::bytes).unwrap_or_default().into(),
            worker.started_at.map(|at| screen.ago(at.0)).unwrap_or_default().into(),
            worker.pid.map(|pid| pid.to_string()).unwrap_or_default().into(),
            worker.epoch.to_string().into(),
        ]);
    }
    table.lines(indent, screen)
}
