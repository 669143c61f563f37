//! A full disk under the controller: the job pauses, nothing that was told as done is lost, and it goes on by itself
//! when there is room again.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use nightshift_proto::v1::{Job, JobState};
use nightshift_tests::{
    cluster::Cluster,
    control::{self, rows_done, sketch},
    logs,
    rows::Input,
    stub::{StubNode, StubOptions},
    suite::{Case, Need, case},
    wait,
};

const NEEDS: &[Need] = &[Need::Linux, Need::Mount];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("disk_full::below_the_reserve_the_job_pauses_and_goes_on", NEEDS, || full("reserve", 8 << 20)),
        case("disk_full::with_not_a_byte_left_nothing_acknowledged_is_lost", NEEDS, || {
            full("nothing-left", 0)
        }),
        case("disk_full::a_submission_that_does_not_fit_is_refused", NEEDS, submission),
        case("disk_full::a_controller_that_starts_on_a_full_disk_waits_for_room", NEEDS, started_full),
    ]
}

/// What the controller says of a disk that fills while a job runs.
const EXPECTED: &[&str] = &[
    "ERROR results cannot be stored: */jobs cannot take more: *; no rows are handed out; *kind=\"disk-full\"",
];

async fn full(name: &str, reserve_bytes: u64) {
    let disk = SmallDisk::mount(name);
    let cluster = Cluster::builder(&format!("disk-{name}"))
        .controller_state(disk.path())
        .config(&format!("[limits]\ndisk_reserve_bytes = {reserve_bytes}\n"))
        .expect(EXPECTED)
        .start()
        .await;
    let (node, input, before) = under_way(&cluster, 20_000).await;

    let ballast = disk.fill();
    node.allow(u64::MAX);
    let paused = cluster
        .control()
        .wait_job(before.job_id, "paused for the full disk", wait::SOON, |job| {
            job.state() == JobState::Paused || !job.detail.is_empty()
        })
        .await;
    let told = format!("{} {:?}", paused.detail, cluster.control().status().await.problems);
    assert!(told.contains("disk") || told.contains("space"), "a person is told why: {told}");
    assert!(rows_done(&paused) >= rows_done(&before), "{}", sketch(&paused));
    assert!(rows_done(&paused) < 20_000, "the disk was not full: {}", sketch(&paused));

    fs::remove_file(ballast).expect("the ballast can be removed");
    let done = cluster.control().wait_completed(before.job_id, wait::LONG).await;
    assert_eq!(cluster.answers(&done, &input).succeeded(), 20_000);
    assert_eq!(done.duplicate_results, 0, "what is sent again is taken once");
    cluster.finish().await;
    drop(node);
}

/// A job of so many rows with 500 of them done, and the node that answers no more before it may.
async fn under_way(cluster: &Cluster, rows: usize) -> (StubNode, Input, Job) {
    let node = StubNode::start(StubOptions {
        node_id: "s1".to_owned(),
        controller: cluster.address().to_owned(),
        allowance: 500,
    });
    cluster.control().wait_ready(1).await;
    let input = Input::chat(rows, 10, 1);
    let job = cluster.control().submit(control::spec("under-way", "/models/stub"), input.jsonl()).await;
    let job = cluster.control().wait_rows(job.job_id, 500).await;
    (node, input, job)
}

async fn submission() {
    let disk = SmallDisk::mount("submission");
    let cluster = Cluster::builder("disk-submission")
        .controller_state(disk.path())
        .config("[limits]\ndisk_reserve_bytes = 8388608\n")
        .start()
        .await;
    // About a hundred megabytes onto a disk of sixty-four.
    let mut input = Input::new();
    let long = "word ".repeat(20_000);
    for number in 0..1000 {
        input.completion_row(&format!("row-{number}"), &long, serde_json::json!({"max_tokens": 1}));
    }
    let refusal = cluster
        .control()
        .try_submit(control::spec("large", "/models/stub"), control::pieces(input.jsonl()))
        .await
        .expect_err("it does not fit");
    assert!(refusal.problem.contains("disk") || refusal.problem.contains("space"), "{refusal:?}");
    let jobs = cluster.controller_dir().join("jobs");
    let left = fs::read_dir(&jobs).map(|entries| entries.count()).unwrap_or_default();
    assert_eq!(left, 0, "nothing of it is kept in {}", jobs.display());
    let small = Input::chat(10, 10, 1);
    cluster.control().submit(control::spec("small", "/models/stub"), small.jsonl()).await;
    cluster.finish().await;
}

/// What it says when it starts on one.
const FULL: &str = "ERROR the disk is full: nothing is served until there is room*";

async fn started_full() {
    let disk = SmallDisk::mount("started");
    let mut cluster = Cluster::builder("disk-started")
        .controller_state(disk.path())
        .config("[limits]\ndisk_reserve_bytes = 8388608\n")
        .expect(&[FULL])
        .start()
        .await;
    let (node, input, before) = under_way(&cluster, 2_000).await;

    cluster.kill_controller().await;
    let ballast = disk.fill();
    // Asked to stop while it waits, it does.
    cluster.spawn_controller();
    wait::eventually("the controller to say that it waits", wait::SOON, async || {
        let told = logs::matching(&cluster.path().join("logs"), FULL);
        if told.is_empty() { Err("it has said nothing".to_owned()) } else { Ok(()) }
    })
    .await;
    assert!(cluster.control().try_status().await.is_err(), "without its ledger it must not serve");
    cluster.stop_controller().await;

    cluster.spawn_controller();
    node.allow(u64::MAX);
    fs::remove_file(ballast).expect("the ballast can be removed");
    cluster.wait_served().await;
    let done = cluster.control().wait_completed(before.job_id, wait::LONG).await;
    assert!(rows_done(&done) >= rows_done(&before), "{}", sketch(&done));
    assert_eq!(cluster.answers(&done, &input).succeeded(), 2_000);
    cluster.finish().await;
    drop(node);
}

/// A file system of its own, of a size that can be filled.
pub(crate) struct SmallDisk {
    path: PathBuf,
    stays: bool,
}

impl SmallDisk {
    pub(crate) fn mount(name: &str) -> Self {
        let path = tempfile::Builder::new()
            .prefix(&format!("nightshift-disk-{name}-"))
            .tempdir()
            .expect("a temporary directory can be made")
            .keep();
        mount(&path);
        Self { path, stays: false }
    }

    /// A disk that stays, and that the next run of the test finds again.
    pub(crate) fn at(path: &Path) -> Self {
        fs::create_dir_all(path).expect("a directory for the disk can be made");
        let mounts = fs::read_to_string("/proc/mounts").expect("the mounts can be read");
        if !mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|place| Path::new(place) == path)) {
            mount(path);
        }
        let _ = fs::remove_file(path.join(BALLAST));
        Self { path: path.to_owned(), stays: true }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it to the last byte and gives the file that does.
    pub(crate) fn fill(&self) -> PathBuf {
        let ballast = self.path.join(BALLAST);
        let mut file = File::create(&ballast).expect("the ballast can be made");
        for size in [1 << 20, 4096, 1] {
            let piece = vec![0; size];
            while file.write_all(&piece).is_ok() {}
        }
        ballast
    }
}

/// The file that fills it.
const BALLAST: &str = "ballast";

fn mount(path: &Path) {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64m", "nightshift-test"])
        .arg(path)
        .status()
        .expect("mount can be started");
    assert!(status.success(), "no tmpfs could be mounted at {}", path.display());
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // Lazily: a controller that is still being killed may hold it for a moment.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = fs::remove_dir(&self.path);
    }
}
