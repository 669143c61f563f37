//! Models that cannot be loaded, or lack something: the job ends with the reason, or only the rows that need it fail.

use std::fs;

use nightshift_proto::v1::JobState;
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

/// What the programs may say of a model that does not load.
const EXPECTED: &[&str] = &["worker", "model", "job"];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("bad_models::an_unreadable_model_fails_its_job_with_the_reason", NEEDS, unreadable),
        case("bad_models::an_unknown_architecture_fails_its_job_with_the_reason", NEEDS, unknown),
        case("bad_models::without_a_chat_template_only_chat_rows_fail", NEEDS, no_template),
        case("bad_models::a_field_the_worker_does_not_know_fails_its_row_alone", NEEDS, unsupported_field),
    ]
}

async fn unreadable() {
    let cluster = Cluster::builder("unreadable").agents(2).allow(EXPECTED).start().await;
    let input = Input::chat(10, 8, 1);
    let missing = cluster.path().join("no-such-model");
    let broken = cluster.path().join("broken-model");
    fs::create_dir(&broken).expect("a directory can be made");
    fs::write(broken.join("config.json"), "{ this is not JSON").expect("a file can be written");
    for (model, word) in [(missing, "no-such-model"), (broken, "broken-model")] {
        let job = cluster.control().submit(control::spec("unreadable", &model), input.jsonl()).await;
        let job = cluster
            .control()
            .wait_job(job.job_id, "failed", wait::SOON, |job| job.state() == JobState::Failed)
            .await;
        assert!(job.detail.contains(word), "the reason names the model: {}", sketch(&job));
        assert_eq!(job.rows_succeeded, 0);
    }
    let good = cluster.control().submit(control::spec("good", models::llama()), input.jsonl()).await;
    let good = cluster.control().wait_completed(good.job_id, wait::LONG).await;
    assert_eq!(cluster.answers(&good, &input).succeeded(), 10, "the cluster goes on with the next job");
    cluster.finish().await;
}

async fn unknown() {
    let cluster = Cluster::builder("unknown-arch").agents(1).allow(EXPECTED).start().await;
    let model = cluster.path().join("strange-model");
    copy_dir(&models::llama(), &model);
    let config = fs::read_to_string(model.join("config.json")).expect("a model has a config");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("a config is JSON");
    config["model_type"] = json!("no_such_architecture");
    fs::write(model.join("config.json"), config.to_string()).expect("a file can be written");
    let input = Input::chat(10, 8, 1);
    let job = cluster.control().submit(control::spec("strange", &model), input.jsonl()).await;
    let job = cluster
        .control()
        .wait_job(job.job_id, "failed", wait::SOON, |job| job.state() == JobState::Failed)
        .await;
    assert!(
        job.detail.contains("no_such_architecture"),
        "the reason names the architecture: {}",
        sketch(&job)
    );
    cluster.finish().await;
}

async fn no_template() {
    let cluster = Cluster::builder("no-template").agents(1).allow(EXPECTED).start().await;
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
        let message = refused.body["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("chat template"), "{message}");
    }
    cluster.finish().await;
}

async fn unsupported_field() {
    let cluster = Cluster::builder("unsupported").agents(1).allow(EXPECTED).start().await;
    let mut input = Input::new();
    input.chat_row("good", "hello", json!({"max_tokens": 8, "temperature": 0}));
    for (id, settings) in [
        ("n", json!({"n": 2})),
        ("tools", json!({"tools": [{"type": "function", "function": {"name": "f"}}]})),
        ("temperature", json!({"temperature": "hot"})),
        ("max_tokens", json!({"max_tokens": -1})),
    ] {
        input.chat_row(id, "hello", settings);
    }
    let job = cluster.control().submit(control::spec("unsupported", models::llama()), input.jsonl()).await;
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = cluster.answers(&job, &input);
    assert_eq!(answers.of("good").status, 200);
    for id in ["n", "tools", "temperature", "max_tokens"] {
        let refused = answers.of(id);
        assert_eq!(refused.status, 400, "{id}: {}", refused.body);
        let error = &refused.body["error"];
        assert!(error["message"].as_str().unwrap_or_default().contains(id), "the field is named: {error}");
    }
    cluster.finish().await;
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("a model is a directory").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a file can be copied");
    }
}
