//! What only a restart of a machine brings back: memory that killed workers left wired, and RDMA starts (FIELD-NOTES 2, 4).
//!
//! A node whose worker was killed with its model in memory gets no other before its memory has been looked at; one whose
//! memory did not come back gets none until it was restarted. A node without RDMA starts left is planned over TCP. Both are
//! the condition `NeedsReboot`.

use super::{event::Now, facts::BootFacts, incidents::Opening, machine::Machine, state::Node};
use crate::{
    fit::gigabytes,
    model::{Fault, NodeId, RestartCause, Severity},
};

/// What killed workers may have left in a node's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Debt {
    /// A worker was killed, and nothing has been seen of the memory since.
    awaits_look: bool,
    /// What did not come back.
    stranded_bytes: Option<u64>,
}

impl Node {
    /// Why its memory keeps it from work.
    pub(super) fn debt_sentence(&self) -> Option<String> {
        if let Some(bytes) = self.debt.stranded_bytes {
            return Some(format!(
                "{} of its memory did not come back when a worker was killed; restart the machine",
                gigabytes(bytes)
            ));
        }
        self.debt.awaits_look.then(|| {
            "a worker had to be killed there; whether its memory came back is being looked at".to_owned()
        })
    }

    /// Why only a restart of the machine helps, as a stable word and a sentence.
    #[must_use]
    pub fn needs_reboot(&self) -> Option<(&'static str, String)> {
        let cause = self.restart_cause()?;
        let sentence = match cause {
            RestartCause::StrandedMemory => self.debt_sentence()?,
            RestartCause::RdmaStartsUsedUp => format!(
                "its {} RDMA starts of this boot are used up, so its gangs run over TCP; restart the machine at leisure",
                self.facts.boot.rdma_starts
            ),
        };
        Some((cause.word(), sentence))
    }

    /// What it needs a restart for.
    pub(super) fn restart_cause(&self) -> Option<RestartCause> {
        if self.debt.stranded_bytes.is_some() {
            return Some(RestartCause::StrandedMemory);
        }
        self.facts.boot.rdma_is_used_up().then_some(RestartCause::RdmaStartsUsedUp)
    }
}

impl Machine {
    /// A worker was killed with its model in memory.
    pub(super) fn note_kill(&mut self, id: &NodeId) {
        if let Some(node) = self.nodes.get_mut(id) {
            node.debt.awaits_look = true;
        }
    }

    /// Returns whether it can change a plan.
    pub(super) fn on_boot_facts(&mut self, now: Now, id: &NodeId, boot: BootFacts) -> bool {
        let limit_bytes = self.policy.stranded_bytes;
        let Some(node) = self.nodes.get_mut(id) else { return false };
        let before = node.needs_reboot().map(|(reason, _)| reason);
        let could_work = node.debt_sentence().is_none();
        let restarts_before = node.facts.boot.gpu_restarts;
        // What is not known for once is not forgotten.
        let gpu_restarts = boot.gpu_restarts.or(restarts_before);
        node.facts.boot = BootFacts { gpu_restarts, ..boot };
        // One that knows of no kill was made before it; whatever else comes after the news of a kill was seen after it.
        node.debt.awaits_look &= boot.kills_while_loaded == 0;
        // What was seen while a worker runs says nothing; the last word holds until there is another.
        if let Some(stranded) = boot.stranded_bytes {
            let is_lost = boot.kills_while_loaded > 0 && stranded >= limit_bytes;
            node.debt.stranded_bytes = is_lost.then_some(stranded);
        }
        let after = node.needs_reboot();
        let can_work = node.debt_sentence().is_none();
        if before != after.as_ref().map(|(reason, _)| *reason) {
            // Which links may carry RDMA has changed.
            self.links_version += 1;
            self.tell_of_need(now, id, before, after);
        }
        let is_quarantined = self.on_gpu_restarts(now, id, restarts_before, boot.gpu_restarts);
        could_work != can_work || is_quarantined
    }

    /// A node that comes back after a restart of the machine owes nothing.
    pub(super) fn on_new_boot(&mut self, now: Now, id: &NodeId) {
        if let Some(node) = self.nodes.get_mut(id) {
            node.debt = Debt::default();
            // Counted from the start of the machine.
            node.facts.boot.gpu_restarts = None;
        }
        self.incidents.close(now, "the machine was restarted", |incident| {
            incident.fault == Fault::NeedsReboot && incident.node.as_ref() == Some(id)
        });
    }

    fn tell_of_need(
        &mut self,
        now: Now,
        id: &NodeId,
        before: Option<&'static str>,
        after: Option<(&'static str, String)>,
    ) {
        let fault = Fault::NeedsReboot;
        if before.is_some() {
            self.incidents.close(now, "it came back by itself", |incident| {
                incident.fault == fault && incident.node.as_ref() == Some(id)
            });
        }
        let Some((reason, sentence)) = after else { return };
        let summary = format!("{id} needs a reboot: {sentence}");
        let action = match reason {
            "StrandedMemory" => "no model is loaded there until then",
            _ => "its gangs run over TCP until then",
        };
        self.emit(Severity::Warning, fault.word(), Some(id), None, format!("{summary}; {action}"));
        let opening = Opening {
            node: Some(id.clone()),
            summary,
            action: action.to_owned(),
            evidence: vec![reason.to_owned()],
            ..Opening::default()
        };
        self.incidents.open(now, fault, opening);
    }
}
