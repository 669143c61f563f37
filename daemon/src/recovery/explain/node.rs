//! The rules on a node.

use super::{Ruling, plural};
use crate::{
    model::{JobState, Link, LinkKind, NodeId},
    recovery::{
        Now,
        ladder::span,
        machine::Machine,
        state::{Job, Node},
    },
};

const GB: f64 = 1e9;

impl Machine {
    pub(super) fn rulings_on_node(&self, now: Now, node: &Node) -> Vec<Ruling> {
        let mut rulings = vec![connection(now, node)];
        if node.session.as_ref().is_some_and(|session| session.replaying.is_some()) {
            let sentence = "it is delivering what it had spooled; what it holds is known after that";
            rulings.push(Ruling::keeps("spool", sentence));
        }
        rulings.push(draining(node));
        rulings.push(quarantine(now, node));
        rulings.push(self.gpu_faults(now, node));
        rulings.push(runtime(node));
        rulings.push(memory(node));
        rulings.push(self.restart(now, node));
        rulings.extend(self.links_at(now, &node.id));
        rulings.push(self.work(now, node));
        rulings.extend(self.jobs_at(now, node));
        rulings
    }

    fn gpu_faults(&self, now: Now, node: &Node) -> Ruling {
        let window_ms = self.policy.gpu_fault_window_ms;
        let (faults, most) =
            (node.recent_gpu_faults(now, window_ms), self.policy.gpu_faults_before_quarantine);
        let within = span(window_ms);
        match faults {
            0 => Ruling::holds("gpu-faults", format!("none within {within}; {most} put it in quarantine")),
            faults => Ruling::keeps(
                "gpu-faults",
                format!(
                    "{} within {within}, and {most} put it in quarantine; workers here take smaller steps and fewer rows",
                    plural(faults.into(), "GPU fault", "GPU faults")
                ),
            ),
        }
    }

    /// Whether it needs a restart, and whether it is restarted by itself.
    fn restart(&self, now: Now, node: &Node) -> Ruling {
        if let Some(sentence) = node.restart_sentence() {
            return Ruling::keeps("restart", sentence);
        }
        let Some((_, why)) = node.needs_reboot() else {
            return Ruling::holds("restart", "it needs no restart");
        };
        let sentence = match self.restart_ruling(now, &node.id) {
            Some((_, Some(keeps))) => {
                format!("{why}; it is not restarted by itself: {}", self.keeps_sentence(now, node, keeps))
            }
            _ if self.storage_problem.is_some() => {
                format!("{why}; it is not restarted while the controller cannot write that down")
            }
            _ => format!("{why}; it is about to be restarted"),
        };
        Ruling::keeps("restart", sentence)
    }

    fn links_at(&self, now: Now, id: &NodeId) -> Vec<Ruling> {
        let links: Vec<&Link> = self.links.iter().filter(|link| link.end_at(id).is_some()).collect();
        let told: Vec<String> = links
            .iter()
            .map(|link| {
                let (here, there) = if link.a.node == *id { (&link.a, &link.b) } else { (&link.b, &link.a) };
                let how = match (link.kind, &here.rdma_device) {
                    (LinkKind::Rdma, Some(device)) => format!("{device} (RDMA)"),
                    (LinkKind::Rdma | LinkKind::Thunderbolt, _) => format!("{} (cable)", here.interface),
                    (LinkKind::Network | LinkKind::Loopback, _) => here.interface.clone(),
                };
                format!("to {} over {how}: it {}", there.node, self.word_on_link(now, link))
            })
            .collect();
        let sentence = match (told.is_empty(), self.policy.gang_networks.is_empty()) {
            (true, true) => {
                "there are none: no cable to another node carries, and no network is allowed for gangs (gangs.networks of the \
                 configuration)"
                    .to_owned()
            }
            (true, false) => {
                "there are none to other nodes by a cable or in the networks that are allowed for gangs".to_owned()
            }
            (false, _) => told.join("; "),
        };
        let mut rulings = vec![Ruling::holds("links", sentence)];
        let lack = self.cables_lack_at(id).into_iter();
        rulings.extend(lack.map(|sentence| Ruling::keeps("cable", sentence)));
        for (name, ms) in self.unsettled_at(now, id) {
            let other = if name.a == *id { &name.b } else { &name.a };
            let what = match name.kind {
                LinkKind::Rdma => "RDMA over the cable",
                LinkKind::Thunderbolt => "the cable",
                LinkKind::Network | LinkKind::Loopback => "the link",
            };
            let sentence = format!(
                "{what} to {other} has failed, and must hold for {} more before it is relied on",
                span(ms)
            );
            rulings.push(Ruling::keeps("link-unsettled", sentence));
        }
        for (other, ms) in self.unmet_at(now, id) {
            let sentence = format!(
                "ranks here and on {other} did not find one another: for {} other nodes are preferred",
                span(ms)
            );
            rulings.push(Ruling::keeps("did-not-meet", sentence));
        }
        rulings
    }

    /// Whether it can take work at all.
    fn work(&self, now: Now, node: &Node) -> Ruling {
        if let Some(why) = node.unusable(now) {
            // What a line of its own tells whole is named here.
            let why = if node.session.is_none() {
                "it is not connected".to_owned()
            } else if node.facts.runtime_problem.as_ref() == Some(&why) {
                "it cannot run workers".to_owned()
            } else if node.quarantine_sentence(now).as_ref() == Some(&why) {
                "it is in quarantine".to_owned()
            } else {
                why
            };
            return Ruling::keeps("takes-work", format!("it takes no work: {why}"));
        }
        match self.busy(&node.id) {
            Some(why) => Ruling::keeps("takes-work", format!("it takes no more work for the moment: {why}")),
            None => Ruling::holds("takes-work", "it takes work"),
        }
    }

    /// What it does, or does not do, for each job that is not over.
    fn jobs_at(&self, now: Now, node: &Node) -> Vec<Ruling> {
        let jobs: Vec<&Job> = self.open_jobs.iter().filter_map(|id| self.jobs.get(id)).collect();
        if jobs.is_empty() {
            return vec![Ruling::keeps("job", "there is no job to work for")];
        }
        let is_at_work = jobs.iter().any(|job| job.workers.contains_key(&node.id));
        jobs.into_iter().map(|job| job_at(now, job, node, is_at_work)).collect()
    }
}

fn job_at(now: Now, job: &Job, node: &Node, is_at_work: bool) -> Ruling {
    let id = job.record.id;
    if let Some(worker) = job.workers.get(&node.id) {
        let place = match worker.world_size {
            1 => String::new(),
            size => format!(" as rank {} of {size}", worker.rank),
        };
        let way = worker.rung.map(|rung| format!(", {rung}")).unwrap_or_default();
        let rows = format!(
            "{} held, {} at work",
            plural(worker.held_rows.into(), "row", "rows"),
            worker.active_rows
        );
        let ending = if worker.stopping.is_some() { "; it is ending" } else { "" };
        let since = span(now.unix_ms.saturating_sub(worker.since_unix_ms));
        return Ruling::new(
            "job",
            worker.stopping.is_none(),
            format!("it has worked for {id}{place} for {since}{way}: {rows}{ending}"),
        );
    }
    let of_plan = job.plan.as_ref().and_then(|plan| {
        plan.reasons.iter().find(|reason| reason.rule == "not-on" && reason.node.as_ref() == Some(&node.id))
    });
    let why = match (job.record.state, job.unfit.get(&node.id), of_plan) {
        (JobState::Paused, ..) => "the job is paused".to_owned(),
        (JobState::Cancelling, ..) => "the job is being cancelled".to_owned(),
        (_, Some(why), _) => why.clone(),
        (_, None, Some(reason)) => {
            reason.text.split_once(": ").map_or(reason.text.as_str(), |(_, why)| why).to_owned()
        }
        (_, None, None) => match (job.window_words(), &job.plan) {
            (Some(words), _) => format!("the job {words}"),
            (None, Some(plan)) if plan.nodes.contains(&node.id) => {
                "it is planned for it, and about to start".to_owned()
            }
            (None, Some(plan)) => match plan.reasons.iter().find(|reason| reason.rule != "nodes") {
                Some(reason) => format!("its plan does without this node ({})", reason.text),
                None => "its plan does without this node".to_owned(),
            },
            (None, None) => "it has no plan yet".to_owned(),
        },
    };
    Ruling::new("job", is_at_work, format!("it does not work for {id}: {why}"))
}

fn connection(now: Now, node: &Node) -> Ruling {
    match (&node.session, node.last_heard_mono_ms) {
        (Some(session), _) => {
            let since = span(now.unix_ms.saturating_sub(session.since_unix_ms));
            Ruling::holds("connection", format!("it has been connected for {since}"))
        }
        (None, Some(at)) => {
            let silent = span(now.mono_ms.saturating_sub(at));
            let answered = if node.silence.is_answered() { ", and its rows went to others" } else { "" };
            Ruling::keeps("connection", format!("no word from it for {silent}{answered}"))
        }
        (None, None) => {
            let ago = span(now.unix_ms.saturating_sub(node.last_seen_unix_ms));
            let sentence =
                format!("it has not connected since the controller started; it was last seen {ago} ago");
            Ruling::keeps("connection", sentence)
        }
    }
}

fn draining(node: &Node) -> Ruling {
    match node.draining {
        false => Ruling::holds("drain", "it is not drained"),
        true => Ruling::keeps("drain", format!("somebody drained it; `clusterctl undrain {}`", node.id)),
    }
}

fn quarantine(now: Now, node: &Node) -> Ruling {
    match node.quarantine_sentence(now) {
        None => Ruling::holds("quarantine", "it is not in quarantine"),
        Some(sentence) => {
            Ruling::keeps("quarantine", format!("{sentence}; `clusterctl undrain {}` ends that", node.id))
        }
    }
}

fn runtime(node: &Node) -> Ruling {
    match &node.facts.runtime_problem {
        _ if node.session.is_none() => {
            Ruling::keeps("runtime", "what it can run is known when it is connected")
        }
        None => Ruling::holds("runtime", "it can run workers"),
        Some(problem) => Ruling::keeps("runtime", format!("it cannot run workers: {problem}")),
    }
}

fn memory(node: &Node) -> Ruling {
    match node.facts.memory.budget() {
        None => {
            Ruling::holds("memory", "nothing is known of its memory, so models are tried without counting")
        }
        Some(budget) => Ruling::new(
            "memory",
            budget.bytes > 0,
            format!(
                "a model may take {:.1} GB of it ({} of {:.1} GB, without what others have wired and a reserve)",
                budget.bytes as f64 / GB,
                budget.source.word(),
                budget.limit_bytes as f64 / GB
            ),
        ),
    }
}
