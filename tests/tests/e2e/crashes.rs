//! Workers end in the ways real ones end: each with its class, its answer and its incident, every row once, and with the
//! answers of a night without faults.

use std::collections::BTreeMap;

use nightshift_proto::v1::{Incident, Job, JobSpec, Node, NodeState};
use nightshift_tests::{
    answers::Answers,
    cluster::{Cluster, ClusterBuilder},
    control,
    faults::{CLASSIFIED, End, Fault},
    models,
    rows::Input,
    suite::{Case, Need, case},
    wait,
};
use tokio::sync::OnceCell;

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux];

/// Enough for a fault of each kind amid a batch.
const ROWS: usize = 120;

/// The longest answer.
const MAX_TOKENS: u32 = 48;

/// Rows together.
const BATCH: u32 = 8;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("crashes::a_row_that_ends_its_worker_fails_alone", NEEDS, poison),
        case("crashes::every_kind_of_end_has_its_answer", NEEDS, every_kind),
        case("crashes::a_worker_that_takes_no_step_is_ended_with_its_stack", NEEDS, hung),
        case("crashes::a_gpu_that_keeps_failing_is_left_alone", NEEDS, quarantine),
    ]
}

fn input() -> Input {
    Input::chat(ROWS, MAX_TOKENS, 20_261_125)
}

fn spec(name: &str) -> JobSpec {
    JobSpec { max_batch_rows: BATCH, ..control::spec(name, models::tiny("llama", &[])) }
}

fn builder(name: &str, config: &str) -> ClusterBuilder {
    let config = format!("[jobs]\ncheckpoint_interval_ms = 200\n[recovery]\nrestart_base_ms = 100\n{config}");
    Cluster::builder(name).agents(2).inject_faults().config(&config)
}

/// The answers of a night without faults; made once for all cases.
async fn undisturbed() -> &'static Answers {
    static ANSWERS: OnceCell<Answers> = OnceCell::const_new();
    ANSWERS
        .get_or_init(async || {
            let cluster = Cluster::builder("crashes-undisturbed").agents(1).start().await;
            let input = input();
            let job = cluster.control().submit(spec("undisturbed"), input.jsonl()).await;
            let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
            let answers = cluster.answers(&job, &input);
            cluster.finish().await;
            answers
        })
        .await
}

async fn incidents(cluster: &Cluster) -> Vec<Incident> {
    cluster.control().status().await.incidents
}

async fn wait_for_incident(cluster: &Cluster, fault: &str, what: &str) -> Incident {
    wait::eventually(&format!("an incident {fault} of {what}"), wait::LONG, async || {
        let found = cluster.control().incidents(fault).await;
        let this =
            found.into_iter().find(|incident| incident.evidence.iter().any(|line| line.contains(what)));
        match this {
            Some(incident) => Ok(incident),
            None => Err(format!("{:#?}", incidents(cluster).await)),
        }
    })
    .await
}

async fn poison() {
    const POISON: u32 = 13;
    let cluster = builder("crashes-poison", "")
        .expect(&[
            "WARN the worker of j1 on n* kind=\"worker-exited\"",
            "WARN row 13 of j1 *kind=\"poison-row\"",
        ])
        .allow(&["WARN * kind=\"rows-suspected\""])
        .start()
        .await;
    for node in ["n1", "n2"] {
        cluster.inject(node, &[Fault::new("KeyError: 'row 13'", End::Exit(1)).with_rows(&[POISON])]);
    }
    let input = input();
    let job = cluster.control().submit(spec("poison"), input.jsonl()).await;
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    assert_eq!((job.rows_succeeded, job.rows_failed), (ROWS as u64 - 1, 1));
    let crashes = control::times(&cluster.control().incidents("worker-exited").await);
    let most = BATCH.ilog2() as usize + 2;
    assert!((3..=most).contains(&crashes), "{crashes} crashes, at most {most}");
    let answers = cluster.answers(&job, &input);
    for (number, id) in input.ids().iter().enumerate() {
        let (found, expected) = (answers.of(id), undisturbed().await.of(id));
        if number == POISON as usize {
            assert_eq!(found.status, 500);
            assert!(found.essence.contains("KeyError: 'row 13'"), "with its evidence: {}", found.essence);
        } else {
            assert_eq!(found.essence, expected.essence, "{id}");
        }
    }
    let [found] = &cluster.control().incidents("poison-row").await[..] else { panic!("one incident") };
    assert!(found.summary.contains("row 13 of j1") && found.closed_unix_ms > 0, "{found:#?}");
    cluster.finish().await;
}

async fn every_kind() {
    // One node is not to be in quarantine before the last of them.
    let config = "gpu_faults_before_quarantine = 100\nfailures_before_pause = 100\nrestart_cap_ms = 200\n";
    let mut patterns: Vec<String> = CLASSIFIED
        .iter()
        .map(|words| format!("WARN the worker of j1 on n1 *kind=\"{}\"", words.fault))
        .collect();
    patterns.dedup();
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let cluster = builder("crashes-every-kind", config)
        .expect(&patterns)
        .allow(&["WARN * kind=\"rows-suspected\""])
        .agents(1)
        .start()
        .await;
    let input = input();
    let job = cluster.control().submit(spec("every-kind"), input.jsonl()).await;
    for words in CLASSIFIED {
        // Whatever was hit by the one before is finished first.
        cluster.inject("n1", &[words.fault_of_worker().after_steps(MAX_TOKENS + 12)]);
        let incident = wait_for_incident(&cluster, words.fault, words.text).await;
        assert_eq!((incident.node_id.as_str(), incident.job_id), ("n1", job.job_id), "{incident:#?}");
        assert!(!incident.action.is_empty(), "{incident:#?}");
    }
    let job = finished(&cluster, &job, &input).await;
    assert_eq!(job.epoch, CLASSIFIED.len() as u64 + 1, "a worker after each");
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for incident in incidents(&cluster).await {
        assert!(incident.closed_unix_ms > 0, "over: {incident:#?}");
        *told.entry(incident.fault).or_insert(0) += incident.times as usize;
    }
    let expected = [("gpu-fault", 5), ("link-fault", 2), ("out-of-memory", 3), ("worker-exited", 2)];
    assert_eq!(told, expected.into_iter().map(|(fault, times)| (fault.to_owned(), times)).collect());
    cluster.finish().await;
}

async fn hung() {
    let config = "step_budget_ms = 3000\nleast_step_budget_ms = 3000\nstop_grace_ms = 500\n";
    let cluster = builder("crashes-hung", config)
        .agents(1)
        .expect(&[
            "WARN the worker of j1 on n1 (epoch 1) took no step for * s; it is ended kind=\"worker-silent\"",
            "WARN the worker of j1 on n1 was ended by SIGKILL*kind=\"worker-silent\"",
        ])
        .start()
        .await;
    cluster.inject("n1", &[Fault::new("it hangs now", End::Hang).after_steps(30)]);
    let input = input();
    let job = cluster.control().submit(spec("hung"), input.jsonl()).await;
    finished(&cluster, &job, &input).await;
    let [incident] = &cluster.control().incidents("worker-silent").await[..] else { panic!("one incident") };
    let evidence = incident.evidence.join("\n");
    for part in ["it hangs now", "most recent call first", "injected_faults.py"] {
        assert!(evidence.contains(part), "{part} in:\n{evidence}");
    }
    cluster.finish().await;
}

async fn finished(cluster: &Cluster, job: &Job, input: &Input) -> Job {
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = cluster.answers(&job, input);
    assert_eq!(answers.succeeded(), input.len(), "every row is answered with 200");
    answers.assert_same_as(undisturbed().await);
    job
}

async fn quarantine() {
    let mut cluster = builder("crashes-quarantine", "")
        .agents(1)
        .expect(&[
            "WARN the worker of j1 on n1 *kind=\"gpu-fault\"",
            "ERROR n1 is in quarantine*kind=\"node-quarantined\"",
        ])
        .allow(&["WARN * kind=\"rows-suspected\""])
        .start()
        .await;
    let words = CLASSIFIED[0];
    cluster.inject("n1", &[words.fault_of_worker().times(1_000)]);
    let input = input();
    let job = cluster.control().submit(spec("quarantine"), input.jsonl()).await;
    let quarantined =
        |node: &Node| node.detail.starts_with("it is in quarantine for 60 more minutes: 3 GPU faults");
    wait::eventually("n1 to be left alone", wait::LONG, async || {
        let status = cluster.control().status().await;
        let problem = status.problems.iter().any(|problem| problem.contains("clusterctl undrain n1"));
        match status.nodes.iter().any(quarantined) && problem {
            true => Ok(()),
            false => Err(format!("{status:#?}")),
        }
    })
    .await;
    let waiting = cluster.control().job(job.job_id).await;
    assert!(waiting.detail.contains("it is in quarantine"), "it says what it waits for: {}", waiting.detail);
    // Whoever comes does the night's work.
    cluster.start_agent("n2");
    let job = finished(&cluster, &job, &input).await;
    assert_eq!(job.rows_failed, 0);
    assert_eq!(control::times(&cluster.control().incidents("gpu-fault").await), 3, "not one more");
    // It is there again for the next job when a person says so.
    cluster.inject("n1", &[]);
    let node = cluster.control().drain("n1", false).await;
    assert_eq!(node.state(), NodeState::Ready);
    let again = cluster.control().submit(spec("again"), input.jsonl()).await;
    let again = finished(&cluster, &again, &input).await;
    let rows = cluster.finished_rows(&again);
    assert!(rows.get("n1").is_some_and(|rows| !rows.is_empty()), "{rows:?}");
    cluster.finish().await;
}
