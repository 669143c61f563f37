//! `clusterctl nodes`, `drain` and `undrain`: what they print.

use nightshift_ctl::output::{Screen, human, text::width, views::NodeView};

use super::{
    canned,
    fake::{Fake, World},
    program::ask,
};

fn human(columns: Option<usize>) -> String {
    let nodes: Vec<NodeView> =
        [canned::ready_node("mini-1", 4711), canned::silent_node(), canned::unready_node()]
            .map(NodeView::from)
            .into();
    let text = human::nodes::nodes(&nodes, &Screen::plain(columns));
    for line in text.lines() {
        assert!(columns.is_none_or(|columns| width(line) <= columns), "{line:?}");
    }
    text
}

#[test]
fn tables() {
    insta::assert_snapshot!("wide", human(Some(100)));
    insta::assert_snapshot!("narrow", human(Some(60)));
    insta::assert_snapshot!("pipe", human(None));
}

#[test]
fn json_shape() {
    let fake = Fake::start(World { status: canned::degraded_status(), ..World::default() });
    insta::assert_json_snapshot!("json", ask(&fake, &["nodes", "--output", "json"]).json());
}
