//! What is added to an observation: what this boot has been through.

use std::sync::Arc;

use jiff::tz::TimeZone;
use nightshift_proto::v1;
use tokio::sync::watch;

use crate::{
    checks::{Beside, Check, WorkerUser, checks},
    gang::starts::MAX_STARTS_PER_BOOT,
    link_prep::keeper::State,
    memory_debt::MemoryDebt,
    probe::Observation,
    reboot::Restarter,
    troubles::Trouble,
    util,
};

/// Of this boot.
#[derive(Debug, Clone)]
pub struct Boot {
    /// What killed workers may have left.
    pub memory_debt: MemoryDebt,
    /// Whether the machine may be restarted.
    pub restarter: Restarter,
    /// RDMA starts so far.
    pub rdma_starts: watch::Receiver<u32>,
    /// Whom workers run as, where that is somebody else.
    pub worker_user: Option<String>,
    /// How the ports to other nodes are.
    pub links: watch::Receiver<Arc<State>>,
    /// What the machine went through lately.
    pub troubles: watch::Receiver<Arc<[Trouble]>>,
    /// That of its clock.
    pub time_zone: TimeZone,
    /// This agent is root.
    pub is_root: bool,
}

impl Boot {
    /// The observation for the controller.
    #[must_use]
    pub fn with(&self, observation: &Observation) -> v1::Observation {
        let memory_debt = self.memory_debt.look(observation.memory.wired_bytes);
        let used = *self.rdma_starts.borrow();
        let troubles = self.troubles.borrow().clone();
        let links = self.links.borrow().clone();
        let beside = Beside {
            links: Some(&links),
            troubles: &troubles,
            time_zone: Some(self.time_zone.clone()),
            // The controller is told of it apart.
            runtime: None,
            stranded_bytes: memory_debt.stranded_bytes,
            rdma_starts: Some((used, MAX_STARTS_PER_BOOT)),
            workers: match &self.worker_user {
                Some(name) => Some(WorkerUser::Named(name)),
                None => self.is_root.then_some(WorkerUser::Root),
            },
        };
        v1::Observation {
            checks: checks(observation, &beside).iter().map(Check::to_proto).collect(),
            memory_debt: Some(memory_debt),
            restarts: Some(self.restarter.standing(observation, util::unix_ms())),
            rdma_starts: Some(v1::RdmaStarts { used, most: MAX_STARTS_PER_BOOT }),
            ..observation.to_proto()
        }
    }
}
