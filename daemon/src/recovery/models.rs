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
    state::{Job, Node},
};
use crate::{
    fit::{ModelFacts, Workload},
    model::{JobId, JobState, Link, Measurement, Mode, NodeId, Reason},
    planner::{self, Answer, Candidate, Choice, Layout, Limits, NodeInterfaces, Question, Wish, links},
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

/// Models of open jobs, by name and node.
#[derive(Clone, Debug, Default)]
pub(super) struct Models {
    said: BTreeMap<String, BTreeMap<NodeId, (SessionId, Said)>>,
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
}

impl KnownLayout {
    /// Of the files it was made for.
    pub(super) fn fingerprint(&self) -> Option<&str> {
        self.basis.as_ref().map(|basis| basis.fingerprint.as_str())
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
            .map(|job| job.record.spec.model.clone())
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

    /// Links between nodes, derived anew whenever what they say of their interfaces has changed.
    pub(super) fn refresh_links(&mut self, now: Now) {
        let interfaces: Vec<NodeInterfaces> = self
            .nodes
            .values()
            .map(|node| NodeInterfaces {
                node: node.id.clone(),
                boot_id: node.facts.boot_id.clone(),
                interfaces: node.facts.interfaces.clone(),
            })
            .collect();
        let found = links(&interfaces, &self.policy.gang_networks);
        if found != self.links {
            let before = std::mem::replace(&mut self.links, found);
            self.links_version += 1;
            self.on_links(now, &before);
        }
    }

    /// How a job may be spread over the nodes it does not run on.
    pub(super) fn layout(&mut self, now: Now, id: JobId) -> Arc<Layout> {
        let Some(job) = self.jobs.get(&id) else { return Arc::default() };
        let none = BTreeMap::new();
        let said = self.models.said.get(&job.record.spec.model).unwrap_or(&none);
        // Nodes that a plan may count on: a short absence or a back-off changes no plan.
        let counted: Vec<&Node> = self
            .nodes
            .values()
            .filter(|node| !node.silence_answered && !node.draining && node.facts.runtime_problem.is_none())
            .filter(|node| !job.unfit.contains_key(&node.id) && !job.workers.contains_key(&node.id))
            .collect();
        let silent = counted
            .iter()
            .find(|node| node.session.is_some() && matches!(said.get(&node.id), Some((_, Said::Nothing))));
        if let Some(node) = silent {
            let why = format!("{} has not said yet how large the model is there", node.id);
            return Arc::new(Layout::Pending(Reason::new("asking", why)));
        }
        let mut kinds: BTreeMap<&str, (usize, &Arc<ModelFacts>)> = BTreeMap::new();
        for (_, said) in said.values() {
            if let Said::Has { fingerprint, facts } = said {
                kinds.entry(fingerprint).or_insert((0, facts)).0 += 1;
            }
        }
        let best = kinds.into_iter().max_by_key(|(kind, (count, _))| (*count, std::cmp::Reverse(*kind)));
        let Some((fingerprint, (_, facts))) = best else { return Arc::default() };
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
                    candidates.push(Candidate { node: node.id.clone(), budget_bytes });
                }
                (Some((_, Said::Has { .. } | Said::Nothing)), _) | (None, _) => {}
                // It ends with the worker's own words about what is missing there.
                (Some((_, Said::Cannot)), _) => {
                    unknown.insert(node.id.clone());
                }
            }
        }
        let basis = Basis {
            wish: wish(job),
            load: self.load(job, &facts, on_gpus),
            links_version: self.links_version,
            fingerprint,
            candidates,
            unknown,
        };
        self.layout_on(now, id, basis, &facts)
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

    fn layout_on(&mut self, now: Now, id: JobId, basis: Basis, facts: &ModelFacts) -> Arc<Layout> {
        let settle_ms = self.policy.gang_settle_ms;
        let measurements = self.measurements(&basis.fingerprint);
        let links = self.settled_links();
        let unsettled = self.unsettled_reasons(now);
        let Some(job) = self.jobs.get_mut(&id) else { return Arc::default() };
        let is_same = job.layout.basis.as_ref() == Some(&basis);
        if !is_same || job.layout.measurements != measurements {
            let choose_over = |links: &[Link]| {
                planner::choose(&Question {
                    facts,
                    load: basis.load,
                    wish: basis.wish,
                    candidates: &basis.candidates,
                    links,
                    measurements: &measurements,
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
            if !matches!(answer.choice, Choice::Independent(_)) {
                answer.reasons.extend(unsettled.clone());
            }
            let layout = Arc::new(layout_from(answer, facts, &basis.unknown));
            let since_mono_ms = if is_same { job.layout.since_mono_ms } else { now.mono_ms };
            job.layout = KnownLayout { basis: Some(basis), measurements, since_mono_ms, layout };
        }
        // Nodes come one after another: what would be sharded over the first two may fit the third whole.
        let hasty = matches!(*job.layout.layout, Layout::Gangs { .. })
            && now.mono_ms < job.layout.since_mono_ms + settle_ms;
        if hasty {
            let why = "the nodes have only just been seen; a moment is waited for others";
            return Arc::new(Layout::Pending(Reason::new("settling", why)));
        }
        Arc::clone(&job.layout.layout)
    }
}

/// What was asked for; and what runs already is not mixed with another mode.
fn wish(job: &Job) -> Wish {
    let running = job.workers.values().find(|worker| worker.stopping.is_none());
    match (job.record.spec.mode, running) {
        (Some(mode), _) => Wish::Only(mode),
        (None, Some(worker)) if worker.world_size == 1 => Wish::Only(Mode::Independent),
        (None, Some(_)) => Wish::Only(job.gang_mode()),
        (None, None) => Wish::Auto,
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
