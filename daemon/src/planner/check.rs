//! A second reading of the planner's rules, written apart from the first: what it refuses is not carried out.

use std::collections::BTreeSet;

use super::assign::{Assignment, JobView, View};
use crate::model::{JobId, NodeId};

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
        if let Some(why) = job.barred.get(node_id) {
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
        });
        if let Some(urgent) = urgent {
            violations.push(Violation::Overtaken { node: node_id.clone(), job: *job_id, waiting: urgent.id });
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{
        super::{JobView, NodeView, assign},
        *,
    };

    fn view() -> View {
        View {
            nodes: vec![
                NodeView { id: "a".into(), unusable: None, running: None },
                NodeView { id: "b".into(), unusable: Some("drained".to_owned()), running: None },
            ],
            jobs: vec![
                JobView {
                    id: JobId(1),
                    priority: 0,
                    waiting_rows: 3,
                    held_rows: 0,
                    batch_rows: 4,
                    barred: BTreeMap::new(),
                },
                JobView {
                    id: JobId(2),
                    priority: 0,
                    waiting_rows: 0,
                    held_rows: 0,
                    batch_rows: 4,
                    barred: BTreeMap::new(),
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
