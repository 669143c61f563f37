//! Nodes whose GPU keeps failing.
//!
//! A restart of a GPU shows itself in two ways, in either order: a worker ends with an error of Metal, and the driver's counter of
//! restarts rises, also where nobody used it. Both within some seconds are one fault.
//!
//! Each fault makes the next workers there gentler ([`rules::eased`](super::rules::eased)); too many within the window, and
//! the node is left alone for a while. Both are the node's, whatever job it ran: a GPU does not know of jobs. They outlive
//! the controller.

use super::{event::Now, incidents::Opening, machine::Machine, state::Node};
use crate::model::{Fault, NodeId, Quarantine, Severity, clipped};

/// How long after one sign of a fault the other is of the same. Agents see the counter within a second or two and the end of a
/// worker at once; a machine that has just restarted its GPU is late with everything.
const ONE_FAULT_MS: u64 = 15_000;

/// Of why a node is in quarantine: its record has to fit a value of the ledger.
pub(super) const MOST_REASON_BYTES: usize = 300;

/// The newest fault of a GPU.
#[derive(Clone, Debug, Default)]
pub(super) struct GpuFault {
    at_mono_ms: u64,
    /// The incident of the worker that ended for it.
    exit: Option<u64>,
    by_exit: bool,
    /// How the counter told of it.
    counted: Option<String>,
    /// Whether it is told of, where no worker ended.
    is_told: bool,
}

/// What tells of a fault.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Sign {
    Exit,
    Counter(String),
}

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
    /// A worker ended with an error of its GPU. Returns how many faults there were within the window, this one included.
    pub(super) fn note_gpu_fault(&mut self, now: Now, id: &NodeId) -> u32 {
        self.note_sign(now, id, Sign::Exit)
    }

    /// What else tells of the fault for which a worker has ended.
    pub(super) fn gpu_evidence(&self, now: Now, id: &NodeId) -> Option<String> {
        let fault = self.nodes.get(id)?.gpu_fault.as_ref()?;
        fault.counted.clone().filter(|_| now.mono_ms.saturating_sub(fault.at_mono_ms) <= ONE_FAULT_MS)
    }

    /// The fault for which a worker ended has this incident.
    pub(super) fn note_gpu_incident(&mut self, id: &NodeId, incident: u64) {
        if let Some(fault) = self.nodes.get_mut(id).and_then(|node| node.gpu_fault.as_mut()) {
            fault.exit = Some(incident);
        }
    }

    /// What the driver's counter says now. Returns whether the node is in quarantine for it.
    pub(super) fn on_gpu_restarts(
        &mut self,
        now: Now,
        id: &NodeId,
        before: Option<u64>,
        after: Option<u64>,
    ) -> bool {
        let (Some(before), Some(after)) = (before, after) else { return false };
        let most = u64::from(self.policy.gpu_faults_before_quarantine.max(1));
        let restarts = after.saturating_sub(before);
        if restarts == 0 {
            return false;
        }
        let told = format!("the driver's counter of GPU restarts rose from {before} to {after}");
        let message = format!("the GPU of {id} was restarted: {told}");
        self.emit(Severity::Warning, "gpu-restarted", Some(id), None, message);
        let mut faults = 0;
        for _ in 0..restarts.min(most) {
            faults = self.note_sign(now, id, Sign::Counter(told.clone()));
        }
        let is_over =
            self.nodes.get(id).is_some_and(|node| node.quarantine.is_none()) && u64::from(faults) >= most;
        if is_over {
            self.quarantine(now, id, self.policy.quarantine_ms, &told);
        }
        is_over
    }

    /// Restarts of which no worker took notice are told when it is certain that none will.
    pub(super) fn tell_of_gpu_restarts(&mut self, now: Now) {
        let mut untold = Vec::new();
        for node in self.nodes.values_mut() {
            let Some(fault) = node.gpu_fault.as_mut().filter(|fault| !fault.by_exit && !fault.is_told) else {
                continue;
            };
            if now.mono_ms > fault.at_mono_ms + ONE_FAULT_MS {
                fault.is_told = true;
                untold.extend(fault.counted.clone().map(|counted| (node.id.clone(), counted)));
            }
        }
        for (id, counted) in untold {
            let opening = Opening {
                node: Some(id.clone()),
                summary: format!("the GPU of {id} was restarted, and no worker ended for it"),
                action: "workers that start there take smaller steps and fewer rows together".to_owned(),
                evidence: vec![counted],
                ..Opening::default()
            };
            let incident = self.incidents.open(now, Fault::GpuFault, opening);
            self.incidents.close(now, "what ran there goes on", |known| known.id == incident);
        }
    }

    fn note_sign(&mut self, now: Now, id: &NodeId, sign: Sign) -> u32 {
        let window_ms = self.policy.gpu_fault_window_ms;
        let most = self.policy.gpu_faults_before_quarantine as usize;
        let Some(node) = self.nodes.get_mut(id) else { return 1 };
        let fresh = |fault: &&mut GpuFault| now.mono_ms.saturating_sub(fault.at_mono_ms) <= ONE_FAULT_MS;
        if let Some(fault) = node.gpu_fault.as_mut().filter(fresh) {
            match sign.clone() {
                Sign::Exit if !fault.by_exit => {
                    fault.by_exit = true;
                    return node.recent_gpu_faults(now, window_ms);
                }
                Sign::Counter(told) if fault.counted.is_none() => {
                    fault.counted = Some(told.clone());
                    let exit = fault.exit;
                    let count = node.recent_gpu_faults(now, window_ms);
                    if let Some(incident) = exit {
                        self.incidents.add_line(incident, told);
                    }
                    return count;
                }
                Sign::Exit | Sign::Counter(_) => {}
            }
        }
        let (by_exit, counted) = match sign {
            Sign::Exit => (true, None),
            Sign::Counter(told) => (false, Some(told)),
        };
        node.gpu_fault =
            Some(GpuFault { at_mono_ms: now.mono_ms, exit: None, by_exit, counted, is_told: false });
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
        let reason = clipped(&reason, MOST_REASON_BYTES).to_owned();
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
