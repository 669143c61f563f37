//! The controller with a million rows and nodes that answer at once: how fast rows are accepted and made durable, what
//! memory that takes, and how soon it serves again after a kill in the middle.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use nightshift_proto::v1::JobSpec;
use nightshift_tests::{
    cluster::Cluster,
    control::{self, Control, rows_done},
    procfs,
    stub::{StubNode, StubOptions},
};

use crate::table::{Bound, Table};

/// Rows generated together on each of the two nodes.
const BATCH_ROWS: u32 = 512;

/// Rows of input made at a time.
const ROWS_PER_PIECE: usize = 2000;

/// A million rows at a twentieth of the wanted speed.
const JOB_LIMIT: Duration = Duration::from_secs(1000);

pub(crate) async fn measure(table: &mut Table, quick: bool) {
    let rows: usize = if quick { 100_000 } else { 1_000_000 };
    let mut cluster = Cluster::builder("bench-controller").start().await;
    let idle_bytes = procfs::resident_bytes(cluster.controller_mut().pid());
    let nodes = ["s1", "s2"].map(|node| {
        StubNode::start(StubOptions {
            node_id: node.to_owned(),
            controller: cluster.address().to_owned(),
            allowance: u64::MAX,
        })
    });
    cluster.control().wait_ready(2).await;

    let started = Instant::now();
    let spec = JobSpec { max_batch_rows: BATCH_ROWS, ..control::spec("million", "/models/stub") };
    let job = cluster.control().try_submit(spec, input(rows)).await.expect("the rows are good");
    let what = format!("controller: {rows} rows validated and accepted");
    table.add(&what, started.elapsed().as_secs_f64(), "s", Bound::AtMost(15.0 * rows as f64 / 1e6));

    let first = rate(cluster.control(), job.job_id, rows as u64 / 50, rows as u64 / 2).await;
    let before = peak(&mut cluster);
    cluster.kill_controller().await;
    let killed = Instant::now();
    cluster.spawn_controller();
    wait_serving(cluster.address()).await;
    table.add(
        "controller: killed at the half, serving again after",
        killed.elapsed().as_secs_f64(),
        "s",
        Bound::AtMost(2.0),
    );

    let now = rows_done(&cluster.control().job(job.job_id).await);
    let second =
        rate(cluster.control(), job.job_id, now + rows as u64 / 50, rows as u64 - rows as u64 / 50).await;
    let done = cluster.control().wait_completed(job.job_id, JOB_LIMIT).await;
    let after = peak(&mut cluster);
    table.add("controller: durable row commits, until the kill", first, "rows/s", Bound::AtLeast(20_000.0));
    table.add(
        "controller: durable row commits, after the restart",
        second,
        "rows/s",
        Bound::AtLeast(20_000.0),
    );
    if let (Some(before), Some(after)) = (before, after) {
        let peak = before.max(after);
        table.add("controller: peak resident memory", megabytes(peak), "MB", Bound::AtMost(200.0));
    }
    if let Some(idle) = idle_bytes {
        table.add("controller: resident memory when idle", megabytes(idle), "MB", Bound::None);
    }
    assert_eq!(done.rows_succeeded, rows as u64);
    check_each_once(Path::new(&done.results_path), rows);
    cluster.finish().await;
    drop(nodes);
}

/// The input, made while it is sent: a prompt of a sentence in each row.
fn input(rows: usize) -> impl tokio_stream::Stream<Item = Bytes> + Send + 'static {
    let pieces = (0..rows).step_by(ROWS_PER_PIECE).map(move |first| {
        let mut piece = String::with_capacity(ROWS_PER_PIECE * 220);
        for number in first..(first + ROWS_PER_PIECE).min(rows) {
            piece.push_str(&format!(
                "{{\"custom_id\":\"row-{number:07}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{{\"messages\":\
                 [{{\"role\":\"user\",\"content\":\"Say in one sentence what the number {number} is good for.\"}}],\
                 \"max_tokens\":64,\"temperature\":0}}}}\n"
            ));
        }
        Bytes::from(piece)
    });
    tokio_stream::iter(pieces)
}

/// Rows a second between two counts.
async fn rate(control: &Control, job_id: u64, from: u64, to: u64) -> f64 {
    let reach = async |rows: u64| {
        let what = format!("{rows} rows durable");
        let job = control.wait_job(job_id, &what, JOB_LIMIT, |job| rows_done(job) >= rows).await;
        (Instant::now(), rows_done(&job))
    };
    let (start, first) = reach(from).await;
    let (end, last) = reach(to).await;
    (last - first) as f64 / (end - start).as_secs_f64()
}

async fn wait_serving(address: &str) {
    while Control::new(address).try_status().await.is_err() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn peak(cluster: &mut Cluster) -> Option<u64> {
    procfs::peak_resident_bytes(cluster.controller_mut().pid())
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Every row stands in the results once.
fn check_each_once(results: &Path, rows: usize) {
    let mut seen = vec![false; rows];
    let file = BufReader::new(File::open(results).expect("the results can be opened"));
    for line in file.lines() {
        let line = line.expect("the results can be read");
        let row: serde_json::Value = serde_json::from_str(&line).expect("a line of the results is JSON");
        let id = row["custom_id"].as_str().and_then(|id| id.strip_prefix("row-")).expect("a row has its id");
        let number: usize = id.parse().expect("an id ends in its number");
        assert!(!std::mem::replace(&mut seen[number], true), "row {number} is answered twice");
    }
    assert!(seen.iter().all(|seen| *seen), "every row has an answer");
}
