//! Steering a running cluster: priorities, pause, resume, cancel and drain, against nodes that answer as many rows as
//! they are given leave to.

use nightshift_proto::v1::{JobSpec, JobState, NodeState};
use nightshift_tests::{
    cluster::Cluster,
    control::{self, rows_done, sketch},
    rows::Input,
    stub::{StubNode, StubOptions},
    suite::{Case, case},
    wait,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("steering::rows_are_spread_and_answered_once", &[], spread),
        case("steering::a_slow_node_does_not_hoard", &[], no_hoarding),
        case("steering::higher_priority_goes_first_then_age", &[], priority),
        case("steering::a_paused_job_waits_and_resumes", &[], pause),
        case("steering::a_cancelled_job_keeps_what_was_answered", &[], cancel),
        case("steering::a_drained_node_takes_no_rows", &[], drain),
        case("steering::a_submission_tried_again_is_one_job", &[], resubmission),
        case("steering::everything_stands_after_a_restart", &[], restart),
    ]
}

fn stub(cluster: &Cluster, node: &str, allowance: u64) -> StubNode {
    StubNode::start(StubOptions {
        node_id: node.to_owned(),
        controller: cluster.address().to_owned(),
        allowance,
    })
}

async fn spread() {
    let cluster = Cluster::builder("spread").start().await;
    let nodes = [stub(&cluster, "s1", u64::MAX), stub(&cluster, "s2", u64::MAX)];
    cluster.control().wait_ready(2).await;
    let input = Input::chat(5000, 10, 1);
    let job = cluster.control().submit(control::spec("spread", "/models/stub"), input.jsonl()).await;
    assert_eq!(job.rows_total, 5000);
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = cluster.answers(&job, &input);
    assert_eq!(answers.succeeded(), 5000);
    let done = nodes.iter().map(StubNode::answered).collect::<Vec<_>>();
    assert!(done.iter().all(|rows| *rows > 500), "both nodes answer rows: {done:?}");
    assert_eq!(done.iter().sum::<u64>(), 5000, "no row is answered twice");
    let read = cluster.control().results(job.job_id, false).await;
    assert_eq!(
        read.iter().filter(|byte| **byte == b'\n').count(),
        5000,
        "the service gives what the file holds"
    );
    cluster.finish().await;
    drop(nodes);
}

async fn no_hoarding() {
    let cluster = Cluster::builder("hoarding").start().await;
    let (fast, slow) = (stub(&cluster, "fast", u64::MAX), stub(&cluster, "slow", 0));
    cluster.control().wait_ready(2).await;
    let input = Input::chat(500, 10, 1);
    let spec = JobSpec { max_batch_rows: 8, ..control::spec("hoarding", "/models/stub") };
    let job = cluster.control().submit(spec, input.jsonl()).await;
    wait::until("the slow node to hold rows", wait::SOON, || !slow.held().is_empty()).await;
    let held = slow.held()[&job.job_id] as u64;
    assert!((8..=32).contains(&held), "a node holds its batch and a little more, not {held} rows");
    let near = cluster.control().wait_rows(job.job_id, 500 - held).await;
    assert_eq!(near.rows_in_flight, held, "{}", sketch(&near));
    slow.allow(u64::MAX);
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    assert_eq!(cluster.answers(&job, &input).succeeded(), 500);
    cluster.finish().await;
    drop((fast, slow));
}

async fn priority() {
    let cluster = Cluster::builder("priority").start().await;
    let input = Input::chat(40, 10, 1);
    let mut jobs = Vec::new();
    for (name, priority) in [("low", -1), ("first", 5), ("second", 5), ("high", 9)] {
        let spec = JobSpec { priority, ..control::spec(name, "/models/stub") };
        jobs.push((name, cluster.control().submit(spec, input.jsonl()).await.job_id));
    }
    let node = stub(&cluster, "s1", u64::MAX);
    for (_, job) in &jobs {
        cluster.control().wait_completed(*job, wait::LONG).await;
    }
    let mut order: Vec<u64> = node.history().into_iter().map(|(job, _)| job).collect();
    order.dedup();
    let wanted: Vec<u64> = ["high", "first", "second", "low"]
        .iter()
        .map(|name| jobs.iter().find(|(other, _)| other == name).expect("a job of that name").1)
        .collect();
    assert_eq!(order, wanted, "by priority, then by age");
    cluster.finish().await;
    drop(node);
}

async fn pause() {
    let cluster = Cluster::builder("pause").start().await;
    let node = stub(&cluster, "s1", 20);
    cluster.control().wait_ready(1).await;
    let input = Input::chat(300, 10, 1);
    let spec = JobSpec { max_batch_rows: 8, ..control::spec("pause", "/models/stub") };
    let job = cluster.control().submit(spec, input.jsonl()).await;
    cluster.control().wait_rows(job.job_id, 20).await;
    let paused = cluster.control().pause(job.job_id).await;
    assert_eq!(paused.state(), JobState::Paused, "{}", sketch(&paused));
    // Rows already with the node may be finished; no others are handed out.
    node.allow(u64::MAX);
    let still = cluster
        .control()
        .wait_job(job.job_id, "no row in flight", wait::SOON, |job| job.rows_in_flight == 0)
        .await;
    assert!(rows_done(&still) < 100, "a pause takes hold at once: {}", sketch(&still));
    let other = cluster.control().submit(control::spec("other", "/models/stub"), input.jsonl()).await;
    cluster.control().wait_completed(other.job_id, wait::LONG).await;
    let after = cluster.control().job(job.job_id).await;
    assert_eq!(rows_done(&after), rows_done(&still), "a paused job stands still while another runs");
    assert_eq!(after.state(), JobState::Paused);
    cluster.control().resume(job.job_id).await;
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    assert_eq!(cluster.answers(&job, &input).succeeded(), 300);
    cluster.finish().await;
    drop(node);
}

async fn cancel() {
    let cluster = Cluster::builder("cancel").start().await;
    let node = stub(&cluster, "s1", 20);
    cluster.control().wait_ready(1).await;
    let input = Input::chat(300, 10, 1);
    let job = cluster.control().submit(control::spec("cancel", "/models/stub"), input.jsonl()).await;
    cluster.control().wait_rows(job.job_id, 20).await;
    cluster.control().cancel(job.job_id, true).await;
    let done = cluster
        .control()
        .wait_job(job.job_id, "cancelled", wait::SOON, |job| job.state() == JobState::Cancelled)
        .await;
    assert_eq!(done.rows_succeeded, 20, "{}", sketch(&done));
    let lines = cluster.control().results(job.job_id, false).await;
    assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 20, "what was answered stays");
    let next = cluster.control().submit(control::spec("next", "/models/stub"), input.jsonl()).await;
    node.allow(u64::MAX);
    let next = cluster.control().wait_completed(next.job_id, wait::LONG).await;
    assert_eq!(cluster.answers(&next, &input).succeeded(), 300, "the node is free for the next job");
    cluster.finish().await;
    drop(node);
}

async fn drain() {
    let cluster = Cluster::builder("drain").start().await;
    let (kept, drained) = (stub(&cluster, "kept", 0), stub(&cluster, "drained", u64::MAX));
    cluster.control().wait_ready(2).await;
    let node = cluster.control().drain("drained", true).await;
    assert_eq!(node.state(), NodeState::Draining);
    wait::until("the node to hear of it", wait::SOON, || drained.draining()).await;
    let input = Input::chat(200, 10, 1);
    let job = cluster.control().submit(control::spec("drain", "/models/stub"), input.jsonl()).await;
    wait::until("the other node to get rows", wait::SOON, || !kept.held().is_empty()).await;
    kept.allow(100);
    cluster.control().wait_rows(job.job_id, 100).await;
    assert_eq!(drained.answered(), 0, "a drained node gets no rows");
    cluster.control().drain("drained", false).await;
    wait::until("the node to work again", wait::SOON, || drained.answered() > 0).await;
    kept.allow(u64::MAX);
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    assert_eq!(cluster.answers(&job, &input).succeeded(), 200);
    cluster.finish().await;
    drop((kept, drained));
}

async fn resubmission() {
    let cluster = Cluster::builder("resubmission").start().await;
    let input = Input::chat(30, 10, 1);
    let spec = JobSpec { submission_id: "0f1e2d3c".to_owned(), ..control::spec("once", "/models/stub") };
    let first = cluster.control().submit(spec.clone(), input.jsonl()).await;
    let again = cluster.control().submit(spec, input.jsonl()).await;
    assert_eq!(again.job_id, first.job_id);
    assert_eq!(cluster.control().status().await.jobs.len(), 1);
    cluster.finish().await;
}

async fn restart() {
    let mut cluster = Cluster::builder("restart").start().await;
    let node = stub(&cluster, "s1", 150);
    cluster.control().wait_ready(1).await;
    let input = Input::chat(400, 10, 1);
    let job = cluster.control().submit(control::spec("restart", "/models/stub"), input.jsonl()).await;
    let held = cluster.control().submit(control::spec("held", "/models/stub"), input.jsonl()).await;
    cluster.control().pause(held.job_id).await;
    let before = cluster.control().wait_rows(job.job_id, 150).await;
    cluster.kill_controller().await;
    cluster.start_controller().await;
    let after = cluster.control().job(job.job_id).await;
    assert!(rows_done(&after) >= rows_done(&before), "what was told as done is done: {}", sketch(&after));
    assert_eq!(after.spec, before.spec);
    assert_eq!(
        cluster.control().job(held.job_id).await.state(),
        JobState::Paused,
        "a pause outlives a crash"
    );
    node.allow(u64::MAX);
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    assert_eq!(cluster.answers(&job, &input).succeeded(), 400);
    cluster.control().resume(held.job_id).await;
    let held = cluster.control().wait_completed(held.job_id, wait::LONG).await;
    assert_eq!(cluster.answers(&held, &input).succeeded(), 400);
    assert_eq!(node.answered(), 800, "no row was answered twice");
    cluster.finish().await;
    drop(node);
}
