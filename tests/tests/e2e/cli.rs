//! `clusterctl` against a real cluster: exit codes, one JSON value a command, results while they arrive, and the demo.

use std::{fs, process::Command};

use nightshift_proto::v1::JobSpec;
use nightshift_tests::{
    binaries,
    cluster::Cluster,
    control,
    dirs::TestDir,
    models, process, procfs,
    rows::Input,
    runtime,
    stub::{StubNode, StubOptions},
    suite::{Case, Need, case},
    wait,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("cli::status_tells_healthy_degraded_and_unreachable_apart", &[], status),
        case("cli::every_command_prints_one_json_value", &[], json_values),
        case("cli::results_are_followed_to_the_end", &[], follow),
        case("cli::prompts_become_rows", &[Need::Runtime], prompts),
        case("cli::logs_of_nodes_and_jobs_are_shown", &[Need::Runtime], logs),
        case("cli::the_demo_survives_its_kills_and_leaves_results", &[Need::Runtime, Need::Linux], demo),
    ]
}

fn stub(cluster: &Cluster, allowance: u64) -> StubNode {
    StubNode::start(StubOptions {
        node_id: "s1".to_owned(),
        controller: cluster.address().to_owned(),
        allowance,
    })
}

async fn status() {
    let mut cluster = Cluster::builder("status")
        .allow(&["WARN no word from s1 for 5 s; *kind=\"node-silent\""])
        .start()
        .await;
    let node = stub(&cluster, u64::MAX);
    cluster.control().wait_ready(1).await;
    let healthy = cluster.ctl(&["status"]).await.expect_code(0);
    assert!(healthy.stdout.contains("s1"), "{healthy:#?}");
    drop(node);
    // A node that is gone needs a person's eye.
    wait::eventually("the loss of a node to show", wait::SOON, async || {
        let outcome = cluster.ctl(&["status"]).await;
        if outcome.code == Some(1) { Ok(()) } else { Err(format!("{outcome:#?}")) }
    })
    .await;
    cluster.stop_controller().await;
    let unreachable = cluster.ctl(&["status"]).await.expect_code(2);
    assert!(unreachable.stderr.contains(cluster.address()), "the address is named: {unreachable:#?}");
    assert!(unreachable.stdout.is_empty());
    cluster.ctl(&["no-such-command"]).await.expect_code(64);
    cluster.finish().await;
}

async fn json_values() {
    let cluster = Cluster::builder("json").start().await;
    let node = stub(&cluster, 10);
    cluster.control().wait_ready(1).await;
    let file = cluster.path().join("in.jsonl");
    fs::write(&file, Input::chat(30, 10, 1).jsonl()).expect("the input can be written");
    let file = file.to_string_lossy().into_owned();
    let submitted = cluster
        .ctl(&["submit", &file, "--model", "/models/stub", "--name", "json", "--output", "json"])
        .await
        .expect_code(0)
        .json();
    assert!(submitted.to_string().contains("\"json\""), "{submitted}");
    cluster.control().wait_rows(1, 10).await;
    for (arguments, word) in [
        (&["status"][..], "s1"),
        (&["jobs"], "json"),
        (&["job", "j1"], "json"),
        (&["nodes"], "s1"),
        (&["pause", "j1"], "paused"),
        (&["resume", "j1"], "json"),
        (&["drain", "s1"], "draining"),
        (&["undrain", "s1"], "s1"),
        (&["cancel", "j1"], "cancel"),
    ] {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
        let outcome = cluster.ctl(&arguments).await.expect_code(0);
        let value = outcome.json().to_string().to_lowercase();
        assert!(value.contains(word), "{arguments:?}: {word} is not in {value}");
        assert!(outcome.stderr.is_empty(), "{arguments:?}: {outcome:#?}");
    }
    let events = cluster.ctl(&["events", "--output", "json"]).await.expect_code(0);
    assert!(!events.stdout.trim().is_empty());
    let missing = cluster.ctl(&["job", "j99"]).await.expect_code(1);
    assert!(missing.stderr.contains("j99"), "{missing:#?}");
    cluster.finish().await;
    drop(node);
}

async fn follow() {
    let cluster = Cluster::builder("follow").start().await;
    let node = stub(&cluster, 50);
    cluster.control().wait_ready(1).await;
    let input = Input::chat(200, 10, 1);
    let spec = JobSpec { max_batch_rows: 8, ..control::spec("follow", "/models/stub") };
    let job = cluster.control().submit(spec, input.jsonl()).await;
    cluster.control().wait_rows(job.job_id, 50).await;
    let now = cluster.ctl(&["results", "j1"]).await.expect_code(0);
    assert_eq!(now.stdout.lines().count(), 50, "without following it ends with what is there");
    let following = process::run(cluster.ctl_command(&["results", "j1", "-f"]));
    let release = async {
        node.allow(100);
        cluster.control().wait_rows(job.job_id, 150).await;
        node.allow(u64::MAX);
    };
    let (followed, ()) = tokio::join!(following, release);
    let followed = followed.expect_code(0);
    assert_eq!(followed.stdout.lines().count(), 200, "following ends with the job");
    let job = cluster.control().wait_completed(job.job_id, wait::SOON).await;
    let file = fs::read_to_string(&job.results_path).expect("the results can be read");
    assert_eq!(followed.stdout, file, "what is shown is what the file holds");
    cluster.finish().await;
    drop(node);
}

async fn prompts() {
    let cluster = Cluster::builder("prompts").agents(1).start().await;
    let file = cluster.path().join("prompts.txt");
    fs::write(&file, "What is the night for?\nCount the stones.\n\nWho is there?\n")
        .expect("a file can be written");
    let (file, model) = (file.to_string_lossy().into_owned(), models::llama().to_string_lossy().into_owned());
    let arguments = ["submit", "--prompts", &file, "--model", &model, "--max-tokens", "8"];
    cluster.ctl(&arguments).await.expect_code(0);
    let job = cluster.control().wait_completed(1, wait::LONG).await;
    assert_eq!((job.rows_total, job.rows_succeeded), (3, 3), "an empty line is no prompt");
    cluster.finish().await;
}

async fn logs() {
    let cluster = Cluster::builder("logs").agents(1).start().await;
    let input = Input::chat(10, 8, 1);
    let job = cluster.control().submit(control::spec("logs", models::llama()), input.jsonl()).await;
    cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let node = cluster.ctl(&["logs", "n1"]).await.expect_code(0);
    assert!(!node.stdout.trim().is_empty(), "an agent has something to say: {node:#?}");
    cluster.ctl(&["logs", "j1"]).await.expect_code(0);
    cluster.finish().await;
}

async fn demo() {
    let dir = TestDir::new("demo");
    let mut command = Command::new(binaries::path("clusterctl"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", dir.sub("home"))
        .env("TMPDIR", dir.sub("tmp"))
        .env("LANG", "C.UTF-8")
        .env("NIGHTSHIFT_RUNTIME_DIR", runtime::ensure().dir)
        .args(["demo", "--keep"])
        .current_dir(dir.path());
    let outcome = process::run(command).await.expect_code(0);
    let told = format!("{}{}", outcome.stdout, outcome.stderr);
    assert!(told.contains("noise"), "it says what the tiny model's text is worth: {told}");
    assert!(told.contains("mlx-community/Qwen3-0.6B-4bit"), "it says how to get real answers: {told}");
    let results = find(dir.path(), "results.jsonl").expect("the demo keeps its results");
    let rows = fs::read_to_string(&results).expect("the results can be read").lines().count();
    assert!(rows >= 24, "a few dozen rows are answered, not {rows}");
    assert!(told.contains(&results.display().to_string()), "it says where the results are: {told}");
    assert_eq!(procfs::processes_of(dir.path()), [], "the demo leaves no process behind");
}

fn find(dir: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if path.file_name().is_some_and(|other| other == name) {
            return Some(path);
        }
    }
    None
}
