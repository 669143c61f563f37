//! What is known of models on nodes, and how jobs may therefore be spread.
//!
//! A node is asked about a job's model once in each connection. Nothing is started before those that are connected have
//! answered: a model of unknown size could take a machine down. A node that has not got the model is treated as one
//! without limits, because a worker started there says what is missing, or fetches it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    effect::Command,
    event::{ModelFound, Now, SessionId},
    machine::Machine,
    rules,
    state::{Job, Node, Worker},
};
use crate::{
    fit::{ModelFacts, Workload},
    model::{JobId, JobState, Link, Measurement, Mode, NodeId, Reason, Rung},
    planner::{
        self, Answer, Candidate, Choice, Layout, Limits, NodeInterfaces, NodePorts, Question, Wish, links,
    },
};

/// Prompt and answer of an ordinary night's row, where neither the job nor its rows say.
const DEFAULT_CONTEXT_TOKENS: u64 = 4_096;

/// Lengths are rounded up to this, in which caches grow, too.
const CONTEXT_STEP_TOKENS: u64 = 256;

/// What a node said of a model.
#[derive(Clone, Debug)]
enum Said {
    /// Not yet. Every agent answers; an answer is only lost with its connection, and then it is asked for again.
    Nothing,
    /// It has the files: these.
    Has { fingerprint: String, facts: Arc<ModelFacts> },
    /// It has not, or they cannot be read; a worker started there would say the same.
    Cannot,
}

/// So much of a fingerprint tells the few kinds of files of one model apart.
const SHORT_FINGERPRINT: usize = 8;

/// The same in a word, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ModelWord<'a> {
    NotAsked,
    Nothing,
    Has(&'a str),
    Cannot,
}

impl<'a> ModelWord<'a> {
    /// Of the files it has.
    pub(super) fn fingerprint(self) -> Option<&'a str> {
        if let Self::Has(fingerprint) = self { Some(fingerprint) } else { None }
    }

    /// `kinds` is how many different files nodes have under the name.
    pub(super) fn words(self, kinds: usize) -> String {
        match self {
            Self::NotAsked => "not asked".to_owned(),
            Self::Nothing => "has not said yet how large it is there".to_owned(),
            Self::Has(_) if kinds < 2 => "has it".to_owned(),
            // Only nodes with the same files work together.
            Self::Has(fingerprint) => {
                format!("has files {}", fingerprint.get(..SHORT_FINGERPRINT).unwrap_or(fingerprint))
            }
            Self::Cannot => "has not got it, or cannot read it; a worker there would say which".to_owned(),
        }
    }
}

/// Models of open jobs, by name and node.
#[derive(Clone, Debug, Default)]
pub(super) struct Models {
    said: BTreeMap<String, BTreeMap<NodeId, (SessionId, Said)>>,
}

/// For what a layout is sought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sought {
    /// The job's own model, on the nodes it does not run on.
    Own,
    /// The same of its fallback model.
    Fallback,
    /// Its own model, as if nothing of the job ran.
    Ideal,
}

/// What a layout was made from: while it stays the same, so does the layout.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Basis {
    fingerprint: String,
    candidates: Vec<Candidate>,
    unknown: BTreeSet<NodeId>,
    wish: Wish,
    load: Workload,
    links_version: u64,
}

/// A layout and what it was made from.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownLayout {
    basis: Option<Basis>,
    measurements: Vec<Measurement>,
    since_mono_ms: u64,
    layout: Arc<Layout>,
}

impl Models {
    /// Of the files a node has under this name.
    pub(super) fn fingerprint(&self, model: &str, node: &NodeId) -> Option<&str> {
        match self.said.get(model)?.get(node)? {
            (_, Said::Has { fingerprint, .. }) => Some(fingerprint),
            (_, Said::Nothing | Said::Cannot) => None,
        }
    }

    /// What a node said of a model.
    pub(super) fn word_on(&self, model: &str, node: &NodeId) -> ModelWord<'_> {
        match self.said.get(model).and_then(|nodes| nodes.get(node)) {
            None => ModelWord::NotAsked,
            Some((_, Said::Nothing)) => ModelWord::Nothing,
            Some((_, Said::Has { fingerprint, .. })) => ModelWord::Has(fingerprint),
            Some((_, Said::Cannot)) => ModelWord::Cannot,
        }
    }

    /// Of the files that a job's workers run.
    pub(super) fn fingerprint_of(&self, job: &Job) -> Option<&str> {
        let lead = job.workers.values().find(|worker| worker.rank == 0 && worker.stopping.is_none())?;
        self.fingerprint(job.model_at(&lead.node), &lead.node)
    }
}

impl Job {
    fn known(&self, sought: Sought) -> &KnownLayout {
        match sought {
            Sought::Own => &self.layout,
            Sought::Fallback => &self.ladder.fallback,
            Sought::Ideal => &self.ladder.ideal,
        }
    }

    fn known_mut(&mut self, sought: Sought) -> &mut KnownLayout {
        match sought {
            Sought::Own => &mut self.layout,
            Sought::Fallback => &mut self.ladder.fallback,
            Sought::Ideal => &mut self.ladder.ideal,
        }
    }
}

impl KnownLayout {
    /// As it was found last.
    pub(super) fn current(&self) -> &Layout {
        &self.layout
    }

    /// Whether the job could have a worker, or a rank, on this node.
    pub(super) fn admits(&self, node: &NodeId) -> bool {
        match self.layout.as_ref() {
            Layout::Gangs { gangs, .. } => {
                gangs.iter().any(|gang| gang.ranks.iter().any(|rank| rank.node == *node))
            }
            layout => layout.admits_whole(node),
        }
    }
}

impl Machine {
    pub(super) fn on_model_found(
        &mut self,
        node: &NodeId,
        session: SessionId,
        model: &str,
        found: ModelFound,
    ) {
        let Some((asked, said)) = self.models.said.get_mut(model).and_then(|nodes| nodes.get_mut(node))
        else {
            return;
        };
        if *asked == session {
            *said = match found {
                ModelFound::Files { fingerprint, facts } => Said::Has { fingerprint, facts },
                ModelFound::Problem => Said::Cannot,
            };
        }
    }

    /// Asks every node that could be used about the models of jobs that want to run, and forgets what nobody wants.
    pub(super) fn ask_about_models(&mut self) {
        let wanted: BTreeSet<String> = self
            .open_jobs
            .iter()
            .filter_map(|id| self.jobs.get(id))
            .filter(|job| job.record.state == JobState::Active)
            .flat_map(|job| {
                let spec = &job.record.spec;
                [Some(&spec.model), spec.fallback_model.as_ref()].into_iter().flatten().cloned()
            })
            .collect();
        self.models.said.retain(|model, _| wanted.contains(model));
        let mut questions = Vec::new();
        for model in wanted {
            let said = self.models.said.entry(model.clone()).or_default();
            for node in self.nodes.values() {
                let Some(session) = node.session.as_ref().filter(|session| session.replaying.is_none())
                else {
                    continue;
                };
                if said.get(&node.id).is_none_or(|(asked, _)| *asked != session.id) {
                    said.insert(node.id.clone(), (session.id, Said::Nothing));
                    questions.push((node.id.clone(), model.clone()));
                }
            }
        }
        for (node, model) in questions {
            self.send(&node, Command::InspectModel { model });
        }
    }

    /// Links between nodes and where these can be met, derived anew whenever what they say of their interfaces has changed.
    pub(super) fn refresh_links(&mut self, now: Now) {
        for node in self.nodes.values_mut() {
            node.networks = planner::meeting_networks(&node.facts.interfaces, &node.facts.thunderbolt);
        }
        let interfaces: Vec<NodeInterfaces> = self
            .nodes
            .values()
            .map(|node| NodeInterfaces {
                node: node.id.clone(),
                boot_id: node.facts.boot_id.clone(),
                interfaces: node.facts.interfaces.clone(),
                thunderbolt: node.facts.thunderbolt.clone(),
            })
            .collect();
        let found = links(&interfaces, &self.policy.gang_networks, self.policy.gang_rdma);
        let ports: Vec<NodePorts<'_>> = interfaces.iter().map(NodeInterfaces::ports).collect();
        let cables = planner::cables(&ports);
        self.links_version += u64::from(found != self.links || cables != self.cables);
        self.cables = cables;
        if found != self.links {
            let before = std::mem::replace(&mut self.links, found);
            self.on_links(now, &before);
        }
    }

    /// How a job may be spread over the nodes it does not run on, and with which model.
    pub(super) fn layout(&mut self, now: Now, id: JobId) -> Arc<Layout> {
        let Some(job) = self.jobs.get_mut(&id) else { return Arc::default() };
        if job.ladder.climb.is_some() && !job.workers.is_empty() {
            let why = "its workers are ending, for a better way to run it";
            return Arc::new(Layout::Pending(Reason::new("climbing", why)));
        }
        job.takes_fallback = job.rung().is_some_and(|rung| rung.fallback);
        if job.takes_fallback {
            return self.found(now, id, Sought::Fallback);
        }
        let own = self.found(now, id, Sought::Own);
        let Some(job) = self.jobs.get_mut(&id) else { return own };
        if job.workers.is_empty() && matches!(*own, Layout::Pending(_)) {
            // Whether it can run is about to be known; how long it could not goes on.
            return own;
        }
        let refused = match own.as_ref() {
            Layout::Refused(reasons) if job.workers.is_empty() => Some(reasons),
            _ => None,
        };
        let stranded_ms = job.ladder.note_stranded(now, refused.is_some());
        let Some((reasons, stranded_ms)) = refused.zip(stranded_ms) else { return own };
        let why = reasons.first().map_or("", |reason| reason.text.as_str());
        let (is_time, reason) = self.fallback_reason(id, stranded_ms, why);
        let Some(reason) = reason else { return own };
        if !is_time {
            let with_notice = reasons.iter().cloned().chain([reason]).collect();
            return Arc::new(Layout::Refused(with_notice));
        }
        let fallback = self.found(now, id, Sought::Fallback);
        match fallback.as_ref() {
            Layout::Independent { nodes, limits, reasons } => {
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.takes_fallback = true;
                }
                let reasons = [reason].into_iter().chain(reasons.iter().cloned()).collect();
                Arc::new(Layout::Independent { nodes: nodes.clone(), limits: *limits, reasons })
            }
            Layout::Pending(_) => fallback,
            Layout::Refused(of_fallback) => {
                let told = of_fallback.iter().map(|reason| Reason {
                    text: format!("the fallback model cannot run either: {}", reason.text),
                    ..reason.clone()
                });
                Arc::new(Layout::Refused(reasons.iter().cloned().chain(told).collect()))
            }
            Layout::Unknown | Layout::Gangs { .. } => own,
        }
    }

    /// How a job would run with its own model if nothing of it ran; `None` where that is not known now.
    pub(super) fn ideal(&mut self, now: Now, id: JobId) -> Option<Arc<Layout>> {
        let layout = self.found(now, id, Sought::Ideal);
        (!matches!(*layout, Layout::Pending(_))).then_some(layout)
    }

    /// Nodes that a plan may count on.
    fn counted(&self, now: Now, job: &Job, sought: Sought) -> Vec<&Node> {
        let unfit = if sought == Sought::Fallback { &job.fallback_unfit } else { &job.unfit };
        let is_ending = |worker: &Worker| worker.stopping.is_some();
        let may = |node: &&Node| {
            if unfit.contains_key(&node.id) {
                return false;
            }
            // A short absence or a back-off changes no plan.
            let is_about =
                !node.silence.is_answered() && !node.draining && node.facts.runtime_problem.is_none();
            match sought {
                // Where a worker is ending there is room in a moment.
                Sought::Own | Sought::Fallback => is_about && job.workers.get(&node.id).is_none_or(is_ending),
                // Nothing that works is given up for a node that may not come.
                Sought::Ideal => {
                    let is_ours = job.workers.contains_key(&node.id);
                    let is_barred = job
                        .backoff
                        .get(&node.id)
                        .is_some_and(|backoff| backoff.not_before_mono_ms > now.mono_ms);
                    let is_free = || !self.jobs.values().any(|job| job.workers.contains_key(&node.id));
                    node.unusable(now).is_none() && (is_ours || (!is_barred && is_free()))
                }
            }
        };
        self.nodes.values().filter(may).collect()
    }

    fn found(&mut self, now: Now, id: JobId, sought: Sought) -> Arc<Layout> {
        let Some(job) = self.jobs.get(&id) else { return Arc::default() };
        let counted = self.counted(now, job, sought);
        match self.basis(job, counted, sought) {
            Ok((basis, facts)) => self.layout_on(now, id, sought, basis, &facts),
            Err(layout) => Arc::new(layout),
        }
    }

    fn basis(
        &self,
        job: &Job,
        counted: Vec<&Node>,
        sought: Sought,
    ) -> Result<(Basis, Arc<ModelFacts>), Layout> {
        let model = job.model_on(Rung::independent(sought == Sought::Fallback));
        let none = BTreeMap::new();
        let said = self.models.said.get(model).unwrap_or(&none);
        let silent = counted
            .iter()
            .find(|node| node.session.is_some() && matches!(said.get(&node.id), Some((_, Said::Nothing))));
        if let Some(node) = silent {
            let why = format!("{} has not said yet how large the model is there", node.id);
            return Err(Layout::Pending(Reason::new("asking", why)));
        }
        let mut kinds: BTreeMap<&str, (usize, &Arc<ModelFacts>)> = BTreeMap::new();
        for (_, said) in said.values() {
            if let Said::Has { fingerprint, facts } = said {
                kinds.entry(fingerprint).or_insert((0, facts)).0 += 1;
            }
        }
        let best = kinds.into_iter().max_by_key(|(kind, (count, _))| (*count, std::cmp::Reverse(*kind)));
        let Some((fingerprint, (_, facts))) = best else { return Err(Layout::Unknown) };
        let (fingerprint, facts) = (fingerprint.to_owned(), Arc::clone(facts));
        let on_gpus = counted.iter().all(|node| node.facts.memory.has_metal);
        let max_batch_rows = job.record.spec.settings(&self.policy).max_batch_rows;
        let mut candidates = Vec::new();
        let mut unknown = BTreeSet::new();
        for node in counted {
            match (said.get(&node.id), node.facts.memory.budget()) {
                (Some((_, Said::Has { fingerprint: of_node, .. })), Some(budget))
                    if *of_node == fingerprint =>
                {
                    let ran_out = job.out_of_memory.get(&node.id).copied().unwrap_or(0);
                    let trusted = rules::trusted_percent(ran_out, max_batch_rows);
                    let budget_bytes = budget.bytes / 100 * trusted;
                    candidates.push(Candidate {
                        node: node.id.clone(),
                        budget_bytes,
                        networks: node.networks.clone(),
                    });
                }
                (Some((_, Said::Has { .. } | Said::Nothing)), _) | (None, _) => {}
                // It ends with the worker's own words about what is missing there.
                (Some((_, Said::Cannot)), _) => {
                    unknown.insert(node.id.clone());
                }
            }
        }
        let basis = Basis {
            wish: wish(job, sought),
            load: self.load(job, &facts, on_gpus),
            links_version: self.links_version,
            fingerprint,
            candidates,
            unknown,
        };
        Ok((basis, facts))
    }

    fn load(&self, job: &Job, facts: &ModelFacts, on_gpu: bool) -> Workload {
        let settings = job.record.spec.settings(&self.policy);
        let most = facts.context_tokens.unwrap_or(u64::MAX);
        let longest = job.record.lengths.longest_tokens(u64::from(settings.default_max_tokens));
        Workload {
            rows: u64::from(settings.max_batch_rows),
            context_tokens: match job.record.spec.context_tokens {
                // Rows that are longer than the model can take are refused by the worker.
                0 => longest
                    .unwrap_or(DEFAULT_CONTEXT_TOKENS)
                    .div_ceil(CONTEXT_STEP_TOKENS)
                    .saturating_mul(CONTEXT_STEP_TOKENS)
                    .min(most),
                given => given,
            },
            prefill_rows: u64::from(settings.prefill_batch_rows),
            prefill_step_tokens: u64::from(settings.prefill_step_tokens),
            on_gpu,
        }
    }

    fn choose_layout(&self, now: Now, basis: &Basis, facts: &ModelFacts) -> Layout {
        let links = self.settled_links();
        let choose_over = |links: &[Link]| {
            planner::choose(&Question {
                facts,
                load: basis.load,
                wish: basis.wish,
                candidates: &basis.candidates,
                links,
                measurements: self.measurements(&basis.fingerprint),
                most_gangs: basis.candidates.len(),
            })
        };
        let without = self.unmet.avoided(&links).map(|links| choose_over(&links));
        let mut answer = match without {
            Some(mut answer) if !matches!(answer.choice, Choice::Refused { .. }) => {
                answer.reasons.extend(self.unmet.reasons());
                answer
            }
            _ => choose_over(&links),
        };
        if basis.wish.asked_for().is_some() || !matches!(answer.choice, Choice::Independent(_)) {
            answer.reasons.extend(self.unused_links(now, &basis.nodes()));
        }
        layout_from(answer, facts, &basis.unknown)
    }

    fn layout_on(
        &mut self,
        now: Now,
        id: JobId,
        sought: Sought,
        basis: Basis,
        facts: &ModelFacts,
    ) -> Arc<Layout> {
        let wish = basis.wish;
        let Some(known) = self.jobs.get(&id).map(|job| job.known(sought)) else { return Arc::default() };
        let is_same = known.basis.as_ref() == Some(&basis);
        if !is_same || known.measurements != self.measurements(&basis.fingerprint) {
            let since_mono_ms = if is_same { known.since_mono_ms } else { now.mono_ms };
            let layout = Arc::new(self.choose_layout(now, &basis, facts));
            let measurements = self.measurements(&basis.fingerprint).to_vec();
            if let Some(job) = self.jobs.get_mut(&id) {
                *job.known_mut(sought) =
                    KnownLayout { basis: Some(basis), measurements, since_mono_ms, layout };
            }
        }
        let Some(known) = self.jobs.get(&id).map(|job| job.known(sought)) else { return Arc::default() };
        let (layout, since_mono_ms) = (Arc::clone(&known.layout), known.since_mono_ms);
        if sought == Sought::Ideal {
            // It must hold for longer than this anyway.
            return layout;
        }
        // Nodes come one after another: what would be sharded over the first two may fit the third whole.
        let settled_mono_ms = since_mono_ms + self.policy.gang_settle_ms;
        if matches!(*layout, Layout::Gangs { .. }) && now.mono_ms < settled_mono_ms {
            let why = "the nodes have only just been seen; a moment is waited for others";
            return Arc::new(Layout::Pending(Reason::new("settling", why)));
        }
        let is_lower = match (wish, layout.as_ref()) {
            (Wish::Prefer(mode), Layout::Gangs { gangs, .. }) => gangs.iter().any(|gang| gang.mode != mode),
            (Wish::Prefer(_), Layout::Independent { .. }) => true,
            _ => false,
        };
        let candidates = known.basis.as_ref().map(Basis::nodes).unwrap_or_default();
        // A gang over less than it could have would be loaded twice, and what cannot run yet may in a moment.
        if (is_lower || matches!(*layout, Layout::Gangs { .. } | Layout::Refused(_)))
            && let Some(reason) = self.waits_for_test(&candidates)
        {
            return Arc::new(Layout::Pending(reason));
        }
        let waits_for =
            is_lower.then(|| self.worth_waiting_for(now, id, &candidates, since_mono_ms)).flatten();
        waits_for.map_or(layout, |reason| Arc::new(Layout::Pending(reason)))
    }
}

impl Basis {
    fn nodes(&self) -> BTreeSet<NodeId> {
        self.candidates.iter().map(|candidate| candidate.node.clone()).collect()
    }
}

/// What was asked for; and what runs already is not mixed with another mode.
fn wish(job: &Job, sought: Sought) -> Wish {
    let running = job.workers.values().find(|worker| worker.stopping.is_none());
    match (sought, running, job.record.spec.mode) {
        (Sought::Fallback, ..) | (_, None, Some(Mode::Independent)) => Wish::Only(Mode::Independent),
        (Sought::Own, Some(worker), asked) => match worker.rung {
            Some(rung) => Wish::Only(rung.mode),
            None if worker.world_size == 1 => Wish::Only(Mode::Independent),
            None => Wish::Only(asked.unwrap_or(Mode::Pipeline)),
        },
        (Sought::Ideal, Some(_), Some(Mode::Independent)) => Wish::Only(Mode::Independent),
        (_, _, Some(mode)) => Wish::Prefer(mode),
        (_, _, None) => Wish::Auto,
    }
}

fn layout_from(answer: Answer, facts: &ModelFacts, unknown: &BTreeSet<NodeId>) -> Layout {
    let limits = Limits::from(answer.load);
    let load = answer.load;
    let mut reasons = answer.reasons;
    reasons.push(Reason::new(
        "planned-for",
        format!("counted for {} rows together, each of {} tokens", load.rows, load.context_tokens),
    ));
    match answer.choice {
        Choice::Independent(nodes) => Layout::Independent {
            nodes: nodes.into_iter().map(|(node, _)| node).chain(unknown.iter().cloned()).collect(),
            limits,
            reasons,
        },
        Choice::Gangs(gangs) => Layout::Gangs {
            gangs,
            layers: u32::try_from(facts.layers.len()).unwrap_or(u32::MAX),
            limits,
            reasons,
        },
        // Without a candidate nobody knows better: workers say what is wrong.
        Choice::Refused { best_try, .. } if best_try.is_empty() => Layout::Unknown,
        Choice::Refused { .. } => Layout::Refused(reasons),
    }
}
