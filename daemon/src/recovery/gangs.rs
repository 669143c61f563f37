//! Gangs start, serve and end as one.
//!
//! Every rank is a worker on its node, and all of one launch share its epoch. Rank 0 holds the rows. Nothing is given to
//! it before every rank is ready, and when one rank is gone, all others are ended: a group that lost a member cannot be
//! used again (FIELD-NOTES 2).

use core::net::{IpAddr, SocketAddr};
use std::{collections::BTreeMap, sync::Arc};

use super::{
    costs::Costs,
    effect::{Command, GangLaunch, RankLaunch, StopMode},
    event::{Now, WorkerExit, WorkerPhase, WorkerSettings},
    machine::Machine,
    state::{Job, StopReason, Worker},
};
use crate::{
    model::{
        Backend, Epoch, JobId, Launch, Link, LinkKind, LinkName, Mode, NodeId, Reason, RowIx, Rung, Severity,
    },
    planner::{self, GangPlan, Limits},
};

/// Of the gangs of a job that are alive: how they were planned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct GangRecord {
    pub(super) reasons: Vec<Reason>,
    pub(super) backend: Backend,
    /// The links it uses.
    pub(super) links: Vec<Link>,
    /// Whether its end has been held against the links it computed over.
    pub(super) is_held_against_links: bool,
    /// The incident of its end, once that is told.
    pub(super) incident: Option<u64>,
    /// What its end cost, and is in no incident yet.
    pub(super) costs: Costs,
    /// A rank that lost another one: what it says counts only if no other says what really happened.
    pub(super) aftermath: Option<(NodeId, WorkerExit)>,
    /// The end of a rank that can be a row's doing, where it was, and whether it had hung.
    pub(super) accusing: Option<(NodeId, WorkerExit, bool)>,
    /// The rows in work when rank 0 ended.
    pub(super) in_work: Option<Vec<RowIx>>,
}

impl GangRecord {
    fn new(backend: Backend, links: Vec<Link>, reasons: Vec<Reason>) -> Self {
        Self {
            reasons,
            backend,
            links,
            is_held_against_links: false,
            incident: None,
            costs: Costs::default(),
            aftermath: None,
            accusing: None,
            in_work: None,
        }
    }
}

impl GangRecord {
    /// The links its ranks compute over: those of RDMA, where it is a gang over that.
    pub(super) fn computes_over(&self) -> Vec<LinkName> {
        let is_over = |link: &&Link| !self.backend.is_rdma() || link.kind == LinkKind::Rdma;
        self.links.iter().filter(is_over).map(Link::name).collect()
    }
}

/// The links that a gang uses which another controller started: those the planner would give it among these, and where nodes have
/// several of those it says to have been planned over. `ranks` are its nodes in order.
fn links_of(rung: Rung, backend: Backend, ranks: &[&NodeId], links: &[Link]) -> Vec<Link> {
    let of_pair =
        |rank: usize, other: usize| links.iter().filter(move |link| link.joins(ranks[rank], ranks[other]));
    let tcp = |rank, other| {
        let best = of_pair(rank, other).filter(|link| link.kind != LinkKind::Rdma);
        best.min_by_key(|link| (Some(link.kind) != rung.link_kind, link.kind))
    };
    let rdma = |rank, other| of_pair(rank, other).find(|link| link.kind == LinkKind::Rdma);
    planner::links_used(backend, ranks.len(), tcp, rdma)
}

impl Job {
    /// Whether every rank of a launch is ready and none of them is to end. An independent worker is a gang of one.
    pub(super) fn is_complete(&self, epoch: Epoch) -> bool {
        let mut ready = 0;
        let mut world_size = 0;
        for worker in self.workers.values().filter(|worker| worker.epoch == epoch) {
            let serves = worker.stopping.is_none()
                && matches!(worker.phase, WorkerPhase::Idle | WorkerPhase::Prefill | WorkerPhase::Decode);
            ready += u32::from(serves);
            world_size = worker.world_size;
        }
        world_size > 0 && ready == world_size
    }

    /// The nodes of a launch.
    pub(super) fn nodes_of(&self, epoch: Epoch) -> Vec<NodeId> {
        let ranks = self.workers.values().filter(|worker| worker.epoch == epoch);
        ranks.map(|worker| worker.node.clone()).collect()
    }
}

impl Machine {
    /// Starts all ranks of a gang: one epoch, recorded before the first command goes out.
    pub(super) fn launch_gang(
        &mut self,
        now: Now,
        job_id: JobId,
        plan: &GangPlan,
        limits: Limits,
        reasons: Vec<Reason>,
    ) {
        let Ok(world_size) = u32::try_from(plan.ranks.len()) else { return };
        let expected = self.expected_answer(job_id, plan);
        let Some(launch) = self.gang_launch(plan, world_size, expected) else { return };
        let launch = Arc::new(launch);
        let first_command = self.next_command_id;
        self.next_command_id += u64::from(world_size);
        let nodes: Vec<NodeId> = plan.ranks.iter().map(|rank| rank.node.clone()).collect();
        let Some(settings) = self.settings_for(now, job_id, limits, &nodes) else { return };
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let epoch = job.record.epoch.next();
        job.record.epoch = epoch;
        job.record.started_unix_ms.get_or_insert(now.unix_ms);
        let rung = Rung {
            fallback: false,
            mode: plan.mode,
            backend: Some(plan.backend),
            link_kind: Some(plan.link_kind),
        };
        job.ladder.note_start(rung, &reasons);
        job.gangs.insert(epoch, GangRecord::new(plan.backend, plan.links.clone(), reasons));
        let model = job.record.spec.model.clone();
        let mut commands = Vec::new();
        for (rank, planned) in (0..).zip(&plan.ranks) {
            let node = &planned.node;
            job.record.launches.retain(|launch| launch.node != *node);
            let place = Launch { node: node.clone(), epoch, rank, world_size, rung: Some(rung) };
            job.record.launches.push(place.clone());
            let command_id = first_command + u64::from(rank);
            let worker = Worker::starting(now, node, place, settings, command_id);
            let key = worker.key(job_id);
            job.workers.insert(node.clone(), worker);
            let start = Command::StartWorker {
                command_id,
                worker: key,
                model: model.clone(),
                settings,
                gang: Some(Arc::clone(&launch)),
            };
            commands.push((node.clone(), start));
        }
        self.record_job(job_id);
        let names: Vec<&str> = plan.ranks.iter().map(|rank| rank.node.as_str()).collect();
        let message = format!(
            "starting a {} of {world_size} ranks for {job_id} over {} on {} (epoch {epoch})",
            plan.mode.word(),
            plan.backend.word(),
            names.join(", ")
        );
        for (node, command) in commands {
            self.send(&node, command);
        }
        self.emit(Severity::Info, "gang-starting", None, Some(job_id), message);
    }

    /// Addresses and ports; `None` when the plan lacks an address, which the planner rules out.
    fn gang_launch(
        &mut self,
        plan: &GangPlan,
        world_size: u32,
        expected_answer: Vec<u32>,
    ) -> Option<GangLaunch> {
        let control_port = self.next_port();
        let at = |address: IpAddr, port: u16| SocketAddr::new(address, port);
        let coordinator = match (plan.coordinator, plan.backend.is_rdma()) {
            (Some(address), _) => Some(at(address, self.next_port())),
            (None, true) => return None,
            (None, false) => None,
        };
        let control: Vec<SocketAddr> = plan
            .ranks
            .iter()
            .skip(1)
            .map(|rank| Some(at(rank.control_address?, control_port)))
            .collect::<Option<_>>()?;
        let mut ranks = Vec::new();
        for (rank, planned) in plan.ranks.iter().enumerate() {
            let ring_port = self.next_port();
            ranks.push(RankLaunch {
                node: planned.node.clone(),
                layers: match plan.mode {
                    Mode::Pipeline => Some(planned.stage.span),
                    Mode::Tensor | Mode::Independent => None,
                },
                ring_address: planned.ring_address.map(|address| at(address, ring_port)),
                control_addresses: match rank.checked_sub(1) {
                    None => control.clone(),
                    Some(other) => vec![control[other]],
                },
                rdma_devices: planned.rdma_devices.clone(),
            });
        }
        Some(GangLaunch {
            mode: plan.mode,
            backend: plan.backend,
            world_size,
            rendezvous_timeout_ms: self.policy.gang_rendezvous_ms,
            coordinator,
            ranks,
            expected_answer,
        })
    }

    /// Ports are taken in turn, so that one is not asked for again while its last connection lingers.
    pub(super) fn next_port(&mut self) -> u16 {
        let port = self.policy.gang_first_port.saturating_add(self.port_offset);
        self.port_offset = (self.port_offset + 1) % self.policy.gang_ports.max(1);
        port
    }

    /// How a gang was planned, and what is known of its end.
    pub(super) fn gang_mut(&mut self, job: JobId, epoch: Epoch) -> Option<&mut GangRecord> {
        self.jobs.get_mut(&job)?.gangs.get_mut(&epoch)
    }

    /// Whether the ranks of a launch talk by RDMA.
    pub(super) fn is_over_rdma(&self, job: JobId, epoch: Epoch) -> bool {
        let gang = self.jobs.get(&job).and_then(|job| job.gangs.get(&epoch));
        gang.is_some_and(|gang| gang.backend.is_rdma())
    }

    /// Ends what is left of a launch of which a rank is gone.
    pub(super) fn end_gang(&mut self, now: Now, job_id: JobId, epoch: Epoch, why: &str) {
        self.end_gang_but(now, job_id, epoch, None, why);
    }

    /// The same, but for the rank on a node that has been told already.
    pub(super) fn end_gang_but(
        &mut self,
        now: Now,
        job_id: JobId,
        epoch: Epoch,
        told: Option<&NodeId>,
        why: &str,
    ) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let left = job.nodes_of(epoch);
        if left.is_empty() {
            self.on_gang_gone(now, job_id, epoch);
        }
        for node in left.iter().filter(|node| Some(*node) != told) {
            self.stop(now, node, job_id, StopMode::Kill, StopReason::NotNeeded, why);
        }
    }

    /// What a restarted controller can know of the gangs that came back whole.
    pub(super) fn recall_gangs(&mut self, job_id: JobId) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let mut gangs: BTreeMap<Epoch, Vec<&Worker>> = BTreeMap::new();
        for worker in job.workers.values().filter(|worker| worker.world_size > 1) {
            gangs.entry(worker.epoch).or_default().push(worker);
        }
        for (epoch, mut ranks) in gangs {
            ranks.sort_by_key(|worker| worker.rank);
            let rung = ranks[0].rung;
            let backend = rung.and_then(|rung| rung.backend);
            let (Some((rung, backend)), false) = (rung.zip(backend), job.gangs.contains_key(&epoch)) else {
                continue;
            };
            let nodes: Vec<&NodeId> = ranks.iter().map(|worker| &worker.node).collect();
            let text = "a controller before this one started it, and it came back whole";
            let reasons = vec![Reason::new("adopted", text)];
            let links = links_of(rung, backend, &nodes, &self.links);
            job.gangs.insert(epoch, GangRecord::new(backend, links, reasons));
        }
    }

    /// Launches that can never be complete any more: a restarted controller found only some of their ranks.
    pub(super) fn end_incomplete_gangs(&mut self, now: Now, job_id: JobId) {
        let Some(job) = self.jobs.get(&job_id) else { return };
        let mut broken: Vec<Epoch> = Vec::new();
        for worker in job.workers.values().filter(|worker| worker.world_size > 1) {
            let found = job.nodes_of(worker.epoch).len();
            if u32::try_from(found).is_ok_and(|found| found < worker.world_size)
                && !broken.contains(&worker.epoch)
            {
                broken.push(worker.epoch);
            }
        }
        for epoch in broken {
            self.end_gang(now, job_id, epoch, "a rank of its gang did not come back");
        }
    }
}

/// The settings with no more of anything than fits.
pub(super) fn limited(settings: WorkerSettings, limits: Limits) -> WorkerSettings {
    let max_batch_rows = settings.max_batch_rows.min(limits.rows).max(1);
    WorkerSettings {
        max_batch_rows,
        prefill_batch_rows: settings.prefill_batch_rows.min(limits.prefill_rows).clamp(1, max_batch_rows),
        prefill_step_tokens: settings.prefill_step_tokens.min(limits.prefill_step_tokens).max(1),
        ..settings
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;
    use crate::model::{LinkEnd, LinkKind};

    /// Three links between each two of these, which are in order of name: a network, and by a cable TCP and RDMA.
    fn full_mesh(names: &[&str]) -> Vec<Link> {
        let end = |name: &str| LinkEnd {
            node: name.into(),
            interface: "en5".to_owned(),
            address: Ipv4Addr::LOCALHOST.into(),
            rdma_device: None,
        };
        let pairs =
            names.iter().enumerate().flat_map(|(index, a)| names[index + 1..].iter().map(move |b| (a, b)));
        let kinds = [LinkKind::Rdma, LinkKind::Thunderbolt, LinkKind::Network];
        pairs.flat_map(|(a, b)| kinds.map(|kind| Link { a: end(a), b: end(b), kind })).collect()
    }

    #[test]
    fn a_gang_that_is_found_uses_the_links_of_neighbours_and_of_rank_0_and_over_jaccl_all() {
        let ranks: Vec<NodeId> = ["c", "a", "e", "b", "d"].into_iter().map(NodeId::from).collect();
        let ranks: Vec<&NodeId> = ranks.iter().collect();
        let used = |backend, link_kind| -> [Vec<String>; 3] {
            let links = full_mesh(&["a", "b", "c", "d", "e", "not of it"]);
            let rung = Rung {
                fallback: false,
                mode: Mode::Pipeline,
                backend: Some(backend),
                link_kind: Some(link_kind),
            };
            let used = links_of(rung, backend, &ranks, &links);
            [LinkKind::Rdma, LinkKind::Thunderbolt, LinkKind::Network].map(|kind| {
                let of_kind = used.iter().filter(|link| link.kind == kind);
                let mut told: Vec<String> =
                    of_kind.map(|link| format!("{}{}", link.a.node, link.b.node)).collect();
                told.sort();
                told
            })
        };
        let told = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let none = Vec::new;
        // The ring is c a e b d.
        let of_ring = told("ac ae bc bd be cd ce");
        assert_eq!(used(Backend::Ring, LinkKind::Network), [none(), none(), of_ring.clone()]);
        assert_eq!(used(Backend::Ring, LinkKind::Thunderbolt), [none(), of_ring, none()]);
        let from_rank_0 = told("ac bc cd ce");
        let around = told("ac ae bd be cd");
        assert_eq!(used(Backend::JacclRing, LinkKind::Rdma), [around, from_rank_0.clone(), none()]);
        let all = told("ab ac ad ae bc bd be cd ce de");
        assert_eq!(used(Backend::Jaccl, LinkKind::Rdma), [all, from_rank_0, none()]);
    }
}
