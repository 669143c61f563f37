//! Models that cannot be loaded, or lack something: the job ends with the reason, or only the rows that need it fail.

use std::{fs, path::Path};

use nightshift_proto::v1::{Job, JobState};
use nightshift_tests::{
    cluster::Cluster,
    control::{self, sketch},
    models,
    rows::Input,
    suite::{Case, Need, case},
    wait,
};
use serde_json::json;

const NEEDS: &[Need] = &[Need::Runtime];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("bad_models::an_unreadable_model_fails_its_job_with_the_reason", NEEDS, unreadable),
        case("bad_models::an_unknown_architecture_fails_its_job_with_the_reason", NEEDS, unknown),
        case("bad_models::without_a_chat_template_only_chat_rows_fail", NEEDS, no_template),
    ]
}

/// What the logs must hold when no node can run a job's model.
fn expect_unusable(cluster: &mut Cluster, why: &str) {
    let unusable = format!(
        "WARN the worker of j* on n* exited with status 3: {why}; the node is not used for this job any more \
         kind=\"model-unusable\""
    );
    cluster.expect(&[
        &unusable,
        &format!("ERROR j* failed: no node can run model *{why}*) kind=\"job-failed\""),
    ]);
}

/// Runs a job that fails, and keeps nothing of it in the results.
async fn fail(cluster: &Cluster, model: &Path, input: &Input) -> Job {
    let job = cluster.control().submit(control::spec("fails", model), input.jsonl()).await;
    let failed = |job: &Job| job.state() == JobState::Failed;
    let job = cluster.control().wait_job(job.job_id, "failed", wait::SOON, failed).await;
    assert_eq!((job.rows_succeeded, job.rows_failed, job.rows_in_flight), (0, 0, 0), "{}", sketch(&job));
    job
}

async fn unreadable() {
    let mut cluster = Cluster::builder("unreadable").agents(2).start().await;
    let input = Input::chat(10, 8, 1);
    let missing = cluster.path().join("no-such-model");
    let broken = cluster.path().join("broken-model");
    fs::create_dir(&broken).expect("a directory can be made");
    fs::write(broken.join("config.json"), "{ this is not JSON").expect("a file can be written");
    let not_json = "Expecting property name enclosed in double quotes: line 1 column 3 (char 2)";
    for (model, why) in [
        (&missing, format!("there is no model directory {} on this node", missing.display())),
        (&broken, format!("{}/config.json cannot be read: {not_json}", broken.display())),
    ] {
        expect_unusable(&mut cluster, &why);
        let job = fail(&cluster, model, &input).await;
        // Which node was the first is chance.
        let detail = format!("no node can run model {} (n1, n2: {why})", model.display());
        assert_eq!(job.detail, detail);
    }
    let good = cluster.control().submit(control::spec("good", models::llama()), input.jsonl()).await;
    let good = cluster.control().wait_completed(good.job_id, wait::LONG).await;
    assert_eq!(cluster.answers(&good, &input).succeeded(), 10, "the cluster goes on with the next job");
    cluster.finish().await;
}

async fn unknown() {
    let mut cluster = Cluster::builder("unknown-arch").agents(1).start().await;
    let model = cluster.path().join("strange-model");
    copy_dir(&models::llama(), &model);
    let config = fs::read_to_string(model.join("config.json")).expect("a model has a config");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("a config is JSON");
    config["model_type"] = json!("no_such_architecture");
    fs::write(model.join("config.json"), config.to_string()).expect("a file can be written");
    let input = Input::chat(10, 8, 1);
    let why = format!(
        "mlx-lm does not know the architecture of {}: Model type no_such_architecture not supported.",
        model.display()
    );
    expect_unusable(&mut cluster, &why);
    let job = fail(&cluster, &model, &input).await;
    assert_eq!(job.detail, format!("no node can run model {} (n1: {why})", model.display()));
    cluster.finish().await;
}

async fn no_template() {
    let cluster = Cluster::builder("no-template").agents(1).start().await;
    let model = models::tiny("llama", &["--dtype", "float32", "--no-chat-template"]);
    let mut input = Input::new();
    let settings = json!({"max_tokens": 8, "temperature": 0});
    for number in 0..6 {
        input.chat_row(&format!("chat-{number}"), "hello", settings.clone());
        input.completion_row(&format!("plain-{number}"), "hello", settings.clone());
    }
    let job = cluster.control().submit(control::spec("no-template", model), input.jsonl()).await;
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    assert_eq!((job.rows_succeeded, job.rows_failed), (6, 6), "{}", sketch(&job));
    let answers = cluster.answers(&job, &input);
    for number in 0..6 {
        assert_eq!(answers.of(&format!("plain-{number}")).status, 200);
        let refused = answers.of(&format!("chat-{number}"));
        assert_eq!(refused.status, 400);
        let message = "the model llama-dtypefloat32-no-chat-template has no chat template: send the row to \
                       /v1/completions, or use an instruction-tuned model";
        let error = json!({"message": message, "type": "invalid_request_error", "param": "messages",
            "code": "no_chat_template"});
        assert_eq!(refused.body["error"], error);
    }
    cluster.finish().await;
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("a model is a directory").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a file can be copied");
    }
}
