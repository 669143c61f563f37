//! Every shape of model the maker knows loads and answers.

use nightshift_tests::{
    cluster::Cluster,
    control, models,
    rows::Input,
    suite::{Case, Need, case},
    wait,
};

pub(crate) fn cases() -> Vec<Case> {
    models::ARCHITECTURES
        .iter()
        .map(|architecture| {
            case(&format!("architectures::{architecture}_answers"), &[Need::Runtime], || smoke(architecture))
        })
        .collect()
}

async fn smoke(architecture: &str) {
    let cluster = Cluster::builder(&format!("arch-{architecture}")).agents(1).start().await;
    let mut input = Input::chat(12, 24, 5);
    input.completion_row("plain", "Once upon a time", serde_json::json!({"max_tokens": 8, "temperature": 0}));
    let model = models::tiny(architecture, &["--dtype", "float32"]);
    let job = cluster.control().submit(control::spec(architecture, model), input.jsonl()).await;
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = cluster.answers(&job, &input);
    assert_eq!(answers.succeeded(), input.len(), "every row of {architecture} is answered");
    assert_eq!(answers.of("plain").body["object"], "text_completion");
    for (id, answer) in answers.iter() {
        let usage = &answer.body["usage"];
        let (prompt, completion) = (usage["prompt_tokens"].as_u64(), usage["completion_tokens"].as_u64());
        assert!(prompt > Some(0) && completion > Some(0), "{id} counts its tokens: {usage}");
        assert_eq!(usage["total_tokens"].as_u64(), prompt.zip(completion).map(|(p, c)| p + c), "{id}");
        let reason = answer.body["choices"][0]["finish_reason"].as_str();
        assert!(matches!(reason, Some("stop" | "length")), "{id} ended with {reason:?}");
    }
    cluster.finish().await;
}
