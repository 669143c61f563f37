//! Input that must be refused: by `clusterctl submit`, with line numbers and the exact reason, nothing of it kept, and
//! memory bounded whatever comes down the pipe.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nightshift_tests::{
    cluster::Cluster,
    control,
    process::Outcome,
    procfs,
    rng::Rng,
    suite::{Case, Need, case},
};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("bad_input::each_refusal_names_line_and_reason", &[], refusals),
        case("bad_input::only_the_first_twenty_are_listed_and_all_are_counted", &[], many),
        case("bad_input::empty_input_is_refused", &[], empty),
        case("bad_input::binary_rubbish_is_refused", &[], rubbish),
        case("bad_input::a_line_of_two_gigabytes_is_refused_in_bounded_memory", &[Need::Linux], endless_line),
        case("bad_input::a_missing_file_is_told_without_a_controller", &[], no_file),
        case("bad_input::a_client_killed_in_the_middle_leaves_nothing", &[Need::Linux], broken_off),
    ]
}

/// A good row with this id.
fn good(id: &str) -> String {
    row(id, "POST", "/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hm"}]}))
}

fn row(id: &str, method: &str, url: &str, body: serde_json::Value) -> String {
    json!({"custom_id": id, "method": method, "url": url, "body": body}).to_string()
}

/// Submits these lines through the real client.
async fn submit(cluster: &Cluster, content: &[u8]) -> Outcome {
    let file = cluster.path().join("input.jsonl");
    fs::write(&file, content).expect("the input can be written");
    let file = file.to_string_lossy().into_owned();
    cluster.ctl(&["submit", &file, "--model", "/models/none"]).await
}

/// Nothing of a refused submission stays: no job, no files.
async fn assert_nothing_kept(cluster: &Cluster) {
    let status = cluster.control().status().await;
    assert!(status.jobs.is_empty(), "a refused submission is no job: {:?}", status.jobs);
    let left: Vec<PathBuf> = fs::read_dir(cluster.controller_dir().join("jobs"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "a refused submission leaves no files: {left:?}");
}

async fn refusals() {
    let cluster = Cluster::builder("refusals").start().await;
    let chat = "/v1/chat/completions";
    let body = json!({"messages": [{"role": "user", "content": "hm"}]});
    let cases: Vec<(&str, Vec<String>, Vec<&str>)> = vec![
        ("duplicate", vec![good("a"), good("b"), good("a")], vec!["line 3", "\"a\"", "line 1"]),
        ("broken JSON", vec![good("a"), "{\"custom_id\": \"b\", ".to_owned()], vec!["line 2", "JSON"]),
        ("not an object", vec!["[1, 2]".to_owned()], vec!["line 1", "object"]),
        (
            "no id",
            vec![json!({"method": "POST", "url": chat, "body": body}).to_string()],
            vec!["line 1", "custom_id"],
        ),
        (
            "id of a wrong type",
            vec![json!({"custom_id": 7, "method": "POST", "url": chat, "body": body}).to_string()],
            vec!["line 1", "custom_id"],
        ),
        ("wrong method", vec![row("a", "GET", chat, body.clone())], vec!["line 1", "method", "POST"]),
        (
            "wrong url",
            vec![row("a", "POST", "/v1/embeddings", body.clone())],
            vec!["line 1", "url", "/v1/chat/completions", "/v1/completions"],
        ),
        (
            "no body",
            vec![json!({"custom_id": "a", "method": "POST", "url": chat}).to_string()],
            vec!["line 1", "body"],
        ),
        ("body of a wrong type", vec![row("a", "POST", chat, json!("hm"))], vec!["line 1", "body"]),
        (
            "chat without messages",
            vec![row("a", "POST", chat, json!({"prompt": "hm"}))],
            vec!["line 1", "messages"],
        ),
        (
            "completion without prompt",
            vec![row("a", "POST", "/v1/completions", json!({"max_tokens": 1}))],
            vec!["line 1", "prompt"],
        ),
    ];
    for (what, lines, wanted) in cases {
        let outcome = submit(&cluster, (lines.join("\n") + "\n").as_bytes()).await.expect_code(1);
        for text in wanted {
            assert!(outcome.told().contains(text), "{what}: {text:?} is not in {outcome:#?}");
        }
    }
    let file = cluster.path().join("input.jsonl").to_string_lossy().into_owned();
    let refused = cluster
        .ctl(&["submit", &file, "--model", "/models/none", "--output", "json"])
        .await
        .expect_code(1)
        .json();
    assert_eq!(refused["errors"][0]["line"], 1, "programs get the line as a number: {refused}");
    assert_nothing_kept(&cluster).await;
    cluster.finish().await;
}

async fn many() {
    let cluster = Cluster::builder("many").start().await;
    let mut text = String::new();
    for number in 0..100 {
        text.push_str(&good(&format!("row-{number}")));
        text.push_str("\n{broken\n");
    }
    let outcome = submit(&cluster, text.as_bytes()).await.expect_code(1);
    let told = outcome.told();
    let listed = told.lines().filter(|line| line.contains("line ")).count();
    assert!((20..=21).contains(&listed), "twenty lines are listed, not {listed}: {outcome:#?}");
    assert!(outcome.told().contains("line 40") && !outcome.told().contains("line 42"), "{outcome:#?}");
    assert!(outcome.told().contains("100"), "all are counted: {outcome:#?}");
    assert_nothing_kept(&cluster).await;
    cluster.finish().await;
}

async fn empty() {
    let cluster = Cluster::builder("empty").start().await;
    for content in ["", "\n\n  \n"] {
        let outcome = submit(&cluster, content.as_bytes()).await.expect_code(1);
        assert!(outcome.told().contains("no row") || outcome.told().contains("empty"), "{outcome:#?}");
    }
    assert_nothing_kept(&cluster).await;
    cluster.finish().await;
}

async fn rubbish() {
    let cluster = Cluster::builder("rubbish").start().await;
    let mut rng = Rng::new(1);
    let noise: Vec<u8> = (0..3 << 20).map(|_| rng.bits() as u8).collect();
    let outcome = submit(&cluster, &noise).await.expect_code(1);
    assert!(outcome.told().contains("line 1"), "{outcome:#?}");
    assert!(
        !outcome.told().contains('\u{1b}'),
        "noise is not printed raw to a person's terminal: {outcome:#?}"
    );
    let zeros = submit(&cluster, &vec![0; 1 << 20]).await.expect_code(1);
    assert!(zeros.told().contains("line 1"), "{zeros:#?}");
    assert_nothing_kept(&cluster).await;
    cluster.finish().await;
}

/// What the two programs may take on top of what they are: a few messages and one row, not the line.
const MEMORY_BOUND_BYTES: u64 = 300 << 20;

async fn endless_line() {
    const LINE_BYTES: u64 = 2 << 30;
    let mut cluster = Cluster::builder("endless").start().await;
    let mut child = submit_from_stdin(&cluster);
    let client = child.id();
    let mut stdin = child.stdin.take().expect("the client's standard input is a pipe");
    // The first row is good, the second has no end for two gigabytes, the third is good again.
    let feeder = tokio::task::spawn_blocking(move || -> io::Result<()> {
        let piece = vec![b'x'; 1 << 20];
        writeln!(stdin, "{}", good("first"))?;
        for _ in 0..LINE_BYTES >> 20 {
            stdin.write_all(&piece)?;
        }
        writeln!(stdin)?;
        writeln!(stdin, "{}", good("third"))
    });
    static DONE: AtomicBool = AtomicBool::new(false);
    let sampler = tokio::spawn(async move {
        let mut peak = 0;
        while !DONE.load(Ordering::Relaxed) {
            peak = procfs::peak_resident_bytes(client).unwrap_or(0).max(peak);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        peak
    });
    let output = tokio::task::spawn_blocking(move || child.wait_with_output())
        .await
        .expect("the waiting thread does not panic")
        .expect("the client can be waited for");
    DONE.store(true, Ordering::Relaxed);
    // A server that has seen enough may hang up before the end: then the pipe breaks, which is fine.
    let _ = feeder.await.expect("the feeding thread does not panic");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("line 2") && told.contains("16"), "the line and the limit are named: {told}");
    let client_peak = sampler.await.expect("the sampler does not panic");
    let controller = cluster.controller_mut().pid();
    let controller_peak = procfs::peak_resident_bytes(controller).expect("the controller runs");
    assert!(client_peak < MEMORY_BOUND_BYTES, "clusterctl took {} MiB", client_peak >> 20);
    assert!(controller_peak < MEMORY_BOUND_BYTES, "clusterd took {} MiB", controller_peak >> 20);
    assert_nothing_kept(&cluster).await;
    cluster.finish().await;
}

async fn no_file() {
    let cluster = Cluster::builder("no-file").start().await;
    let outcome = cluster.ctl(&["submit", "/no/such/file.jsonl", "--model", "/models/none"]).await;
    let outcome = outcome.expect_code(1);
    assert!(outcome.told().contains("/no/such/file.jsonl"), "{outcome:#?}");
    cluster.finish().await;
}

async fn broken_off() {
    let cluster = Cluster::builder("broken-off").allow(&["submi"]).start().await;
    let mut child = submit_from_stdin(&cluster);
    let mut stdin = child.stdin.take().expect("the client's standard input is a pipe");
    let stdin = tokio::task::spawn_blocking(move || {
        for number in 0..20_000 {
            writeln!(stdin, "{}", good(&format!("row-{number}"))).expect("the client reads its input");
        }
        stdin
    })
    .await
    .expect("the feeding thread does not panic");
    let incoming = |dir: &Path| {
        fs::read_dir(dir.join("jobs")).map(|entries| entries.flatten().count()).unwrap_or_default()
    };
    let dir = cluster.controller_dir().to_owned();
    nightshift_tests::wait::until("the submission to arrive", nightshift_tests::wait::SOON, || {
        incoming(&dir) > 0
    })
    .await;
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be waited for");
    drop(stdin);
    nightshift_tests::wait::until("nothing of it to be left", nightshift_tests::wait::SOON, || {
        incoming(&dir) == 0
    })
    .await;
    assert_nothing_kept(&cluster).await;
    let whole =
        cluster.control().submit(control::spec("whole", "/models/none"), (good("a") + "\n").into()).await;
    assert_eq!(whole.rows_total, 1, "the next submission is taken");
    cluster.finish().await;
}

fn submit_from_stdin(cluster: &Cluster) -> std::process::Child {
    let mut command: Command = cluster.ctl_command(&["submit", "-", "--model", "/models/none"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("clusterctl can be started")
}
