//! Windows, deadlines and forecasts: what is sent with a submission, and what every screen says of them.

use std::io::Write as _;

use nightshift_ctl::output::{
    Screen, human,
    text::width,
    views::{At, JobView, SnapshotView, StatusView},
};
use nightshift_proto::v1::{self, ForecastObstacle};

use super::{
    canned::{self, NOW_MS},
    fake::{Fake, World},
    program::ask,
};

const HOUR_MS: u64 = 3_600_000;
/// The moment of the pictures is 18:30.
const SEVEN_MS: u64 = NOW_MS + 12 * HOUR_MS + HOUR_MS / 2;

fn with_window(job: v1::Job) -> v1::Job {
    let spec = v1::JobSpec { window: "18:00-07:00".into(), ..job.spec.clone().unwrap_or_default() };
    v1::Job { spec: Some(spec), window_closes_unix_ms: Some(SEVEN_MS), ..job }
}

fn forecast(finish_unix_ms: u64, rows_left_at_deadline: Option<u64>) -> v1::Forecast {
    v1::Forecast { finish_unix_ms: Some(finish_unix_ms), rows_left_at_deadline, ..v1::Forecast::default() }
}

fn unknown(obstacle: ForecastObstacle) -> v1::Forecast {
    v1::Forecast { obstacle: obstacle.into(), ..v1::Forecast::default() }
}

/// In its window, and it will not be done by seven.
fn late_job() -> v1::Job {
    v1::Job {
        deadline_unix_ms: SEVEN_MS,
        eta_ms: Some(27 * HOUR_MS),
        forecast: Some(forecast(NOW_MS + 27 * HOUR_MS, Some(312))),
        ..with_window(canned::running_job())
    }
}

/// Outside its window.
fn waiting_job() -> v1::Job {
    let mut job = canned::queued_job();
    job.spec.as_mut().unwrap().window = "22:00-07:00".into();
    v1::Job {
        detail: "waits for its window: opens 22:00".into(),
        window_opens_unix_ms: Some(NOW_MS + 3 * HOUR_MS + HOUR_MS / 2),
        deadline_unix_ms: SEVEN_MS,
        forecast: Some(unknown(ForecastObstacle::OutsideWindow)),
        ..job
    }
}

/// The line of `job` that tells the forecast.
fn told(job: v1::Job) -> String {
    let text = human::jobs::job(&JobView::from(job), &Screen::plain(None));
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("Forecast"));
    line.unwrap_or("nothing").trim().to_owned()
}

#[test]
fn every_forecast_is_a_sentence() {
    let finish = NOW_MS + 11 * HOUR_MS;
    let running = canned::running_job;
    let by_seven = |forecast| v1::Job { deadline_unix_ms: SEVEN_MS, forecast: Some(forecast), ..running() };
    let within = |forecast| v1::Job { forecast: Some(forecast), ..with_window(running()) };
    let passed = |forecast| v1::Job {
        deadline_unix_ms: NOW_MS - HOUR_MS,
        forecast: Some(v1::Forecast { deadline_passed: true, ..forecast }),
        ..running()
    };
    let behind = v1::Forecast { behind_job_id: 3, ..unknown(ForecastObstacle::Behind) };
    let jobs = [
        v1::Job { forecast: Some(forecast(finish, None)), ..running() },
        within(forecast(finish, None)),
        within(v1::Forecast::default()),
        by_seven(forecast(finish, Some(0))),
        by_seven(forecast(NOW_MS + 27 * HOUR_MS, Some(312))),
        by_seven(v1::Forecast { rows_left_at_deadline: Some(700), ..v1::Forecast::default() }),
        passed(forecast(finish, None)),
        passed(unknown(ForecastObstacle::NotRunning)),
        within(unknown(ForecastObstacle::TooEarly)),
        by_seven(unknown(ForecastObstacle::TooEarly)),
        by_seven(unknown(ForecastObstacle::NotRunning)),
        by_seven(unknown(ForecastObstacle::OutsideWindow)),
        by_seven(unknown(ForecastObstacle::Paused)),
        by_seven(v1::Forecast {
            rows_left_at_deadline: Some(796),
            ..unknown(ForecastObstacle::OutsideWindow)
        }),
        by_seven(behind),
        by_seven(v1::Forecast { obstacle: 99, ..v1::Forecast::default() }),
    ];
    insta::assert_snapshot!("sentences", jobs.map(told).join("\n"));
}

#[test]
fn a_job_shows_its_hours_and_its_deadline() {
    let job = |job| human::jobs::job(&JobView::from(job), &Screen::plain(Some(100)));
    insta::assert_snapshot!("job_late", job(late_job()));
    insta::assert_snapshot!("job_waiting", job(waiting_job()));
    let over = |deadline_unix_ms| {
        let text = job(v1::Job { deadline_unix_ms, forecast: None, ..canned::completed_job() });
        text.lines().find(|line| line.contains("Deadline")).unwrap().trim().to_owned()
    };
    assert_eq!(over(canned::completed_job().finished_unix_ms), "Deadline    03:30, kept");
    assert_eq!(over(canned::completed_job().finished_unix_ms - HOUR_MS), "Deadline    02:30, missed by 1 h");
}

#[test]
fn screens_say_why_nothing_happens_and_what_is_late() {
    let status = v1::ClusterStatus { jobs: vec![late_job(), waiting_job()], ..canned::healthy_status() };
    let screen = |columns| {
        let view = StatusView::new(status.clone(), "127.0.0.1:7400", None);
        let text = human::status::status(&view, &Screen::plain(columns));
        assert!(text.lines().all(|line| columns.is_none_or(|columns| width(line) <= columns)), "{text}");
        text
    };
    insta::assert_snapshot!("status", screen(Some(100)));
    for columns in 24..140 {
        screen(Some(columns));
    }
    let jobs = [late_job(), waiting_job()].map(JobView::from);
    insta::assert_snapshot!("jobs", human::jobs::jobs(&jobs, false, &Screen::plain(Some(100))));
    let snapshot =
        SnapshotView { at: At::from_unix_ms(NOW_MS).unwrap(), jobs: jobs.clone().into(), nodes: Vec::new() };
    for columns in 24..140 {
        let lines = human::watch::frame(&snapshot, &Screen::plain(Some(columns)));
        assert!(lines.iter().all(|line| width(line) <= columns), "{lines:#?}");
    }
    insta::assert_snapshot!("watch", human::watch::frame(&snapshot, &Screen::plain(Some(100))).join("\n"));
    let lines = jobs.map(|job| human::watch::change_line(&job, &Screen::plain(None)));
    insta::assert_snapshot!("watch_pipe", lines.join("\n"));
}

#[test]
fn json_shape() {
    let jobs = [late_job(), waiting_job()].map(|job| {
        let job = serde_json::to_value(JobView::from(job)).unwrap();
        let keys = ["window", "window_opens_at", "window_closes_at", "deadline_at", "forecast", "eta_ms"];
        keys.map(|key| (key.to_owned(), job[key].clone())).into_iter().collect::<serde_json::Map<_, _>>()
    });
    insta::assert_json_snapshot!("json", jobs);
}

#[test]
fn a_submission_carries_both_as_they_were_written() {
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
    file.write_all(b"{\"custom_id\":\"a\"}\n").unwrap();
    let path = file.path().to_str().unwrap();
    let submit =
        ["submit", path, "--model", "m", "--name", "n", "--window", "22:00-07:00", "--deadline", "7:00"];

    let accepted = v1::SubmitReply { outcome: Some(v1::submit_reply::Outcome::Accepted(waiting_job())) };
    let fake = Fake::start(World { submit_reply: Some(accepted), ..World::healthy() });
    let ended = ask(&fake, &submit);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended.stdout.contains("\nWaits for its window: opens 22:00.\nIts deadline is "),
        "{}",
        ended.stdout
    );
    let submissions = fake.world.submissions.lock().unwrap();
    let spec = &submissions[0].0;
    assert_eq!((spec.window.as_str(), spec.deadline.as_str()), ("22:00-07:00", "7:00"));

    let late = v1::Forecast { rows_left_at_deadline: Some(36), ..unknown(ForecastObstacle::OutsideWindow) };
    let late = v1::Job { forecast: Some(late), ..waiting_job() };
    let accepted = v1::SubmitReply { outcome: Some(v1::submit_reply::Outcome::Accepted(late)) };
    let fake = Fake::start(World { submit_reply: Some(accepted), ..World::healthy() });
    let ended = ask(&fake, &submit);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended.stdout.contains("\nWill not be done by its deadline: 36 rows left at "),
        "{}",
        ended.stdout
    );

    let rejection = v1::Rejection {
        problem: "24:00 is no time of day; for midnight write 00:00".into(),
        ..v1::Rejection::default()
    };
    let refused = v1::SubmitReply { outcome: Some(v1::submit_reply::Outcome::Rejected(rejection)) };
    let fake = Fake::start(World { submit_reply: Some(refused), ..World::healthy() });
    let ended = ask(&fake, &submit);
    assert_eq!(ended.code, 1);
    assert!(
        ended.stdout.ends_with("\n24:00 is no time of day; for midnight write 00:00.\n"),
        "{}",
        ended.stdout
    );
}
