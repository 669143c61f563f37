//! The book of incidents of this run.

use std::collections::VecDeque;

use super::event::Now;
use crate::model::{Fault, Incident, JobId, NodeId};

/// Enough for a bad night to be read in the morning; older closed ones are in the events.
const KEPT: usize = 500;

#[derive(Clone, Debug, Default)]
pub(super) struct Incidents {
    newest_last: VecDeque<Incident>,
    opened: u64,
}

/// What an incident starts with.
#[derive(Clone, Debug, Default)]
pub(super) struct Opening {
    pub(super) node: Option<NodeId>,
    pub(super) job: Option<JobId>,
    pub(super) summary: String,
    pub(super) action: String,
    pub(super) evidence: Vec<String>,
    pub(super) rows_requeued: u64,
    pub(super) tokens_saved: u64,
}

impl Incidents {
    pub(super) fn open(&mut self, now: Now, fault: Fault, opening: Opening) {
        self.opened += 1;
        if self.newest_last.len() == KEPT {
            self.newest_last.pop_front();
        }
        self.newest_last.push_back(Incident {
            id: self.opened,
            fault,
            node: opening.node,
            job: opening.job,
            opened_unix_ms: now.unix_ms,
            closed_unix_ms: None,
            summary: opening.summary,
            action: opening.action,
            outcome: String::new(),
            evidence: opening.evidence,
            rows_requeued: opening.rows_requeued,
            tokens_saved: opening.tokens_saved,
        });
    }

    /// Closes all open incidents that `is_over` names.
    pub(super) fn close(&mut self, now: Now, outcome: &str, is_over: impl Fn(&Incident) -> bool) {
        for incident in self.newest_last.iter_mut().filter(|i| i.closed_unix_ms.is_none()) {
            if is_over(incident) {
                incident.closed_unix_ms = Some(now.unix_ms);
                outcome.clone_into(&mut incident.outcome);
            }
        }
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Incident> {
        self.newest_last.iter().rev()
    }
}
