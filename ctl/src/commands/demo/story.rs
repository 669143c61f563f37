//! The demo from beginning to end.

use std::time::Duration;

use nightshift_proto::v1;
use tokio::time::{Instant, sleep};

use super::{
    Plan,
    cluster::{Cluster, Patience},
    outcome::{ControllerFault, Outcome, WorkerFault},
    rows,
    stage::Stage,
};
use crate::{
    client::Client,
    commands::submit::{submission_id, upload},
    error::{Error, Result},
    output::{
        human,
        text::{clean, list, plural, sentence},
        units,
        views::{JobView, WorkerView},
    },
};

/// Rows a worker generates together in the demo: fewer than the default, so that rows end in several waves and there is
/// something to interrupt.
const BATCH_ROWS: u32 = 4;

/// How long nothing at all may move. Loading a tiny model takes seconds; one that has to be fetched first, many minutes.
const STALL_LIMIT: Duration = Duration::from_secs(120);
const FETCH_STALL_LIMIT: Duration = Duration::from_secs(1_800);

/// For the cluster to answer a fault. It does within seconds; a loaded machine may take longer.
const RECOVERY_LIMIT: Duration = Duration::from_secs(90);

/// How long the controller stays dead, so that one sees what the workers do without it.
const CONTROLLER_AWAY: Duration = Duration::from_secs(2);

/// How long to wait, once the controller is back, for rows that were finished while it was away; there may be none.
const SPOOL_WAIT: Duration = Duration::from_secs(3);

/// Plays everything; the cluster still runs when it returns.
pub(super) async fn tell(plan: &Plan, cluster: &mut Cluster, stage: &mut Stage<'_>) -> Result<Outcome> {
    stage.say(&format!("A controller and two agents on this machine, in {}.", plan.dir.display()))?;
    runtime(cluster, stage).await?;
    let model = model(plan, cluster, stage).await?;

    let mut client = cluster.start_controller().await?;
    stage.done(&format!("The controller serves at {}.", cluster.address()))?;
    cluster.start_agents(&mut client).await?;
    stage.done("The agents demo-1 and demo-2 are ready for work.")?;
    let (job_id, rows) = submit(plan, &model, &mut client, stage).await?;

    let limit = if plan.model.is_some() { FETCH_STALL_LIMIT } else { STALL_LIMIT };
    let mut night =
        Night { client, cluster, stage, job_id, patience: Patience::new(limit), last_seen: String::new() };
    let (mut worker_fault, mut controller_fault) = (None, None);
    if plan.faults {
        let job = night.until(|job| is_past(job, 1, 3)).await?;
        worker_fault = night.kill_worker(&job).await?;
        let job = night.until(|job| is_past(job, 2, 3)).await?;
        controller_fault = night.kill_controller(&job).await?;
    }
    let job = night.until(|_| false).await?;
    stage.show(&job)?;
    stage.done(&human::jobs::job_sentence(&job))?;
    Outcome::read(plan, job, rows, worker_fault, controller_fault)
}

async fn runtime(cluster: &Cluster, stage: &mut Stage<'_>) -> Result<()> {
    let programs = cluster.programs();
    let mut runtime = programs.check_runtime().await?;
    if !runtime.ready {
        let why =
            runtime.problem.as_deref().map(|problem| format!(" ({})", clean(problem))).unwrap_or_default();
        stage.say(&format!(
            "The Python runtime is not there yet{why}. Installing it, once for all clusters of this user: about 350 MB, a minute or so."
        ))?;
        programs.install_runtime(stage.output()).await?;
        runtime = programs.check_runtime().await?;
        if !runtime.ready {
            return Err(Error::local_hint(
                format!(
                    "The Python runtime was installed, but is not usable: {}",
                    sentence(runtime.problem.as_deref().unwrap_or("it does not say why"))
                ),
                "See: cluster-agent runtime check",
            ));
        }
    }
    let mlx = runtime.mlx_version.map(|version| format!(" with MLX {version}")).unwrap_or_default();
    let place = runtime.python.map(|python| format!(": {python}")).unwrap_or_default();
    stage.done(&format!("The Python runtime is ready{mlx}{place}."))
}

async fn model(plan: &Plan, cluster: &Cluster, stage: &mut Stage<'_>) -> Result<String> {
    if let Some(model) = &plan.model {
        stage.done(&format!("The model is {model}."))?;
        return Ok(model.clone());
    }
    let dir = plan.dir.join("tiny-model");
    cluster.programs().make_tiny_model(&dir).await?;
    stage.done("Made a tiny model: a real tokenizer, random weights. Its answers will be noise.")?;
    Ok(dir.to_string_lossy().into_owned())
}

/// Writes the rows to a file and submits it, as a person would.
async fn submit(plan: &Plan, model: &str, client: &mut Client, stage: &mut Stage<'_>) -> Result<(u64, u64)> {
    let file = plan.dir.join("rows.jsonl");
    let rows = rows::write(plan, model, &file)?;
    let spec = v1::JobSpec {
        name: "demo".to_owned(),
        model: model.to_owned(),
        max_batch_rows: BATCH_ROWS,
        submission_id: submission_id()?,
        ..v1::JobSpec::default()
    };
    let source = upload::Source::open(&file)?;
    let reply = upload::upload(client, spec, &source, None, stage.output()).await?;
    match reply.outcome {
        Some(v1::submit_reply::Outcome::Accepted(job)) => {
            stage.done(&format!("Submitted job j{} with {}.", job.job_id, plural(rows, "row", "rows")))?;
            Ok((job.job_id, rows))
        }
        Some(v1::submit_reply::Outcome::Rejected(rejection)) => {
            let first = rejection.errors.first().map(|e| format!("line {}: {}", e.line, e.problem));
            Err(Error::local(format!(
                "The controller refused the demo's rows: {}",
                sentence(first.as_deref().unwrap_or(&rejection.problem))
            )))
        }
        None => Err(Error::local("The controller's answer to the submission says neither yes nor no.")),
    }
}

/// Whether `part` / `of` of the rows are done.
fn is_past(job: &JobView, part: u64, of: u64) -> bool {
    job.rows_done() * of >= job.rows_total * part
}

/// The job while it runs.
struct Night<'s, 'a> {
    client: Client,
    cluster: &'s mut Cluster,
    stage: &'s mut Stage<'a>,
    job_id: u64,
    patience: Patience,
    last_seen: String,
}

impl Night<'_, '_> {
    /// Looks at the job and shows it.
    async fn look(&mut self) -> Result<JobView> {
        self.cluster.check_alive()?;
        let job = JobView::from(self.client.job(self.job_id).await?);
        self.stage.show(&job)?;
        let workers: Vec<_> = job.workers.iter().map(|w| (w.pid, w.phase, w.held_rows)).collect();
        let seen = format!("{} {} {workers:?}", job.state, job.rows_done());
        if seen != self.last_seen || job.tokens_per_s > 0.0 {
            self.last_seen = seen;
            self.patience.renew();
        }
        match job.state {
            "failed" | "cancelled" | "cancelling" | "paused" => {
                Err(Error::local(human::jobs::job_sentence(&job)))
            }
            _ => Ok(job),
        }
    }

    /// Looks until the job is as wanted, or has ended.
    async fn until(&mut self, wanted: impl Fn(&JobView) -> bool) -> Result<JobView> {
        loop {
            let job = self.look().await?;
            if job.is_finished() || wanted(&job) {
                return Ok(job);
            }
            let done = job.rows_done();
            self.patience
                .pause(|| format!("The job stands still at {} and did not move", plural(done, "row", "rows")))
                .await?;
        }
    }

    /// Kills the busiest worker and waits for another in its place.
    async fn kill_worker(&mut self, job: &JobView) -> Result<Option<WorkerFault>> {
        let victim =
            job.workers.iter().filter(|w| w.pid.is_some()).max_by_key(|w| (w.active_rows, w.held_rows));
        let (Some(victim), false) = (victim.cloned(), job.is_finished()) else {
            self.stage.say("The job ended before a worker could be killed; try more rows: --rows 200")?;
            return Ok(None);
        };
        let pid = match self.cluster.kill_worker(&victim) {
            Ok(pid) => pid,
            Err(e) => {
                self.stage.say(&format!("No worker was killed: {e}"))?;
                return Ok(None);
            }
        };
        let killed = Instant::now();
        self.stage.harm(&format!(
            "Killed the worker on {} (SIGKILL, process {pid}) with {} of {} done; it held {}.",
            victim.node,
            units::count(job.rows_done()),
            plural(job.rows_total, "row", "rows"),
            plural(victim.held_rows.into(), "row", "rows"),
        ))?;

        let mut noticed_ms = None;
        let patience = Patience::new(RECOVERY_LIMIT);
        let (now, successor) = loop {
            let now = self.look().await?;
            if noticed_ms.is_none() && now.workers.iter().all(|w| w.pid != Some(pid)) {
                noticed_ms = Some(ms_since(killed));
            }
            let successor =
                now.workers.iter().find(|w| w.node == victim.node && w.pid.is_some_and(|new| new != pid));
            if successor.is_some() || now.is_finished() {
                let successor = successor.cloned();
                break (now, successor);
            }
            let node = victim.node.clone();
            patience.pause(|| format!("There was no new worker on {node}")).await?;
        };
        let replaced_ms = successor.is_some().then(|| ms_since(killed));
        let rows_requeued = now.rows_requeued.saturating_sub(job.rows_requeued);
        let again = format!("{} handed out again", plural(rows_requeued, "row was", "rows were"));
        self.stage.done(&match (&successor, replaced_ms) {
            (Some(new), Some(ms)) => format!(
                "Survived: noticed within {}, {again}, and after {} a new worker (process {}) was in its place. {} finished meanwhile.",
                units::duration(noticed_ms.unwrap_or(ms)),
                units::duration(ms),
                new.pid.unwrap_or(0),
                plural(now.rows_done() - job.rows_done(), "row", "rows"),
            ),
            _ => format!("Survived: {again}, and the other worker finished the job."),
        })?;
        Ok(Some(WorkerFault {
            node: victim.node,
            pid,
            rows_done: job.rows_done(),
            rows_held: victim.held_rows,
            noticed_ms,
            rows_requeued,
            new_pid: successor.and_then(|w| w.pid),
            replaced_ms,
        }))
    }

    /// Kills the controller, lets it stay dead for a moment, starts it again on the same port.
    async fn kill_controller(&mut self, job: &JobView) -> Result<Option<ControllerFault>> {
        let before = if job.is_finished() { job.clone() } else { self.look().await? };
        if before.is_finished() {
            self.stage
                .say("The job ended before the controller could be killed; try more rows: --rows 200")?;
            return Ok(None);
        }
        let Some(pid) = self.cluster.kill_controller().await else { return Ok(None) };
        let killed = Instant::now();
        let workers_before: Vec<WorkerView> =
            before.workers.iter().filter(|w| w.pid.is_some()).cloned().collect();
        self.stage.harm(&format!(
            "Killed the controller (SIGKILL, process {pid}) with {} of {} done. The workers go on without it.",
            units::count(before.rows_done()),
            plural(before.rows_total, "row", "rows"),
        ))?;
        sleep(CONTROLLER_AWAY).await;
        self.client = self.cluster.start_controller().await?;
        let away_ms = ms_since(killed);
        let returned = Instant::now();

        let patience = Patience::new(RECOVERY_LIMIT);
        let known_before = self.look().await?.rows_done();
        let (now, adopted) = loop {
            let now = self.look().await?;
            let adopted: Vec<WorkerView> = workers_before
                .iter()
                .filter(|old| now.workers.iter().any(|w| w.pid == old.pid && w.node == old.node))
                .cloned()
                .collect();
            // The workers are seen before what they finished meanwhile has been sent.
            let is_told = now.rows_done() > before.rows_done() || returned.elapsed() > SPOOL_WAIT;
            if (adopted.len() == workers_before.len() && is_told) || now.is_finished() {
                break (now, adopted);
            }
            patience.pause(|| "The workers were not adopted by the new controller".to_owned()).await?;
        };
        if known_before < before.rows_done() {
            return Err(Error::local(format!(
                "The controller came back with {known_before} finished rows, but {} were finished before.",
                before.rows_done()
            )));
        }
        let meanwhile = now.rows_done().saturating_sub(before.rows_done());
        let workers = if now.is_finished() {
            format!("and the workers have finished the other {} meanwhile", plural(meanwhile, "row", "rows"))
        } else {
            let same: Vec<String> =
                adopted.iter().map(|w| format!("{} on {}", w.pid.unwrap_or(0), w.node)).collect();
            let in_now = match meanwhile {
                0 => String::new(),
                1 => ", and 1 row that finished meanwhile is in".to_owned(),
                n => format!(", and {n} rows that finished meanwhile are in"),
            };
            format!("the workers are the same processes as before ({}){in_now}", list(&same))
        };
        self.stage.done(&format!(
            "Survived: back on the same port after {}, it remembers all {}, {workers}.",
            units::duration(away_ms),
            plural(before.rows_done(), "finished row", "finished rows"),
        ))?;
        Ok(Some(ControllerFault {
            pid,
            rows_done: before.rows_done(),
            away_ms,
            rows_finished_meanwhile: meanwhile,
            workers_before: workers_before.iter().filter_map(|w| w.pid).collect(),
            workers_adopted: adopted.iter().filter_map(|w| w.pid).collect(),
        }))
    }
}

fn ms_since(moment: Instant) -> u64 {
    u64::try_from(moment.elapsed().as_millis()).unwrap_or(u64::MAX)
}
