//! `clusterctl jobs`: what it prints.

use nightshift_ctl::output::{Screen, human, text::width, views::JobView};

use super::{
    canned,
    fake::{Fake, World},
    program::ask,
};

fn human(columns: Option<usize>) -> String {
    let jobs: Vec<JobView> =
        [canned::running_job(), canned::queued_job(), canned::completed_job()].map(JobView::from).into();
    let text = human::jobs::jobs(&jobs, true, &Screen::plain(columns));
    for line in text.lines() {
        assert!(columns.is_none_or(|columns| width(line) <= columns), "{line:?}");
    }
    text
}

#[test]
fn tables() {
    insta::assert_snapshot!("wide", human(Some(100)));
    insta::assert_snapshot!("narrow", human(Some(60)));
    insta::assert_snapshot!("forty", human(Some(40)));
    insta::assert_snapshot!("pipe", human(None));
}

#[test]
fn none() {
    insta::assert_snapshot!(human::jobs::jobs(&[], false, &Screen::plain(Some(60))), @r"
    No job is running or waiting. Finished ones: clusterctl jobs
    --all
    ");
}

#[test]
fn json_shape() {
    let fake = Fake::start(World::healthy());
    let unfinished = ask(&fake, &["jobs", "--output", "json"]).json();
    let ids = |value: &serde_json::Value| {
        value["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&unfinished), ["j7", "j8"]);
    let all = ask(&fake, &["jobs", "--all", "--output", "json"]).json();
    assert_eq!(ids(&all), ["j7", "j8", "j6"]);
    insta::assert_json_snapshot!("json", all);
}
