//! What the cases of sharded jobs share: a model that fits no node and needs two, a job of it, the answers that one process
//! gives, and the wait for a gang amid its rows.

use std::path::PathBuf;

use nightshift_proto::v1::{Job, JobSpec, JobState, Mode};
use nightshift_tests::{
    answers::Answers,
    cluster::{Cluster, ClusterBuilder},
    control::{self, rows_done},
    models,
    procfs::Seen,
    rows::Input,
    wait,
};
use tokio::sync::{Mutex, OnceCell};

/// Rows of a job.
const ROWS: usize = 16;

/// The longest answer: long enough that faults fall between its tokens.
const MAX_TOKENS: u32 = 60;

/// 37 MiB of weights in float32: with what MLX and a single row need besides, some MiB over [`BUDGET_MIB`]; half of it with
/// four rows, just under it, prompts read in smaller steps if need be.
const SHAPE: &[&str] = &["--dtype", "float32", "--layers", "16", "--hidden", "256"];

/// Too little for the whole model with a single row, enough for half of it with four.
const BUDGET_MIB: u64 = 100;

/// Ranks that wait for one another do so at full speed: one gang at a time is what two cores bear.
pub(crate) static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// What a gang that lost a rank makes the controller say, once.
pub(crate) const GANG_LOST: &str = "WARN the worker of j1 on n* kind=\"worker-exited\"";

pub(crate) fn model() -> PathBuf {
    models::tiny("llama", SHAPE)
}

pub(crate) fn input() -> Input {
    Input::chat(ROWS, MAX_TOKENS, 20_261_121)
}

pub(crate) fn spec(name: &str) -> JobSpec {
    JobSpec { max_batch_rows: 4, context_tokens: 256, ..control::spec(name, model()) }
}

/// The answers of one process with the whole model; made once for all cases.
async fn whole() -> &'static Answers {
    static ANSWERS: OnceCell<Answers> = OnceCell::const_new();
    ANSWERS
        .get_or_init(async || {
            let cluster = Cluster::builder("gangs-whole").agents(1).start().await;
            let input = input();
            let job = cluster.control().submit(spec("whole"), input.jsonl()).await;
            let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
            assert_eq!(job.mode(), Mode::Independent, "without a budget it fits");
            let answers = cluster.answers(&job, &input);
            cluster.finish().await;
            answers
        })
        .await
}

/// Two nodes that need one another, with these lines in section `[gangs]` and `more` sections.
pub(crate) fn builder(name: &str, gangs: &str, more: &str) -> ClusterBuilder {
    let config = format!(
        "[gangs]\n{gangs}settle_ms = 500\n\
         [jobs]\nprefill_step_tokens = 64\ncheckpoint_interval_ms = 300\n{more}"
    );
    Cluster::builder(name).agents(2).memory_budget_mib(BUDGET_MIB).config(&config)
}

/// Its end: every row once, with the answers of one process.
pub(crate) async fn end(cluster: &Cluster, job: &Job, input: &Input) -> Job {
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = cluster.answers(&job, input);
    assert_eq!(answers.succeeded(), input.len(), "every row is answered with 200");
    answers.assert_same_as(whole().await);
    wait::eventually("the ranks to end with their job", wait::SOON, async || {
        let left = cluster.workers();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    })
    .await;
    job
}

/// The process of a rank, when so many rows are done and the gang is amid others.
pub(crate) async fn a_rank_at_work(cluster: &Cluster, job: &Job, rank: u32, rows: u64) -> Seen {
    let busy = |job: &Job| {
        rows_done(job) >= rows
            && job.workers.len() == 2
            && job.workers.iter().any(|worker| worker.active_rows > 0)
    };
    let seen = cluster.control().wait_job(job.job_id, "a gang amid its rows", wait::LONG, busy).await;
    assert_eq!(seen.state(), JobState::Running);
    let worker = seen
        .workers
        .iter()
        .find(|worker| worker.worker.is_some_and(|id| id.rank == rank))
        .expect("a gang has this rank");
    let process = cluster.workers().into_iter().find(|process| process.pid == worker.pid);
    process.expect("its process is there")
}
