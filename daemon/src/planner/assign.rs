//! The rules of choice.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{JobId, Mode, NodeId, Plan};

/// A node as the planner sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeView {
    /// Its name.
    pub id: NodeId,
    /// Why it cannot take work now; `None` when it can.
    pub unusable: Option<String>,
    /// The job its worker belongs to. A worker that is already stopping does not count.
    pub running: Option<JobId>,
}

/// A job as the planner sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobView {
    /// Its number; older jobs have smaller ones.
    pub id: JobId,
    /// Higher goes first.
    pub priority: i32,
    /// Rows that nobody holds and nobody has answered.
    pub waiting_rows: u32,
    /// Rows out on nodes; they may come back.
    pub held_rows: u32,
    /// Rows one worker generates together: what it takes to keep a node busy.
    pub batch_rows: u32,
    /// Nodes that must not get it now, and why.
    pub barred: BTreeMap<NodeId, String>,
}

/// What the planner is told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// All nodes known, usable or not.
    pub nodes: Vec<NodeView>,
    /// Jobs that want to run; those over, paused or waiting for adoption are not among them.
    pub jobs: Vec<JobView>,
}

/// Which node works for which job, and a plan with its reasons for each job.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Assignment {
    /// Nodes not named here run nothing.
    pub nodes: BTreeMap<NodeId, JobId>,
    /// One for each job of the view.
    pub plans: BTreeMap<JobId, Plan>,
}

/// Chooses. Cost: nodes × jobs.
#[must_use]
pub fn assign(view: &View) -> Assignment {
    let mut by_turn: Vec<&JobView> = view.jobs.iter().collect();
    by_turn.sort_by_key(|job| (std::cmp::Reverse(job.priority), job.id));

    // What is left for further nodes once every node that has the job loaded has its batch: a job of one row must not
    // make all nodes load its model.
    let mut free: BTreeMap<&NodeId, Option<&JobView>> = BTreeMap::new();
    for node in view.nodes.iter().filter(|node| node.unusable.is_none()) {
        let running =
            by_turn.iter().find(|job| Some(job.id) == node.running && !job.barred.contains_key(&node.id));
        free.insert(&node.id, running.copied());
    }
    let mut nodes = BTreeMap::new();
    for job in by_turn.iter().filter(|job| job.waiting_rows > 0) {
        for node in wanted_by(job, &free) {
            free.remove(&node);
            nodes.insert(node, job.id);
        }
    }
    // Nobody wants the rest: what is loaded stays loaded, for rows that may come back.
    for (node, running) in free {
        if let Some(job) = running {
            nodes.insert(node.clone(), job.id);
        }
    }
    let plans = by_turn.iter().map(|job| (job.id, plan_of(job, &by_turn, view, &nodes))).collect();
    Assignment { nodes, plans }
}

/// The free nodes a job takes: all that have it loaded; then, while it has batches of rows for more, those that run
/// nothing, those whose job has nothing left to hand out, and those whose job is less urgent.
fn wanted_by(job: &JobView, free: &BTreeMap<&NodeId, Option<&JobView>>) -> Vec<NodeId> {
    let mut candidates: Vec<(u8, &NodeId)> = free
        .iter()
        .filter(|(node, _)| !job.barred.contains_key(**node))
        .filter_map(|(node, running)| {
            let cost = match running {
                Some(running) if running.id == job.id => 0,
                None => 1,
                Some(running) if running.waiting_rows == 0 => 2,
                Some(running) if running.priority < job.priority => 3,
                Some(_) => return None,
            };
            Some((cost, *node))
        })
        .collect();
    candidates.sort_unstable();
    let batches = job.waiting_rows.div_ceil(job.batch_rows.max(1)) as usize;
    let loaded = candidates.iter().filter(|(cost, _)| *cost == 0).count();
    candidates.into_iter().take(batches.max(loaded)).map(|(_, node)| node.clone()).collect()
}

fn plan_of(job: &JobView, by_turn: &[&JobView], view: &View, chosen: &BTreeMap<NodeId, JobId>) -> Plan {
    let nodes: Vec<NodeId> =
        chosen.iter().filter(|(_, chosen)| **chosen == job.id).map(|(node, _)| node.clone()).collect();
    let mut reasons = Vec::new();
    match nodes.len() {
        0 => reasons.push("no node works for it now".to_owned()),
        1 => reasons.push(format!("one worker with the whole model, on {}", nodes[0])),
        count => reasons
            .push(format!("{count} independent workers, each with the whole model; they split the rows")),
    }
    let ahead: BTreeSet<JobId> =
        by_turn.iter().take_while(|other| other.id != job.id).map(|j| j.id).collect();
    for node in &view.nodes {
        if nodes.contains(&node.id) {
            continue;
        }
        if let Some(why) = &node.unusable {
            reasons.push(format!("not on {}: {why}", node.id));
        } else if let Some(why) = job.barred.get(&node.id) {
            reasons.push(format!("not on {}: {why}", node.id));
        } else if let Some(other) = chosen.get(&node.id) {
            let turn = if ahead.contains(other) { "whose turn is before" } else { "which has it loaded" };
            reasons.push(format!("not on {}: it works for {other}, {turn}", node.id));
        } else {
            reasons.push(format!("not on {}: no rows are left for it", node.id));
        }
    }
    Plan { mode: Mode::Independent, nodes, reasons }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, running: Option<u64>) -> NodeView {
        NodeView { id: name.into(), unusable: None, running: running.map(JobId) }
    }

    fn job(id: u64, priority: i32, waiting_rows: u32) -> JobView {
        JobView {
            id: JobId(id),
            priority,
            waiting_rows,
            held_rows: 0,
            batch_rows: 4,
            barred: BTreeMap::new(),
        }
    }

    fn chosen(nodes: Vec<NodeView>, jobs: Vec<JobView>) -> Vec<(String, u64)> {
        let view = View { nodes, jobs };
        let assignment = assign(&view);
        assert_eq!(super::super::check(&assignment, &view), vec![]);
        assignment.nodes.into_iter().map(|(node, job)| (node.to_string(), job.0)).collect()
    }

    fn pairs(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
        expected.iter().map(|(node, job)| ((*node).to_owned(), *job)).collect()
    }

    #[test]
    fn every_free_node_gets_the_job_whose_turn_it_is() {
        assert_eq!(
            chosen(vec![node("a", None), node("b", None)], vec![job(1, 0, 9), job(2, 0, 9)]),
            pairs(&[("a", 1), ("b", 1)])
        );
        assert_eq!(chosen(vec![node("a", None)], vec![job(1, 0, 9), job(2, 5, 9)]), pairs(&[("a", 2)]));
    }

    #[test]
    fn a_node_keeps_its_job_against_an_older_one_but_not_against_a_more_urgent_one() {
        assert_eq!(chosen(vec![node("a", Some(2))], vec![job(1, 0, 9), job(2, 0, 9)]), pairs(&[("a", 2)]));
        assert_eq!(chosen(vec![node("a", Some(2))], vec![job(1, 1, 9), job(2, 0, 9)]), pairs(&[("a", 1)]));
    }

    #[test]
    fn a_node_with_nothing_left_to_get_serves_the_next_job_or_stays_loaded() {
        assert_eq!(chosen(vec![node("a", Some(1))], vec![job(1, 0, 0), job(2, 0, 9)]), pairs(&[("a", 2)]));
        assert_eq!(chosen(vec![node("a", Some(1))], vec![job(1, 0, 0)]), pairs(&[("a", 1)]));
        assert_eq!(chosen(vec![node("a", None)], vec![job(1, 0, 0)]), pairs(&[]));
    }

    #[test]
    fn no_more_nodes_load_a_model_than_there_are_batches_for() {
        let free = || vec![node("a", None), node("b", None), node("c", None)];
        assert_eq!(chosen(free(), vec![job(1, 0, 1)]), pairs(&[("a", 1)]));
        assert_eq!(chosen(free(), vec![job(1, 0, 5)]), pairs(&[("a", 1), ("b", 1)]));
        assert_eq!(chosen(free(), vec![job(1, 0, 1), job(2, 0, 9)]), pairs(&[("a", 1), ("b", 2), ("c", 2)]));
        let working = vec![node("a", Some(1)), node("b", Some(2))];
        assert_eq!(
            chosen(working, vec![job(1, 0, 9), job(2, 5, 2)]),
            pairs(&[("a", 1), ("b", 2)]),
            "b takes both rows"
        );
    }

    #[test]
    fn barred_and_unusable_nodes_are_left_out_and_the_plan_says_why() {
        let mut away = node("c", None);
        away.unusable = Some("no word from it for 7 s".to_owned());
        let mut only = job(1, 0, 9);
        only.barred.insert("b".into(), "its last worker failed; next try in 4 s".to_owned());
        let view = View { nodes: vec![node("a", None), node("b", None), away], jobs: vec![only] };
        let assignment = assign(&view);
        assert_eq!(assignment.nodes.keys().map(NodeId::as_str).collect::<Vec<_>>(), ["a"]);
        assert_eq!(
            assignment.plans[&JobId(1)].reasons,
            [
                "one worker with the whole model, on a",
                "not on b: its last worker failed; next try in 4 s",
                "not on c: no word from it for 7 s",
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn what_is_assigned_always_passes_the_check(
            nodes in proptest::collection::vec((proptest::bool::ANY, proptest::option::of(1_u64..5)), 0..6),
            jobs in proptest::collection::vec((-1_i32..2, 0_u32..3, 0_usize..6), 0..4),
        ) {
            let nodes: Vec<NodeView> = nodes.into_iter().enumerate().map(|(i, (usable, running))| NodeView {
                id: format!("n{i}").as_str().into(),
                unusable: (!usable).then(|| "away".to_owned()),
                running: running.map(JobId),
            }).collect();
            let jobs: Vec<JobView> = jobs.into_iter().enumerate().map(|(i, (priority, waiting, barred))| {
                let mut view = job(i as u64 + 1, priority, waiting);
                view.barred.insert(format!("n{barred}").as_str().into(), "barred".to_owned());
                view
            }).collect();
            let view = View { nodes, jobs };
            let assignment = assign(&view);
            proptest::prop_assert_eq!(super::super::check(&assignment, &view), vec![]);
            proptest::prop_assert_eq!(assign(&view), assignment);
        }
    }
}
