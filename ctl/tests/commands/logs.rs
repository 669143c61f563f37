//! `clusterctl logs`: whose lines are asked for, and how they are shown.

use nightshift_ctl::output::{Screen, human, views::LogLineView};

use super::{
    canned,
    fake::{Fake, World},
    program::ask,
};

#[test]
fn lines_on_a_terminal_cannot_steer_it_and_a_pipe_gets_them_whole() {
    let lines = |columns| {
        canned::log_lines()
            .into_iter()
            .map(|line| human::events::log_line(&LogLineView::from(line), &Screen::plain(columns)))
            .collect::<Vec<_>>()
            .join("\n")
    };
    insta::assert_snapshot!(lines(Some(80)), @r"
    18:29:00 [mini-1 agent] connected to 127.0.0.1:7400
    18:29:01 [mini-1 j7/e3/r0] Traceback
    ");
    assert!(lines(None).ends_with("[mini-1 j7/e3/r0] \x1b[31mTraceback\x1b[0m"));
}

#[test]
fn a_name_that_looks_like_a_job_is_one_unless_a_node_is_called_that() {
    let mut world = World { logs: canned::log_lines(), ..World::healthy() };
    world.status.nodes.push(canned::ready_node("j8", 1));
    let fake = Fake::start(world);
    for args in [
        &["logs", "j7"][..],
        &["logs", "7", "-n", "5"],
        &["logs", "mini-1"],
        &["logs", "j8"],
        &["logs", "--job", "j8"],
        &["logs", "--node", "mini-2"],
    ] {
        assert_eq!(ask(&fake, args).code, 0, "{args:?}");
    }
    assert_eq!(
        fake.world.asked(),
        [
            "logs node=\"\" job=7 tail=100",
            "logs node=\"\" job=7 tail=5",
            "logs node=\"mini-1\" job=0 tail=100",
            "logs node=\"j8\" job=0 tail=100",
            "logs node=\"\" job=8 tail=100",
            "logs node=\"mini-2\" job=0 tail=100",
        ]
    );
    assert_eq!(ask(&fake, &["logs", "nobody"]).code, 1);
}

#[test]
fn json_lines() {
    let fake = Fake::start(World { logs: canned::log_lines(), ..World::healthy() });
    insta::assert_json_snapshot!("json", ask(&fake, &["logs", "mini-1", "--output", "json"]).json_lines());
}
