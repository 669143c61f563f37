//! Down the ladder and up again: a sharded job whose link is lost goes on with whole models, or with the fallback model,
//! and changes back when the link holds. The nodes are in network namespaces.

use std::{collections::BTreeMap, path::Path};

use nightshift_proto::v1::{Job, JobSpec, Mode};
use nightshift_tests::{
    cluster::{Cluster, ClusterBuilder},
    control::rows_done,
    models,
    netns::Net,
    rows::Input,
    suite::{Case, Need, case},
    wait,
};

use crate::sharded::{self, ONE_AT_A_TIME, a_rank_at_work, spec};

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux, Need::Netns];

/// Rows enough to go down, to pay for loading again, and to go on for a while.
const ROWS: usize = 100;

/// So that a row is seldom under way for long when a cable is pulled.
const MAX_TOKENS: u32 = 40;

/// More than the model needs whole.
const AMPLE_MIB: u64 = 1_000;

const LINK_DOWN: &str = "WARN the link of n1 and n2 is down*kind=\"link-down\"";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("ladder::two_workers_while_the_cable_is_out_and_a_pipeline_again_when_it_holds", NEEDS, cable),
        case("ladder::the_fallback_model_answers_while_the_cable_is_out_and_says_so", NEEDS, fallback),
    ]
}

fn builder(name: &str) -> ClusterBuilder {
    let gangs = format!("networks = [\"{}\"]\nlink_settle_ms = 500\n", Net::ADDRESSES);
    // Seconds in place of minutes, and the faults that follow a lost link are not this case's.
    sharded::builder(name, &gangs, "[recovery]\nclimb_settle_ms = 1000\nstop_grace_ms = 3000\n")
        .on_a_net()
        .expect(&[LINK_DOWN])
        .allow(&["WARN the worker of j1 on n*kind=\"link-fault\"", sharded::GANG_LOST])
}

fn input() -> Input {
    Input::chat(ROWS, MAX_TOKENS, 20_261_125)
}

async fn wait_for(cluster: &Cluster, job: &Job, what: &str, is_so: impl Fn(&Job) -> bool) -> Job {
    let done = rows_done(job);
    let goes_on = |job: &Job| {
        is_so(job) && rows_done(job) > done && job.workers.iter().any(|worker| worker.active_rows > 0)
    };
    cluster.control().wait_job(job.job_id, what, wait::LONG, goes_on).await
}

async fn cable() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let cluster = builder("ladder-cable").memory_budget_mib(AMPLE_MIB).start().await;
    let input = input();
    let asked = JobSpec { mode: Mode::Pipeline.into(), ..spec("cable") };
    let job = cluster.control().submit(asked, input.jsonl()).await;
    let _ = a_rank_at_work(&cluster, &job, 0, 3).await;
    let job = cluster.control().job(job.job_id).await;
    assert_eq!(job.mode(), Mode::Pipeline, "what was asked for comes first");

    cluster.net().cut("n2");
    let both_alone = |job: &Job| job.mode() == Mode::Independent && job.workers.len() == 2;
    let job = wait_for(&cluster, &job, "two workers with whole models", both_alone).await;
    let reasons = job.plan_reasons.join("\n");
    assert!(reasons.contains("pipeline was asked for, and is not to be had"), "{reasons}");

    cluster.net().heal("n2");
    let sharded = |job: &Job| job.mode() == Mode::Pipeline && job.workers.len() == 2;
    let job = wait_for(&cluster, &job, "a pipeline again", sharded).await;
    let reasons = job.plan_reasons.join("\n");
    assert!(reasons.contains("changed from independent workers to a pipeline over ring"), "{reasons}");
    assert!(reasons.contains("pay for loading"), "{reasons}");

    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = cluster.answers(&job, &input);
    assert_eq!(answers.succeeded(), input.len());
    let incidents = cluster.control().incidents("link-down").await;
    assert_eq!(incidents.len(), 1, "{incidents:#?}");
    assert!(incidents[0].closed_unix_ms > 0 && incidents[0].rows_requeued > 0, "{incidents:#?}");

    let undisturbed = JobSpec { mode: Mode::Independent.into(), ..spec("undisturbed") };
    let job = cluster.control().submit(undisturbed, input.jsonl()).await;
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    answers.assert_same_as(&cluster.answers(&job, &input));
    cluster.finish().await;
}

async fn fallback() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let cluster = builder("ladder-fallback").start().await;
    let input = input();
    // Small enough for one node, and slow enough not to be done before the cable is back.
    let small = models::tiny("llama", &["--dtype", "float32", "--layers", "6", "--hidden", "256"]);
    let asked = JobSpec {
        fallback_model: small.to_string_lossy().into_owned(),
        fallback_policy: "at-once".to_owned(),
        ..spec("fallback")
    };
    let job = cluster.control().submit(asked, input.jsonl()).await;
    let _ = a_rank_at_work(&cluster, &job, 0, 3).await;
    let job = cluster.control().job(job.job_id).await;
    assert!(!job.on_fallback && job.mode() == Mode::Pipeline);

    cluster.net().cut("n2");
    let stands_in = |job: &Job| job.on_fallback && job.rows_by_fallback > 0;
    let job = wait_for(&cluster, &job, "the fallback model at work", stands_in).await;
    let reasons = job.plan_reasons.join("\n");
    assert!(reasons.contains("because its own model cannot run now"), "{reasons}");

    cluster.net().heal("n2");
    let own = |job: &Job| !job.on_fallback && job.mode() == Mode::Pipeline && job.workers.len() == 2;
    let job = wait_for(&cluster, &job, "its own model again", own).await;
    let reasons = job.plan_reasons.join("\n");
    assert!(reasons.contains("with the fallback model to a pipeline"), "{reasons}");

    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    assert_eq!(cluster.answers(&job, &input).succeeded(), input.len(), "every row once");
    let signatures = signatures(&cluster.control().results(job.job_id, false).await);
    let name = |path: &Path| path.file_name().expect("a directory").to_string_lossy().into_owned();
    let by_small = signatures.get(&name(&small)).copied().unwrap_or(0);
    assert_eq!(by_small, job.rows_by_fallback, "{signatures:?}");
    let by_own = signatures.get(&name(&sharded::model())).copied().unwrap_or(0);
    assert_eq!(by_small + by_own, ROWS as u64, "{signatures:?}");
    assert!(by_small > 0 && by_own > 0, "{signatures:?}");
    cluster.finish().await;
}

/// How many answers each model signed.
fn signatures(results: &[u8]) -> BTreeMap<String, u64> {
    let mut signatures = BTreeMap::new();
    for line in results.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line: serde_json::Value = serde_json::from_slice(line).expect("a line is JSON");
        let model = line["response"]["body"]["model"].as_str().expect("an answer is signed").to_owned();
        *signatures.entry(model).or_default() += 1;
    }
    signatures
}
