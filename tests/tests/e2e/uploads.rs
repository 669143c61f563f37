//! Uploads that are endless, break off, are taken back or lose their controller: memory stays bounded, and what was not
//! said to be complete leaves nothing.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::{Child, ChildStdin, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use nightshift_proto::v1::{JobSpec, SubmitChunk, SubmitReply, submit_chunk::Part, submit_reply::Outcome};
use nightshift_tests::{
    cluster::Cluster,
    control, procfs,
    rng::{self, Rng},
    rows::Input,
    stub::{StubNode, StubOptions},
    suite::{Case, Need, case},
    wait,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::bad_input::{assert_nothing_kept, good};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("uploads::a_line_of_two_gigabytes_is_refused_in_bounded_memory", &[Need::Linux], endless_line),
        case("uploads::a_client_killed_in_the_middle_leaves_nothing", &[], client_killed),
        case("uploads::a_client_whose_controller_dies_is_told_what_is_not_known", &[], client_told),
        case("uploads::a_stream_that_ends_without_its_closing_message_is_aborted", &[], not_closed),
        case("uploads::a_cancelled_call_leaves_nothing", &[], cancelled),
        case("uploads::what_is_not_a_submission_is_refused", &[], no_submission),
        case(
            "uploads::a_controller_killed_in_the_middle_has_the_job_or_nothing_of_it",
            &[],
            controller_killed,
        ),
    ]
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
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).expect("the answer is one JSON value");
    let problem = "longer than 16 MiB, the most a row may have";
    assert_eq!(told["errors"], json!([{"line": 2, "problem": problem}]));
    assert_eq!((&told["error_count"], &told["problem"]), (&json!(1), &Value::Null));
    let client_peak = sampler.await.expect("the sampler does not panic");
    let controller = cluster.controller_mut().pid();
    let controller_peak = procfs::peak_resident_bytes(controller).expect("the controller runs");
    assert!(client_peak < MEMORY_BOUND_BYTES, "clusterctl took {} MiB", client_peak >> 20);
    assert!(controller_peak < MEMORY_BOUND_BYTES, "clusterd took {} MiB", controller_peak >> 20);
    assert_nothing_kept(&cluster).await;
    cluster.finish().await;
}

fn submit_from_stdin(cluster: &Cluster) -> Child {
    cluster
        .ctl_command(&["submit", "-", "--model", "/models/none", "--output", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("clusterctl can be started")
}

/// Directories below `jobs/`: jobs, and submissions coming in.
fn directories(state: &Path) -> Vec<String> {
    let entries = fs::read_dir(state.join("jobs")).map(|entries| entries.flatten().collect());
    let entries: Vec<fs::DirEntry> = entries.unwrap_or_default();
    entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Waits until so much of a submission is on the controller's disk.
async fn wait_arriving(state: &Path, bytes: u64) {
    let arrived = || {
        let inputs =
            directories(state).into_iter().map(|name| state.join("jobs").join(name).join("input.jsonl"));
        inputs.filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.len()).sum::<u64>()
    };
    wait::until("the submission to arrive", wait::SOON, || arrived() >= bytes).await;
}

/// Waits until nothing of it is left, and checks that the next submission is taken.
async fn assert_gone(cluster: &Cluster) {
    let state = cluster.controller_dir();
    wait::until("nothing of it to be left", wait::SOON, || directories(state).is_empty()).await;
    assert_nothing_kept(cluster).await;
    let whole =
        cluster.control().submit(control::spec("whole", "/models/none"), (good("a") + "\n").into()).await;
    assert_eq!((whole.job_id, whole.rows_total), (1, 1), "the next submission is taken");
}

/// Feeds a client so many rows and gives back its standard input, still open.
async fn feed(child: &mut Child, rows: usize) -> ChildStdin {
    let mut stdin = child.stdin.take().expect("the client's standard input is a pipe");
    let feeding = tokio::task::spawn_blocking(move || {
        for number in 0..rows {
            writeln!(stdin, "{}", good(&format!("row-{number}"))).expect("the client reads its input");
        }
        stdin
    });
    feeding.await.expect("the feeding thread does not panic")
}

async fn client_killed() {
    let cluster = Cluster::builder("client-killed").start().await;
    let mut child = submit_from_stdin(&cluster);
    let stdin = feed(&mut child, 20_000).await;
    wait_arriving(cluster.controller_dir(), 1).await;
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be waited for");
    drop(stdin);
    assert_gone(&cluster).await;
    cluster.finish().await;
}

async fn client_told() {
    let mut cluster = Cluster::builder("client-told").start().await;
    let mut child = submit_from_stdin(&cluster);
    let stdin = feed(&mut child, 20_000).await;
    wait_arriving(cluster.controller_dir(), 1).await;
    cluster.kill_controller().await;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output())
        .await
        .expect("the waiting thread does not panic")
        .expect("the client can be waited for");
    drop(stdin);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stderr).expect("an error is one JSON value");
    assert_eq!(told["error"]["kind"], "connection-lost", "{told}");
    let hint = "Whether the job was accepted is not known; look for it with: clusterctl jobs --all";
    assert_eq!(told["error"]["hint"], hint);
    cluster.start_controller().await;
    assert_gone(&cluster).await;
    cluster.finish().await;
}

fn spec_chunk(spec: JobSpec) -> SubmitChunk {
    SubmitChunk { part: Some(Part::Spec(spec)) }
}

fn data_chunk(data: impl Into<Bytes>) -> SubmitChunk {
    SubmitChunk { part: Some(Part::Data(data.into())) }
}

/// A submission by a raw client that sends what it is handed, and ends when the sender is dropped.
struct Upload {
    chunks: mpsc::Sender<SubmitChunk>,
    call: tokio::task::JoinHandle<Result<SubmitReply, Status>>,
}

impl Upload {
    fn begin(cluster: &Cluster, spec: JobSpec) -> Self {
        let (chunks, receiver) = mpsc::channel(1);
        let mut client = cluster.control().raw();
        let call = tokio::spawn(async move {
            client.submit(ReceiverStream::new(receiver)).await.map(tonic::Response::into_inner)
        });
        chunks.try_send(spec_chunk(spec)).expect("an empty channel takes a message");
        Self { chunks, call }
    }

    /// Sends it unless the call is over.
    async fn send(&self, data: impl Into<Bytes>) {
        let _ = self.chunks.send(data_chunk(data)).await;
    }

    /// Ends the stream and waits for the answer.
    async fn end(self) -> Result<SubmitReply, Status> {
        drop(self.chunks);
        self.call.await.expect("the task of the call does not panic")
    }
}

async fn not_closed() {
    let cluster = Cluster::builder("not-closed").start().await;
    let rows = Input::chat(1000, 10, 1).jsonl();
    // Whole lines, the middle of a line, nothing at all.
    for bytes in [rows.len(), rows.len() / 2, 0] {
        let upload = Upload::begin(&cluster, control::spec("not closed", "/models/none"));
        if bytes > 0 {
            upload.send(rows.slice(..bytes)).await;
        }
        let status = upload.end().await.expect_err("it is not complete");
        assert_eq!(
            (status.code(), status.message()),
            (Code::Aborted, "the upload ended before its closing empty message; nothing was kept"),
            "after {bytes} bytes"
        );
    }
    assert_gone(&cluster).await;
    cluster.finish().await;
}

async fn cancelled() {
    let cluster = Cluster::builder("cancelled").start().await;
    let rows = Input::chat(5000, 10, 1).jsonl();
    let upload = Upload::begin(&cluster, control::spec("cancelled", "/models/none"));
    upload.send(rows).await;
    wait_arriving(cluster.controller_dir(), 1).await;
    // Dropping the call resets its stream.
    upload.call.abort();
    let ended = upload.call.await.expect_err("nobody answers a submission that is not complete");
    assert!(ended.is_cancelled());
    assert_gone(&cluster).await;
    cluster.finish().await;
}

async fn no_submission() {
    let cluster = Cluster::builder("no-submission").start().await;
    let spec = control::spec("spec", "/models/none");
    let row = good("a") + "\n";
    let no_spec = "the first message of a submission must be its spec";
    for (chunks, problem) in [
        (vec![], no_spec),
        (vec![data_chunk(row.clone()), data_chunk("")], no_spec),
        (vec![SubmitChunk { part: None }], no_spec),
        (
            vec![spec_chunk(spec.clone()), spec_chunk(spec.clone()), data_chunk(row), data_chunk("")],
            "a submission has one spec, and data after it",
        ),
        (vec![spec_chunk(JobSpec::default()), data_chunk("")], "a submission must name a model"),
    ] {
        let status = cluster.control().raw().submit(tokio_stream::iter(chunks)).await;
        let status = status.expect_err("it is no submission");
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, problem));
    }
    assert_gone(&cluster).await;
    cluster.finish().await;
}

/// How often the controller is killed during an upload.
const KILLS: u64 = 8;

/// SIGKILL anywhere between the first byte and a little after the answer. A client that then submits again under the same
/// number has one job with every row, whether or not the first attempt had become it.
async fn controller_killed() {
    let seed = rng::run_seed();
    eprintln!("uploads::controller_killed: NIGHTSHIFT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::builder("upload-killed").start().await;
    let input = Input::chat(4000, 10, 1);
    let bytes = input.jsonl();
    let spec = |number: &str| JobSpec {
        submission_id: number.to_owned(),
        max_batch_rows: 512,
        ..control::spec(number, "/models/stub")
    };
    let began = Instant::now();
    let usual = cluster.control().submit(spec("usual"), bytes.clone()).await;
    let mut job_ids = vec![usual.job_id];
    let usual_us = began.elapsed().as_micros() as u64;
    for round in 1..=KILLS {
        let number = format!("upload-{round}");
        let upload = Upload::begin(&cluster, spec(&number));
        let killing = async {
            tokio::time::sleep(Duration::from_micros(rng.range(0, usual_us * 5 / 4))).await;
            cluster.kill_controller().await;
        };
        let sending = async {
            for start in (0..bytes.len()).step_by(64 << 10) {
                upload.send(bytes.slice(start..bytes.len().min(start + (64 << 10)))).await;
            }
            upload.send("").await;
        };
        tokio::join!(killing, sending);
        let answer = upload.end().await;
        cluster.start_controller().await;
        let jobs = cluster.control().status().await.jobs;
        let kept = jobs.iter().find(|job| job.spec.as_ref().is_some_and(|spec| spec.submission_id == number));
        assert!(kept.is_none_or(|job| job.rows_total == 4000), "a job has all of its rows: {kept:?}");
        if let Ok(SubmitReply { outcome: Some(Outcome::Accepted(job)) }) = answer {
            assert_eq!(kept.map(|kept| kept.job_id), Some(job.job_id), "what was accepted is there");
        }
        let names = directories(cluster.controller_dir());
        assert_eq!(names.len(), jobs.len(), "nothing but jobs is left: {names:?}");
        let again = cluster.control().submit(spec(&number), bytes.clone()).await;
        assert!(kept.is_none_or(|kept| kept.job_id == again.job_id), "one job, not two: {kept:?}");
        assert_eq!(again.rows_total, 4000);
        job_ids.push(again.job_id);
    }
    let node = StubNode::start(StubOptions {
        node_id: "s1".to_owned(),
        controller: cluster.address().to_owned(),
        allowance: u64::MAX,
    });
    let jobs = cluster.control().status().await.jobs;
    assert_eq!(jobs.len(), job_ids.len(), "a job a submission: {jobs:#?}");
    for job_id in job_ids {
        let job = cluster.control().wait_completed(job_id, wait::LONG).await;
        assert_eq!(cluster.answers(&job, &input).succeeded(), 4000);
    }
    cluster.finish().await;
    drop(node);
}
