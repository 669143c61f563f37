//! The book of incidents. It outlives the controller: what changes in it is recorded.
//!
//! The same fault with the same cause at the same place, again and again, is one incident that counts how often: a link that
//! is away for a night shall not push everything else out of the morning's page.

use std::collections::{BTreeSet, VecDeque};

use super::{costs::Costs, event::Now};
use crate::model::{Fault, Incident, JobId, NodeId};

/// Enough for a bad week to be read; older ones are in the events.
const KEPT: usize = 500;

/// Lines of evidence to which others are added. An exit brings its error and the end of its log.
const MOST_EVIDENCE: usize = 64;

/// Of the same fault: how long after the end of one the next is still the same incident. Longer than the longest pause
/// between two tries.
const SAME_WITHIN_MS: u64 = 10 * 60_000;

#[derive(Clone, Debug, Default)]
pub(super) struct Incidents {
    newest_last: VecDeque<Incident>,
    last_id: u64,
    /// To be recorded.
    changed: BTreeSet<u64>,
}

/// What an incident starts with.
#[derive(Clone, Debug, Default)]
pub(super) struct Opening {
    pub(super) node: Option<NodeId>,
    pub(super) job: Option<JobId>,
    pub(super) summary: String,
    pub(super) action: String,
    pub(super) evidence: Vec<String>,
    pub(super) costs: Costs,
    pub(super) noticed_after_ms: Option<u64>,
}

impl Incidents {
    /// Those of controllers before this one, the oldest first.
    pub(super) fn remember(&mut self, incidents: Vec<Incident>) {
        self.last_id = incidents.last().map_or(0, |incident| incident.id);
        self.newest_last = incidents.into();
    }

    /// Returns its number.
    pub(super) fn open(&mut self, now: Now, fault: Fault, opening: Opening) -> u64 {
        if let Some(known) =
            self.newest_last.iter_mut().rev().find(|known| is_again(known, now, fault, &opening))
        {
            known.times = known.times.saturating_add(1);
            known.last_unix_ms = now.unix_ms;
            known.closed_unix_ms = None;
            known.outcome.clear();
            known.summary = opening.summary;
            known.action = opening.action;
            add(known, opening.costs);
            known.noticed_after_ms = known.noticed_after_ms.max(opening.noticed_after_ms);
            self.changed.insert(known.id);
            return known.id;
        }
        self.last_id += 1;
        if self.newest_last.len() == KEPT {
            self.newest_last.pop_front();
        }
        self.newest_last.push_back(Incident {
            id: self.last_id,
            fault,
            node: opening.node,
            job: opening.job,
            opened_unix_ms: now.unix_ms,
            times: 1,
            last_unix_ms: now.unix_ms,
            closed_unix_ms: None,
            summary: opening.summary,
            action: opening.action,
            outcome: String::new(),
            evidence: opening.evidence,
            rows_requeued: opening.costs.rows,
            tokens_saved: opening.costs.tokens_saved,
            tokens_lost: opening.costs.tokens_lost,
            noticed_after_ms: opening.noticed_after_ms,
            first_token_after_ms: None,
            start_ms: None,
            went_on_as: String::new(),
        });
        self.changed.insert(self.last_id);
        self.last_id
    }

    /// What it cost besides what was known when it was opened.
    pub(super) fn add_costs(&mut self, id: u64, costs: Costs) {
        if costs != Costs::default() {
            self.change(id, |incident| add(incident, costs));
        }
    }

    /// How the job went on after it.
    pub(super) fn note_way(&mut self, id: u64, way: &str) {
        self.change(id, |incident| way.clone_into(&mut incident.went_on_as));
    }

    /// When the job wrote its first token after it, and how long the launch took to start.
    pub(super) fn note_first_token(&mut self, id: u64, after_ms: u64, start_ms: u64) {
        self.change(id, |incident| {
            if incident.first_token_after_ms < Some(after_ms) {
                incident.first_token_after_ms = Some(after_ms);
                incident.start_ms = Some(start_ms);
            }
        });
    }

    /// What is told of an end that was noted before: its evidence, where there was none.
    pub(super) fn add_evidence(&mut self, id: u64, summary: &str, evidence: Vec<String>) {
        self.change(id, |incident| {
            if incident.evidence.is_empty() {
                incident.summary.push_str(&format!("; {summary}"));
                incident.evidence = evidence;
            }
        });
    }

    /// One more line of evidence, behind those there are.
    pub(super) fn add_line(&mut self, id: u64, line: String) {
        self.change(id, |incident| {
            if incident.evidence.len() < MOST_EVIDENCE && !incident.evidence.contains(&line) {
                incident.evidence.push(line);
            }
        });
    }

    fn change(&mut self, id: u64, change: impl FnOnce(&mut Incident)) {
        if let Some(incident) = self.newest_last.iter_mut().rev().find(|incident| incident.id == id) {
            change(incident);
            self.changed.insert(id);
        }
    }

    /// What is done about the open incidents that `is_meant` names, when that has changed.
    pub(super) fn redirect(&mut self, action: &str, is_meant: impl Fn(&Incident) -> bool) {
        for incident in self.newest_last.iter_mut().filter(|i| i.closed_unix_ms.is_none()) {
            if is_meant(incident) && incident.action != action {
                action.clone_into(&mut incident.action);
                self.changed.insert(incident.id);
            }
        }
    }

    /// Closes all open incidents that `is_over` names.
    pub(super) fn close(&mut self, now: Now, outcome: &str, is_over: impl Fn(&Incident) -> bool) {
        for incident in self.newest_last.iter_mut().filter(|i| i.closed_unix_ms.is_none()) {
            if is_over(incident) {
                incident.closed_unix_ms = Some(now.unix_ms);
                outcome.clone_into(&mut incident.outcome);
                self.changed.insert(incident.id);
            }
        }
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Incident> {
        self.newest_last.iter().rev()
    }

    /// Those that changed since this was last asked, the oldest first.
    pub(super) fn take_changed(&mut self) -> impl Iterator<Item = Incident> {
        let changed = std::mem::take(&mut self.changed);
        self.newest_last.iter().filter(move |incident| changed.contains(&incident.id)).cloned()
    }
}

fn add(incident: &mut Incident, costs: Costs) {
    incident.rows_requeued += costs.rows;
    incident.tokens_saved += costs.tokens_saved;
    incident.tokens_lost += costs.tokens_lost;
}

/// Whether the fault is the known incident once more. What begins with the same line of evidence has the same cause.
fn is_again(known: &Incident, now: Now, fault: Fault, opening: &Opening) -> bool {
    let since_end_ms = known.closed_unix_ms.map_or(0, |closed| now.unix_ms.saturating_sub(closed));
    known.fault == fault
        // Each repair is another one.
        && fault != Fault::LedgerRepaired
        && known.node == opening.node
        && known.job == opening.job
        && known.evidence.first() == opening.evidence.first()
        && since_end_ms <= SAME_WITHIN_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: u64 = 60_000;

    fn at(minute: u64) -> Now {
        Now { mono_ms: minute * MINUTE_MS, unix_ms: minute * MINUTE_MS }
    }

    fn opening(node: &str, cause: &str) -> Opening {
        Opening {
            node: Some(node.into()),
            summary: format!("{cause} on {node}"),
            evidence: vec![cause.to_owned()],
            costs: Costs { rows: 2, ..Costs::default() },
            ..Opening::default()
        }
    }

    fn close_all(book: &mut Incidents, minute: u64) {
        book.close(at(minute), "over", |_| true);
    }

    #[test]
    fn the_same_again_is_one_incident_that_counts() {
        let mut book = Incidents::default();
        for minute in 0..100 {
            book.open(at(minute), Fault::WorkerExited, opening("a", "no route"));
            close_all(&mut book, minute);
        }
        let all: Vec<&Incident> = book.newest_first().collect();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].times, all[0].rows_requeued), (100, 200));
        assert_eq!((all[0].opened_unix_ms, all[0].last_unix_ms), (0, 99 * MINUTE_MS));
    }

    #[test]
    fn another_place_another_cause_and_another_time_are_other_incidents() {
        let mut book = Incidents::default();
        book.open(at(0), Fault::WorkerExited, opening("a", "no route"));
        book.open(at(0), Fault::WorkerExited, opening("b", "no route"));
        book.open(at(0), Fault::WorkerExited, opening("a", "out of memory"));
        book.open(at(0), Fault::WorkerSilent, opening("a", "no route"));
        close_all(&mut book, 0);
        book.open(at(11), Fault::WorkerExited, opening("a", "no route"));
        book.open(at(11), Fault::LedgerRepaired, Opening::default());
        book.open(at(11), Fault::LedgerRepaired, Opening::default());
        assert_eq!(book.newest_first().count(), 7);
        assert!(book.newest_first().all(|incident| incident.times == 1));
    }

    #[test]
    fn an_open_incident_stays_the_same_however_long_it_lasts() {
        let mut book = Incidents::default();
        book.open(at(0), Fault::NodeSilent, opening("a", ""));
        book.open(at(500), Fault::NodeSilent, opening("a", ""));
        assert_eq!(book.newest_first().next().map(|incident| incident.times), Some(2));
    }

    #[test]
    fn every_change_is_told_once_and_numbers_go_on_after_a_restart() {
        let mut book = Incidents::default();
        book.open(at(0), Fault::WorkerExited, opening("a", "x"));
        book.open(at(1), Fault::WorkerExited, opening("b", "x"));
        let told: Vec<Incident> = book.take_changed().collect();
        assert_eq!(told.iter().map(|incident| incident.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(book.take_changed().count(), 0);
        book.close(at(2), "over", |incident| incident.id == 2);
        assert_eq!(book.take_changed().map(|incident| incident.id).collect::<Vec<_>>(), [2]);

        let mut after = Incidents::default();
        after.remember(told);
        assert_eq!(after.take_changed().count(), 0);
        after.open(at(2), Fault::WorkerSilent, opening("a", "x"));
        assert_eq!(after.take_changed().map(|incident| incident.id).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn the_book_is_bounded() {
        let mut book = Incidents::default();
        for number in 0..KEPT + 7 {
            book.open(at(0), Fault::WorkerExited, opening("a", &number.to_string()));
        }
        assert_eq!(book.newest_first().count(), KEPT);
        assert_eq!(book.newest_first().last().map(|incident| incident.id), Some(8));
        assert_eq!(book.take_changed().count(), KEPT, "what fell out is not recorded any more");
    }
}
