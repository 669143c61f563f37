//! What came out: is there exactly one answer to every row, and where are they.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;

use super::{ERRORS_NAME, Plan, RESULTS_NAME, remove};
use crate::{
    error::{Error, Result},
    output::{
        Output, Style, human,
        text::{Cut, clean, clip, plural},
        views::JobView,
    },
};

/// Of the sample answer as much as tells whether it is noise.
const SAMPLE_COLUMNS: usize = 160;

/// The one JSON value of `demo --output json`.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    /// Rows submitted.
    rows: u64,
    /// Rows with an answer, and with an error.
    answered: u64,
    failed: u64,
    /// Rows with neither, rows with more than one, lines that belong to no row.
    missing: u64,
    doubled: u64,
    unknown: u64,
    /// None if nothing was killed.
    worker_killed: Option<WorkerFault>,
    controller_killed: Option<ControllerFault>,
    /// Where the answers are now.
    results_path: PathBuf,
    /// Where the errors are now; none if there are none.
    errors_path: Option<PathBuf>,
    /// The demo's directory, if it was kept.
    directory: Option<PathBuf>,
    /// Whether the answers are noise of a model with random weights.
    is_noise: bool,
    /// The beginning of one answer.
    sample: Option<String>,
    /// The job at its end.
    job: JobView,
}

/// A worker that was killed on purpose.
#[derive(Debug, Serialize)]
pub(super) struct WorkerFault {
    pub(super) node: String,
    pub(super) pid: u32,
    /// Rows done when it was killed.
    pub(super) rows_done: u64,
    /// Rows it had and had not answered.
    pub(super) rows_held: u32,
    /// Until the controller no longer listed it.
    pub(super) noticed_ms: Option<u64>,
    pub(super) rows_requeued: u64,
    pub(super) new_pid: Option<u32>,
    /// Until there was another one.
    pub(super) replaced_ms: Option<u64>,
}

/// The controller, killed on purpose.
#[derive(Debug, Serialize)]
pub(super) struct ControllerFault {
    pub(super) pid: u32,
    /// Rows done when it was killed.
    pub(super) rows_done: u64,
    /// Until it served again.
    pub(super) away_ms: u64,
    pub(super) rows_finished_meanwhile: u64,
    pub(super) workers_before: Vec<u32>,
    /// Those of them that went on under the new one.
    pub(super) workers_adopted: Vec<u32>,
}

impl Outcome {
    /// Reads the files of the job and counts.
    pub(super) fn read(
        plan: &Plan,
        job: JobView,
        rows: u64,
        worker_killed: Option<WorkerFault>,
        controller_killed: Option<ControllerFault>,
    ) -> Result<Self> {
        let in_job = |name: &str| plan.dir.join("controller").join("jobs").join(&job.id).join(name);
        let results_path = job.results_path.as_ref().map_or_else(|| in_job("results.jsonl"), PathBuf::from);
        let errors_path = job.errors_path.as_ref().map_or_else(|| in_job("errors.jsonl"), PathBuf::from);
        let mut tally = Tally::new(rows)?;
        let (answered, sample) = tally.count(&results_path)?;
        let (failed, _) = if errors_path.exists() { tally.count(&errors_path)? } else { (0, None) };
        Ok(Outcome {
            rows,
            answered,
            failed,
            missing: tally.seen.iter().filter(|seen| **seen == 0).count() as u64,
            doubled: tally.seen.iter().filter(|seen| **seen > 1).count() as u64,
            unknown: tally.unknown,
            worker_killed,
            controller_killed,
            results_path,
            errors_path: (failed > 0).then_some(errors_path),
            directory: plan.keep.then(|| plan.dir.clone()),
            is_noise: plan.model.is_none(),
            sample,
            job,
        })
    }

    /// Whether every row has exactly one answer or error.
    pub(super) fn is_verified(&self) -> bool {
        self.missing == 0 && self.doubled == 0 && self.unknown == 0
    }

    /// Once everything is stopped: brings the results out of the throw-away directory and removes it. Results that are not
    /// as they should be stay where they are, with the logs.
    pub(super) fn settle(mut self, plan: &Plan) -> Result<Self> {
        if plan.keep || !self.is_verified() {
            self.directory = Some(plan.dir.clone());
            return Ok(self);
        }
        self.results_path = bring_out(&self.results_path, RESULTS_NAME)?;
        if let Some(errors) = &self.errors_path {
            self.errors_path = Some(bring_out(errors, ERRORS_NAME)?);
        }
        self.job.results_path = Some(self.results_path.to_string_lossy().into_owned());
        self.job.errors_path = self.errors_path.as_ref().map(|path| path.to_string_lossy().into_owned());
        remove(&plan.dir);
        Ok(self)
    }

    /// Prints it.
    pub(super) fn show(&self, output: &Output) -> Result<()> {
        output.value(self, |outcome, screen| {
            let mut lines = vec![String::new()];
            let (text, style) = outcome.verdict();
            lines.extend(screen.sentence("", &text, style));
            // Noise has nothing to show, and characters that upset terminals.
            if let Some(sample) = outcome.sample.as_ref().filter(|_| !outcome.is_noise) {
                let sample = format!("One of the answers: {}", clip(&clean(sample), SAMPLE_COLUMNS, Cut::Tail));
                lines.extend(screen.sentence("", &sample, Style::Dim));
            }
            lines.push(String::new());
            lines.extend(human::jobs::path_lines("Results: ", &outcome.results_path.to_string_lossy(), screen));
            if let Some(errors) = &outcome.errors_path {
                lines.extend(human::jobs::path_lines("Errors:  ", &errors.to_string_lossy(), screen));
            }
            if let Some(dir) = &outcome.directory {
                lines.extend(human::jobs::path_lines("Ledger and logs: ", &dir.to_string_lossy(), screen));
            }
            if outcome.is_noise {
                lines.push(String::new());
                let text = "The text is noise, because the tiny model's weights are random. For real answers, where the model hub is in reach:";
                lines.extend(screen.sentence("", text, Style::Plain));
                lines.push("  clusterctl demo --model mlx-community/Qwen3-0.6B-4bit".to_owned());
            }
            human::text(&lines)
        })
    }

    fn verdict(&self) -> (String, Style) {
        let rows = plural(self.rows, "row", "rows");
        if !self.is_verified() {
            let text = format!(
                "NOT as promised: of {rows}, {} have no answer, {} more than one, and {} belong to no row.",
                self.missing,
                self.doubled,
                plural(self.unknown, "line", "lines")
            );
            return (text, Style::Bad);
        }
        let errors = match self.failed {
            0 => String::new(),
            n => format!(" ({} of them an error)", n),
        };
        let text = match self.rows {
            1 => format!("The row has exactly one answer{errors}."),
            _ => format!("Every one of the {rows} has exactly one answer{errors}: none lost, none doubled."),
        };
        (text, if self.failed == 0 { Style::Good } else { Style::Warn })
    }
}

/// How often each row was answered. Rows are "prompt-000001" and so on.
struct Tally {
    seen: Vec<u8>,
    unknown: u64,
}

impl Tally {
    fn new(rows: u64) -> Result<Self> {
        let rows = usize::try_from(rows).map_err(|_| Error::local("There are too many rows to check."))?;
        Ok(Tally { seen: vec![0; rows], unknown: 0 })
    }

    /// Counts the lines of a file; with it comes the text of its first answer.
    fn count(&mut self, path: &Path) -> Result<(u64, Option<String>)> {
        let cannot = |e: std::io::Error| Error::local(format!("Cannot read {}: {e}.", path.display()));
        let (mut lines, mut sample) = (0, None);
        for line in BufReader::new(File::open(path).map_err(cannot)?).split(b'\n') {
            let line = line.map_err(cannot)?;
            lines += 1;
            let row: Value = serde_json::from_slice(&line)
                .map_err(|e| Error::local(format!("Line {lines} of {} is not JSON: {e}.", path.display())))?;
            let number = row["custom_id"].as_str().and_then(|id| id.strip_prefix("prompt-"));
            let number = number.and_then(|n| n.parse::<usize>().ok()).and_then(|n| n.checked_sub(1));
            match number.and_then(|n| self.seen.get_mut(n)) {
                Some(seen) => *seen = seen.saturating_add(1),
                None => self.unknown += 1,
            }
            let choice = &row["response"]["body"]["choices"][0];
            sample = sample.or_else(|| {
                choice["message"]["content"].as_str().or(choice["text"].as_str()).map(str::to_owned)
            });
        }
        Ok((lines, sample))
    }
}

/// Copies a file to the current directory, or to the system's temporary one where that cannot be written.
fn bring_out(from: &Path, name: &str) -> Result<PathBuf> {
    let here = std::env::current_dir().map(|dir| dir.join(name));
    if let Ok(here) = here
        && std::fs::copy(from, &here).is_ok()
    {
        return Ok(here);
    }
    let elsewhere = std::env::temp_dir().join(name);
    match std::fs::copy(from, &elsewhere) {
        Ok(_) => Ok(elsewhere),
        Err(e) => Err(Error::local_hint(
            format!("The results cannot be copied to {}: {e}.", elsewhere.display()),
            format!("They are in {}.", from.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_and_doubled_rows_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("results.jsonl");
        let line = |id: &str| {
            format!(
                "{{\"custom_id\":\"{id}\",\"response\":{{\"body\":{{\"choices\":[{{\"message\":{{\"content\":\"hi\"}}}}]}}}}}}\n"
            )
        };
        let content =
            ["prompt-000001", "prompt-000003", "prompt-000003", "prompt-000009", "other"].map(line).concat();
        std::fs::write(&file, content).unwrap();
        let mut tally = Tally::new(4).unwrap();
        assert_eq!(tally.count(&file).unwrap(), (5, Some("hi".to_owned())));
        assert_eq!((tally.seen.as_slice(), tally.unknown), ([1, 0, 2, 0].as_slice(), 2));
        std::fs::write(&file, "{\"cut").unwrap();
        assert!(tally.count(&file).unwrap_err().to_string().starts_with("Line 1 of"));
    }
}
