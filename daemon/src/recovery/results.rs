//! Results arrive, are made durable and acknowledged.

use super::{
    effect::{Command, Effect},
    event::{CommittedRow, JobTotals, Now, ResultHead, SessionId},
    incidents::Opening,
    isolation::Crashes,
    machine::Machine,
    state::{Lease, Session, Unsettled},
};
use crate::model::{Fault, JobId, NodeId, Severity};

impl Machine {
    /// Decides for each result whether it commits. One that is dropped is settled at once: it will never be wanted.
    pub(super) fn on_results(&mut self, node: &NodeId, session: SessionId, heads: &[ResultHead]) {
        let Some(current) = self.current_session(node, session) else { return };
        if current.must_resend {
            // Comes again, in order, once results can be stored.
            return;
        }
        let replaying = current.replaying.is_some();
        let mut indices = Vec::with_capacity(heads.len());
        for (index, head) in heads.iter().enumerate() {
            let verdict = self.judge(node, head, replaying);
            if verdict == Verdict::Commit {
                indices.push(index);
            }
            if let Some(current) = self.current_session(node, session) {
                current.expect(head, verdict == Verdict::Drop);
            }
        }
        if !indices.is_empty() {
            self.out.push(Effect::Commit { node: node.clone(), indices });
        }
        self.acknowledge(node);
    }

    fn any_session(&mut self, node: &NodeId) -> Option<&mut Session> {
        self.nodes.get_mut(node)?.session.as_mut()
    }

    fn current_session(&mut self, node: &NodeId, session: SessionId) -> Option<&mut Session> {
        self.nodes.get_mut(node)?.session.as_mut().filter(|current| current.id == session)
    }

    /// A result commits only if it comes from the row's holder. While a node delivers its spool, a row without a holder
    /// counts as its own again: it did the work, and nobody else is at it.
    fn judge(&mut self, node: &NodeId, head: &ResultHead, replaying: bool) -> Verdict {
        let Some(job) = self.jobs.get_mut(&head.worker.job) else { return Verdict::Drop };
        if job.record.state.is_over() || head.row.0 >= job.record.rows_total {
            return Verdict::Drop;
        }
        match job.leases.get_mut(&head.row) {
            _ if job.done.contains(head.row) || job.failing.contains_key(&head.row) => {}
            Some(lease)
                if lease.node == *node
                    && lease.epoch == head.worker.epoch
                    && lease.attempt == head.attempt =>
            {
                let already = std::mem::replace(&mut lease.committing, true);
                if already {
                    return Verdict::Wait;
                }
                self.account_result(node, head);
                return Verdict::Commit;
            }
            None if replaying && head.worker.epoch <= job.record.epoch => {
                let (epoch, attempt) = (head.worker.epoch, head.attempt);
                job.grant(head.row, Lease { node: node.clone(), epoch, attempt, committing: true });
                self.account_result(node, head);
                return Verdict::Commit;
            }
            _ => {}
        }
        job.record.duplicate_results += 1;
        Verdict::Drop
    }

    pub(super) fn on_committed(
        &mut self,
        now: Now,
        node: &NodeId,
        rows: &[CommittedRow],
        totals: &[JobTotals],
    ) {
        for row in rows {
            let Some(job) = self.jobs.get_mut(&row.job) else { continue };
            if job.done.insert(row.row) {
                job.prompt_tokens += u64::from(row.prompt_tokens);
                job.completion_tokens += u64::from(row.completion_tokens);
                job.rate.note(now.mono_ms, u64::from(job.done.len()));
                job.note_row_done(now, node, row);
            }
            job.forget_row(row.row);
            // A finished row is progress: what failed before it is forgiven.
            job.failures_of_job = 0;
            job.hangs_in_a_row = 0;
            if !job.backoff.is_empty() {
                let epoch = job.workers.get(node).map(|worker| worker.epoch);
                // Rank 0 answers for all ranks of its gang.
                let others = epoch.map(|epoch| job.nodes_of(epoch)).unwrap_or_default();
                for node in others.iter().chain([node]) {
                    if let Some(backoff) = job.backoff.get_mut(node) {
                        backoff.failures_in_a_row = 0;
                    }
                }
            }
            // The connection may be a new one by now; positions in the spool are the same over all of them.
            if let Some(current) = self.any_session(node) {
                current.settle(row);
            }
        }
        self.note_totals(totals);
        self.acknowledge(node);
    }

    fn note_totals(&mut self, totals: &[JobTotals]) {
        for totals in totals {
            // The ledger counts, because it may file a broken answer as an error. Groups can report out of order.
            if let Some(job) = self.jobs.get_mut(&totals.job) {
                job.results_bytes = job.results_bytes.max(totals.results_bytes);
                job.errors_bytes = job.errors_bytes.max(totals.errors_bytes);
                job.rows_succeeded = job.rows_succeeded.max(totals.rows_succeeded);
                job.rows_failed = job.rows_failed.max(totals.rows_failed);
                job.rows_by_fallback = job.rows_by_fallback.max(totals.rows_by_fallback);
            }
        }
    }

    /// Has the errors of rows that fail by rule made durable.
    pub(super) fn store_failures(&mut self, job_id: JobId) {
        let Some(job) = self.jobs.get(&job_id).filter(|job| !job.failing.is_empty()) else { return };
        if self.storage_problem.is_none() {
            let rows = job.failing.iter().map(|(row, why)| (*row, why.clone())).collect();
            self.out.push(Effect::FailRows { job: job_id, rows });
        }
    }

    pub(super) fn on_failures_stored(&mut self, now: Now, rows: &[CommittedRow], totals: &[JobTotals]) {
        for row in rows {
            let Some(job) = self.jobs.get_mut(&row.job) else { continue };
            if job.done.insert(row.row) {
                job.rate.note(now.mono_ms, u64::from(job.done.len()));
            }
            job.forget_row(row.row);
            job.failures_of_job = 0;
            if job.failing.is_empty() {
                // What the others were seen at is explained.
                job.crashes = Crashes::default();
                job.record.crashes.clear();
                self.record_job(row.job);
            }
        }
        self.note_totals(totals);
    }

    fn acknowledge(&mut self, node: &NodeId) {
        let Some(current) = self.any_session(node) else { return };
        let before = current.acked_spool_seq;
        while let Some(front) = current.unsettled.front().filter(|front| front.settled) {
            current.acked_spool_seq = Some(front.spool_seq);
            current.unsettled.pop_front();
        }
        if let Some(through_spool_seq) = current.acked_spool_seq.filter(|seq| before != Some(*seq)) {
            self.send(node, Command::AckResults { through_spool_seq });
        }
    }

    /// Nothing was written: the rows stay with their holder, whose spool keeps the results, and nothing more is handed
    /// out or taken in until the disk has room again.
    pub(super) fn on_commit_failed(
        &mut self,
        now: Now,
        node: &NodeId,
        rows: &[CommittedRow],
        problem: String,
    ) {
        for row in rows {
            if let Some(lease) = self.jobs.get_mut(&row.job).and_then(|job| job.leases.get_mut(&row.row)) {
                lease.committing = false;
            }
        }
        if let Some(current) = self.any_session(node) {
            current.must_resend = true;
        }
        self.on_storage_failed(now, problem);
    }

    pub(super) fn on_storage_failed(&mut self, now: Now, problem: String) {
        if self.storage_problem.is_none() {
            let summary = format!("results cannot be stored: {problem}");
            let action =
                "no rows are handed out; workers finish what they hold, and their agents keep it".to_owned();
            self.emit(Severity::Error, "disk-full", None, None, format!("{summary}; {action}"));
            self.incidents.open(now, Fault::DiskFull, Opening { summary, action, ..Opening::default() });
        }
        self.storage_problem = Some(problem);
    }

    pub(super) fn on_storage_recovered(&mut self, now: Now) {
        if self.storage_problem.take().is_none() {
            return;
        }
        let outcome = "results can be stored again";
        self.incidents.close(now, outcome, |incident| incident.fault == Fault::DiskFull);
        self.emit(
            Severity::Info,
            "disk-recovered",
            None,
            None,
            format!("{outcome}; everything held back is delivered"),
        );
        for job in self.open_jobs.clone() {
            self.store_failures(job);
        }
        let behind = self.nodes.values().filter_map(|node| {
            let session = node.session.as_ref().filter(|session| session.must_resend)?;
            Some((node.id.clone(), session.id))
        });
        for (node, session) in behind.collect::<Vec<_>>() {
            // A new connection begins with everything that was not acknowledged.
            let reason = "results that could not be stored are to be sent again".to_owned();
            self.out.push(Effect::CloseSession { node: node.clone(), session, reason });
            if let Some(node) = self.nodes.get_mut(&node) {
                node.session = None;
            }
        }
    }
}

/// What becomes of a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// Make it durable.
    Commit,
    /// It is being made durable already; it was sent again over a new connection.
    Wait,
    /// Nobody wants it: the row is done, or is somebody else's.
    Drop,
}

impl Session {
    /// Notes a result in the order of the spool. Results that come again are in the queue already, or were settled.
    fn expect(&mut self, head: &ResultHead, settled: bool) {
        let spool_seq = head.spool_seq;
        match self.unsettled.binary_search_by_key(&spool_seq, |result| result.spool_seq) {
            Ok(at) => self.unsettled[at].settled |= settled,
            Err(at) if self.acked_spool_seq.is_none_or(|acked| spool_seq > acked) => {
                self.unsettled
                    .insert(at, Unsettled { spool_seq, job: head.worker.job, row: head.row, settled });
            }
            Err(_) => {}
        }
    }

    fn settle(&mut self, committed: &CommittedRow) {
        if let Ok(at) = self.unsettled.binary_search_by_key(&committed.spool_seq, |result| result.spool_seq) {
            let result = &mut self.unsettled[at];
            result.settled |= result.job == committed.job && result.row == committed.row;
        }
    }
}
