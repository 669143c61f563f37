//! `clusterctl plan --nodes` on published models in their true sizes: real headers over empty files, read by the real agent,
//! decided by the real controller's rules, without a cluster.

use std::{fs, path::Path, process::Command};

use nightshift_tests::{
    binaries,
    dirs::TestDir,
    process::{self, Outcome},
    published::{self, EIGHT_BITS, FOUR_BITS, Published},
    suite::{Case, case},
};
use serde_json::Value;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("plans::a_terabyte_goes_over_three_studios_and_not_on_one", &[], terabyte),
        case("plans::four_hundred_billion_parameters_go_over_two_raised_macs", &[], raised),
        case("plans::what_fits_one_mac_runs_whole_on_both", &[], whole),
        case("plans::a_download_that_was_cut_off_is_said_to_be", &[], cut_off),
    ]
}

/// Macs of one kind.
fn macs(count: u32, memory_gib: u32, wired_limit_mb: u32) -> String {
    let wired =
        if wired_limit_mb == 0 { String::new() } else { format!("wired_limit_mb = {wired_limit_mb}\n") };
    format!("[[node]]\nname = \"mac\"\nmemory_gib = {memory_gib}\n{wired}count = {count}\n")
}

async fn plan(dir: &Path, nodes: &str) -> Outcome {
    let file = dir.with_extension("toml");
    fs::write(&file, nodes).expect("a file of nodes can be written");
    let mut command = Command::new(binaries::path("clusterctl"));
    command.args(["plan", "--output", "json", "--model"]).arg(dir).arg("--nodes").arg(&file);
    process::run(command).await
}

async fn decided(dir: &Path, nodes: &str, code: i32) -> Value {
    let outcome = plan(dir, nodes).await.expect_code(code);
    serde_json::from_str(&outcome.stdout).expect("the plan is one JSON object")
}

fn written(dir: &TestDir, name: &str, model: &Published) -> std::path::PathBuf {
    let path = dir.path().join(name);
    model.write(&path).expect("a sparse model can be written");
    path
}

async fn terabyte() {
    let dir = TestDir::new("plans-terabyte");
    let model = written(&dir, "Kimi-K2-8bit", &published::kimi_k2(EIGHT_BITS));
    let four = decided(&model, &macs(4, 512, 0), 0).await;
    assert_eq!((&four["fits"], &four["mode"]), (&true.into(), &"pipeline".into()), "{four:#}");
    let one = decided(&model, &macs(1, 512, 0), 1).await;
    assert_eq!(one["fits"], false, "{one:#}");
    assert!(one["advice"].as_array().is_some_and(|advice| !advice.is_empty()), "{one:#}");
    let two_small = decided(&model, &macs(2, 128, 122_880), 1).await;
    assert_eq!(two_small["fits"], false);
}

async fn raised() {
    let dir = TestDir::new("plans-raised");
    let model = written(&dir, "Llama-3.1-405B-4bit", &published::llama_405b(FOUR_BITS));
    let plan = decided(&model, &macs(2, 128, 122_880), 0).await;
    assert_eq!(plan["mode"], "pipeline", "{plan:#}");
    let parts = plan["parts"].as_array().expect("a part a node");
    assert_eq!(parts.len(), 2);
    assert!(parts.iter().all(|part| part["free_bytes"].as_i64().is_some_and(|free| free >= 0)), "{parts:#?}");
}

async fn whole() {
    let dir = TestDir::new("plans-whole");
    let model = written(&dir, "gpt-oss-120b", &published::gpt_oss_120b());
    let plan = decided(&model, &macs(2, 128, 0), 0).await;
    assert_eq!(plan["mode"], "independent", "{plan:#}");
    assert_eq!(plan["parts"].as_array().map(Vec::len), Some(2));
}

async fn cut_off() {
    let dir = TestDir::new("plans-cut-off");
    let model = written(&dir, "Qwen2.5-72B-4bit", &published::qwen_72b(FOUR_BITS));
    let shard = fs::read_dir(&model)
        .expect("the model can be listed")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
        .expect("the model has weight files");
    let size = fs::metadata(&shard).expect("a file has a size").len();
    let file = fs::OpenOptions::new().write(true).open(&shard).expect("a shard can be opened");
    file.set_len(size - 1).expect("a file can be cut");
    let outcome = plan(&model, &macs(2, 128, 0)).await.expect_code(1);
    assert!(outcome.stdout.contains("cut off") || outcome.stderr.contains("cut off"), "{outcome:#?}");
}
