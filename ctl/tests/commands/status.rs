//! `clusterctl status`: the screen, its JSON, its exit codes.

use nightshift_ctl::output::{
    Screen, human,
    text::width,
    views::{DoctorCountView, DoctorView, StatusView},
};
use nightshift_proto::v1;

use super::{
    canned, doctor,
    fake::{Fake, World},
    program::ask,
};

fn human(status: v1::ClusterStatus, columns: Option<usize>) -> String {
    shown(&StatusView::new(status, "127.0.0.1:7400", None), columns)
}

fn shown(view: &StatusView, columns: Option<usize>) -> String {
    let text = human::status::status(view, &Screen::plain(columns));
    if let Some(columns) = columns {
        for line in text.lines() {
            assert!(width(line) <= columns, "wider than {columns}: {line:?}");
        }
    }
    text
}

#[test]
fn healthy() {
    insta::assert_snapshot!("healthy_wide", human(canned::healthy_status(), Some(100)));
    insta::assert_snapshot!("healthy_narrow", human(canned::healthy_status(), Some(60)));
    insta::assert_snapshot!("healthy_pipe", human(canned::healthy_status(), None));
}

#[test]
fn degraded() {
    insta::assert_snapshot!("degraded_wide", human(canned::degraded_status(), Some(100)));
    insta::assert_snapshot!("degraded_narrow", human(canned::degraded_status(), Some(60)));
    insta::assert_snapshot!("degraded_40", human(canned::degraded_status(), Some(40)));
}

#[test]
fn nothing_yet() {
    insta::assert_snapshot!("empty", human(canned::empty_status(), Some(80)));
}

#[test]
fn what_doctor_found_is_counted_below_the_nodes() {
    let found = DoctorView::from(doctor::diagnosis());
    let mut view = StatusView::new(canned::healthy_status(), "127.0.0.1:7400", Some(&found));
    insta::assert_snapshot!("doctor_count", shown(&view, Some(80)));
    view.doctor = Some(DoctorCountView { fails: 0, warns: 1 });
    let line = "  Nothing will end a night; 1 thing may make it worse. See: clusterctl doctor\n";
    assert!(shown(&view, None).contains(line));
    view.doctor = Some(DoctorCountView { fails: 0, warns: 0 });
    assert!(!shown(&view, None).contains("doctor"));
    let empty = StatusView::new(canned::empty_status(), "127.0.0.1:7400", Some(&found));
    assert!(!shown(&empty, None).contains("doctor"), "there is nobody to look at");
}

#[test]
fn every_width_is_kept() {
    for columns in 24..140 {
        human(canned::degraded_status(), Some(columns));
        human(canned::healthy_status(), Some(columns));
    }
}

#[test]
fn json_shape() {
    let fake = Fake::start(World { status: canned::degraded_status(), ..World::default() });
    let ended = ask(&fake, &["status", "--output", "json"]);
    assert_eq!(ended.code, 1);
    insta::assert_json_snapshot!("json", ended.json());
}

#[test]
fn exit_codes() {
    let fake = Fake::start(World::healthy());
    let ended = ask(&fake, &["status"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert!(ended.stdout.starts_with("All is well: 2 nodes ready, 1 job running and 1 waiting.\n"));

    let fake = Fake::start(World { status: canned::degraded_status(), ..World::default() });
    assert_eq!(ask(&fake, &["status"]).code, 1);
}
