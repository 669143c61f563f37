//! Nodes whose GPU keeps failing.
//!
//! Each fault makes the next workers there gentler ([`rules::eased`](super::rules::eased)); too many within the window, and
//! the node is left alone for a while. Both are the node's, whatever job it ran: a GPU does not know of jobs. They outlive
//! the controller.

use super::{event::Now, incidents::Opening, machine::Machine, state::Node};
use crate::model::{Fault, NodeId, Quarantine, Severity};

impl Node {
    /// GPU faults within the window.
    pub(super) fn recent_gpu_faults(&self, now: Now, window_ms: u64) -> u32 {
        let recent = self.gpu_faults_unix_ms.iter().filter(|at| now.unix_ms.saturating_sub(**at) < window_ms);
        u32::try_from(recent.count()).unwrap_or(u32::MAX)
    }

    pub(super) fn quarantine_sentence(&self, now: Now) -> Option<String> {
        let quarantine = self.quarantine.as_ref()?;
        let minutes = quarantine.until_unix_ms.saturating_sub(now.unix_ms).div_ceil(60_000);
        Some(format!("it is in quarantine for {minutes} more minutes: {}", quarantine.reason))
    }
}

impl Machine {
    /// Returns how many there were within the window, this one included.
    pub(super) fn note_gpu_fault(&mut self, now: Now, id: &NodeId) -> u32 {
        let window_ms = self.policy.gpu_fault_window_ms;
        let most = self.policy.gpu_faults_before_quarantine as usize;
        let Some(node) = self.nodes.get_mut(id) else { return 1 };
        let faults = &mut node.gpu_faults_unix_ms;
        faults.retain(|at| now.unix_ms.saturating_sub(*at) < window_ms);
        faults.push(now.unix_ms);
        // More than lead to a quarantine are not needed.
        if faults.len() > most.max(1) {
            faults.remove(0);
        }
        let count = node.recent_gpu_faults(now, window_ms);
        self.record_node(id);
        count
    }

    pub(super) fn quarantine(&mut self, now: Now, id: &NodeId, for_ms: u64, cause: &str) {
        let (faults, window_minutes) =
            (self.policy.gpu_faults_before_quarantine, self.policy.gpu_fault_window_ms / 60_000);
        let Some(node) = self.nodes.get_mut(id) else { return };
        let reason = format!("{faults} GPU faults within {window_minutes} minutes, the last: {cause}");
        node.quarantine =
            Some(Quarantine { until_unix_ms: now.unix_ms.saturating_add(for_ms), reason: reason.clone() });
        self.record_node(id);
        let summary = format!("{id} is in quarantine: {reason}");
        let action = format!(
            "it takes no work for {} minutes; `clusterctl undrain {id}` ends that at once",
            for_ms / 60_000
        );
        self.emit(
            Severity::Error,
            Fault::NodeQuarantined.word(),
            Some(id),
            None,
            format!("{summary}; {action}"),
        );
        let opening = Opening { node: Some(id.clone()), summary, action, ..Opening::default() };
        self.incidents.open(now, Fault::NodeQuarantined, opening);
    }

    /// Quarantines end by themselves.
    pub(super) fn end_quarantines(&mut self, now: Now) {
        let over = |node: &&Node| node.quarantine.as_ref().is_some_and(|q| q.until_unix_ms <= now.unix_ms);
        let over: Vec<NodeId> = self.nodes.values().filter(over).map(|node| node.id.clone()).collect();
        for id in over {
            self.lift_quarantine(now, &id, "its time is over");
        }
    }

    /// Ends a quarantine; what led to it is forgiven.
    pub(super) fn lift_quarantine(&mut self, now: Now, id: &NodeId, why: &str) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if node.quarantine.take().is_none() {
            return;
        }
        node.gpu_faults_unix_ms.clear();
        self.record_node(id);
        self.incidents.close(now, &format!("the node takes work again: {why}"), |incident| {
            incident.fault == Fault::NodeQuarantined && incident.node.as_ref() == Some(id)
        });
        let message = format!("the quarantine of {id} is over: {why}");
        self.emit(Severity::Info, "quarantine-over", Some(id), None, message);
    }
}
