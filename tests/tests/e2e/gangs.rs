//! A model that fits no node runs sharded over several: chosen by itself, with the very answers of one process, whatever
//! rank is killed or hangs.

use nightshift_proto::v1::{Job, JobSpec, Mode};
use nightshift_tests::{
    cluster::ClusterBuilder,
    control::rows_done,
    process,
    suite::{Case, Need, case},
    wait,
};
use nix::sys::signal::Signal;

use crate::sharded::{self, GANG_LOST, ONE_AT_A_TIME, a_rank_at_work, end, input, model, spec};

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("gangs::what_fits_no_node_is_sharded_and_answers_the_same", NEEDS, sharded),
        case("gangs::tensor_is_done_where_it_is_asked_for", NEEDS, tensor),
        case("gangs::a_killed_rank_costs_a_gang_and_no_row", NEEDS, killed),
        case("gangs::a_stopped_rank_takes_its_gang_down_and_the_job_goes_on", NEEDS, stopped),
        case("gangs::a_restarted_controller_adopts_a_gang", NEEDS, adopted),
        case("gangs::a_gang_that_wakes_up_after_its_successor_started_commits_nothing", NEEDS, woken),
    ]
}

/// Ports of its own for each case: they run at the same time on one machine.
fn builder(name: &str, case: u16, more: &str) -> ClusterBuilder {
    let first_port = 21_000 + 200 * case;
    let gangs = format!("networks = [\"127.0.0.0/8\"]\nfirst_port = {first_port}\nports = 200\n");
    sharded::builder(name, &gangs, more)
}

async fn sharded() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let cluster = builder("gangs-sharded", 0, "").start().await;
    let input = input();
    let plan = cluster
        .ctl(&["plan", "--model", &model().to_string_lossy(), "--context", "256", "--rows", "4"])
        .await;
    assert!(plan.stdout.contains("pipeline over 2 nodes"), "{plan:#?}");
    let job = cluster.control().submit(spec("sharded"), input.jsonl()).await;
    let what = "both ranks at work";
    let at_work = |job: &Job| job.workers.len() == 2 && rows_done(job) > 0;
    let seen = cluster.control().wait_job(job.job_id, what, wait::LONG, at_work).await;
    assert_eq!(seen.mode(), Mode::Pipeline);
    let ranks: Vec<u32> = seen.workers.iter().filter_map(|worker| Some(worker.worker?.rank)).collect();
    assert_eq!(ranks, [0, 1], "rank 0 is on the first of two equal nodes");
    let reasons = seen.plan_reasons.join("\n");
    for part in
        ["a pipeline over 2 nodes", "no node holds it whole", "ring (TCP on one machine)", "n2: layers 0 to "]
    {
        assert!(reasons.contains(part), "{part} in\n{reasons}");
    }
    let job = end(&cluster, &job, &input).await;
    assert_eq!((job.epoch, job.rows_requeued), (1, 0), "one gang did it all");
    cluster.finish().await;
}

async fn tensor() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let cluster = builder("gangs-tensor", 1, "").start().await;
    let input = input();
    let asked = JobSpec { mode: Mode::Tensor.into(), ..spec("tensor") };
    let job = cluster.control().submit(asked, input.jsonl()).await;
    let job = end(&cluster, &job, &input).await;
    assert_eq!((job.mode(), job.epoch), (Mode::Tensor, 1));
    cluster.finish().await;
}

async fn killed() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let cluster = builder("gangs-killed", 2, "").expect(&[GANG_LOST]).start().await;
    let input = input();
    let job = cluster.control().submit(spec("killed"), input.jsonl()).await;
    for (rank, rows) in [(1, 3), (0, 8)] {
        let victim = a_rank_at_work(&cluster, &job, rank, rows).await;
        process::send(victim.pid, Signal::SIGKILL);
        let incidents = usize::from(rank == 0) + 1;
        wait::eventually("an incident a gang", wait::SOON, async || {
            let found = cluster.control().incidents("worker-exited").await;
            if nightshift_tests::control::times(&found) == incidents {
                Ok(())
            } else {
                Err(format!("{found:#?}"))
            }
        })
        .await;
    }
    let job = end(&cluster, &job, &input).await;
    assert_eq!(job.epoch, 3, "a gang after each strike");
    assert!(job.rows_requeued > 0);
    cluster.finish().await;
}

async fn stopped() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let silent =
        "WARN the worker of j1 on n* (epoch 1) took no step for * s; it is ended kind=\"worker-silent\"";
    let ended = "WARN the worker of j1 on n* was ended by SIGKILL*kind=\"worker-silent\"";
    let told =
        "WARN the worker of j1 on n* took no step, and ended when it was told to*kind=\"worker-silent\"";
    let config = "[recovery]\nstep_budget_ms = 10000\nstop_grace_ms = 1000\n";
    let cluster =
        builder("gangs-stopped", 3, config).expect(&[silent]).allow(&[ended, told, GANG_LOST]).start().await;
    let input = input();
    let job = cluster.control().submit(spec("stopped"), input.jsonl()).await;
    let victim = a_rank_at_work(&cluster, &job, 1, 3).await;
    process::send(victim.pid, Signal::SIGSTOP);
    let job = end(&cluster, &job, &input).await;
    assert_eq!(job.epoch, 2, "the gang after it did the rest");
    cluster.finish().await;
}

async fn adopted() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut cluster = builder("gangs-adopted", 4, "").start().await;
    let input = input();
    let job = cluster.control().submit(spec("adopted"), input.jsonl()).await;
    let _ = a_rank_at_work(&cluster, &job, 0, 3).await;
    let before: Vec<u32> = cluster.workers().iter().map(|worker| worker.pid).collect();
    cluster.kill_controller().await;
    cluster.start_controller().await;
    let whole = |job: &Job| job.workers.len() == 2;
    let seen = cluster.control().wait_job(job.job_id, "both ranks to be adopted", wait::SOON, whole).await;
    let after: Vec<u32> = seen.workers.iter().map(|worker| worker.pid).collect();
    assert!(after.iter().all(|pid| before.contains(pid)), "the same processes: {before:?}, {after:?}");
    let job = end(&cluster, &job, &input).await;
    assert_eq!((job.epoch, job.rows_requeued), (1, 0), "it costs no token");
    cluster.finish().await;
}

/// Node n1 stands still with its rank: the others go on without it. When it wakes up, its rank may have answers, and they
/// are nobody's.
async fn woken() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let silent = "WARN no word from n1 for 5 s; * kind=\"node-silent\"";
    let vanished = "WARN the worker of j1 (epoch 1) on n* ended while n* was away kind=\"worker-vanished\"";
    let mut cluster =
        builder("gangs-woken", 5, "").agents(3).expect(&[silent]).allow(&[vanished, GANG_LOST]).start().await;
    let input = input();
    let job = cluster.control().submit(spec("woken"), input.jsonl()).await;
    let victim = a_rank_at_work(&cluster, &job, 0, 3).await;
    assert!(victim.command.contains("/agents/n1/"), "rank 0 is on n1: {victim:?}");
    cluster.agent_mut("n1").signal(Signal::SIGSTOP);
    process::send(victim.pid, Signal::SIGSTOP);
    let what = "the gang after it to answer rows";
    let mut frozen_at = None;
    let seen = cluster
        .control()
        .wait_job(job.job_id, what, wait::LONG, |job| {
            let rows = rows_done(job);
            let before = *frozen_at.get_or_insert(rows);
            job.epoch == 2 && rows > before
        })
        .await;
    let nodes: Vec<&str> = seen.workers.iter().map(|worker| worker.node_id.as_str()).collect();
    assert_eq!(nodes, ["n2", "n3"], "over the nodes that are left");
    process::send(victim.pid, Signal::SIGCONT);
    cluster.agent_mut("n1").signal(Signal::SIGCONT);
    let job = end(&cluster, &job, &input).await;
    assert_eq!(job.epoch, 2);
    cluster.control().wait_ready(3).await;
    cluster.finish().await;
}
