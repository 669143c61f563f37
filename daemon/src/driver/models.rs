//! Questions to the nodes about a model under way: who asked, and which nodes still owe an answer.

use std::collections::{BTreeMap, BTreeSet};

use nightshift_proto::v1::{self, controller_message::Body as ToAgent};
use tokio::sync::mpsc;

use super::Driver;
use crate::{
    model::{JobSpec, NodeId},
    planner::NodeInterfaces,
    rpc::plan::{PlanNode, PlanView},
};

/// Questions under way at once; each is somebody planning.
const MAX_QUESTIONS: usize = 16;

/// What one node says.
pub(crate) type NodeReport = (NodeId, v1::ModelReport);

/// Models the recovery machine has asked about lately; a job has one, and a cluster has few jobs at a time.
const MAX_MACHINE_MODELS: usize = 256;

#[derive(Default)]
pub(super) struct Questions {
    next_id: u64,
    open: BTreeMap<u64, Open>,
    /// Those of the recovery machine, which remembers by itself whom it has asked: only the model is kept.
    of_the_machine: BTreeMap<u64, String>,
}

struct Open {
    nodes: BTreeSet<NodeId>,
    asker: mpsc::Sender<NodeReport>,
}

impl Questions {
    /// Registers a question to these nodes; `None` when too many are open already. The channel closes when all have
    /// answered or are gone.
    fn open(&mut self, nodes: BTreeSet<NodeId>) -> Option<(u64, mpsc::Receiver<NodeReport>)> {
        self.open.retain(|_, open| !open.asker.is_closed());
        if self.open.len() >= MAX_QUESTIONS {
            return None;
        }
        let (asker, reports) = mpsc::channel(nodes.len().max(1));
        self.next_id += 1;
        if !nodes.is_empty() {
            self.open.insert(self.next_id, Open { nodes, asker });
        }
        Some((self.next_id, reports))
    }

    /// The number under which the recovery machine asks about a model; the same for every node.
    pub(super) fn number_for_the_machine(&mut self, model: &str) -> u64 {
        let known = self.of_the_machine.iter().find(|(_, of)| *of == model).map(|(id, _)| *id);
        known.unwrap_or_else(|| {
            if self.of_the_machine.len() >= MAX_MACHINE_MODELS {
                self.of_the_machine.pop_first();
            }
            self.next_id += 1;
            self.of_the_machine.insert(self.next_id, model.to_owned());
            self.next_id
        })
    }

    /// The model of a question of the recovery machine.
    pub(super) fn model_asked_for(&self, request_id: u64) -> Option<String> {
        self.of_the_machine.get(&request_id).cloned()
    }

    pub(super) fn answered(&mut self, node: &NodeId, inspected: v1::ModelInspected) {
        let Some(open) = self.open.get_mut(&inspected.request_id) else { return };
        if open.nodes.remove(node) {
            // There is a place for every node; whoever asked may be gone.
            let _ = open.asker.try_send((node.clone(), inspected.report.unwrap_or_default()));
        }
        if open.nodes.is_empty() {
            self.open.remove(&inspected.request_id);
        }
    }

    /// A node that is gone owes nothing more.
    pub(super) fn node_gone(&mut self, node: &NodeId) {
        self.open.retain(|_, open| {
            open.nodes.remove(node);
            !open.nodes.is_empty()
        });
    }
}

impl Driver {
    /// Asks every connected node about a model.
    pub(super) fn ask_about_model(&mut self, model: &str) -> Option<mpsc::Receiver<NodeReport>> {
        let nodes: BTreeSet<NodeId> = self.connections.keys().cloned().collect();
        let (request_id, reports) = self.questions.open(nodes.clone())?;
        for node in nodes {
            let request = v1::InspectModel { request_id, model: model.to_owned() };
            let message = v1::ControllerMessage { body: Some(ToAgent::InspectModel(request)) };
            let sent = self.connections.get(&node).is_some_and(|connection| {
                // A connection that cannot take it is found out by the next command.
                connection.outbox.try_send(Ok(message)).is_ok()
            });
            if !sent {
                self.questions.node_gone(&node);
            }
        }
        Some(reports)
    }

    pub(super) fn plan_view(&self) -> PlanView {
        let now = self.now();
        let nodes = self.machine.nodes().map(|node| PlanNode {
            node: node.id.clone(),
            memory: node.facts.memory,
            unusable: node.unusable(now),
            interfaces: NodeInterfaces {
                node: node.id.clone(),
                boot_id: node.facts.boot_id.clone(),
                interfaces: node.facts.interfaces.clone(),
                thunderbolt: node.facts.thunderbolt.clone(),
            },
        });
        PlanView {
            nodes: nodes.collect(),
            networks: self.config.gangs.networks(),
            rdma: self.config.gangs.rdma,
            settings: JobSpec::default().settings(self.machine.policy()),
            measurements: self
                .machine
                .all_learned()
                .map(|model| (model.fingerprint.clone(), model.measurements.clone()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(request_id: u64) -> v1::ModelInspected {
        v1::ModelInspected { request_id, report: Some(v1::ModelReport::default()) }
    }

    #[test]
    fn a_question_ends_when_every_node_has_answered_or_is_gone() {
        let mut questions = Questions::default();
        let (id, mut reports) = questions.open(["a".into(), "b".into(), "c".into()].into()).unwrap();
        questions.answered(&"a".into(), inspected(id));
        questions.answered(&"a".into(), inspected(id));
        questions.answered(&"x".into(), inspected(id));
        questions.node_gone(&"b".into());
        assert_eq!(reports.try_recv().unwrap().0, "a".into());
        assert_eq!(reports.try_recv(), Err(mpsc::error::TryRecvError::Empty), "once, and c is still to come");
        questions.answered(&"c".into(), inspected(id));
        assert_eq!(reports.try_recv().unwrap().0, "c".into());
        assert_eq!(reports.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }

    #[test]
    fn questions_are_bounded_and_forgotten_with_their_askers() {
        let mut questions = Questions::default();
        let nobody = questions.open(BTreeSet::new()).unwrap().1;
        assert!(nobody.is_closed(), "no node, no answer");
        let held: Vec<_> = (0..MAX_QUESTIONS).map(|_| questions.open(["a".into()].into()).unwrap()).collect();
        assert!(questions.open(["a".into()].into()).is_none());
        drop(held);
        assert!(questions.open(["a".into()].into()).is_some());
    }
}
