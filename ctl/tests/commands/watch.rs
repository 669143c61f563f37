//! `clusterctl watch`: what it prints, and when it ends.

use nightshift_ctl::output::{
    Screen, human,
    text::width,
    views::{At, JobView, NodeView, SnapshotView},
};
use nightshift_proto::v1;

use super::{
    canned,
    fake::{Fake, World},
    program::ask,
};

fn snapshot() -> SnapshotView {
    SnapshotView {
        at: At::from_unix_ms(canned::NOW_MS).unwrap(),
        jobs: [canned::running_job(), canned::queued_job()].map(JobView::from).into(),
        nodes: [canned::ready_node("mini-1", 1), canned::silent_node()].map(NodeView::from).into(),
    }
}

fn frame(columns: usize, rows: Option<usize>) -> String {
    let screen = Screen { height: rows, ..Screen::plain(Some(columns)) };
    let lines = human::watch::frame(&snapshot(), &screen);
    for line in &lines {
        assert!(width(line) <= columns, "wider than {columns}: {line:?}");
    }
    if let Some(rows) = rows {
        assert!(lines.len() < rows.max(2));
    }
    lines.join("\n")
}

#[test]
fn frames_fit_the_screen() {
    insta::assert_snapshot!("wide", frame(100, None));
    insta::assert_snapshot!("narrow", frame(60, None));
    insta::assert_snapshot!("forty", frame(40, None));
    insta::assert_snapshot!("low", frame(80, Some(5)));
    for columns in 24..140 {
        frame(columns, Some(columns / 8));
    }
}

fn story() -> Vec<v1::WatchJobsReply> {
    let reply = |job| v1::WatchJobsReply { jobs: vec![job], nodes: vec![canned::ready_node("mini-1", 1)] };
    let running = canned::running_job();
    vec![
        reply(running.clone()),
        // Only the speed differs: no news for a pipe.
        reply(v1::Job { tokens_per_s: 400.0, ..running.clone() }),
        reply(v1::Job { rows_succeeded: 1500, ..running.clone() }),
        reply(v1::Job {
            rows_succeeded: 1997,
            finished_unix_ms: canned::NOW_MS,
            state: v1::JobState::Completed.into(),
            ..running
        }),
    ]
}

#[test]
fn a_pipe_gets_a_line_per_change() {
    let fake = Fake::start(World { snapshots: story(), ..World::healthy() });
    let ended = ask(&fake, &["watch", "j7"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    insta::assert_snapshot!("pipe", ended.stdout);
}

#[test]
fn json_lines() {
    let fake = Fake::start(World { snapshots: story(), ..World::healthy() });
    let lines = ask(&fake, &["watch", "j7", "--output", "json"]).json_lines();
    assert_eq!(lines.len(), 4);
    insta::assert_json_snapshot!("json", lines[0], { ".at" => "[now]" });
}

#[test]
fn a_controller_that_goes_away_is_waited_for() {
    let fake = Fake::start(World { snapshots: story(), break_stream_after: Some(1), ..World::healthy() });
    let ended = ask(&fake, &["watch"]);
    assert_eq!(ended.code, 0);
    assert!(ended.stderr.starts_with("The controller went away;"), "{}", ended.stderr);
    assert!(ended.stdout.lines().last().unwrap().contains("is complete"));
}

#[test]
fn a_job_that_failed_ends_with_1() {
    let mut story = story();
    if let Some(last) = story.last_mut() {
        last.jobs[0].state = v1::JobState::Failed.into();
    }
    let fake = Fake::start(World { snapshots: story, ..World::healthy() });
    assert_eq!(ask(&fake, &["watch", "j7"]).code, 1);
}

#[test]
fn nothing_to_watch() {
    let fake = Fake::start(World { snapshots: vec![v1::WatchJobsReply::default()], ..World::healthy() });
    let ended = ask(&fake, &["watch"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "No job is running or waiting.\n"));
    assert_eq!(ask(&fake, &["watch", "j99"]).code, 1);
}
