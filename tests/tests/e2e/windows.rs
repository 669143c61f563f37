//! Jobs with a window. No case waits for an hour to strike: windows are chosen from the time it is, and the clock of a
//! restarted controller is that of another place.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use nightshift_proto::v1::{ForecastObstacle, JobSpec, JobState};
use nightshift_tests::{
    cluster::Cluster,
    control::{self, pieces, rows_done, sketch},
    models,
    rows::Input,
    stub::{StubNode, StubOptions},
    suite::{Case, Need, case},
    wait,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("windows::no_row_starts_while_it_is_closed_and_status_says_why", &[], closed),
        case("windows::all_rows_are_answered_while_it_is_open", &[], open),
        case("windows::what_cannot_be_is_refused_and_nothing_is_kept", &[], refused),
        case(
            "windows::what_a_closing_window_cuts_off_goes_on_with_the_same_text",
            &[Need::Runtime, Need::Linux],
            cut_off,
        ),
    ]
}

const HOUR_MINUTES: u64 = 60;
const DAY_MINUTES: u64 = 24 * HOUR_MINUTES;

/// The time of day that it will be in UTC so many hours from now.
fn clock(hours_ahead: u64) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    let minute = (since.as_secs() / 60 + hours_ahead * HOUR_MINUTES) % DAY_MINUTES;
    format!("{:02}:{:02}", minute / HOUR_MINUTES, minute % HOUR_MINUTES)
}

/// From six hours ago to in six hours.
fn open_now() -> String {
    format!("{}-{}", clock(18), clock(6))
}

fn stub(cluster: &Cluster) -> StubNode {
    let controller = cluster.address().to_owned();
    StubNode::start(StubOptions { node_id: "s1".to_owned(), controller, allowance: u64::MAX })
}

async fn closed() {
    let cluster = Cluster::builder("window-closed").start().await;
    let node = stub(&cluster);
    cluster.control().wait_ready(1).await;
    let input = Input::chat(30, 10, 1);
    let file = cluster.path().join("in.jsonl");
    fs::write(&file, input.jsonl()).expect("the input can be written");
    let file = file.to_string_lossy().into_owned();
    let (opens, closes) = (clock(6), clock(12));
    let window = format!("{opens}-{closes}");
    let arguments = ["submit", &file, "--model", "/models/stub", "--window", &window, "--deadline", &closes];
    let submitted = cluster.ctl(&arguments).await.expect_code(0);
    let waits = format!("aits for its window: opens {opens}");
    assert!(submitted.stdout.contains(&waits), "{submitted:#?}");

    // The node is free for others meanwhile, and by their end it would have had time to start a row.
    let other = cluster.control().submit(control::spec("other", "/models/stub"), input.jsonl()).await;
    cluster.control().wait_completed(other.job_id, wait::LONG).await;
    assert_eq!(node.answered(), 30, "the rows of the other job");
    let job = cluster.control().job(1).await;
    assert_eq!(
        (job.state(), job.rows_in_flight, rows_done(&job)),
        (JobState::Queued, 0, 0),
        "{}",
        sketch(&job)
    );
    assert_eq!((job.epoch, job.started_unix_ms), (0, 0), "nothing was ever started");
    let forecast = job.forecast.expect("an unfinished job has a forecast");
    assert_eq!(forecast.obstacle(), ForecastObstacle::OutsideWindow);
    assert!(job.deadline_unix_ms > job.window_opens_unix_ms.expect("it is closed"));

    let status = cluster.ctl(&["status"]).await.expect_code(0);
    assert!(status.stdout.contains(&waits), "{status:#?}");
    let shown = cluster.ctl(&["job", "j1"]).await.expect_code(0);
    assert!(shown.stdout.contains(&waits) && shown.stdout.contains(&window), "{shown:#?}");
    cluster.finish().await;
    drop(node);
}

async fn open() {
    let cluster = Cluster::builder("window-open").start().await;
    let node = stub(&cluster);
    cluster.control().wait_ready(1).await;
    let input = Input::chat(200, 10, 1);
    let window = open_now();
    let spec = JobSpec {
        window: window.clone(),
        deadline: "2099-01-01T07:00:00+01:00".to_owned(),
        ..control::spec("open", "/models/stub")
    };
    let job = cluster.control().submit(spec, input.jsonl()).await;
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    assert_eq!(cluster.answers(&job, &input).succeeded(), 200);
    let spec = job.spec.expect("a job has its spec");
    assert_eq!((spec.window, spec.deadline.as_str()), (window, "2099-01-01T06:00:00Z"));
    let shown = cluster.ctl(&["job", "j1"]).await.expect_code(0);
    assert!(shown.stdout.contains(", kept"), "{shown:#?}");
    cluster.finish().await;
    drop(node);
}

async fn refused() {
    let cluster = Cluster::builder("window-refused").start().await;
    for (window, deadline, why) in [
        ("22:00-24:00", "", "24:00 is no time of day"),
        ("07:00-07:00", "", "opens and closes at the same time"),
        ("at night", "", "is no window"),
        ("", "2001-01-01T00:00:00Z", "has passed"),
        ("", "tomorrow", "is no deadline"),
    ] {
        let spec = JobSpec {
            window: window.to_owned(),
            deadline: deadline.to_owned(),
            ..control::spec("refused", "/models/stub")
        };
        let rejection = cluster.control().try_submit(spec, pieces(Input::chat(3, 10, 1).jsonl())).await;
        let problem = rejection.expect_err("a submission that cannot be").problem;
        assert!(problem.contains(why), "{problem}");
    }
    assert!(cluster.control().status().await.jobs.is_empty());
    cluster.finish().await;
}

async fn cut_off() {
    let config = "[jobs]\nwindow_drain_ms = 0\ncheckpoint_interval_ms = 200\n";
    let mut cluster = Cluster::builder("window-cut-off").config(config).agents(1).start().await;
    let input = Input::chat(24, 300, 7);
    let spec =
        |window: String| JobSpec { max_batch_rows: 4, window, ..control::spec("nightly", models::llama()) };
    let job = cluster.control().submit(spec(open_now()), input.jsonl()).await;
    cluster.control().wait_rows(job.job_id, 5).await;
    let at_work = |job: &nightshift_proto::v1::Job| job.workers.iter().any(|worker| worker.active_rows == 4);
    cluster.control().wait_job(job.job_id, "a batch at work", wait::SOON, at_work).await;

    // Half around the world it is twelve hours later: the window is closed, and the worker is found at work.
    cluster.stop_controller().await;
    cluster.set_zone("<+12>-12");
    cluster.start_controller().await;
    // Of a node that has not come back yet it is not known what runs there.
    cluster.control().wait_ready(1).await;
    let waiting = cluster
        .control()
        .wait_job(job.job_id, "its window closed and its worker gone", wait::SOON, |job| {
            job.state() == JobState::Queued && job.workers.is_empty() && job.window_opens_unix_ms.is_some()
        })
        .await;
    assert!(waiting.detail.starts_with("waits for its window: opens "), "{}", sketch(&waiting));
    assert!(rows_done(&waiting) < 24, "rows were cut off: {}", sketch(&waiting));
    assert_eq!(cluster.workers(), [], "no process is left");
    cluster.ctl(&["status"]).await.expect_code(0);

    cluster.stop_controller().await;
    cluster.set_zone("UTC0");
    cluster.start_controller().await;
    let done = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = cluster.answers(&done, &input);
    assert_eq!(answers.succeeded(), 24);
    assert_eq!((done.epoch, done.rows_requeued), (2, 0), "one more launch, and nothing counts as a fault");
    assert_eq!(cluster.control().status().await.incidents, []);
    let undisturbed = cluster.control().submit(spec(String::new()), input.jsonl()).await;
    let undisturbed = cluster.control().wait_completed(undisturbed.job_id, wait::LONG).await;
    answers.assert_same_as(&cluster.answers(&undisturbed, &input));
    cluster.finish().await;
}
