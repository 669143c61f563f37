//! The bounds, measured. Run by hand:
//! `cargo test --release -p nightshift-daemon -- --ignored ledger_speed --nocapture`; `ledger_growth` likewise.

use std::{fs, path::Path, time::Instant};

use bytes::Bytes;

use super::job_record;
use crate::{
    intake::{Intake, Limits, Staged},
    ledger::{Handle, Options, Replay, open},
    model::{Checkpoint, EventDraft, FinishedRow, JobId, JobRecord, JobState, RowIx, Severity},
};

const ROWS: u32 = 1_000_000;

/// Small jobs of the measurement of what stays in memory: years of nights.
const JOBS: u64 = 2_000;

const ROWS_OF_EACH: u32 = 30;

/// How often the checkpoints of each row are put.
const CHECKPOINTS_OF_EACH: usize = 8;

fn resident_kb(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).unwrap_or_default()
}

fn resident_mb(field: &str) -> u64 {
    resident_kb(field) / 1024
}

fn stage(dir: &Path, rows: u32) -> Staged {
    let mut intake = Intake::begin(dir, Limits::default()).unwrap();
    let mut chunk = Vec::new();
    for row in 0..rows {
        chunk.extend_from_slice(
            format!(
                r#"{{"custom_id":"request-{row}","method":"POST","url":"/v1/chat/completions","body":{{"model":"m","messages":[{{"role":"user","content":"Say something about the number {row}."}}],"max_tokens":64,"temperature":0}}}}"#
            )
            .as_bytes(),
        );
        chunk.push(b'\n');
        if chunk.len() > 64 * 1024 {
            intake.push(&chunk).unwrap();
            chunk.clear();
        }
    }
    intake.push(&chunk).unwrap();
    intake.finish().unwrap()
}

fn answer(row: u32) -> FinishedRow {
    let body = format!(
        r#"{{"id":"chatcmpl-j1-{row}","object":"chat.completion","created":1700000000,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"It is a number like any other, more or less."}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":12,"completion_tokens":11,"total_tokens":23}}}}"#
    );
    FinishedRow {
        job: JobId(1),
        row: RowIx(row),
        status_code: 200,
        body: Bytes::from(body),
        request_id: format!("j1-{row}"),
        prompt_tokens: 12,
        completion_tokens: 11,
    }
}

fn opened(dir: &Path, what: &str) -> (Handle, Replay) {
    let start = Instant::now();
    let (handle, replay) = open(Options { state_dir: dir.to_owned(), ..Options::default() }).unwrap();
    let done = replay.jobs.first().map_or(0, |job| job.done.len());
    println!("{what}: {:.3} s ({done} rows done, {:?})", start.elapsed().as_secs_f64(), replay.repairs);
    (handle, replay)
}

#[test]
#[ignore = "a measurement, to be run by hand in a release build"]
fn ledger_speed() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (handle, _) = opened(dir.path(), "open, empty");
    let start = Instant::now();
    let staged = stage(dir.path(), ROWS);
    let (bytes, staging_s) = (staged.bytes, start.elapsed().as_secs_f64());
    runtime.block_on(handle.create_job(staged, job_record(1, ROWS))).unwrap();
    println!(
        "{ROWS} rows of {} bytes validated and staged: {staging_s:.2} s; accepted after {:.2} s; resident {} MB, at most {} MB",
        bytes / u64::from(ROWS),
        start.elapsed().as_secs_f64(),
        resident_mb("VmRSS"),
        resident_mb("VmHWM"),
    );

    let single = 200;
    let start = Instant::now();
    runtime.block_on(async {
        for row in 0..single {
            handle.commit(vec![answer(row)]).await.unwrap();
        }
    });
    println!("a commit of one row: {:.2} ms", start.elapsed().as_secs_f64() * 1000.0 / f64::from(single));

    let sequential = 200_000;
    let start = Instant::now();
    runtime.block_on(async {
        for first in (single..sequential).step_by(256) {
            handle.commit((first..(first + 256).min(sequential)).map(answer).collect()).await.unwrap();
        }
    });
    let rows = f64::from(sequential - single);
    println!("commits of 256 rows, one after the other: {:.0} rows/s", rows / start.elapsed().as_secs_f64());

    let start = Instant::now();
    runtime.block_on(async {
        let next = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(sequential));
        let writers = (0..16).map(|_| {
            let (handle, next) = (handle.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let first = next.fetch_add(256, std::sync::atomic::Ordering::Relaxed);
                    if first >= ROWS {
                        break;
                    }
                    handle.commit((first..(first + 256).min(ROWS)).map(answer).collect()).await.unwrap();
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    });
    let rows = f64::from(ROWS - sequential);
    println!(
        "commits of 256 rows, 16 at a time: {:.0} rows/s; resident {} MB, at most {} MB",
        rows / start.elapsed().as_secs_f64(),
        resident_mb("VmRSS"),
        resident_mb("VmHWM")
    );
    runtime.block_on(handle.shutdown()).unwrap();
    let store_bytes: u64 = fs::read_dir(dir.path().join("ledger"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    let results_bytes = fs::metadata(dir.path().join("jobs/j1/results.jsonl")).unwrap().len();
    println!("store {} MB, results {} MB", store_bytes >> 20, results_bytes >> 20);

    for what in ["open", "open again"] {
        let (handle, replay) = opened(dir.path(), what);
        assert!(replay.jobs[0].done.is_full());
        runtime.block_on(handle.shutdown()).unwrap();
    }
    fs::remove_dir_all(dir.path().join("ledger")).unwrap();
    let (handle, replay) = opened(dir.path(), "open without a store (rebuilt from the results)");
    assert!(replay.jobs[0].done.is_full());
    runtime.block_on(handle.shutdown()).unwrap();
    println!("resident {} MB, at most {} MB", resident_mb("VmRSS"), resident_mb("VmHWM"));
}

/// What jobs leave in memory, one after the other: the store's cache and its buffer fill up, then little is added.
#[test]
#[ignore = "a measurement, to be run by hand in a release build"]
fn ledger_growth() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (handle, _) = opened(dir.path(), "open, empty");
    for job in 1..=JOBS {
        runtime.block_on(small_job(&handle, dir.path(), job));
        if job == 1 || job % 100 == 0 {
            let descriptors = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
            println!("{job} jobs: resident {} KB, {descriptors} descriptors", resident_kb("VmRSS"));
        }
    }
    runtime.block_on(handle.shutdown()).unwrap();
}

async fn small_job(handle: &Handle, dir: &Path, job: u64) {
    let id = JobId(job);
    handle.create_job(stage(dir, ROWS_OF_EACH), job_record(job, ROWS_OF_EACH)).await.unwrap();
    for step in 1..=CHECKPOINTS_OF_EACH {
        let checkpoint =
            Checkpoint { tokens: vec![7; step * 5], logprobs_json: Vec::new(), by_fallback: false };
        let rows = (0..ROWS_OF_EACH).map(|row| (RowIx(row), checkpoint.clone()));
        handle.put_checkpoints(id, rows.collect()).await.unwrap();
        let event = EventDraft {
            severity: Severity::Warning,
            kind: "worker-exited".to_owned(),
            node: None,
            job: Some(id),
            message: format!(
                "a worker of {id} was killed by signal 9 after {step} tokens of each of its rows"
            ),
        };
        handle.append_events(vec![event; 3], job).await.unwrap();
    }
    for row in (0..ROWS_OF_EACH).step_by(2) {
        let rows = [row, row + 1].map(|row| FinishedRow { job: id, ..answer(row) });
        handle.commit(rows.into()).await.unwrap();
    }
    let completed = JobRecord { state: JobState::Completed, ..job_record(job, ROWS_OF_EACH) };
    handle.put_job(completed).await.unwrap();
}
