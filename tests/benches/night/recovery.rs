//! How soon faults are seen, and how soon the night goes on: real workers, real links.
//!
//! Moments of notice are those of the controller's own events, which have the clock of this machine, as the strikes have.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nightshift_proto::v1::{Event, Incident, Job, JobSpec, Mode};
use nightshift_tests::{
    cluster::{Cluster, ClusterBuilder},
    control::{self, rows_done},
    models,
    netns::Net,
    process,
    rows::Input,
    wait,
};
use nix::sys::signal::Signal;

use crate::table::{Bound, Table, median};

/// So small that reading prompts and their checkpoints again takes next to nothing: that is the model's time, not ours.
const SHAPE: &[&str] = &["--dtype", "float32"];

/// `[jobs] checkpoint_interval_ms`: so short that several pass between two strikes.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(1_000);

/// More than the jobs of a part can use up; what is left is cancelled.
const ROWS: usize = 50_000;

const MAX_TOKENS: u32 = 100;

pub(crate) async fn measure(table: &mut Table, quick: bool) {
    let trials = if quick { 2 } else { 20 };
    workers(table, trials).await;
    controller(table, trials).await;
    links(table, trials).await;
    hangs(table, if quick { 1 } else { 20 }).await;
    silence(table, trials).await;
}

fn builder(name: &str) -> ClusterBuilder {
    let config = format!(
        "[gangs]\nnetworks = [\"{}\"]\nsettle_ms = 500\nlink_settle_ms = 200\n\
         [jobs]\ncheckpoint_interval_ms = {}\n\
         [recovery]\nstop_grace_ms = 2000\nfailures_before_pause = 1000\nmost_settle_ms = 500\nrestart_base_ms = 100\n\
         restart_cap_ms = 200\n",
        Net::ADDRESSES,
        CHECKPOINT_INTERVAL.as_millis()
    );
    Cluster::builder(&format!("bench-{name}")).config(&config).allow(&["WARN *", "ERROR *"])
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right");
    u64::try_from(since.as_millis()).expect("a time of this age")
}

async fn event_since(cluster: &Cluster, kind: &str, since_ms: u64) -> Event {
    // A trial that takes long is a figure, and not the end of the benchmark.
    wait::eventually(&format!("an event {kind}"), wait::LONG, async || {
        let events = cluster.control().events(200).await;
        let found = events.into_iter().find(|event| event.kind == kind && event.unix_ms >= since_ms);
        found.ok_or_else(|| "none".to_owned())
    })
    .await
}

async fn at_work(cluster: &Cluster, job_id: u64, workers: usize, done: u64) -> Job {
    let is_so = |job: &Job| {
        rows_done(job) > done
            && job.workers.len() == workers
            && job
                .workers
                .iter()
                .filter(|worker| worker.worker.is_some_and(|id| id.rank == 0))
                .all(|lead| lead.active_rows > 0 && lead.tokens_per_s > 0.0)
    };
    cluster.control().wait_job(job_id, "all workers amid their rows", wait::LONG, is_so).await
}

async fn submit(cluster: &Cluster, name: &str, mode: Mode) -> Job {
    let spec = JobSpec {
        mode: mode.into(),
        max_batch_rows: 4,
        context_tokens: 512,
        ..control::spec(name, models::tiny("llama", SHAPE))
    };
    cluster.control().submit(spec, Input::chat(ROWS, MAX_TOKENS, 5).jsonl()).await
}

async fn finish(cluster: Cluster, job: &Job) {
    cluster.control().cancel(job.job_id, true).await;
    cluster.finish().await;
}

/// The longest time to a first token without loading, of all incidents of these faults.
async fn longest_to_first_token(cluster: &Cluster, faults: &[&str]) -> (f64, usize) {
    let incidents: Vec<Incident> = cluster.control().status().await.incidents;
    let times = incidents.iter().filter(|incident| faults.contains(&incident.fault.as_str()));
    let times: Vec<u64> =
        times.filter_map(|i| Some(i.first_token_after_ms?.saturating_sub(i.start_ms.unwrap_or(0)))).collect();
    (times.iter().max().copied().unwrap_or(u64::MAX) as f64 / 1e3, times.len())
}

/// A worker is killed: seen, and generating again. One node, so that nobody else goes on.
async fn workers(table: &mut Table, trials: usize) {
    let cluster = builder("workers").agents(1).start().await;
    let job = submit(&cluster, "workers", Mode::Independent).await;
    let (mut seen, mut done) = (Vec::new(), 0);
    let mut speed = 0.0_f64;
    for _ in 0..trials {
        let now = at_work(&cluster, job.job_id, 1, done).await;
        speed = speed.max(now.tokens_per_s);
        done = rows_done(&now);
        let struck = now_ms();
        process::send(now.workers[0].pid, Signal::SIGKILL);
        let event = event_since(&cluster, "worker-exited", struck).await;
        seen.push((event.unix_ms.saturating_sub(struck)) as f64);
    }
    let _ = at_work(&cluster, job.job_id, 1, done).await;
    table.add("recovery: worker crash seen, median", median(&mut seen), "ms", Bound::AtMost(100.0));
    let (longest, _) = longest_to_first_token(&cluster, &["worker-exited"]).await;
    table.add(
        "recovery: from there to the first token less start, longest",
        longest,
        "s",
        Bound::AtMost(2.0),
    );
    let incidents = cluster.control().incidents("worker-exited").await;
    let lost: u64 = incidents.iter().map(|incident| incident.tokens_lost).sum();
    let interval = speed * CHECKPOINT_INTERVAL.as_secs_f64() * trials as f64;
    table.add(
        "recovery: tokens generated twice, of a checkpoint interval's",
        lost as f64 / interval,
        "x",
        Bound::AtMost(1.0),
    );
    finish(cluster, &job).await;
}

/// The controller is killed again and again: nobody notices.
async fn controller(table: &mut Table, trials: usize) {
    let mut cluster = builder("controller").agents(2).start().await;
    let job = submit(&cluster, "controller", Mode::Independent).await;
    let before = at_work(&cluster, job.job_id, 2, 0).await;
    let pids = |job: &Job| job.workers.iter().map(|worker| worker.pid).collect::<BTreeSet<u32>>();
    let mut done = rows_done(&before);
    for _ in 0..trials {
        cluster.kill_controller().await;
        cluster.start_controller().await;
        done = rows_done(&at_work(&cluster, job.job_id, 2, done).await);
    }
    let after = cluster.control().job(job.job_id).await;
    let restarted = pids(&before).difference(&pids(&after)).count();
    table.add("recovery: workers started anew for a controller", restarted as f64, "", Bound::AtMost(0.0));
    let again = after.rows_requeued as f64;
    table.add("recovery: rows given out again for a controller", again, "", Bound::AtMost(0.0));
    // `duplicate_results` does not tell: an answer that was stored, and not acknowledged before the kill, is sent again.
    cluster.assert_generated_once(&after);
    finish(cluster, &job).await;
}

/// A cable is pulled from a gang: seen, and generating again with whole models.
async fn links(table: &mut Table, trials: usize) {
    let cluster = builder("links").agents(2).on_a_net().start().await;
    let (mut seen, mut firsts) = (Vec::new(), Vec::new());
    for trial in 0..trials {
        let job = submit(&cluster, &format!("links-{trial}"), Mode::Pipeline).await;
        let is_gang = |job: &Job| job.mode() == Mode::Pipeline && rows_done(job) > 0;
        cluster.control().wait_job(job.job_id, "a gang at work", wait::LONG, is_gang).await;
        let struck = now_ms();
        cluster.net().cut("n2");
        let event = event_since(&cluster, "link-down", struck).await;
        seen.push(event.unix_ms.saturating_sub(struck) as f64 / 1e3);
        let of_job = wait::eventually("the first token after it", wait::SOON, async || {
            let incidents = cluster.control().incidents("link-down").await;
            let this = incidents.into_iter().find(|incident| incident.job_id == job.job_id);
            this.filter(|incident| incident.first_token_after_ms.is_some()).ok_or_else(|| "none".to_owned())
        })
        .await;
        let after_ms = of_job.first_token_after_ms.unwrap_or(0).saturating_sub(of_job.start_ms.unwrap_or(0));
        firsts.push(after_ms as f64 / 1e3);
        cluster.net().heal("n2");
        cluster.control().cancel(job.job_id, true).await;
        let over = |job: &Job| job.workers.is_empty() && job.finished_unix_ms > 0;
        cluster.control().wait_job(job.job_id, "its end", wait::LONG, over).await;
    }
    table.add("recovery: carrier loss seen, median", median(&mut seen), "s", Bound::AtMost(1.0));
    let first = median(&mut firsts);
    table.add("recovery: from there to the first token less start, median", first, "s", Bound::AtMost(2.0));
    cluster.finish().await;
}

/// A rank stops.
async fn hangs(table: &mut Table, trials: usize) {
    let cluster = builder("hangs").agents(2).on_a_net().start().await;
    let job = submit(&cluster, "hangs", Mode::Pipeline).await;
    let (mut seen, mut done) = (Vec::new(), 0);
    let _ = at_work(&cluster, job.job_id, 2, done).await;
    // As many reports as make known how long its steps take.
    tokio::time::sleep(Duration::from_secs(12)).await;
    for _ in 0..trials {
        let now = at_work(&cluster, job.job_id, 2, done + 3).await;
        done = rows_done(&now);
        let rank = now.workers.iter().find(|worker| worker.worker.is_some_and(|id| id.rank == 1));
        let struck = now_ms();
        process::send(rank.expect("a gang has it").pid, Signal::SIGSTOP);
        let event = event_since(&cluster, "worker-silent", struck).await;
        seen.push(event.unix_ms.saturating_sub(struck) as f64 / 1e3);
    }
    table.add("recovery: hung rank seen, median", median(&mut seen), "s", Bound::AtMost(10.0));
    finish(cluster, &job).await;
}

/// A node is off the net: no way to the controller, and none to the others.
async fn silence(table: &mut Table, trials: usize) {
    let mut cluster = builder("silence").agents(2).on_a_net().start().await;
    let job = submit(&cluster, "silence", Mode::Independent).await;
    let (mut seen, mut done) = (Vec::new(), 0);
    for _ in 0..trials {
        done = rows_done(&at_work(&cluster, job.job_id, 2, done).await);
        let struck = now_ms();
        cluster.net().cut("n2");
        cluster.cut_off("n2");
        let event = event_since(&cluster, "node-silent", struck).await;
        seen.push(event.unix_ms.saturating_sub(struck) as f64 / 1e3);
        cluster.net().heal("n2");
        cluster.let_back("n2");
    }
    table.add("recovery: silent node seen, median", median(&mut seen), "s", Bound::AtMost(5.0));
    finish(cluster, &job).await;
}
