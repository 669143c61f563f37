//! The ladder: tensor over RDMA, pipeline over RDMA, over a ring of cables, over an allowed network, whole models each on its
//! node, the fallback model, and at its foot waiting with a reason.
//!
//! Going down needs no rule of its own: what is lost is gone, and the planner chooses among what is left
//! ([`models`](super::models)). Going up is here. Each tick the planner is asked how the job would run if nothing of it ran.
//! When that is a higher rung, has been so for the settling time, and enough rows are left to pay for loading the model
//! again ([`rules::worth_loading_again`]), and the links it needs have passed their tests
//! ([`link_tests`](super::link_tests)), the workers are ended with checkpoints and the job starts anew. Each change doubles
//! the settling time of the next, and the memory of that fades ([`damping`](super::damping)): a night of flapping costs a
//! bounded number of loads.

mod standing;

use std::collections::BTreeSet;

use super::{
    damping::Penalty, effect::StopMode, event::Now, machine::Machine, models::KnownLayout, rules, state::Job,
};
use crate::{
    model::{Epoch, FallbackPolicy, JobId, JobState, Link, NodeId, Reason, Rung, Severity, Way},
    planner::Layout,
};

/// The longest a better way must have been there: twice in a night it is tried even so.
const MOST_CLIMB_SETTLE_MS: u64 = 2 * 3_600_000;

/// A link that needs no longer than this until it is relied on again is waited for: going down and up again loads twice.
const WORTH_WAITING_MS: u64 = 10_000;

/// How long a job that has not been started yet waits for nodes and links that its mode needs: agents that lost their controller
/// are back within their longest pause.
const FIRST_LOOK_MS: u64 = 5_000;

/// Of one job.
#[derive(Clone, Debug, Default)]
pub(super) struct Ladder {
    /// How it would run if nothing of it ran.
    pub(super) ideal: KnownLayout,
    /// The same of its fallback model.
    pub(super) fallback: KnownLayout,
    /// A better way, and since when it has been there.
    better: Option<(Rung, u64)>,
    changes: Penalty,
    /// A change under way.
    pub(super) climb: Option<Climb>,
    /// Which rung it changed to last, and why.
    changed: Option<(Rung, Reason)>,
    /// Whether it has had a worker in this run of the controller.
    has_run: bool,
    /// Since when its own model could not run anywhere.
    stranded_since_mono_ms: Option<u64>,
}

/// The workers have been told to end; then it starts anew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Climb {
    /// Kept free for it.
    nodes: BTreeSet<NodeId>,
    /// Not longer than this.
    until_mono_ms: u64,
}

impl Ladder {
    /// Nodes that no other job should take now.
    pub(super) fn kept(&self) -> BTreeSet<NodeId> {
        self.climb.as_ref().map(|climb| climb.nodes.clone()).unwrap_or_default()
    }

    /// Notes what is started, and of the plan's reasons the one why it is not a higher rung.
    pub(super) fn note_start(&mut self, rung: Rung, reasons: &[Reason]) {
        self.climb = None;
        self.has_run = true;
        if self.changed.as_ref().is_none_or(|(before, _)| *before != rung) {
            let why = reasons.iter().find(|reason| matches!(reason.rule, "down-the-ladder" | "fallback"));
            self.changed = why.map(|reason| (rung, reason.clone()));
        }
    }

    /// Notes that it has a worker that a controller before this one started.
    pub(super) fn note_adopted(&mut self) {
        self.has_run = true;
    }

    /// Notes whether the job's own model can run; says for how long it could not.
    pub(super) fn note_stranded(&mut self, now: Now, is_stranded: bool) -> Option<u64> {
        if !is_stranded {
            self.stranded_since_mono_ms = None;
            return None;
        }
        let since = self.stranded_since_mono_ms.get_or_insert(now.mono_ms);
        Some(now.mono_ms.saturating_sub(*since))
    }
}

impl Job {
    /// Which model a launch runs.
    pub(super) fn model_on(&self, rung: Rung) -> &str {
        let spec = &self.record.spec;
        match &spec.fallback_model {
            Some(fallback) if rung.fallback => fallback,
            _ => &spec.model,
        }
    }

    /// Which model its worker on a node runs.
    pub(super) fn model_at(&self, node: &NodeId) -> &str {
        let rung = self.workers.get(node).and_then(|worker| worker.rung);
        self.model_on(rung.unwrap_or(Rung::independent(false)))
    }

    /// How a launch runs.
    pub(super) fn rung_of(&self, epoch: Epoch) -> Option<Rung> {
        self.workers.values().find(|worker| worker.epoch == epoch).and_then(|worker| worker.rung)
    }

    /// How its workers run that are not ending.
    #[must_use]
    pub fn rung(&self) -> Option<Rung> {
        self.workers.values().find(|worker| worker.stopping.is_none()).and_then(|worker| worker.rung)
    }

    /// Why it runs as it does, where that is not what it would do by itself.
    pub(super) fn why_here(&self) -> Option<&Reason> {
        let (rung, reason) = self.ladder.changed.as_ref()?;
        (self.rung() == Some(*rung)).then_some(reason)
    }

    /// How it runs, when all its workers are at work in the same way, and there is more to do.
    fn steady_rung(&self) -> Option<Rung> {
        let may = self.record.state == JobState::Active
            && !self.is_adopting()
            && self.closed.is_none()
            && self.ladder.climb.is_none()
            && self.rows_waiting() > 0;
        let rung = self.rung().filter(|_| may)?;
        self.workers
            .values()
            .all(|worker| worker.rung == Some(rung) && self.is_complete(worker.epoch))
            .then_some(rung)
    }
}

/// A higher rung that a job could be on.
struct Better {
    from: Rung,
    to: Rung,
    /// The nodes it would run on, and those it runs on.
    nodes: BTreeSet<NodeId>,
    /// Of one gang, or 1.
    ranks: u32,
    /// How long it has been there.
    held_ms: u64,
}

impl Machine {
    /// Starts changes that are worth it, and gives up those that found nothing to change to.
    pub(super) fn climb(&mut self, now: Now) {
        self.forget_asked_tests();
        for id in self.open_jobs.clone() {
            if let Some(job) = self.jobs.get_mut(&id)
                && job.ladder.climb.as_ref().is_some_and(|climb| climb.until_mono_ms <= now.mono_ms)
            {
                job.ladder.climb = None;
            }
            let Some(better) = self.better_rung(now, id) else { continue };
            // Workers that run are ended for it: that it carries is known before that.
            if let Some(reason) = self.why_worth_it(now, id, &better)
                && !self.ask_for_tests(now, &self.links_of_ideal(id))
            {
                self.begin_climb(now, id, better, reason);
            }
        }
    }

    /// A higher rung that has held for the settling time.
    fn better_rung(&mut self, now: Now, id: JobId) -> Option<Better> {
        let from = self.jobs.get(&id)?.steady_rung();
        let found = from.and_then(|from| {
            let layout = self.ideal(now, id)?;
            let (to, ranks, nodes) = rung_of(&layout)?;
            let job = self.jobs.get(&id)?;
            let is_sound = !self.has_unsettled_link(now, &job.workers.keys().cloned().collect());
            (to.is_above(&from, job.record.spec.mode) && is_sound).then_some((to, ranks, nodes))
        });
        let half_life_ms = self.policy.penalty_half_life_ms;
        let base_ms = self.policy.climb_settle_ms;
        let job = self.jobs.get_mut(&id)?;
        let (Some(from), Some((to, ranks, mut nodes))) = (from, found) else {
            job.ladder.better = None;
            return None;
        };
        let since = job.ladder.better.filter(|(rung, _)| *rung == to).map_or(now.mono_ms, |(_, since)| since);
        job.ladder.better = Some((to, since));
        let held_ms = now.mono_ms.saturating_sub(since);
        let settle_ms =
            job.ladder.changes.settle_ms(now.mono_ms, half_life_ms, base_ms, MOST_CLIMB_SETTLE_MS);
        nodes.extend(job.workers.keys().cloned());
        (held_ms >= settle_ms).then_some(Better { from, to, nodes, ranks, held_ms })
    }

    /// What the ranks would talk over if nothing of the job ran.
    pub(super) fn links_of_ideal(&self, id: JobId) -> Vec<Link> {
        match self.jobs.get(&id).map(|job| job.ladder.ideal.current()) {
            Some(Layout::Gangs { gangs, .. }) => {
                gangs.iter().flat_map(|gang| gang.links.iter().cloned()).collect()
            }
            _ => Vec::new(),
        }
    }

    fn why_worth_it(&self, now: Now, id: JobId, better: &Better) -> Option<Reason> {
        let job = self.jobs.get(&id)?;
        let rows_left = u64::from(job.record.rows_total - job.done.len());
        let load_ms = self.load_ms(job, better);
        let batch_rows = job.workers.values().map(|worker| worker.settings.max_batch_rows).max()?;
        let left_ms = rules::worth_loading_again(
            rows_left,
            job.rows_per_s(now.mono_ms),
            better.held_ms,
            batch_rows,
            load_ms,
        )?;
        let text = format!(
            "changed from {} to {}: that had been possible for {}, and the {rows_left} rows left, {} of work at the speed of \
             then, pay for loading, about {}",
            better.from,
            better.to,
            span(better.held_ms),
            span(left_ms),
            span(load_ms)
        );
        Some(Reason::new("climbed", text))
    }

    /// How long loading for the better way takes: as measured, or as the slowest load of this model known.
    fn load_ms(&self, job: &Job, better: &Better) -> u64 {
        let model = job.model_on(better.to);
        let fingerprint = better.nodes.iter().find_map(|node| self.models.fingerprint(model, node));
        let learned = fingerprint.and_then(|fingerprint| self.learned(fingerprint));
        let way = Way { mode: better.to.mode, backend: better.to.backend, ranks: better.ranks };
        let same_way = learned.and_then(|model| model.pace(way)).map(|pace| pace.load_ms);
        let any = || learned?.paces.iter().map(|pace| pace.load_ms).max();
        same_way.filter(|ms| *ms > 0).or_else(any).filter(|ms| *ms > 0).unwrap_or(rules::UNKNOWN_LOAD_MS)
    }

    fn begin_climb(&mut self, now: Now, id: JobId, better: Better, reason: Reason) {
        let (half_life_ms, grace_ms) = (self.policy.penalty_half_life_ms, self.policy.stop_grace_ms);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.ladder.better = None;
        job.ladder.changes.add(now.mono_ms, half_life_ms);
        // Workers end within the grace; as long again for the start.
        let until_mono_ms = now.mono_ms + 2 * grace_ms + self.policy.gang_settle_ms;
        job.ladder.climb = Some(Climb { nodes: better.nodes, until_mono_ms });
        job.ladder.changed = Some((better.to, reason.clone()));
        self.emit(Severity::Info, "climbing", None, Some(id), format!("{id} is being {}", reason.text));
        self.stop_all(now, id, StopMode::Checkpoint, "a better way to run its job is there again");
    }

    /// What a choice of a lower rung than the one asked for waits for, if it is worth it.
    pub(super) fn worth_waiting_for(
        &self,
        now: Now,
        id: JobId,
        candidates: &BTreeSet<NodeId>,
        planned_since_mono_ms: u64,
    ) -> Option<Reason> {
        let job = self.jobs.get(&id)?;
        if let Some((name, ms)) =
            self.next_link_to_settle(now, candidates).filter(|(_, ms)| *ms <= WORTH_WAITING_MS)
        {
            let text = format!(
                "{name} is back and is to hold for {} s yet; going down the ladder for that would load twice",
                ms.div_ceil(1_000)
            );
            return Some(Reason::new("settling", text));
        }
        let is_early = now.mono_ms < planned_since_mono_ms + FIRST_LOOK_MS;
        (!job.ladder.has_run && is_early).then(|| {
            Reason::new(
                "settling",
                "the nodes have only just been seen; a moment is waited for what its mode needs",
            )
        })
    }

    /// What the fallback policy says of a job whose own model has not been able to run for so long: whether to use the other
    /// one, and what to tell.
    pub(super) fn fallback_reason(&self, id: JobId, stranded_ms: u64, why: &str) -> (bool, Option<Reason>) {
        let Some(spec) = self.jobs.get(&id).map(|job| &job.record.spec) else { return (false, None) };
        let Some(model) = &spec.fallback_model else { return (false, None) };
        let wait_ms = match spec.fallback_policy {
            FallbackPolicy::Never => return (false, None),
            FallbackPolicy::AfterMs(ms) => ms,
            FallbackPolicy::AtOnce => 0,
        };
        if stranded_ms < wait_ms {
            let left = span(wait_ms - stranded_ms);
            let text =
                format!("in {left} the fallback model {model} takes over, unless its own can run before");
            return (false, Some(Reason::new("fallback-later", text)));
        }
        let text = format!("the fallback model {model} answers, because its own model cannot run now: {why}");
        (true, Some(Reason::new("fallback", text)))
    }
}

/// What a layout would run as, how many ranks make one, and where.
fn rung_of(layout: &Layout) -> Option<(Rung, u32, BTreeSet<NodeId>)> {
    match layout {
        Layout::Independent { nodes, .. } => Some((Rung::independent(false), 1, nodes.clone())),
        Layout::Gangs { gangs, .. } => {
            let first = gangs.first()?;
            let rung = Rung {
                fallback: false,
                mode: first.mode,
                backend: Some(first.backend),
                link_kind: Some(first.link_kind),
            };
            let nodes = gangs.iter().flat_map(|gang| gang.ranks.iter().map(|rank| rank.node.clone()));
            Some((rung, u32::try_from(first.ranks.len()).ok()?, nodes.collect()))
        }
        Layout::Unknown | Layout::Pending(_) | Layout::Refused(_) => None,
    }
}

/// A stretch of time in a sentence, no more precise than it is known.
pub(super) fn span(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..120 => format!("{} s", seconds.max(1)),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}
