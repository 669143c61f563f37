//! What strikes in a night and what mends again, and the person who helps.

use std::collections::BTreeMap;

use nightshift_daemon::{
    ledger::sim::Moment,
    model::{JobId, JobState, NodeId, RestartCause},
    recovery::{BootFacts, Event, ExitClass},
};

use super::Night;
use crate::{
    agent::Up,
    faults::{BETWEEN_BURSTS_MS, BETWEEN_MS, Strike},
    worlds::{GB, HOUR_MS, MINUTE_MS},
};

/// What such a worker leaves.
const STRANDED_BYTES: u64 = 40 * GB;

impl Night {
    fn any_node(&mut self) -> NodeId {
        let at = self.rng.range(0, self.agents.len() as u64);
        self.agents.keys().nth(usize::try_from(at).expect("small")).expect("a node").clone()
    }

    pub(super) fn strike_if_due(&mut self) {
        let due: Vec<(u64, Strike, Option<NodeId>)> =
            self.coming.extract_if(.., |(at, ..)| *at <= self.now_ms).collect();
        for (_, strike, node) in due {
            self.strike(strike, node);
        }
        if self.now_ms < self.next_strike_ms {
            return;
        }
        let between = if self.is_bombarded { BETWEEN_BURSTS_MS } else { BETWEEN_MS };
        // A bombardment lasts for an hour.
        if self.is_bombarded && self.now_ms > HOUR_MS {
            self.is_bombarded = false;
        }
        self.next_strike_ms = self.now_ms + self.rng.range(between / 10, between * 19 / 10);
        let strike = Strike::any(&mut self.rng);
        self.strike(strike, None);
    }

    fn strike(&mut self, strike: Strike, node: Option<NodeId>) {
        let id = node.unwrap_or_else(|| self.any_node());
        let now_ms = self.now_ms;
        self.totals.strikes += 1;
        self.excite();
        self.note(|| format!("STRIKE {strike:?} {id}"));
        match strike {
            Strike::Exit(class) => {
                // Errors that have nothing to do with one another, but for those of a GPU.
                let digits = self.totals.strikes.to_string();
                let letters: String = digits.bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
                let error = match class {
                    ExitClass::GpuFault => "GPU Timeout Error".to_owned(),
                    _ => format!("error {letters}"),
                };
                let agent = self.agents.get_mut(&id).expect("a node there is");
                agent.end_worker(now_ms, class, &error, 5);
                if class == ExitClass::GpuFault && self.plan.is_cabled {
                    agent.gpu_restarts += 1;
                    agent.say(now_ms, 5, Up::Observed);
                }
            }
            Strike::GpuSeries => {
                for number in 0..4 {
                    let at = now_ms + number * 90_000;
                    self.coming.push((at, Strike::Exit(ExitClass::GpuFault), Some(id.clone())));
                }
            }
            Strike::Hang => {
                if let Some(worker) = &mut self.agents.get_mut(&id).expect("a node there is").worker {
                    worker.hangs = true;
                }
            }
            // Of what becomes of cables, a part is of RDMA alone.
            Strike::LinkDown if self.plan.is_cabled && self.rng.range(0, 2) == 0 => {
                let strike = if self.rng.range(0, 4) == 0 { Strike::RdmaWedged } else { Strike::RdmaDown };
                self.strike(strike, Some(id));
            }
            Strike::LinkDown => {
                let back = now_ms + self.rng.range(1_000, 20 * MINUTE_MS);
                self.set_link(&id, false);
                self.links_back.insert(id, back);
            }
            Strike::RdmaDown => {
                let back = now_ms + self.rng.range(1_000, 20 * MINUTE_MS);
                self.set_rdma(&id, false);
                self.rdma_back.insert(id, back);
            }
            Strike::RdmaWedged => self.agents.get_mut(&id).expect("a node there is").is_wedged = true,
            Strike::LinkFlaps => {
                for number in 0..10 {
                    self.coming.push((now_ms + number * 6_000, Strike::LinkDown, Some(id.clone())));
                }
            }
            Strike::CutOff => {
                let until = now_ms + self.rng.range(1_000, 3 * MINUTE_MS);
                self.agents.get_mut(&id).expect("a node there is").cut_until_ms = until;
                self.excited_until_ms = self.excited_until_ms.max(until.min(now_ms + 20_000));
                self.coming.push((until, Strike::ConnectionLost, Some(id)));
            }
            Strike::ConnectionLost => {
                let agent = self.agents.get_mut(&id).expect("a node there is");
                let session = agent.session;
                agent.disconnect();
                agent.back_at_ms = agent.back_at_ms.max(now_ms + self.rng.range(100, 5_000));
                if let Some(session) = session.filter(|_| self.rng.range(0, 2) == 0) {
                    self.tell(Event::SessionLost { node: id, session });
                }
            }
            Strike::AgentKilled | Strike::Reboot => self.bring_down(&id, strike == Strike::Reboot),
            Strike::RollingUpdate => {
                let ids: Vec<NodeId> = self.agents.keys().cloned().collect();
                for (number, id) in (0..).zip(ids) {
                    self.coming.push((now_ms + number * 3 * MINUTE_MS, Strike::Reboot, Some(id)));
                }
            }
            Strike::ControllerCrash | Strike::PowerCut => {
                // Amid one of the next writes, whichever that is.
                let step = self.world.steps() + self.rng.range(1, 12);
                let moment = *self.rng.pick(&[Moment::Before, Moment::Midway, Moment::After]);
                self.world.crash_at(step, moment);
            }
            Strike::ControllerStopped => self.stopped_until_ms = now_ms + self.rng.range(2_000, 90_000),
            Strike::DiskFull => {
                self.told.clear();
                self.world.set_capacity(Some(1));
                self.disk_full_until_ms = Some(now_ms + self.rng.range(1_000, 10 * MINUTE_MS));
            }
            Strike::ClockJump => {
                let jump = self.rng.range(0, 2 * HOUR_MS);
                self.wall_offset_ms += jump;
            }
            Strike::Person => self.person(id),
            Strike::NewJob => self.submit(),
            Strike::Two => {
                let (one, other) = (Strike::any(&mut self.rng), Strike::any(&mut self.rng));
                for strike in [one, other].into_iter().filter(|strike| *strike != Strike::Two) {
                    self.strike(strike, None);
                }
            }
        }
        self.notice_crash();
    }

    pub(super) fn bring_down(&mut self, id: &NodeId, reboot: bool) {
        let down_ms = if reboot { self.rng.range(40_000, 4 * MINUTE_MS) } else { self.rng.range(500, 6_000) };
        let now_ms = self.now_ms;
        let agent = self.agents.get_mut(id).expect("a node there is");
        agent.disconnect();
        // The worker ends with its agent, and nobody keeps what it would have said.
        agent.worker = None;
        agent.untold.clear();
        agent.is_up = false;
        agent.back_at_ms = now_ms + down_ms;
        if reboot {
            agent.boot += 1;
            agent.boot_facts = BootFacts::default();
            agent.rdma_starts = 0;
            agent.gpu_restarts = 0;
            agent.is_wedged = false;
        }
        self.excited_until_ms = self.excited_until_ms.max(now_ms + 12_000);
    }

    fn set_link(&mut self, id: &NodeId, up: bool) {
        let agent = self.agents.get_mut(id).expect("a node there is");
        if agent.link_up == up {
            return;
        }
        agent.link_up = up;
        self.tell_of_links(id);
    }

    fn set_rdma(&mut self, id: &NodeId, up: bool) {
        let agent = self.agents.get_mut(id).expect("a node there is");
        if agent.rdma_up != up {
            agent.rdma_up = up;
            self.tell_of_links(id);
        }
    }

    fn tell_of_links(&mut self, id: &NodeId) {
        let agent = &self.agents[id];
        let is_heard =
            agent.session.is_some() && agent.cut_until_ms <= self.now_ms && self.controller.is_some();
        if is_heard {
            let observed = self.observed(id);
            self.tell(observed);
        }
        self.excite();
    }

    /// Somebody pauses, resumes, drains.
    fn person(&mut self, id: NodeId) {
        let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
        let what = self.rng.range(0, 5);
        let job = if jobs.is_empty() { None } else { Some(*self.rng.pick(&jobs)) };
        let is_known = self.controller.as_ref().is_some_and(|c| c.machine.node(&id).is_some());
        match (what, job) {
            (0, Some(job)) => self.tell(Event::Pause(job)),
            (1, Some(job)) => self.tell(Event::Resume(job)),
            (2, _) if is_known => self.tell(Event::Drain { node: id, drain: true }),
            (3, _) if is_known => self.tell(Event::Drain { node: id, drain: false }),
            _ => {}
        }
    }

    pub(super) fn mend_what_is_due(&mut self) {
        if self.disk_full_until_ms.is_some_and(|until| until <= self.now_ms) {
            self.disk_full_until_ms = None;
            self.world.set_capacity(None);
            self.excite();
        }
        for node in take_due(&mut self.links_back, self.now_ms) {
            self.set_link(&node, true);
        }
        for node in take_due(&mut self.rdma_back, self.now_ms) {
            self.set_rdma(&node, true);
        }
        // A memory that was looked at after a kill has come back.
        let looked: Vec<NodeId> = self
            .agents
            .iter()
            .filter(|(_, agent)| {
                agent.worker.is_none() && agent.session.is_some() && agent.boot_facts.kills_while_loaded > 0
            })
            .filter(|(_, agent)| {
                agent.boot_facts.stranded_bytes.is_none() && agent.cut_until_ms <= self.now_ms
            })
            .map(|(id, _)| id.clone())
            .collect();
        if self.now_ms < self.stopped_until_ms {
            return;
        }
        for id in looked {
            if self.leaves_memory_wired(&id) {
                let agent = self.agents.get_mut(&id).expect("a node there is");
                agent.boot_facts.stranded_bytes = Some(STRANDED_BYTES);
                let observed = self.observed(&id);
                self.tell(observed);
                continue;
            }
            let mut observed = self.observed(&id);
            if let Event::Observed { boot, .. } = &mut observed {
                boot.stranded_bytes = Some(0);
            }
            self.tell(observed);
        }
    }

    /// In some nights memory does not come back after every other kill, until nothing strikes any more.
    fn leaves_memory_wired(&self, id: &NodeId) -> bool {
        let agent = &self.agents[id];
        let number = u64::from(agent.boot_facts.kills_while_loaded) + u64::from(agent.boot);
        let is_night = self.now_ms < self.plan.length_ms * 7 / 8;
        self.plan.has_restarts && is_night && number % 2 == 0
    }

    /// The machine does what the controller asked for.
    pub(super) fn restart(&mut self, id: &NodeId, cause: RestartCause) {
        let unix_ms = self.unix_ms();
        self.note(|| format!("{id} restarts for {}", cause.words()));
        self.totals.machine_restarts += 1;
        self.known.note_restart(id, cause, unix_ms);
        self.bring_down(id, true);
        // Some wait for a person.
        if self.rng.range(0, 4) == 0 {
            let agent = self.agents.get_mut(id).expect("a node there is");
            agent.back_at_ms += self.rng.range(0, HOUR_MS);
        }
    }

    pub(super) fn mend_everything(&mut self) {
        self.world.clear_faults();
        self.world.crash_at(u64::MAX, Moment::Before);
        self.disk_full_until_ms = None;
        self.stopped_until_ms = 0;
        let nodes: Vec<NodeId> = self.agents.keys().cloned().collect();
        for node in nodes {
            self.links_back.remove(&node);
            self.set_link(&node, true);
            self.rdma_back.remove(&node);
            self.set_rdma(&node, true);
            self.agents.get_mut(&node).expect("a node there is").panics_over_rdma = false;
            if self.agents[&node].boot_facts.stranded_bytes.is_some() {
                // Whoever looks in the morning restarts it.
                self.bring_down(&node, true);
            }
            let agent = self.agents.get_mut(&node).expect("a node there is");
            if agent.cut_until_ms > self.now_ms {
                agent.cut_until_ms = 0;
                agent.disconnect();
            }
            if let Some(controller) = &self.controller
                && controller.machine.node(&node).is_some_and(|node| node.draining)
            {
                self.tell(Event::Drain { node, drain: false });
            }
        }
    }

    /// A person who finds a job paused in the morning has a look, and lets it go on.
    pub(super) fn resume_what_is_paused(&mut self) {
        let Some(controller) = &self.controller else { return };
        let paused: Vec<JobId> = controller
            .machine
            .jobs()
            .filter(|job| job.record.state == JobState::Paused)
            .map(|job| job.record.id)
            .collect();
        let drained: Vec<NodeId> =
            controller.machine.nodes().filter(|node| node.draining).map(|node| node.id.clone()).collect();
        for job in paused {
            self.tell(Event::Resume(job));
        }
        for node in drained {
            self.tell(Event::Drain { node, drain: false });
        }
    }
}

/// The nodes of which something is back by now.
fn take_due(back: &mut BTreeMap<NodeId, u64>, now_ms: u64) -> Vec<NodeId> {
    let due = back.iter().filter(|(_, back_ms)| **back_ms <= now_ms).map(|(node, _)| node.clone()).collect();
    back.retain(|_, back_ms| *back_ms > now_ms);
    due
}
