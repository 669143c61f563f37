//! What the person sees while the demo runs: sentences that stay, and under them the live picture of the job.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Write},
    path::Path,
};

use super::cluster::Cluster;
use crate::{
    error::Result,
    output::{Output, Style, human, live::Live, text::clean, views::JobView},
};

/// Lines of each log shown when the demo fails.
const TAIL_LINES: usize = 15;

/// In a pipe, a line about progress for each such part of the rows.
const PIPE_PARTS: u64 = 6;

/// The screen.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    output: &'a Output,
    live: Option<Live<io::Stdout>>,
    picture: Vec<String>,
    part_said: u64,
}

impl<'a> Stage<'a> {
    pub(super) fn new(output: &'a Output) -> Self {
        let live = output.is_live().then(|| Live::new(io::stdout()));
        Stage { output, live, picture: Vec::new(), part_said: 0 }
    }

    pub(super) fn output(&self) -> &Output {
        self.output
    }

    /// A sentence.
    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        self.lines("", text, Style::Plain)
    }

    /// Something that went as it should.
    pub(super) fn done(&mut self, text: &str) -> Result<()> {
        self.lines("✓ ", text, Style::Good)
    }

    /// Something bad that the demo does on purpose.
    pub(super) fn harm(&mut self, text: &str) -> Result<()> {
        self.lines("✗ ", text, Style::Bad)
    }

    fn lines(&mut self, first: &str, text: &str, style: Style) -> Result<()> {
        if self.output.is_json() {
            return Ok(());
        }
        let screen = self.output.screen();
        let lines = screen.sentence(first, text, style);
        match &mut self.live {
            Some(live) => live.say(&lines, &self.picture),
            None => self.output.raw(human::text(&lines).as_bytes()),
        }
    }

    /// How far the job is.
    pub(super) fn show(&mut self, job: &JobView) -> Result<()> {
        if let Some(live) = &mut self.live {
            let screen = self.output.screen();
            self.picture =
                std::iter::once(String::new()).chain(human::watch::job_lines(job, &screen)).collect();
            return live.draw(&self.picture);
        }
        let part = job.rows_done() * PIPE_PARTS / job.rows_total.max(1);
        if part > self.part_said && !job.is_finished() && !self.output.is_json() {
            self.part_said = part;
            let line = human::watch::change_line(job, &self.output.screen());
            return self.output.raw(format!("{line}\n").as_bytes());
        }
        Ok(())
    }

    /// Takes the picture away; what was said stays.
    pub(super) fn finish(&mut self) {
        self.picture.clear();
        if let Some(mut live) = self.live.take() {
            // A terminal that is gone cannot be told.
            let _ = live.draw(&[]);
        }
    }

    /// Shows the ends of the logs, on stderr: something failed.
    pub(super) fn log_tails(&self, cluster: &Cluster) {
        if self.output.is_json() {
            return;
        }
        let mut stderr = io::stderr().lock();
        for (name, path) in cluster.logs() {
            let tail = tail(&path);
            if !tail.is_empty() {
                let _ = writeln!(stderr, "── the end of the log of {name} ({}):", path.display());
                for line in tail {
                    let _ = writeln!(stderr, "   {}", clean(&line));
                }
            }
        }
    }
}

/// The last lines of a file; nothing of one that is not there.
fn tail(path: &Path) -> VecDeque<String> {
    let mut lines = VecDeque::with_capacity(TAIL_LINES);
    let Ok(file) = std::fs::File::open(path) else { return lines };
    for line in BufReader::new(file).split(b'\n').map_while(|line| line.ok()) {
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(&line).into_owned());
    }
    lines
}
