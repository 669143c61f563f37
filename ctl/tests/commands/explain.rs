//! `clusterctl explain`: rule by rule, what keeps first.

use nightshift_ctl::output::{Screen, human, text::width, views::ExplainView};
use nightshift_proto::v1::{self, explanation::About};

use super::{
    canned,
    fake::{Fake, World},
    program::ask,
};

fn rulings() -> Vec<v1::Ruling> {
    let ruling = |rule: &str, holds, sentence: &str| v1::Ruling {
        rule: rule.into(),
        holds,
        sentence: sentence.into(),
    };
    vec![
        ruling("state", true, "it is to run"),
        ruling("turn", false, "j7 goes first: its priority 5 is above 0"),
        ruling("plan", false, "the plan gives it no node now"),
        ruling("not-on", false, "not on mini-3: no word from it for 720 s"),
        ruling(
            "step-budget",
            true,
            "the worker on mini-1 (writing) took its last step 1 s ago and may take 10 s: 31 ms a step, learned from 4210 steps",
        ),
    ]
}

fn human(about: About, rulings: Vec<v1::Ruling>, columns: Option<usize>) -> String {
    let view = ExplainView::from(v1::Explanation { about: Some(about), rulings });
    let text = human::explain::explain(&view, &Screen::plain(columns));
    for line in text.lines() {
        assert!(columns.is_none_or(|columns| width(line) <= columns), "{line:?}");
    }
    text
}

#[test]
fn screens() {
    let job = || About::Job(canned::queued_job());
    insta::assert_snapshot!("job_wide", human(job(), rulings(), Some(100)));
    insta::assert_snapshot!("job_narrow", human(job(), rulings(), Some(50)));
    insta::assert_snapshot!("job_pipe", human(job(), rulings(), None));
    insta::assert_snapshot!("node", human(About::Node(canned::ready_node("mini-1", 1)), vec![], Some(80)));
    for columns in 24..140 {
        human(job(), rulings(), Some(columns));
    }
}

#[test]
fn json_shape() {
    let fake = Fake::start(World { rulings: rulings(), ..World::healthy() });
    let mut json = ask(&fake, &["explain", "j8", "--output", "json"]).json();
    assert_eq!(json["job"]["id"], "j8");
    json["job"] = serde_json::json!("as `job` prints it");
    insta::assert_json_snapshot!("json", json);
}

#[test]
fn a_job_or_a_node_is_known_by_its_name() {
    let mut world = World::healthy();
    world.status.nodes.push(canned::ready_node("j99", 3));
    let fake = Fake::start(world);
    let first_line = |about: &str| {
        let ended = ask(&fake, &["explain", about]);
        format!("{} {}{}", ended.code, ended.stdout.lines().next().unwrap_or(""), ended.stderr)
    };
    assert!(first_line("7").starts_with("0 Job j7 (nightly-eval) is running"), "{}", first_line("7"));
    assert!(
        first_line("mini-1").starts_with("0 Node mini-1 is ready: j7 decode"),
        "{}",
        first_line("mini-1")
    );
    assert!(first_line("j99").starts_with("0 Node j99 is ready"), "{}", first_line("j99"));
    assert_eq!(first_line("j98"), "1 error: There is no job j98.\nhint:  All jobs: clusterctl jobs --all\n");
    assert_eq!(
        first_line("mini-9"),
        "1 error: There is no node mini-9.\nhint:  All nodes: clusterctl nodes\n"
    );
}
