//! What a night checks as it goes, and at its end.

use std::collections::BTreeSet;

use nightshift_daemon::{
    ledger::sim::Death,
    model::{Fault, JobId, JobState, NodeId, RowIx},
    recovery::ResultHead,
};

use super::Night;
use crate::{
    checks::assert_each_once,
    controller::{Controller, Outcome},
    planted::Planted,
};

impl Night {
    pub(super) fn check_outcome(&mut self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Commit { node, rows, heads, reply } => {
                let reply = match reply {
                    Err(_) if self.planted == Planted::FullDiskIgnored => Ok((Vec::new(), 0)),
                    reply => reply,
                };
                if let Ok((_, duplicates)) = &reply {
                    assert_eq!(*duplicates, 0, "a row was stored that had an answer already");
                    self.known.durable.extend(rows.iter().map(|row| (row.job, row.row)));
                    self.totals.rows += rows.len() as u64;
                }
                Outcome::Commit { node, rows, heads, reply }
            }
            Outcome::Failures { rows, reply } => {
                for row in &rows {
                    let is_innocent = Some((row.job, row.row)) != self.poison;
                    // Where something strikes every half minute, a row can be alone at many crashes that are not its own.
                    // From where the controller sits it is the row then, and it fails with what was seen.
                    let is_excused = self.had_bombardment;
                    assert!(!is_innocent || is_excused, "innocent row {} was condemned", row.row);
                    self.totals.innocents += u64::from(is_innocent);
                }
                if reply.is_ok() {
                    self.known.durable.extend(rows.iter().map(|row| (row.job, row.row)));
                }
                Outcome::Failures { rows, reply }
            }
        }
    }

    pub(super) fn check_may_work(&self, node: &NodeId, job: JobId, what: &str) {
        let Some(controller) = &self.controller else { return };
        // What was asked for, not what the machine has of it.
        let Some(asked) = self.jobs.get(&job) else { return };
        let is_open =
            asked.window.is_none_or(|window| window.is_open(self.unix_ms(), controller.machine.zone()));
        assert!(is_open, "{what} of {job} outside its window");
        let of_node = controller.machine.node(node).expect("a node there is");
        assert!(!of_node.draining, "{what} of {job} for {node}, which is drained");
        if what == "a start" {
            assert!(of_node.quarantine.is_none(), "{what} of {job} for {node}, which is in quarantine");
        }
    }

    /// A restart is asked for only where nothing is at work.
    pub(super) fn check_may_restart(&self, node: &NodeId) {
        let Some(controller) = &self.controller else { return };
        for job in controller.machine.jobs() {
            let id = job.record.id;
            assert!(!job.workers.contains_key(node), "a restart of {node}, which has a worker of {id}");
            let has_row = job.leases.values().any(|lease| lease.node == *node);
            assert!(!has_row, "a restart of {node}, which has a row of {id}");
        }
        let of_node = controller.machine.node(node).expect("a node there is");
        assert!(!of_node.draining, "a restart of {node}, which is drained");
        assert!(of_node.needs_reboot().is_some(), "a restart of {node}, which needs none");
    }

    /// A row goes on from what was told of it, or not more than a second before that.
    pub(super) fn check_resumed(&self, job: JobId, row: RowIx, resumed: usize) {
        let Some((tokens, at)) = self.told.get(&(job, row)) else { return };
        let is_settled = self.now_ms > at + 5_000 && self.disk_full_until_ms.is_none();
        assert!(
            !is_settled || resumed >= *tokens,
            "row {row} of {job} goes on from {resumed} of {tokens} tokens"
        );
    }

    /// An agent may forget a result when the row is durable, when its job is over, or when somebody else has the row.
    pub(super) fn check_forgotten(&self, id: &NodeId, head: ResultHead) {
        let Some(controller) = &self.controller else { return };
        let Some(job) = controller.machine.job(head.worker.job) else { return };
        let durable = self.known.durable.contains(&(head.worker.job, head.row));
        let elsewhere = job.leases.get(&head.row).is_none_or(|lease| {
            lease.node != *id || lease.attempt != head.attempt || lease.epoch != head.worker.epoch
        });
        assert!(
            durable || job.record.state.is_over() || elsewhere,
            "{id} forgot row {} of {} before it was durable",
            head.row,
            head.worker.job
        );
    }

    pub(super) fn is_over(&self) -> bool {
        let Some(controller) = &self.controller else { return false };
        let known: BTreeSet<JobId> = controller.machine.jobs().map(|job| job.record.id).collect();
        controller.machine.jobs().all(|job| job.record.state.is_over())
            && self.jobs.keys().all(|job| known.contains(job))
            && controller.waiting.is_empty()
    }

    pub(super) fn what_is_left(&self) -> String {
        let Some(controller) = &self.controller else { return "no controller".to_owned() };
        let left = controller.machine.jobs().filter(|job| !job.record.state.is_over()).map(|job| {
            let why = job.parked.as_ref().map(|parked| parked.why.clone());
            let now = controller.now(self.now_ms, self.unix_ms());
            let rulings = controller.machine.explain_job(now, job.record.id).unwrap_or_default();
            let rulings: Vec<String> = rulings
                .into_iter()
                .map(|ruling| format!("{} {}: {}", ruling.rule, ruling.holds, ruling.sentence))
                .collect();
            format!(
                "{}: {:?}, {} of {} rows, workers {:?}, leases {:?}, parked {why:?}, rulings {rulings:#?}",
                job.record.id,
                job.record.state,
                job.done.len(),
                job.record.rows_total,
                job.workers
                    .values()
                    .map(|worker| (&worker.node, worker.epoch, worker.phase))
                    .collect::<Vec<_>>(),
                job.leases
            )
        });
        left.collect::<Vec<_>>().join("\n")
    }

    pub(super) fn check_the_end(&mut self) {
        self.run_ledger();
        let Some(controller) = &self.controller else { panic!("there is no controller at the end") };
        for job in controller.machine.jobs() {
            let id = job.record.id;
            assert_eq!(job.record.state, JobState::Completed, "{id}: {}", job.record.detail);
            assert_each_once(&self.world, id, job.record.rows_total);
        }
        // RDMA that did not pass is left alone for longer than the end of a night.
        let is_open = |fault: Fault| {
            !matches!(
                fault,
                Fault::NodeSilent | Fault::NeedsReboot | Fault::NodeQuarantined | Fault::LinkUnproven
            )
        };
        for incident in controller.machine.incidents() {
            assert!(
                incident.closed_unix_ms.is_some() || !is_open(incident.fault),
                "never closed: {incident:#?}"
            );
        }
        let told: Vec<_> = controller.machine.incidents().cloned().collect();
        // The controller ends in order, and the next one finds what there was.
        let machine_jobs: Vec<(JobId, u32)> =
            controller.machine.jobs().map(|job| (job.record.id, job.done.len())).collect();
        self.controller = None;
        self.world.restart(Death::Kill);
        let (_, replay) = Controller::start(&self.world, &self.plan, self.now_ms, self.unix_ms())
            .expect("the ledger opens at the end");
        assert_eq!(replay.repairs, Vec::<String>::new(), "repairs at the end");
        let found: Vec<(JobId, u32)> =
            replay.jobs.iter().map(|job| (job.record.id, job.done.len())).collect();
        assert_eq!(found, machine_jobs, "the ledger has other rows than the machine");
        let mut kept = replay.incidents;
        kept.reverse();
        assert_eq!(kept, told, "incidents on disk are not those that were told");
    }
}
