//! What runs teach about a model: the answer of one node alone to the canary prompt, and how fast each way of running is.
//!
//! Promises: a speed is taken only from a stretch in which the same workers were busy throughout, with rows left for all;
//! an answer only from a whole model, and it is held against gangs of the same platform alone, so that a different chip
//! cannot stop a night.

use std::collections::BTreeMap;

use super::{
    effect::Effect,
    event::{Now, WorkerPhase},
    machine::Machine,
    state::{Job, Worker},
};
use crate::{
    model::{
        Epoch, JobId, JobState, KnownAnswer, Lap, LearnedModel, Measurement, Mode, NodeId, Pace, Rung,
        Severity, Way, WorkerKey,
    },
    planner::GangPlan,
};

/// How long the same workers must be busy: many batches begin and end meanwhile.
const MEASURED_STRETCH_MS: u64 = 60_000;

/// Models remembered while running; the ledger keeps the newest of them at its next start.
const MOST_MODELS: usize = 256;

/// A stretch under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Stretch {
    since_mono_ms: u64,
    /// Tokens each launch had generated then.
    tokens: BTreeMap<Epoch, u64>,
}

impl Job {
    /// Tokens of each launch, when all that is alive is busy and stays so; `None` otherwise.
    fn busy_launches(&self) -> Option<BTreeMap<Epoch, u64>> {
        let busy = |worker: &Worker| {
            worker.stopping.is_none()
                && matches!(worker.phase, WorkerPhase::Prefill | WorkerPhase::Decode)
                && worker.active_rows > 0
        };
        let serves = self.record.state == JobState::Active && !self.is_adopting() && self.rows_waiting() > 0;
        let mut leads = self.workers.values().filter(|worker| worker.rank == 0).peekable();
        leads.peek()?;
        let all_busy = leads.clone().all(|worker| busy(worker) && self.is_complete(worker.epoch));
        (serves && all_busy).then(|| leads.map(|worker| (worker.epoch, worker.generated_tokens)).collect())
    }

    /// How a worker of it runs; `None` for a gang of which it is not remembered.
    pub(super) fn way_of(&self, worker: &Worker) -> Option<Way> {
        if worker.world_size == 1 {
            return Some(Way { mode: Mode::Independent, backend: None, ranks: 1 });
        }
        let Rung { mode, backend, .. } = worker.rung?;
        Some(Way { mode, backend, ranks: worker.world_size })
    }

    /// How its launches run, when all of them run the same way.
    fn way(&self) -> Option<Way> {
        let mut ways =
            self.workers.values().filter(|worker| worker.rank == 0).map(|worker| self.way_of(worker));
        let first = ways.next()??;
        ways.all(|way| way == Some(first)).then_some(first)
    }
}

impl Machine {
    /// The ledger's memory of models.
    pub(super) fn on_remembered(&mut self, models: Vec<LearnedModel>) {
        self.learned = models.into_iter().map(|model| (model.fingerprint.clone(), model)).collect();
    }

    /// What has been learned of a model.
    #[must_use]
    pub fn learned(&self, fingerprint: &str) -> Option<&LearnedModel> {
        self.learned.get(fingerprint)
    }

    /// What has been learned of all models.
    pub fn all_learned(&self) -> impl Iterator<Item = &LearnedModel> {
        self.learned.values()
    }

    /// How fast it ran, each way that is known.
    pub(super) fn measurements(&self, fingerprint: &str) -> &[Measurement] {
        self.learned(fingerprint).map_or(&[], |model| &model.measurements)
    }

    /// Keeps the answer of a whole model that is on no record yet, and says so when it is not the one on record.
    pub(super) fn learn_answer(&mut self, now: Now, node: &NodeId, key: WorkerKey, tokens: &[u32]) {
        let Some(job) = self.jobs.get(&key.job) else { return };
        let is_whole = job.workers.get(node).is_some_and(|worker| worker.world_size == 1);
        let platform = self.nodes.get(node).map(|node| node.facts.platform.clone()).unwrap_or_default();
        let Some(fingerprint) = self.models.fingerprint(job.model_at(node), node) else { return };
        if !is_whole || tokens.is_empty() || platform.is_empty() {
            return;
        }
        let fingerprint = fingerprint.to_owned();
        let known = self.learned(&fingerprint).and_then(|model| model.known_answer.as_ref());
        if known.is_some_and(|known| known.platform == platform && known.tokens != tokens) {
            let message = format!(
                "{node} answers the canary prompt of {} with other tokens than are on record for the same runtime and \
                 hardware; if it does so again, look at its memory and GPU",
                key.job
            );
            self.emit(Severity::Warning, "canary-differs", Some(node), Some(key.job), message);
            return;
        }
        let answer = KnownAnswer { tokens: tokens.to_vec(), platform };
        self.learn(now, &fingerprint, |model| model.answer(answer));
    }

    /// What the ranks of a pipeline must answer: the very tokens of a whole model on such nodes, where these are known. A
    /// tensor gang adds up in another order, so its ranks are held against one another only.
    pub(super) fn expected_answer(&self, job: JobId, plan: &GangPlan) -> Vec<u32> {
        let known = || {
            let job = self.jobs.get(&job).filter(|_| plan.mode == Mode::Pipeline)?;
            let model = &job.record.spec.model;
            let mut fingerprints = plan.ranks.iter().map(|rank| self.models.fingerprint(model, &rank.node));
            let fingerprint = fingerprints.next()??;
            let known = self.learned(fingerprint)?.known_answer.as_ref()?;
            let same_files = fingerprints.all(|other| other == Some(fingerprint));
            let same_platform = plan.ranks.iter().all(|rank| {
                self.nodes.get(&rank.node).is_some_and(|node| node.facts.platform == known.platform)
            });
            (same_files && same_platform).then(|| known.tokens.clone())
        };
        known().unwrap_or_default()
    }

    /// Begins, goes on with and ends stretches in which speeds are measured.
    pub(super) fn measure_speeds(&mut self, now: Now) {
        let mut found = Vec::new();
        for id in &self.open_jobs {
            let Some(job) = self.jobs.get_mut(id) else { continue };
            let Some(tokens) = job.busy_launches() else {
                job.stretch = None;
                continue;
            };
            let begun = job.stretch.take().filter(|stretch| stretch.tokens.keys().eq(tokens.keys()));
            let stretch = begun.unwrap_or(Stretch { since_mono_ms: now.mono_ms, tokens: tokens.clone() });
            let elapsed_ms = now.mono_ms.saturating_sub(stretch.since_mono_ms);
            if elapsed_ms < MEASURED_STRETCH_MS {
                job.stretch = Some(stretch);
                continue;
            }
            let before: u64 = stretch.tokens.values().sum();
            let generated = tokens.values().sum::<u64>().saturating_sub(before);
            let tokens_per_s = generated * 1_000 / elapsed_ms / tokens.len() as u64;
            let fingerprint = self.models.fingerprint_of(job).map(ToOwned::to_owned);
            if let (Some(way), Some(fingerprint), 1..) = (job.way(), fingerprint, tokens_per_s) {
                let Way { mode, backend, ranks } = way;
                found.push((fingerprint, Measurement { mode, backend, ranks, tokens_per_s }));
            }
        }
        for (fingerprint, measurement) in found {
            self.learn(now, &fingerprint, |model| model.measure(measurement));
        }
    }

    /// Notes how long something took a worker.
    pub(super) fn note_lap(&mut self, now: Now, node: &NodeId, job_id: JobId, lap: Lap) {
        let Some(job) = self.jobs.get(&job_id) else { return };
        let Some(way) = job.workers.get(node).and_then(|worker| job.way_of(worker)) else { return };
        let Some(fingerprint) = self.models.fingerprint(job.model_at(node), node) else { return };
        let fingerprint = fingerprint.to_owned();
        self.learn(now, &fingerprint, |model| model.pass(way, lap));
    }

    /// How long the steps of a worker take, as far as it is known.
    pub(super) fn pace_of(&self, job: &Job, worker: &Worker) -> Option<&Pace> {
        let fingerprint = self.models.fingerprint(job.model_at(&worker.node), &worker.node)?;
        self.learned(fingerprint)?.pace(job.way_of(worker)?)
    }

    fn learn(&mut self, now: Now, fingerprint: &str, lesson: impl FnOnce(&mut LearnedModel) -> bool) {
        if !self.learned.contains_key(fingerprint) && self.learned.len() >= MOST_MODELS {
            return;
        }
        let model =
            self.learned.entry(fingerprint.to_owned()).or_insert_with(|| LearnedModel::new(fingerprint));
        if lesson(model) {
            model.updated_unix_ms = now.unix_ms;
            self.out.push(Effect::RecordModel(Box::new(model.clone())));
        }
    }
}
