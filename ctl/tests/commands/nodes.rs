//! `clusterctl nodes`, `drain` and `undrain`: what they print.

use nightshift_ctl::output::{Screen, human, text::width, views::NodeView};
use nightshift_proto::v1;

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

#[test]
fn what_a_boot_has_been_through_is_told() {
    let node = |kills_while_loaded, used| v1::Node {
        observation: Some(v1::Observation {
            memory_debt: Some(v1::MemoryDebt {
                baseline_wired_bytes: Some(3 << 30),
                stranded_bytes: Some(1 << 30),
                kills_while_loaded,
            }),
            rdma_starts: Some(v1::RdmaStarts { used, most: 5 }),
            ..v1::Observation::default()
        }),
        ..canned::ready_node("mini-1", 4711)
    };
    let human = |node: v1::Node| human::nodes::nodes(&[NodeView::from(node)], &Screen::plain(None));
    let told = human(node(1, 2));
    assert!(told.contains("2 of 5 RDMA starts of this boot are used; 1 worker was killed"), "{told}");
    assert!(told.contains("more is wired than at the least"), "{told}");
    assert!(!human(node(0, 0)).contains("boot"), "nothing to tell");
}
