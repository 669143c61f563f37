//! The pieces of a random night: dice, a disk, and agents with a worker, a spool and a connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::kit::policy_with_a_network;
use crate::{
    model::{Epoch, Incident, JobId, JobRecord, LinkPace, NodeId, NodeRecord, RowIx, WorkerKey},
    recovery::*,
};

/// Rows are cut off when windows close: workers have no time to finish many.
pub(super) fn policy() -> Policy {
    Policy { window_drain_ms: 1_000, ..policy_with_a_network() }
}

/// SplitMix64: small, seeded, the same everywhere.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What survives the controller.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) jobs: BTreeMap<JobId, JobRecord>,
    pub(super) nodes: BTreeMap<NodeId, NodeRecord>,
    pub(super) incidents: BTreeMap<u64, Incident>,
    pub(super) done: BTreeSet<(JobId, RowIx)>,
    pub(super) failed: BTreeSet<(JobId, RowIx)>,
}

#[derive(Clone, Debug)]
pub(super) struct SimWorker {
    pub(super) key: WorkerKey,
    pub(super) world_size: u32,
    pub(super) ready: bool,
    pub(super) finishing: bool,
    pub(super) rows: VecDeque<(RowIx, u32)>,
}

#[derive(Clone, Debug)]
pub(super) enum Up {
    Model(String),
    Started(WorkerKey),
    Ready(WorkerKey),
    Result(ResultHead),
    Replayed,
    Exited(WorkerExit),
    Refused(u64),
    Seen(u64, NodeId, bool),
    Tested(u64, LinkTestResult),
}

#[derive(Debug, Default)]
pub(super) struct SimAgent {
    pub(super) instance: u64,
    pub(super) alive: bool,
    pub(super) session: Option<SessionId>,
    pub(super) worker: Option<SimWorker>,
    pub(super) highest_epoch: BTreeMap<JobId, Epoch>,
    pub(super) spool: BTreeMap<u64, ResultHead>,
    pub(super) next_seq: u64,
    pub(super) to_controller: VecDeque<Up>,
    pub(super) to_agent: VecDeque<Command>,
    /// Ends that happened while away; told after the spool.
    pub(super) untold: Vec<WorkerExit>,
}

impl SimAgent {
    /// What is under way on a connection is lost with it, in both directions.
    pub(super) fn cut(&mut self) {
        self.session = None;
        let lost = std::mem::take(&mut self.to_controller);
        self.untold.extend(lost.into_iter().filter_map(|up| match up {
            Up::Exited(exit) => Some(exit),
            _ => None,
        }));
        self.to_agent.clear();
    }

    pub(super) fn say(&mut self, up: Up) {
        if self.session.is_some() {
            self.to_controller.push_back(up);
        } else if let Up::Exited(exit) = up {
            self.untold.push(exit);
        }
    }

    /// What it sees need not be true, and at times it says nothing.
    pub(super) fn look(&mut self, request_id: u64, of: NodeId, dice: &mut Dice) {
        let seen = !dice.one_in(4);
        if !dice.one_in(4) {
            self.say(Up::Seen(request_id, of, seen));
        }
    }

    /// Most links carry; the two ends need not agree, and at times one says nothing.
    pub(super) fn try_link(&mut self, request_id: u64, dice: &mut Dice) {
        let result = match dice.below(8) {
            0 => return,
            1 => LinkTestResult::Failed("apart".to_owned()),
            2 => LinkTestResult::NotMade("busy".to_owned()),
            _ => LinkTestResult::Passed(LinkPace { round_trip_us: 30, bytes_per_s: 8_000_000_000 }),
        };
        self.say(Up::Tested(request_id, result));
    }

    pub(super) fn end_worker(&mut self, class: ExitClass) {
        let Some(worker) = self.worker.take() else { return };
        let started_rows = worker.rows.iter().take(2).map(|(row, _)| *row).collect();
        self.say(Up::Exited(WorkerExit {
            worker: worker.key,
            class,
            status: "ended".to_owned(),
            first_error: String::new(),
            log_tail: vec![],
            started_rows,
            killed_while_loaded: false,
            quiet_ms: None,
        }));
    }
}
