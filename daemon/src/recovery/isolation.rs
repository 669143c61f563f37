//! Rows that take their worker down.
//!
//! A row in work at two crashes is a suspect. Suspects are handed out apart from all other rows: the half of those seen
//! at the most crashes together, to a worker that has nothing else. If it crashes, the culprit is in that half; if it does
//! not, the half is done and the rest is tried. So with `batch` rows in work at the first crash, a culprit is alone, and
//! known, after ⌈log2(batch)⌉ + 2 crashes at most. A row that was alone at a crash, and in work at three, fails with its
//! evidence, and whoever was suspected with it goes free.
//!
//! A row that a machine's own troubles hit again and again is no culprit. GPU faults, memory that runs out, hangs, and errors
//! that differ may be such troubles, so they condemn a row only when it is stuck: when it was alone at two of one kind on
//! each of two nodes, or at six wherever there is, and got no token further meanwhile. A row that gets further each time ends
//! by itself.
//!
//! How often a row was in work at a crash is kept in the job's record: a restarted controller goes on with the search.

use std::collections::BTreeMap;

use super::{
    event::{ExitClass, Now, WorkerExit},
    incidents::Opening,
    machine::Machine,
    state::Job,
};
use crate::model::{AloneAt, Fault, NodeId, RowCrashes, RowIx, RowSet, Severity, WorkerKey};

/// Crashes at which a row was in work before it is handed out apart from the others.
const SUSPECT_CRASHES: u32 = 2;

/// Crashes at which a row was in work, the last of them alone, before it fails.
const CULPRIT_CRASHES: u32 = 3;

/// The same where the last two errors differ: then it may be the machine's doing.
const CULPRIT_CRASHES_IN_DOUBT: u32 = 6;

/// Nodes on which a row in doubt must have been alone and stuck at crashes of one kind: the troubles of one machine stay on it.
const CULPRIT_NODES_IN_DOUBT: usize = 2;

/// At how many on each of them: one may be chance.
const CULPRIT_ALONE_PER_NODE: u32 = 2;

/// Crashes at which a row was alone and stuck that are enough wherever and of whatever kind: there may be one node only.
const CULPRIT_ALONE_ANYWHERE: u32 = 6;

/// Crashes after which a row that is alone fails even if it got further each time. Each costs a start of a worker, half a minute
/// to some minutes, and the others wait for them.
const CULPRIT_CRASHES_AT_MOST: u32 = 24;

/// Rows whose crashes are counted, of one job: some hundred crashes of large batches. Past it, those seen least are
/// forgotten.
const MOST_COUNTED: usize = 4_096;

/// How often rows of a job were in work at a crash.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Crashes(BTreeMap<RowIx, Seen>);

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Seen {
    crashes: u32,
    cause: u32,
    /// Whether the crash before the last had the same cause.
    again: bool,
    /// Those of them at which it was alone, and since which it got no further. At [`CULPRIT_ALONE_ANYWHERE`] it fails, so
    /// there are no more.
    alone: Vec<AloneAt>,
    /// How many of its tokens were known at the last of these.
    alone_tokens: u64,
}

/// What a crash looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cause {
    /// The same for errors that differ in numbers only.
    kind: u32,
    /// Like `kind`, but never the same twice for errors that can be the machine's own doing, whatever row is in work.
    sure: u32,
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
            let RowCrashes { row, crashes, cause, alone_at, alone_tokens } = counted.clone();
            (row, Seen { crashes, cause, again: false, alone: alone_at, alone_tokens })
        };
        Self(counted.iter().take(MOST_COUNTED).map(seen).collect())
    }

    pub(super) fn to_record(&self) -> Vec<RowCrashes> {
        let counted = |(row, seen): (&RowIx, &Seen)| {
            let Seen { crashes, cause, alone, alone_tokens, .. } = seen.clone();
            RowCrashes { row: *row, crashes, cause, alone_at: alone, alone_tokens }
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

    /// A worker on this node crashed with these rows in work, of which so many tokens are known.
    fn note(
        &mut self,
        in_work: &[RowIx],
        node: &NodeId,
        cause: Cause,
        tokens: impl Fn(RowIx) -> u64,
    ) -> Finding {
        let on_trial = !in_work.is_empty() && in_work.iter().all(|row| self.is_suspect(*row));
        for row in in_work {
            let seen = self.0.entry(*row).or_default();
            seen.crashes += 1;
            seen.again = seen.cause == cause.sure;
            seen.cause = cause.sure;
            if in_work.len() == 1 {
                seen.note_alone(node, cause.kind, tokens(*row));
            }
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
        if self.again {
            return self.crashes >= CULPRIT_CRASHES;
        }
        let alone: u32 = self.alone.iter().map(|at| at.crashes).sum();
        let is_stuck =
            alone >= CULPRIT_ALONE_ANYWHERE || self.most_nodes_of_a_kind() >= CULPRIT_NODES_IN_DOUBT;
        (self.crashes >= CULPRIT_CRASHES_IN_DOUBT && is_stuck) || self.crashes >= CULPRIT_CRASHES_AT_MOST
    }

    /// Nodes on which it was alone more than once, of the kind of crash for which they are the most.
    fn most_nodes_of_a_kind(&self) -> usize {
        let again = || self.alone.iter().filter(|at| at.crashes >= CULPRIT_ALONE_PER_NODE);
        again().map(|at| again().filter(|other| other.kind == at.kind).count()).max().unwrap_or(0)
    }

    fn note_alone(&mut self, node: &NodeId, kind: u32, tokens: u64) {
        if tokens > self.alone_tokens {
            self.alone.clear();
        }
        self.alone_tokens = tokens;
        match self.alone.iter_mut().find(|at| at.kind == kind && at.node == *node) {
            Some(at) => at.crashes += 1,
            None => self.alone.push(AloneAt { node: node.clone(), kind, crashes: 1 }),
        }
    }
}

impl Cause {
    fn of(exit: &WorkerExit, was_hung: bool) -> Self {
        let words: String = exit.cause().chars().filter(|char| !char.is_ascii_digit()).collect();
        // How one that hung was ended says nothing of why it hung.
        let mut words = if was_hung { "hung".to_owned() } else { format!("{:?} {words}", exit.class) };
        let kind = crc32fast::hash(words.as_bytes());
        if was_hung || matches!(exit.class, ExitClass::GpuFault | ExitClass::OutOfMemory) {
            words.push_str(&exit.worker.epoch.to_string());
        }
        Self { kind, sure: crc32fast::hash(words.as_bytes()) }
    }
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
            gang.accusing = Some((node.clone(), exit.clone(), was_hung));
        }
        if gang.accusing.is_none() || gang.in_work.is_none() {
            return Finding::Nothing;
        }
        let (accusing, in_work) = (gang.accusing.take(), gang.in_work.take());
        let Some(((node, exit, was_hung), in_work)) = accusing.zip(in_work) else { return Finding::Nothing };
        self.note_crash(now, &node, &exit, was_hung, &in_work)
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
        self.note_crash(now, node, exit, was_hung, &exit.started_rows)
    }

    fn note_crash(
        &mut self,
        now: Now,
        node: &NodeId,
        exit: &WorkerExit,
        was_hung: bool,
        in_work: &[RowIx],
    ) -> Finding {
        let job_id = exit.worker.job;
        let Some(job) = self.jobs.get_mut(&job_id) else { return Finding::Nothing };
        // One that was finished meanwhile, or went to somebody else, has nothing to do with it.
        let is_open = |row: &&RowIx| {
            row.0 < job.record.rows_total && !job.done.contains(**row) && !job.leases.contains_key(row)
        };
        let in_work: Vec<RowIx> = in_work.iter().filter(is_open).copied().collect();
        let tokens = |row| job.checkpoints.get(&row).map_or(0, |checkpoint| checkpoint.tokens.len() as u64);
        let finding = job.crashes.note(&in_work, node, Cause::of(exit, was_hung), tokens);
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

    /// No row has got anywhere.
    fn none(_: RowIx) -> u64 {
        0
    }

    /// An error that leaves no doubt when it comes again.
    fn sure(cause: u32) -> Cause {
        Cause { kind: cause, sure: cause }
    }

    /// The kind of error that may be the machine's doing: never the same twice.
    fn doubtful(kind: u32, number: u32) -> Cause {
        Cause { kind, sure: kind * 1_000 + number }
    }

    fn n(number: u32) -> NodeId {
        NodeId::from(format!("n{number}").as_str())
    }

    /// Crashes of one row that is alone, of these kinds on these nodes in this order, until it is condemned.
    fn alone_until_condemned(crashes: &mut Crashes, kinds_and_nodes: &[(u32, u32)]) -> Option<usize> {
        kinds_and_nodes.iter().zip(1..).position(|((kind, node), number)| {
            crashes.note(&[RowIx(3)], &n(*node), doubtful(*kind, number), none) == Finding::Culprit(RowIx(3))
        })
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
            if let Finding::Culprit(found) = crashes.note(&in_work, &n(1), sure(1), none) {
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
    fn rows_are_suspects_from_their_second_crash_on_and_a_trial_narrows_them_down() {
        let mut crashes = Crashes::default();
        let four: Vec<RowIx> = (0..4).map(RowIx).collect();
        assert_eq!(crashes.note(&four, &n(1), sure(1), none), Finding::Nothing);
        assert!(!crashes.is_suspect(RowIx(0)) && crashes.suspects().next().is_none());
        assert_eq!(
            crashes.note(&four, &n(1), sure(1), none),
            Finding::Nothing,
            "others may have been in work"
        );
        assert!(crashes.is_suspect(RowIx(0)) && crashes.suspects().eq(four.iter().map(|row| (*row, 2))));
        let trial = crashes.trial(all_free);
        assert_eq!(trial, four[..2]);
        assert_eq!(crashes.note(&trial, &n(1), sure(1), none), Finding::Narrowed(2));
    }

    #[test]
    fn alone_from_the_start_it_is_known_at_two_crashes_and_fails_at_the_third() {
        assert_eq!(crashes_until_found(1, 3, 9), 3);
        let mut crashes = Crashes::default();
        assert_eq!(crashes.note(&[RowIx(3)], &n(1), sure(1), none), Finding::Nothing);
        assert_eq!(crashes.note(&[RowIx(3)], &n(1), sure(1), none), Finding::Nothing);
        assert_eq!(crashes.note(&[RowIx(3)], &n(1), sure(1), none), Finding::Culprit(RowIx(3)));
    }

    #[test]
    fn a_row_hit_by_ever_new_errors_is_given_more_tries() {
        let mut crashes = Crashes::default();
        let ever_new = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)];
        assert_eq!(alone_until_condemned(&mut crashes, &ever_new), Some(5), "it ends at some time");
        let mut crashes = Crashes::default();
        for cause in [1, 2, 3] {
            assert_ne!(crashes.note(&[RowIx(3)], &n(1), sure(cause), none), Finding::Culprit(RowIx(3)));
        }
        assert_eq!(
            crashes.note(&[RowIx(3)], &n(1), sure(3), none),
            Finding::Culprit(RowIx(3)),
            "the same error again"
        );
    }

    #[test]
    fn what_may_be_a_machines_doing_condemns_a_row_on_two_machines_only() {
        const GPU: u32 = 1;
        const MEMORY: u32 = 2;
        let after_two_with_others = || {
            let mut crashes = Crashes::default();
            for number in 90..92 {
                crashes.note(&[RowIx(3), RowIx(4)], &n(1), doubtful(GPU, number), none);
            }
            crashes
        };
        let condemned = |row: &[(u32, u32)]| alone_until_condemned(&mut after_two_with_others(), row);
        assert_eq!(condemned(&[(GPU, 1), (GPU, 1), (GPU, 2), (GPU, 2)]), Some(3), "two on each of two nodes");
        assert_eq!(condemned(&[(GPU, 1), (GPU, 2), (GPU, 1), (GPU, 2)]), Some(3), "in whatever order");
        assert_eq!(condemned(&[(GPU, 1), (GPU, 1), (GPU, 1), (GPU, 2), (MEMORY, 2)]), None);
        assert_eq!(condemned(&[(GPU, 1), (GPU, 1), (MEMORY, 2), (MEMORY, 2)]), None, "each node has its own");
        assert_eq!(condemned(&[(GPU, 1), (GPU, 2), (GPU, 3), (GPU, 4)]), None, "one on each may be chance");
        assert_eq!(condemned(&[(GPU, 1); 6]), Some(5), "the night must end where there is one node");
        let alone_from_the_start = [(GPU, 1), (GPU, 1), (GPU, 2), (GPU, 2), (GPU, 2), (GPU, 2)];
        assert_eq!(alone_until_condemned(&mut Crashes::default(), &alone_from_the_start), Some(5));
    }

    #[test]
    fn a_row_that_gets_further_each_time_is_not_stuck_and_still_ends() {
        let mut crashes = Crashes::default();
        let mut note = |node, number, tokens| {
            crashes.note(&[RowIx(3)], &n(node), doubtful(1, number), |_| tokens) == Finding::Culprit(RowIx(3))
        };
        for number in 1..=7 {
            assert!(!note(number % 2, number, u64::from(number) * 100), "it got further at crash {number}");
        }
        // Here it stays.
        assert!(!note(1, 8, 700));
        assert!(!note(0, 9, 700));
        assert!(note(0, 10, 700), "two on each of two nodes, at the same token");
        let mut crashes = Crashes::default();
        let found = (1..100).position(|number| {
            let finding = crashes.note(&[RowIx(3)], &n(1), doubtful(1, number), |_| u64::from(number));
            finding == Finding::Culprit(RowIx(3))
        });
        assert_eq!(found, Some(23), "a token further each time is no way to spend a night");
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
        let of = |exit: &WorkerExit| Cause::of(exit, false);
        let one = of(&exit(ExitClass::Crashed, "at 0x12 row 3"));
        assert_eq!(one, of(&exit(ExitClass::Crashed, "at 0x9 row 77")));
        assert_ne!(one.kind, of(&exit(ExitClass::Crashed, "elsewhere")).kind);
        assert_ne!(one.sure, of(&exit(ExitClass::Crashed, "elsewhere")).sure);
        let gpu = exit(ExitClass::GpuFault, "at 0x12 row 3");
        assert_ne!(one.kind, of(&gpu).kind);
        let mut next = gpu.clone();
        next.worker.epoch = crate::model::Epoch(2);
        assert_eq!(of(&gpu).kind, of(&next).kind);
        assert_ne!(of(&gpu).sure, of(&next).sure, "two GPU faults leave a doubt");
        // However the ones that hung were ended.
        let (first, second) =
            (exit(ExitClass::Killed, "it did not stop"), exit(ExitClass::Crashed, "told to"));
        let second = WorkerExit { worker: next.worker, ..second };
        assert_eq!(Cause::of(&first, true).kind, Cause::of(&second, true).kind);
        assert_ne!(Cause::of(&first, true).sure, Cause::of(&second, true).sure, "and so do two hangs");
    }

    #[test]
    fn crashes_without_a_row_in_common_accuse_nobody() {
        let mut crashes = Crashes::default();
        for batch in 0..50_u32 {
            let in_work: Vec<RowIx> = (batch * 8..batch * 8 + 8).map(RowIx).collect();
            assert_eq!(crashes.note(&in_work, &n(1), sure(1), none), Finding::Nothing);
            assert!(crashes.trial(all_free).is_empty());
        }
        assert_eq!(
            crashes.note(&[], &n(1), sure(1), none),
            Finding::Nothing,
            "while loading, no row is to blame"
        );
    }

    #[test]
    fn a_group_is_tried_in_one_place_at_a_time() {
        let mut crashes = Crashes::default();
        let in_work: Vec<RowIx> = (0..8).map(RowIx).collect();
        crashes.note(&in_work, &n(1), sure(1), none);
        crashes.note(&in_work, &n(1), sure(1), none);
        assert_eq!(crashes.trial(all_free), in_work[..4]);
        assert!(crashes.trial(|row| row != RowIx(0)).is_empty(), "row 0 is on trial elsewhere");
    }

    #[test]
    fn the_count_is_bounded_and_survives_its_record() {
        let mut crashes = Crashes::default();
        crashes.note(&[RowIx(1)], &n(1), sure(1), none);
        crashes.note(&[RowIx(1)], &n(1), sure(1), none);
        crashes.note(&(10..10_000).map(RowIx).collect::<Vec<_>>(), &n(1), sure(1), none);
        assert_eq!(crashes.0.len(), MOST_COUNTED);
        assert_eq!(crashes.of(RowIx(1)), 2, "those seen least are forgotten first");
        assert_eq!(Crashes::from_record(&crashes.to_record()).to_record(), crashes.to_record());
    }
}
