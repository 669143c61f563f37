//! The controller goes away in the middle of a job: workers go on with what they hold, are adopted when it is back, and
//! what they finished meanwhile is delivered.

use std::{
    collections::BTreeSet,
    env,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nightshift_proto::v1::{Job, JobSpec};
use nightshift_tests::{
    answers::Answers,
    cluster::Cluster,
    control, models, procfs,
    procfs::Seen,
    rows::Input,
    suite::{Case, Need, case},
    wait,
};
use nix::sys::signal::Signal;

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux];

/// What agents may say of a controller that is not there.
const EXPECTED: &[&str] = &["controller", "session"];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("away::killed_and_restarted_the_controller_adopts_its_workers", NEEDS, killed),
        case("away::stopped_for_a_while_the_workers_go_on_and_the_spool_delivers", NEEDS, stopped),
        case("away::frozen_for_a_while_nothing_is_lost", NEEDS, frozen),
    ]
}

/// A job that runs for a while: long answers, and batches so small that rows are held behind them.
async fn begin(name: &str) -> (Cluster, Job, Input) {
    let cluster = Cluster::builder(name).agents(2).allow(EXPECTED).start().await;
    let input = Input::chat(120, 300, 7);
    let spec = JobSpec { max_batch_rows: 4, ..control::spec(name, models::llama()) };
    let job = cluster.control().submit(spec, input.jsonl()).await;
    cluster.control().wait_rows(job.job_id, 10).await;
    let job = cluster
        .control()
        .wait_job(job.job_id, "both nodes at work", wait::SOON, |job| job.workers.len() == 2)
        .await;
    (cluster, job, input)
}

/// Ends the job and checks that all of it is there.
async fn end(cluster: &Cluster, job: &Job, input: &Input) -> (Job, Answers) {
    let done = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = cluster.answers(&done, input);
    assert_eq!(answers.succeeded(), input.len());
    (done, answers)
}

/// The absence has cost nothing: no launch, no row given or answered twice.
fn assert_nothing_repeated(job: &Job, done: &Job, before: &[Seen]) {
    assert_eq!(done.epoch, job.epoch, "no worker was launched again");
    assert_eq!(done.rows_requeued, 0, "no row was given twice");
    assert_eq!(done.duplicate_results, 0, "no row was answered twice");
    let pids: BTreeSet<u32> = before.iter().map(|worker| worker.pid).collect();
    let named: BTreeSet<u32> = job.workers.iter().map(|worker| worker.pid).collect();
    assert_eq!(pids, named, "the controller names the processes that work");
}

async fn killed() {
    let (mut cluster, job, input) = begin("away-killed").await;
    let before = cluster.workers();
    cluster.kill_controller().await;
    let down = unix_s();
    wait_held_rows_worked_on(&before).await;
    let up = unix_s();
    assert_eq!(cluster.workers(), before, "workers outlive the controller");
    cluster.start_controller().await;
    let adopted = cluster
        .control()
        .wait_job(job.job_id, "its workers adopted", wait::SOON, |job| job.workers.len() == 2)
        .await;
    let pids = |job: &Job| job.workers.iter().map(|worker| worker.pid).collect::<BTreeSet<_>>();
    assert_eq!(pids(&adopted), pids(&job), "the workers are the same processes as before");
    assert_eq!(cluster.workers(), before);
    let (done, answers) = end(&cluster, &job, &input).await;
    assert_nothing_repeated(&job, &done, &before);
    assert_answered_between(&answers, down, up);
    cluster.finish().await;
}

async fn stopped() {
    let (mut cluster, job, input) = begin("away-stopped").await;
    let before = cluster.workers();
    cluster.stop_controller().await;
    let down = unix_s();
    tokio::time::sleep(away()).await;
    let up = unix_s();
    assert_eq!(cluster.workers(), before, "workers outlive the controller");
    cluster.start_controller().await;
    let (done, answers) = end(&cluster, &job, &input).await;
    assert_nothing_repeated(&job, &done, &before);
    assert_answered_between(&answers, down, up);
    cluster.finish().await;
}

/// A controller that could not run for a while may well believe its nodes silent and give their rows to others; what it
/// must not do is lose or double one.
async fn frozen() {
    let (mut cluster, job, input) = begin("away-frozen").await;
    cluster.allow(&["node", "worker"]);
    cluster.controller_mut().signal(Signal::SIGSTOP);
    let down = unix_s();
    tokio::time::sleep(away()).await;
    let up = unix_s();
    cluster.controller_mut().signal(Signal::SIGCONT);
    let (_, answers) = end(&cluster, &job, &input).await;
    assert_answered_between(&answers, down, up);
    cluster.finish().await;
}

/// Waits until the workers have used a second of processor time since now: they do not stand still.
async fn wait_held_rows_worked_on(workers: &[Seen]) {
    let used = || workers.iter().filter_map(|worker| procfs::cpu_time(worker.pid)).sum::<Duration>();
    let start = used();
    wait::until("the workers to go on without the controller", wait::SOON, || {
        used() >= start + Duration::from_millis(1500)
    })
    .await;
}

/// Some rows were finished strictly while the controller was away, and are there.
fn assert_answered_between(answers: &Answers, down: u64, up: u64) {
    let meanwhile =
        answers.iter().filter(|(_, answer)| (down + 1..=up).contains(&answer.created_unix_s())).count();
    assert!(meanwhile > 0, "no row was finished between {down} and {up}, while the controller was away");
}

/// How long the controller stays away.
fn away() -> Duration {
    let seconds = env::var("NIGHTSHIFT_AWAY_S").map_or(10, |text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds)
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
