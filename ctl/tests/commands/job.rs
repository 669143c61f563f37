//! `clusterctl job`: what it prints.

use nightshift_ctl::output::{Screen, human, text::width, views::JobView};
use nightshift_proto::v1;

use super::{
    canned,
    fake::{Fake, World},
    program::ask,
};

fn human(job: v1::Job, columns: Option<usize>) -> String {
    let text = human::jobs::job(&JobView::from(job), &Screen::plain(columns));
    for line in text.lines() {
        assert!(columns.is_none_or(|columns| width(line) <= columns) || line.starts_with('/'), "{line:?}");
    }
    text
}

#[test]
fn screens() {
    insta::assert_snapshot!("running_wide", human(canned::running_job(), Some(100)));
    insta::assert_snapshot!("running_narrow", human(canned::running_job(), Some(60)));
    insta::assert_snapshot!("queued", human(canned::queued_job(), Some(100)));
    insta::assert_snapshot!("completed", human(canned::completed_job(), Some(100)));
}

#[test]
fn every_state_is_a_sentence() {
    let sentences: Vec<String> = [
        v1::JobState::Queued,
        v1::JobState::Running,
        v1::JobState::Paused,
        v1::JobState::Cancelling,
        v1::JobState::Cancelled,
        v1::JobState::Completed,
        v1::JobState::Failed,
    ]
    .into_iter()
    .map(|state| {
        let detail = if state == v1::JobState::Failed { "The model cannot be read on any node" } else { "" };
        let job = v1::Job { state: state.into(), detail: detail.into(), ..canned::running_job() };
        human::jobs::job_sentence(&JobView::from(job))
    })
    .collect();
    insta::assert_snapshot!("sentences", sentences.join("\n"));
}

#[test]
fn json_shape() {
    let fake = Fake::start(World::healthy());
    insta::assert_json_snapshot!("json", ask(&fake, &["job", "7", "--output", "json"]).json());
}

#[test]
fn what_stands_in_for_the_model_is_told() {
    let spec = v1::JobSpec {
        fallback_model: "/models/small".to_owned(),
        fallback_policy: "after 10m".to_owned(),
        ..canned::running_job().spec.unwrap()
    };
    let job = |on_fallback, rows_by_fallback| v1::Job {
        spec: Some(spec.clone()),
        on_fallback,
        rows_by_fallback,
        ..canned::running_job()
    };
    let line = |job: v1::Job| {
        let text = human(job, None);
        text.lines().find(|line| line.contains("Fallback")).map(str::to_owned)
    };
    assert_eq!(
        line(job(false, 0)).unwrap().trim().trim_start_matches("Fallback").trim(),
        "/models/small, used after 10m in which the model cannot run anywhere"
    );
    let used = line(job(true, 1)).unwrap();
    assert!(used.ends_with("; it answers now; 1 row answered by it"), "{used}");
    assert_eq!(line(canned::running_job()), None);
}
