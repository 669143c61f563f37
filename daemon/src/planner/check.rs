//! A second reading of the planner's rules, written apart from the first: what it refuses is not carried out.

use std::collections::BTreeSet;

use super::{
    assign::{Assignment, JobView, Layout, View},
    question::GangPlan,
};
use crate::model::{JobId, Mode, NodeId};

/// A rule that an assignment breaks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// The node is not in the view.
    #[error("{0} is not a known node")]
    UnknownNode(NodeId),
    /// The job is not in the view.
    #[error("{0} is not a job that wants to run")]
    UnknownJob(JobId),
    /// The node cannot take work.
    #[error("{node} cannot take work: {why}")]
    UnusableNode {
        /// Which node.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// The node must not get this job.
    #[error("{node} must not work for {job}: {why}")]
    Barred {
        /// Which node.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Why.
        why: String,
    },
    /// A node would load a model with nothing to do.
    #[error("{node} would start {job}, which has no rows to hand out")]
    NothingToDo {
        /// Which node.
        node: NodeId,
        /// Which job.
        job: JobId,
    },
    /// A node serves a job while a more urgent one waits for it.
    #[error("{node} works for {job} while {waiting} is more urgent")]
    Overtaken {
        /// Which node.
        node: NodeId,
        /// Which job it has.
        job: JobId,
        /// Which job should have it.
        waiting: JobId,
    },
    /// A gang that must not be started as it is.
    #[error("a gang for {job} is wrong: {why}")]
    Gang {
        /// Of which job.
        job: JobId,
        /// What is wrong with it.
        why: String,
    },
    /// The plan of a job names other nodes than the assignment.
    #[error("the plan of {0} does not agree with the assignment")]
    PlanDiffers(JobId),
}

/// All rules the assignment breaks; empty when it may be carried out.
#[must_use]
pub fn check(assignment: &Assignment, view: &View) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (node_id, job_id) in &assignment.nodes {
        let Some(node) = view.nodes.iter().find(|node| node.id == *node_id) else {
            violations.push(Violation::UnknownNode(node_id.clone()));
            continue;
        };
        let Some(job) = view.jobs.iter().find(|job| job.id == *job_id) else {
            violations.push(Violation::UnknownJob(*job_id));
            continue;
        };
        if let Some(why) = &node.unusable {
            violations.push(Violation::UnusableNode { node: node_id.clone(), why: why.clone() });
        }
        if let Some(why) = job.barred.get(node_id).filter(|_| job.gangs.is_none()) {
            violations.push(Violation::Barred { node: node_id.clone(), job: *job_id, why: why.clone() });
        }
        if job.waiting_rows == 0 && node.running != Some(*job_id) {
            violations.push(Violation::NothingToDo { node: node_id.clone(), job: *job_id });
        }
        let served = |other: &JobView| {
            let nodes = assignment.nodes.values().filter(|id| **id == other.id).count();
            other.batch_rows.max(1).saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX))
        };
        let urgent = view.jobs.iter().find(|other| {
            other.priority > job.priority
                && other.waiting_rows > served(other)
                && !other.barred.contains_key(node_id)
                && other.layout.admits_whole(node_id)
        });
        if let Some(urgent) = urgent {
            violations.push(Violation::Overtaken { node: node_id.clone(), job: *job_id, waiting: urgent.id });
        }
    }
    let mut in_a_gang: BTreeSet<&NodeId> = BTreeSet::new();
    for (job_id, gang) in &assignment.gangs {
        let layout = view.jobs.iter().find(|job| job.id == *job_id).map(|job| job.layout.as_ref());
        let layers = match layout {
            Some(Layout::Gangs { layers, .. }) => *layers,
            _ => 0,
        };
        let mut wrong = |why: String| violations.push(Violation::Gang { job: *job_id, why });
        for rank in &gang.ranks {
            if assignment.nodes.get(&rank.node) != Some(job_id) {
                wrong(format!("{} is not assigned to it", rank.node));
            }
            if !in_a_gang.insert(&rank.node) {
                wrong(format!("{} is in it twice, or in another one", rank.node));
            }
        }
        if let Some(why) = gang_fault(gang, layers) {
            wrong(why);
        }
    }
    for (node_id, job_id) in &assignment.nodes {
        let view_of = |job: &&JobView| job.id == *job_id;
        let alone = view.nodes.iter().any(|node| node.id == *node_id && node.running != Some(*job_id))
            && !in_a_gang.contains(node_id);
        if alone && view.jobs.iter().find(view_of).is_some_and(|job| !job.layout.admits_whole(node_id)) {
            let why = format!("the whole model must not be started on {node_id}");
            violations.push(Violation::Gang { job: *job_id, why });
        }
    }
    for job in &view.jobs {
        let assigned: BTreeSet<&NodeId> =
            assignment.nodes.iter().filter(|(_, id)| **id == job.id).map(|(node, _)| node).collect();
        let planned = assignment.plans.get(&job.id).map(|plan| plan.nodes.iter().collect::<BTreeSet<_>>());
        if planned != Some(assigned) {
            violations.push(Violation::PlanDiffers(job.id));
        }
    }
    violations
}

/// What is wrong with a gang by itself.
fn gang_fault(gang: &GangPlan, layers: u32) -> Option<String> {
    if gang.ranks.len() < 2 {
        return Some("one rank is no gang".to_owned());
    }
    if let Some(rank) = gang.ranks.iter().find(|rank| rank.stage.free_bytes() < 0) {
        return Some(format!("{} would be over its budget by {} bytes", rank.node, -rank.stage.free_bytes()));
    }
    if gang.mode != Mode::Pipeline {
        return None;
    }
    let mut next = 0;
    for rank in gang.ranks.iter().rev() {
        let span = rank.stage.span;
        if span.first != next || span.is_empty() {
            return Some(format!(
                "layers {} to {} are nobody's or two nodes'",
                next.min(span.first),
                span.first
            ));
        }
        next = span.end;
    }
    (next != layers).then(|| format!("{next} layers of {layers} are covered"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::{
        super::{JobView, NodeView, assign},
        *,
    };

    fn view() -> View {
        View {
            nodes: vec![
                NodeView { id: "a".into(), unusable: None, running: None, held_rows: 0, ending: false },
                NodeView {
                    id: "b".into(),
                    unusable: Some("drained".to_owned()),
                    running: None,
                    held_rows: 0,
                    ending: false,
                },
            ],
            jobs: vec![
                JobView {
                    id: JobId(1),
                    priority: 0,
                    waiting_rows: 3,
                    batch_rows: 4,
                    barred: BTreeMap::new(),
                    kept: BTreeSet::new(),
                    why_here: None,
                    layout: Arc::default(),
                    gangs: None,
                },
                JobView {
                    id: JobId(2),
                    priority: 0,
                    waiting_rows: 0,
                    batch_rows: 4,
                    barred: BTreeMap::new(),
                    kept: BTreeSet::new(),
                    why_here: None,
                    layout: Arc::default(),
                    gangs: None,
                },
            ],
        }
    }

    fn after(change: impl FnOnce(&mut View, &mut Assignment)) -> Vec<String> {
        let mut view = view();
        let mut assignment = assign(&view);
        change(&mut view, &mut assignment);
        check(&assignment, &view).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_planted_breach_of_each_rule_is_found() {
        assert_eq!(after(|_, _| {}), Vec::<String>::new());
        let found = after(|_, a| {
            a.nodes.insert("x".into(), JobId(1));
        });
        assert_eq!(found, ["x is not a known node", "the plan of j1 does not agree with the assignment"]);
        let found = after(|_, a| {
            a.nodes.insert("a".into(), JobId(9));
        });
        assert_eq!(found[0], "j9 is not a job that wants to run");
        let found = after(|_, a| {
            a.nodes.insert("b".into(), JobId(1));
        });
        assert_eq!(found[0], "b cannot take work: drained");
        let found = after(|v, _| {
            v.jobs[0].barred.insert("a".into(), "no model".to_owned());
        });
        assert_eq!(found, ["a must not work for j1: no model"]);
        let found = after(|_, a| {
            a.nodes.insert("a".into(), JobId(2));
        });
        assert_eq!(found[0], "a would start j2, which has no rows to hand out");
        let found = after(|v, _| {
            v.jobs[1].priority = 1;
            v.jobs[1].waiting_rows = 1;
        });
        assert_eq!(found, ["a works for j1 while j2 is more urgent"]);
        let found = after(|_, a| {
            a.plans.remove(&JobId(2));
        });
        assert_eq!(found, ["the plan of j2 does not agree with the assignment"]);
    }
}
