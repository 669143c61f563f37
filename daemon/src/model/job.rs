//! Jobs as they are recorded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    fallback::FallbackPolicy,
    ids::{Epoch, JobId, NodeId, RowIx},
    link_record::LinkRecord,
    plan::Mode,
    restart::Restart,
    row::Checkpoint,
    rowset::RowSet,
    rung::Rung,
    window::Window,
    work::Work,
};

/// What the person asked for; never changes after submission. Written to `spec.json` and into the record.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobSpec {
    /// A name to recognise it by; the input file's name unless given.
    pub name: String,
    /// A directory present on the nodes, or a name on the model hub.
    pub model: String,
    /// Higher runs first; equals run in order of age.
    pub priority: i32,
    /// Rows generated together on one node; 0 takes the controller's default.
    pub max_batch_rows: u32,
    /// Tokens a row may generate when it does not say; 0 takes the controller's default.
    pub default_max_tokens: u32,
    /// Prompt tokens processed in one step; 0 takes the controller's default.
    pub prefill_step_tokens: u32,
    /// Made by the client: the same submission tried again is the same job.
    pub submission_id: String,
    /// The mode to run it in; without it, whatever the rules say. `independent` is kept to; pipeline and tensor are the first
    /// choice, and where they cannot be had the job goes down the ladder.
    pub mode: Option<Mode>,
    /// Tokens a row takes, prompt and answer together, for what is planned; 0 takes the planner's default.
    pub context_tokens: u64,
    /// When its rows may start; without one, at any time.
    pub window: Option<Window>,
    /// By when it should be done. It steers nothing: what is forecast is held against it.
    pub deadline_unix_ms: Option<u64>,
    /// A smaller model, for when its own cannot run.
    pub fallback_model: Option<String>,
    /// When that one is used.
    pub fallback_policy: FallbackPolicy,
}

impl JobSpec {
    /// Whether an answer signed with this name is its fallback model's. Workers sign with the last part of a directory, or with
    /// a name on the hub.
    #[must_use]
    pub fn is_by_fallback(&self, signed: &str) -> bool {
        let fallback = self.fallback_model.as_deref().filter(|_| !signed.is_empty());
        fallback.is_some_and(|fallback| signed == fallback || signed == last_part(fallback))
    }
}

/// Of a directory or a name on the hub.
#[must_use]
pub fn last_part(model: &str) -> &str {
    model.trim_end_matches('/').rsplit('/').next().unwrap_or(model)
}

/// Where a job stands. What it is doing at this moment (loading, waiting for a node) is not recorded: it follows from
/// the nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Wants to run.
    Active,
    /// Held back until somebody, or the reason's end, resumes it.
    Paused,
    /// Cancelled; rows being generated still finish.
    Cancelling,
    /// Over, by request.
    Cancelled,
    /// Over: every row has an answer or an error.
    Completed,
    /// Over: it cannot be run; `detail` says why.
    Failed,
}

impl JobState {
    /// Whether nothing will ever happen to the job again.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Cancelled | Self::Completed | Self::Failed)
    }
}

/// A worker that was started and not seen to end: what a restarted controller expects to find and adopt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// Where it runs.
    pub node: NodeId,
    /// Its launch number.
    pub epoch: Epoch,
    /// Its place in a gang.
    #[serde(default)]
    pub rank: u32,
    /// Ranks of the gang; 1 for an independent worker.
    #[serde(default = "one")]
    pub world_size: u32,
    /// How it runs; `None` for those started before it was noted.
    #[serde(default)]
    pub rung: Option<Rung>,
}

fn one() -> u32 {
    1
}

/// A job as the ledger keeps it. Rows are not in it: completions have records of their own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// What was asked.
    pub spec: JobSpec,
    /// Lines of the input.
    pub rows_total: u32,
    /// How long its rows are.
    #[serde(default)]
    pub lengths: RowLengths,
    /// Where it stands.
    pub state: JobState,
    /// Why, in one sentence; empty when there is nothing to say.
    #[serde(default)]
    pub detail: String,
    /// When it was accepted.
    pub created_unix_ms: u64,
    /// When its first worker was started.
    #[serde(default)]
    pub started_unix_ms: Option<u64>,
    /// When it was over.
    #[serde(default)]
    pub finished_unix_ms: Option<u64>,
    /// The newest launch number given out.
    #[serde(default)]
    pub epoch: Epoch,
    /// Workers expected to be alive.
    #[serde(default)]
    pub launches: Vec<Launch>,
    /// Rows given out again after a fault.
    #[serde(default)]
    pub rows_requeued: u64,
    /// Second results of a row, dropped.
    #[serde(default)]
    pub duplicate_results: u64,
    /// Open rows that were being generated when a worker crashed.
    #[serde(default)]
    pub crashes: Vec<RowCrashes>,
    /// Who did how much of it, and how it ran.
    #[serde(default)]
    pub work: Work,
}

/// A row that was being generated when workers crashed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RowCrashes {
    /// Which.
    pub row: RowIx,
    /// At how many crashes.
    pub crashes: u32,
    /// Stands for the error of the last one.
    pub cause: u32,
    /// Those of them at which it was alone, and since which it got no further.
    #[serde(default)]
    pub alone_at: Vec<AloneAt>,
    /// How many of its tokens were known at the last of these.
    #[serde(default)]
    pub alone_tokens: u64,
}

/// Crashes of one kind on one node, at which a row was alone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AloneAt {
    /// Where.
    pub node: NodeId,
    /// Stands for the error.
    pub kind: u32,
    /// How often.
    pub crashes: u32,
}

/// Bytes of a row's line for a token of its prompt, at the least. English has four or five, languages of three bytes a
/// character two or three, token numbers and their commas two; what a line is besides its prompt is counted with it.
const BYTES_PER_TOKEN: u64 = 2;

/// How long the rows of a job are at most, in tokens, as far as their lines tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RowLengths {
    /// Prompt and answer of the longest row that says how much it may generate; 0 when there is none.
    pub limited_tokens: u64,
    /// The prompt of the longest row that does not say.
    pub prompt_tokens: u64,
}

impl RowLengths {
    /// Takes a row in.
    pub fn note(&mut self, line_bytes: u64, max_tokens: Option<u64>) {
        let prompt_tokens = line_bytes.div_ceil(BYTES_PER_TOKEN);
        match max_tokens {
            Some(most) => {
                self.limited_tokens = self.limited_tokens.max(prompt_tokens.saturating_add(most));
            }
            None => self.prompt_tokens = self.prompt_tokens.max(prompt_tokens),
        }
    }

    /// What the longest row takes, prompt and answer together; `None` for jobs that were accepted before it was counted.
    #[must_use]
    pub fn longest_tokens(&self, default_max_tokens: u64) -> Option<u64> {
        let unlimited =
            if self.prompt_tokens > 0 { self.prompt_tokens.saturating_add(default_max_tokens) } else { 0 };
        Some(self.limited_tokens.max(unlimited)).filter(|tokens| *tokens > 0)
    }
}

/// What is remembered of a node across restarts of the controller.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub id: NodeId,
    /// Told to take no work.
    pub draining: bool,
    /// When it was last connected.
    pub last_seen_unix_ms: u64,
    /// The boot it was in then.
    pub boot_id: String,
    /// When its GPU failed lately.
    #[serde(default)]
    pub gpu_faults_unix_ms: Vec<u64>,
    /// Until when it takes no work, and why.
    #[serde(default)]
    pub quarantine: Option<Quarantine>,
    /// Its links to nodes that come after it by name, as they were tried.
    #[serde(default)]
    pub links: Vec<LinkRecord>,
    /// Restarts of its machine that were asked for, oldest first.
    #[serde(default)]
    pub restarts: Vec<Restart>,
}

/// A node that takes no work for a while.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Quarantine {
    /// When it ends by itself.
    pub until_unix_ms: u64,
    /// What led to it: one sentence.
    pub reason: String,
}

/// A job as it stands after replay: its record, and what its completions add up to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplayedJob {
    /// As recorded.
    pub record: JobRecord,
    /// Rows that have an answer or an error on disk.
    pub done: RowSet,
    /// Rows answered with 200.
    pub rows_succeeded: u64,
    /// Rows that ended with an error.
    pub rows_failed: u64,
    /// Rows answered by the fallback model.
    pub rows_by_fallback: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Tokens generated for them.
    pub completion_tokens: u64,
    /// Durable length of `results.jsonl`.
    pub results_bytes: u64,
    /// Durable length of `errors.jsonl`.
    pub errors_bytes: u64,
    /// Tokens of unfinished rows.
    pub checkpoints: BTreeMap<RowIx, Checkpoint>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_from_before_there_were_windows_has_none() {
        let old = r#"{"name": "n", "model": "m", "priority": 1}"#;
        let spec: JobSpec = serde_json::from_str(old).unwrap();
        assert_eq!((spec.window, spec.deadline_unix_ms), (None, None));
        let spec =
            JobSpec { window: Some("22:00-07:00".parse().unwrap()), deadline_unix_ms: Some(5), ..spec };
        let json = serde_json::to_string(&spec).unwrap();
        assert!(json.contains(r#""window":"22:00-07:00""#), "{json}");
        assert_eq!(serde_json::from_str::<JobSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn answers_of_the_fallback_model_are_told_by_their_signature() {
        let spec = JobSpec {
            model: "/models/large".to_owned(),
            fallback_model: Some("/models/small/".to_owned()),
            ..JobSpec::default()
        };
        assert!(spec.is_by_fallback("small") && spec.is_by_fallback("/models/small/"));
        assert!(!spec.is_by_fallback("large") && !spec.is_by_fallback(""));
        let hub = JobSpec { fallback_model: Some("org/small".to_owned()), ..spec };
        assert!(hub.is_by_fallback("org/small"));
        assert!(!JobSpec { fallback_model: None, ..hub }.is_by_fallback("org/small"));
    }

    #[test]
    fn the_longest_row_is_the_longest_of_both_kinds() {
        let mut lengths = RowLengths::default();
        assert_eq!(lengths.longest_tokens(512), None);
        lengths.note(401, Some(100));
        assert_eq!(lengths.longest_tokens(512), Some(301));
        lengths.note(200, None);
        assert_eq!(lengths.longest_tokens(512), Some(612), "a short prompt with the default answer");
        assert_eq!(lengths.longest_tokens(64), Some(301));
        lengths.note(u64::MAX, Some(u64::MAX));
        assert_eq!(lengths.longest_tokens(512), Some(u64::MAX), "no overflow");
    }
}
