//! The controller goes away in the middle of a job: workers go on with what they hold, are adopted when it is back, and
//! what they finished meanwhile is delivered.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    time::Duration,
};

use nightshift_proto::v1::{Job, JobSpec};
use nightshift_tests::{
    cluster::{Cluster, ClusterBuilder},
    control, models, procfs,
    procfs::Seen,
    rows::Input,
    spools,
    suite::{Case, Need, case},
    wait,
};
use nix::sys::signal::Signal;

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("away::killed_and_restarted_the_controller_adopts_its_workers", NEEDS, killed),
        case("away::stopped_for_a_while_the_workers_go_on_and_the_spool_delivers", NEEDS, stopped),
        case("away::frozen_for_a_while_nothing_is_lost", NEEDS, frozen),
    ]
}

/// A job in the middle: two workers, both with rows.
struct Night {
    cluster: Cluster,
    input: Input,
    job: Job,
    workers: Vec<Seen>,
}

/// What was there when the controller had gone.
struct Absence {
    /// The results file.
    results: Vec<u8>,
    /// Rows that workers had finished, by node.
    finished: BTreeMap<String, Vec<u64>>,
}

impl Night {
    /// A job that runs for a while: long answers, and batches so small that rows are held behind them.
    async fn begin(name: &str, builder: ClusterBuilder) -> Self {
        let cluster = builder.agents(2).start().await;
        let input = Input::chat(80, 300, 7);
        let spec = JobSpec { max_batch_rows: 4, ..control::spec(name, models::llama()) };
        let job = cluster.control().submit(spec, input.jsonl()).await;
        cluster.control().wait_rows(job.job_id, 10).await;
        let at_work = |job: &Job| job.workers.iter().filter(|worker| worker.active_rows > 0).count() == 2;
        let job = cluster.control().wait_job(job.job_id, "both nodes at work", wait::SOON, at_work).await;
        let workers = cluster.workers();
        assert_eq!(pids(&job), workers.iter().map(|worker| worker.pid).collect());
        Self { cluster, input, job, workers }
    }

    /// Call it when the controller does nothing any more.
    fn absence(&self) -> Absence {
        Absence { results: results(&self.job), finished: self.cluster.finished_rows(&self.job) }
    }

    /// Each worker has finished rows since: they are in its agent's spool, and not in the results.
    async fn wait_rows_finished(&self, absence: &Absence) {
        let stored = spools::rows_of(&absence.results, self.job.job_id);
        wait::eventually("each node to finish rows on its own", wait::SOON, async || {
            let now = self.cluster.finished_rows(&self.job);
            let is_stored = |row: &u64| stored.contains(row);
            let more = absence
                .finished
                .iter()
                .all(|(node, before)| now[node].len() > before.len() && !now[node].iter().all(is_stored));
            if more { Ok(()) } else { Err(format!("{:?}, then {now:?}", absence.finished)) }
        })
        .await;
        assert_eq!(self.cluster.workers(), self.workers, "workers outlive the controller");
        assert_eq!(results(&self.job), absence.results, "nobody writes results without the controller");
    }

    async fn wait_adopted(&self) {
        let job = &self.job;
        let adopted = self
            .cluster
            .control()
            .wait_job(job.job_id, "its workers adopted", wait::SOON, |job| job.workers.len() == 2)
            .await;
        assert_eq!(pids(&adopted), pids(job), "the workers are the same processes as before");
        assert_eq!(self.cluster.workers(), self.workers);
    }

    /// Ends the job: all of it is there, what was finished in the absence too, and no worker was started again.
    async fn end(self) -> (Cluster, Job) {
        let Self { cluster, input, job, .. } = self;
        let done = cluster.control().wait_completed(job.job_id, wait::LONG).await;
        assert_eq!(cluster.answers(&done, &input).succeeded(), input.len());
        assert_eq!(done.epoch, 2, "one launch a node");
        let events = cluster.control().events(1000).await;
        let starts = events.iter().filter(|event| event.kind == "worker-starting").count();
        assert_eq!(starts, 2, "one start a node: {events:#?}");
        (cluster, done)
    }

    /// The same, and the absence has cost no row its work: nothing was generated a second time. (`duplicate_results` does
    /// not say so: a result whose acknowledgement was on its way when the controller ended is delivered again, dropped,
    /// and counted there.)
    async fn end_without_loss(self) {
        let (cluster, done) = self.end().await;
        assert_eq!(done.rows_requeued, 0, "no row was taken back");
        cluster.assert_generated_once(&done);
        cluster.finish().await;
    }
}

async fn killed() {
    let mut night = Night::begin("away-killed", Cluster::builder("away-killed")).await;
    night.cluster.kill_controller().await;
    let absence = night.absence();
    night.wait_rows_finished(&absence).await;
    night.cluster.start_controller().await;
    night.wait_adopted().await;
    night.end_without_loss().await;
}

async fn stopped() {
    let mut night = Night::begin("away-stopped", Cluster::builder("away-stopped")).await;
    // While it closes its ledger the workers go on, and may finish all that they hold.
    let finished = night.absence().finished;
    night.cluster.stop_controller().await;
    let absence = Absence { finished, ..night.absence() };
    tokio::time::sleep(away()).await;
    night.wait_rows_finished(&absence).await;
    night.cluster.start_controller().await;
    night.wait_adopted().await;
    night.end_without_loss().await;
}

/// A controller that could not run for a while may well believe its nodes silent and give their rows to others; what it
/// must not do is lose or double one.
async fn frozen() {
    let silent = "WARN no word from n* for 5 s; its * rows were handed out again; it is taken back when it returns \
                  kind=\"node-silent\"";
    // Only in a long absence: the agents give the connection up and dial anew.
    let no_hello = "WARN nightshift_agent::session: no session with the controller; trying again error=\"the controller did \
                    not answer the Hello in time\"";
    // A grant that was on its way when an agent gave the connection up reaches nobody.
    let lost_grant =
        "WARN * rows of j1 were lost with a worker on n* and are handed out again * kind=\"rows-requeued\"";
    let builder = Cluster::builder("away-frozen").allow(&[silent, no_hello, lost_grant]);
    let mut night = Night::begin("away-frozen", builder).await;
    let controller = night.cluster.controller_mut();
    controller.signal(Signal::SIGSTOP);
    wait::until("the controller to stand still", wait::SOON, || procfs::is_stopped(controller.pid())).await;
    let absence = night.absence();
    tokio::time::sleep(away()).await;
    night.wait_rows_finished(&absence).await;
    night.cluster.controller_mut().signal(Signal::SIGCONT);
    night.end().await.0.finish().await;
}

fn pids(job: &Job) -> BTreeSet<u32> {
    job.workers.iter().map(|worker| worker.pid).collect()
}

fn results(job: &Job) -> Vec<u8> {
    fs::read(&job.results_path).expect("a running job has a results file")
}

/// How long the controller stays away.
fn away() -> Duration {
    let seconds = env::var("NIGHTSHIFT_AWAY_S").map_or(10, |text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds)
}
