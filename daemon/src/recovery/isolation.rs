//! Rows that take their worker down.
//!
//! A row in work at two crashes is a suspect. Suspects are handed out apart from all other rows: the half of those seen
//! at the most crashes together, to a worker that has nothing else. If it crashes, the culprit is in that half; if it does
//! not, the half is done and the rest is tried. So with `batch` rows in work at the first crash, a culprit is alone, and
//! known, after ⌈log2(batch)⌉ + 2 crashes at most. A row that was alone at a crash, and in work at three, fails with its
//! evidence, and whoever was suspected with it goes free. A row that a machine's own troubles hit again and again is not
//! taken for a culprit as long as the errors differ.
//!
//! How often a row was in work at a crash is kept in the job's record: a restarted controller goes on with the search.

use std::collections::BTreeMap;

use super::{
    event::{ExitClass, Now, WorkerExit},
    incidents::Opening,
    machine::Machine,
    state::Job,
};
use crate::model::{Fault, NodeId, RowCrashes, RowIx, RowSet, Severity, WorkerKey};

/// Crashes at which a row was in work before it is handed out apart from the others.
const SUSPECT_CRASHES: u32 = 2;

/// Crashes at which a row was in work, the last of them alone, before it fails.
const CULPRIT_CRASHES: u32 = 3;

/// The same where the last two errors differ: then it may be the machine's doing, and the row must have been alone at three of
/// them.
const CULPRIT_CRASHES_IN_DOUBT: u32 = 6;

/// Rows whose crashes are counted, of one job: some hundred crashes of large batches. Past it, those seen least are
/// forgotten.
const MOST_COUNTED: usize = 4_096;

/// How often rows of a job were in work at a crash.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Crashes(BTreeMap<RowIx, Seen>);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Seen {
    crashes: u32,
    cause: u32,
    /// Whether the crash before the last had the same cause.
    again: bool,
    /// At how many of them it was alone.
    alone: u32,
}

/// What a crash tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Finding {
    /// Nothing yet: most crashes have nothing to do with a row.
    Nothing,
    /// The row that did it is one of these, fewer than were suspected before.
    Narrowed(usize),
    /// This row did it.
    Culprit(RowIx),
}

impl Crashes {
    pub(super) fn from_record(counted: &[RowCrashes]) -> Self {
        let seen = |counted: &RowCrashes| {
            let RowCrashes { row, crashes, cause, alone } = *counted;
            (row, Seen { crashes, cause, again: false, alone })
        };
        Self(counted.iter().take(MOST_COUNTED).map(seen).collect())
    }

    pub(super) fn to_record(&self) -> Vec<RowCrashes> {
        let counted = |(row, seen): (&RowIx, &Seen)| {
            let Seen { crashes, cause, alone, .. } = *seen;
            RowCrashes { row: *row, crashes, cause, alone }
        };
        self.0.iter().map(counted).collect()
    }

    pub(super) fn of(&self, row: RowIx) -> u32 {
        self.0.get(&row).map_or(0, |seen| seen.crashes)
    }

    pub(super) fn is_suspect(&self, row: RowIx) -> bool {
        self.of(row) >= SUSPECT_CRASHES
    }

    /// Rows that are handed out apart from the others, and at how many crashes they were in work.
    pub(super) fn suspects(&self) -> impl Iterator<Item = (RowIx, u32)> {
        let suspects = self.0.iter().filter(|(_, seen)| seen.crashes >= SUSPECT_CRASHES);
        suspects.map(|(row, seen)| (*row, seen.crashes))
    }

    pub(super) fn forget(&mut self, row: RowIx) {
        self.0.remove(&row);
    }

    /// Of a record that is older than the newest results.
    pub(super) fn forget_done(&mut self, done: &RowSet) {
        self.0.retain(|row, _| !done.contains(*row));
    }

    /// A worker crashed with these rows in work.
    pub(super) fn note(&mut self, in_work: &[RowIx], cause: u32) -> Finding {
        let on_trial = !in_work.is_empty() && in_work.iter().all(|row| self.is_suspect(*row));
        for row in in_work {
            let seen = self.0.entry(*row).or_default();
            seen.crashes += 1;
            seen.again = seen.cause == cause;
            seen.cause = cause;
            seen.alone += u32::from(in_work.len() == 1);
        }
        while self.0.len() > MOST_COUNTED {
            let least = self.0.iter().min_by_key(|(_, seen)| seen.crashes).map(|(row, _)| *row);
            let Some(least) = least else { break };
            self.0.remove(&least);
        }
        match in_work {
            [alone] if self.0.get(alone).is_some_and(Seen::is_a_culprit) => Finding::Culprit(*alone),
            _ if on_trial => Finding::Narrowed(in_work.len()),
            _ => Finding::Nothing,
        }
    }

    /// The rows to hand out next to a worker that has no others: half of those seen at the most crashes.
    pub(super) fn trial(&self, is_free: impl Fn(RowIx) -> bool) -> Vec<RowIx> {
        let most = self.0.values().map(|seen| seen.crashes).max().unwrap_or(0);
        // Part of the same group may be on trial elsewhere; then those after them in line are not tried yet.
        let group: Vec<RowIx> =
            self.0.iter().filter(|(_, seen)| seen.crashes == most).map(|(row, _)| *row).collect();
        if most < SUSPECT_CRASHES || !group.iter().all(|row| is_free(*row)) {
            return Vec::new();
        }
        group[..group.len().div_ceil(2)].to_vec()
    }
}

impl Seen {
    fn is_a_culprit(&self) -> bool {
        match self.again {
            true => self.crashes >= CULPRIT_CRASHES,
            false => self.crashes >= CULPRIT_CRASHES_IN_DOUBT && self.alone >= CULPRIT_CRASHES,
        }
    }
}

/// Stands for an error: the same for texts that differ in numbers only. A GPU that fails and memory that runs out can be the
/// machine's own doing, whatever row is in work, so two of these are never the same.
fn cause_of(exit: &WorkerExit) -> u32 {
    let mut words: String = exit.cause().chars().filter(|char| !char.is_ascii_digit()).collect();
    if matches!(exit.class, ExitClass::GpuFault | ExitClass::OutOfMemory) {
        words.push_str(&exit.worker.epoch.to_string());
    }
    crc32fast::hash(format!("{:?} {words}", exit.class).as_bytes())
}

impl Job {
    /// Whether a worker has rows on trial, and nothing may be added to them.
    pub(super) fn is_on_trial(&self, node: &NodeId) -> bool {
        let suspects = self.crashes.0.keys().filter(|row| self.crashes.is_suspect(**row));
        suspects.filter_map(|row| self.leases.get(row)).any(|lease| lease.node == *node)
    }

    /// Rows to be tried on a worker that holds none.
    pub(super) fn next_trial(&self) -> Vec<RowIx> {
        self.crashes.trial(|row| {
            !self.leases.contains_key(&row) && !self.failing.contains_key(&row) && !self.done.contains(row)
        })
    }
}

/// Whether an end of this kind can be a row's doing.
pub(super) fn accuses(class: ExitClass, was_hung: bool) -> bool {
    use ExitClass::{Crashed, GpuFault, OutOfMemory};
    was_hung || matches!(class, Crashed | GpuFault | OutOfMemory)
}

impl Machine {
    /// A rank of a gang is gone. Which rows were in work rank 0 knows; which rank crashed over them, and not after another,
    /// tells the one whose end is the cause. They come in any order.
    pub(super) fn suspect_rows_of_gang(
        &mut self,
        now: Now,
        node: &NodeId,
        exit: &WorkerExit,
        is_cause: bool,
        was_hung: bool,
    ) -> Finding {
        let WorkerKey { job, epoch, rank } = exit.worker;
        let Some(gang) = self.gang_mut(job, epoch) else { return Finding::Nothing };
        if rank == 0 {
            gang.in_work = Some(exit.started_rows.clone());
        }
        if is_cause && gang.accusing.is_none() && accuses(exit.class, was_hung) {
            gang.accusing = Some((node.clone(), exit.clone()));
        }
        if gang.accusing.is_none() || gang.in_work.is_none() {
            return Finding::Nothing;
        }
        let (accusing, in_work) = (gang.accusing.take(), gang.in_work.take());
        let Some(((node, exit), in_work)) = accusing.zip(in_work) else { return Finding::Nothing };
        self.note_crash(now, &node, &exit, &in_work)
    }

    /// Rows of a worker that is gone are suspected, or one of them is found out.
    pub(super) fn suspect_rows(
        &mut self,
        now: Now,
        node: &NodeId,
        exit: &WorkerExit,
        was_hung: bool,
    ) -> Finding {
        if !accuses(exit.class, was_hung) {
            return Finding::Nothing;
        }
        self.note_crash(now, node, exit, &exit.started_rows)
    }

    fn note_crash(&mut self, now: Now, node: &NodeId, exit: &WorkerExit, in_work: &[RowIx]) -> Finding {
        let job_id = exit.worker.job;
        let Some(job) = self.jobs.get_mut(&job_id) else { return Finding::Nothing };
        // One that was finished meanwhile, or went to somebody else, has nothing to do with it.
        let is_open = |row: &&RowIx| {
            row.0 < job.record.rows_total && !job.done.contains(**row) && !job.leases.contains_key(row)
        };
        let in_work: Vec<RowIx> = in_work.iter().filter(is_open).copied().collect();
        let finding = job.crashes.note(&in_work, cause_of(exit));
        job.record.crashes = job.crashes.to_record();
        match finding {
            Finding::Culprit(row) => self.condemn(now, node, row, exit),
            Finding::Narrowed(rows) => {
                let message = format!(
                    "the worker of {job_id} on {node} crashed with only {rows} suspected rows in work: one of them \
                     is at fault"
                );
                self.emit(Severity::Warning, "rows-suspected", Some(node), Some(job_id), message);
            }
            Finding::Nothing => {}
        }
        finding
    }

    /// A row fails with its evidence, and the night goes on.
    fn condemn(&mut self, now: Now, node: &NodeId, row: RowIx, exit: &WorkerExit) {
        let job_id = exit.worker.job;
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let cause = exit.cause().to_owned();
        let attempts = job.attempts.get(&row).copied().unwrap_or(1);
        let message = format!(
            "this row was being generated whenever a worker ended, at last alone, and is not tried again (attempt \
             {attempts}, on {node}): {cause}"
        );
        job.returned.remove(&row);
        job.failing.insert(row, message);
        let summary = format!("row {row} of {job_id} ends its worker: {cause}");
        let action = "the row fails with this error and the others go on".to_owned();
        self.emit(
            Severity::Warning,
            Fault::PoisonRow.word(),
            Some(node),
            Some(job_id),
            format!("{summary}; {action}"),
        );
        let opening = Opening {
            node: Some(node.clone()),
            job: Some(job_id),
            summary,
            action,
            evidence: exit.evidence(),
            ..Opening::default()
        };
        self.incidents.open(now, Fault::PoisonRow, opening);
        self.incidents.close(now, "the row has its error, and the night goes on", |incident| {
            incident.fault == Fault::PoisonRow && incident.job == Some(job_id)
        });
        self.store_failures(job_id);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn all_free(_: RowIx) -> bool {
        true
    }

    /// Plays a search with `batch` rows in work at once, of which `culprit` ends its worker; returns the crashes it took.
    fn crashes_until_found(batch: u32, culprit: u32, rows: u32) -> u32 {
        let mut crashes = Crashes::default();
        let mut open: BTreeSet<RowIx> = (0..rows).map(RowIx).collect();
        let mut count = 0;
        for _ in 0..10_000 {
            let trial = crashes.trial(|row| open.contains(&row));
            let in_work: Vec<RowIx> = if trial.is_empty() {
                open.iter().filter(|row| !crashes.is_suspect(**row)).take(batch as usize).copied().collect()
            } else {
                trial
            };
            if !in_work.contains(&RowIx(culprit)) {
                for row in &in_work {
                    open.remove(row);
                    crashes.forget(*row);
                }
                continue;
            }
            count += 1;
            if let Finding::Culprit(found) = crashes.note(&in_work, 1) {
                assert_eq!(found, RowIx(culprit), "an innocent row was condemned");
                return count;
            }
        }
        panic!("never found");
    }

    proptest! {
        #[test]
        fn a_culprit_is_found_within_the_promised_crashes(batch in 2_u32..64, culprit in 0_u32..200) {
            let bound = batch.next_power_of_two().trailing_zeros() + 2;
            let found = crashes_until_found(batch, culprit, 200);
            prop_assert!(found <= bound, "{found} crashes with {batch} rows in work, at most {bound}");
        }
    }

    #[test]
    fn alone_from_the_start_it_is_known_at_two_crashes_and_fails_at_the_third() {
        assert_eq!(crashes_until_found(1, 3, 9), 3);
        let mut crashes = Crashes::default();
        assert_eq!(crashes.note(&[RowIx(3)], 1), Finding::Nothing);
        assert_eq!(crashes.note(&[RowIx(3)], 1), Finding::Nothing);
        assert_eq!(crashes.note(&[RowIx(3)], 1), Finding::Culprit(RowIx(3)));
    }

    #[test]
    fn a_row_hit_by_ever_new_errors_is_given_more_tries() {
        let mut crashes = Crashes::default();
        for cause in 1..6 {
            assert_eq!(
                crashes.note(&[RowIx(3)], cause),
                if cause < 3 { Finding::Nothing } else { Finding::Narrowed(1) }
            );
        }
        assert_eq!(crashes.note(&[RowIx(3)], 6), Finding::Culprit(RowIx(3)), "it ends at some time");
        let mut crashes = Crashes::default();
        for cause in [1, 2, 3] {
            assert_ne!(crashes.note(&[RowIx(3)], cause), Finding::Culprit(RowIx(3)));
        }
        assert_eq!(crashes.note(&[RowIx(3)], 3), Finding::Culprit(RowIx(3)), "the same error again");
    }

    #[test]
    fn numbers_in_an_error_do_not_make_it_another_one() {
        let exit = |class, error: &str| WorkerExit {
            worker: WorkerKey { job: crate::model::JobId(1), epoch: crate::model::Epoch(1), rank: 0 },
            class,
            status: String::new(),
            first_error: error.to_owned(),
            log_tail: vec![],
            started_rows: vec![],
            killed_while_loaded: false,
            quiet_ms: None,
        };
        let one = cause_of(&exit(ExitClass::Crashed, "at 0x12 row 3"));
        assert_eq!(one, cause_of(&exit(ExitClass::Crashed, "at 0x9 row 77")));
        assert_ne!(one, cause_of(&exit(ExitClass::Crashed, "elsewhere")));
        assert_ne!(one, cause_of(&exit(ExitClass::GpuFault, "at 0x12 row 3")));
    }

    #[test]
    fn crashes_without_a_row_in_common_accuse_nobody() {
        let mut crashes = Crashes::default();
        for batch in 0..50_u32 {
            let in_work: Vec<RowIx> = (batch * 8..batch * 8 + 8).map(RowIx).collect();
            assert_eq!(crashes.note(&in_work, 1), Finding::Nothing);
            assert!(crashes.trial(all_free).is_empty());
        }
        assert_eq!(crashes.note(&[], 1), Finding::Nothing, "while loading, no row is to blame");
    }

    #[test]
    fn a_group_is_tried_in_one_place_at_a_time() {
        let mut crashes = Crashes::default();
        let in_work: Vec<RowIx> = (0..8).map(RowIx).collect();
        crashes.note(&in_work, 1);
        crashes.note(&in_work, 1);
        assert_eq!(crashes.trial(all_free), in_work[..4]);
        assert!(crashes.trial(|row| row != RowIx(0)).is_empty(), "row 0 is on trial elsewhere");
    }

    #[test]
    fn the_count_is_bounded_and_survives_its_record() {
        let mut crashes = Crashes::default();
        crashes.note(&[RowIx(1)], 1);
        crashes.note(&[RowIx(1)], 1);
        crashes.note(&(10..10_000).map(RowIx).collect::<Vec<_>>(), 1);
        assert_eq!(crashes.0.len(), MOST_COUNTED);
        assert_eq!(crashes.of(RowIx(1)), 2, "those seen least are forgotten first");
        assert_eq!(Crashes::from_record(&crashes.to_record()).to_record(), crashes.to_record());
    }
}
