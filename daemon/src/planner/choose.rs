//! How one model is to run on these nodes: whole on each, or sharded over several.
//!
//! Rules, in this order:
//! 1. What somebody asked for by name (`--mode`) is tried, and nothing else.
//! 2. What fits one node runs whole on every node it fits: the link is a hundred times slower than memory. Where it fits
//!    only with fewer rows together, it does so as long as no fewer rows are at work in all than in a pipeline: a step
//!    costs about the same however many rows it is for.
//! 3. What does not is a pipeline over the fewest nodes that hold it and form a ring of allowed links.
//! 4. Tensor takes the pipeline's place only where RDMA joins every pair and this cluster has measured it to be faster.
//! 5. Measurements of this cluster outrank rules 2 to 4.
//!
//! Promises: no part is over its node's budget; equal inputs give equal choices; every choice and refusal says why.

use core::net::IpAddr;
use std::collections::BTreeMap;

use super::rings::find_ring;
use crate::{
    fit::{self, Advice, ModelFacts, Stage, Verdict, Workload},
    model::{Backend, Link, LinkKind, Mode, NodeId, Reason},
};

/// A measured mode takes another's place only from this much more speed on: below, a night would be spent reloading.
const WORTH_CHANGING_PERCENT: u64 = 10;

/// Combinations of nodes looked at for each number of ranks. All of them for eight nodes and fewer.
const MOST_COMBINATIONS: usize = 512;

/// Up to so many nodes every combination is tried; among more, one that is joined and too small ends the search for its
/// number of ranks, because candidates come largest first.
const TRY_ALL_NODES: usize = 8;

/// Places in a ring tried as rank 0.
const MOST_STARTS: usize = 8;

/// JACCL's own limit for a full mesh (FIELD-NOTES 1).
const MOST_MESH_RANKS: usize = 8;

/// What a person may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wish {
    /// Whatever the rules say.
    #[default]
    Auto,
    /// One mode and no other.
    Only(Mode),
}

/// A node that could take part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Its name.
    pub node: NodeId,
    /// What it has for a model.
    pub budget_bytes: u64,
}

/// How fast a model ran once on this cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Measurement {
    /// In which mode.
    pub mode: Mode,
    /// Over what; `None` for independent workers.
    pub backend: Option<Backend>,
    /// On how many nodes.
    pub nodes: u64,
    /// All nodes together.
    pub tokens_per_s: u64,
}

/// What is to be decided.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The model.
    pub facts: &'a ModelFacts,
    /// What each worker, or each gang, is to carry. Its rows are a wish: halves of them are tried where all do not fit.
    pub load: Workload,
    /// What was asked for.
    pub wish: Wish,
    /// Nodes that may be used.
    pub candidates: &'a [Candidate],
    /// Links that may be used.
    pub links: &'a [Link],
    /// Of this model on this cluster.
    pub measurements: &'a [Measurement],
    /// Gangs there is work for.
    pub most_gangs: usize,
}

/// A rank of a gang.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RankPlan {
    /// Where it runs.
    pub node: NodeId,
    /// Its layers and what they need.
    pub stage: Stage,
    /// Where it listens for the rank before it (ring).
    pub ring_address: Option<IpAddr>,
    /// Where rank 0 is, seen from here; rank 0's own entry is empty.
    pub control_address: Option<IpAddr>,
    /// Devices towards every rank, `None` for itself and where there is none (RDMA).
    pub rdma_devices: Vec<Option<String>>,
}

/// One sharded worker: its ranks in order. Rank 0 has the last layers and the head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GangPlan {
    /// Pipeline or tensor.
    pub mode: Mode,
    /// Over what.
    pub backend: Backend,
    /// What its links run over, the least of them.
    pub link_kind: LinkKind,
    /// Rank 0 first.
    pub ranks: Vec<RankPlan>,
}

/// What was decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// One worker with the whole model on each of these.
    Independent(Vec<(NodeId, Stage)>),
    /// These gangs.
    Gangs(Vec<GangPlan>),
    /// It cannot run.
    Refused {
        /// The best try: the part of each node that would have had one, which does not fit everywhere.
        best_try: Vec<(NodeId, Stage)>,
        /// How far off.
        verdict: Verdict,
        /// What would help.
        advice: Vec<Advice>,
    },
}

/// A mode that was looked at, and what became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alternative {
    /// Which.
    pub mode: Mode,
    /// Whether it was chosen.
    pub chosen: bool,
    /// Why, or why not.
    pub why: String,
}

/// The decision with everything that led to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// What was decided.
    pub choice: Choice,
    /// Rows together in each worker, or each gang.
    pub rows: u64,
    /// Why, the most important first.
    pub reasons: Vec<Reason>,
    /// One for each mode.
    pub alternatives: Vec<Alternative>,
    /// The most rows that fit together in what was chosen, at the context asked for.
    pub largest_rows: u64,
    /// The largest context that fits in what was chosen, for the rows asked for.
    pub largest_context_tokens: u64,
}

/// Decides. Cost: combinations of nodes × layers.
#[must_use]
pub fn choose(question: &Question<'_>) -> Answer {
    let mut candidates: Vec<&Candidate> = question.candidates.iter().filter(|c| c.budget_bytes > 0).collect();
    candidates.sort_by(|a, b| b.budget_bytes.cmp(&a.budget_bytes).then_with(|| a.node.cmp(&b.node)));
    let shown = |mode| match question.wish {
        Wish::Auto => true,
        Wish::Only(wished) => wished == mode,
    };
    let ways = Ways::new(question.links);
    let options = [Mode::Independent, Mode::Pipeline, Mode::Tensor]
        .map(|mode| option(question, &ways, &candidates, mode));
    let by_rule = match question.wish {
        Wish::Only(mode) => options.iter().position(|option| option.mode == mode && option.choice.is_some()),
        Wish::Auto => (0..options.len())
            .filter(|index| options[*index].choice.is_some() && options[*index].by_rule)
            .max_by_key(|index| (options[*index].rows_at_work(), usize::MAX - index)),
    };
    let chosen = match (question.wish, by_rule) {
        (Wish::Auto, Some(by_rule)) => faster(question, &options, by_rule).unwrap_or(by_rule),
        (_, Some(by_rule)) => by_rule,
        (_, None) => return refusal(question, &candidates, &options),
    };
    let mut reasons = Vec::new();
    if let Wish::Only(mode) = question.wish {
        reasons.push(Reason::new("asked-for", format!("{} was asked for", mode.word())));
    }
    let rows = options[chosen].rows;
    if by_rule != Some(chosen)
        && let Some(speed) = measured(question, options[chosen].mode)
    {
        let instead = by_rule.map_or(Mode::Independent, |by_rule| options[by_rule].mode);
        reasons.push(Reason::new(
            "measured",
            format!(
                "{} is measured on this cluster at {speed} tokens/s, faster than {}",
                options[chosen].mode.word(),
                instead.word()
            ),
        ));
    }
    if rows < question.load.rows {
        reasons.push(Reason::new(
            "fewer-rows",
            format!(
                "{rows} rows of {} tokens together rather than {}: more do not fit",
                question.load.context_tokens, question.load.rows
            ),
        ));
    }
    let alternatives = options
        .iter()
        .enumerate()
        .map(|(index, option)| Alternative {
            mode: option.mode,
            chosen: index == chosen,
            why: match (index == chosen, shown(option.mode), &option.choice) {
                (true, ..) | (_, true, None) => option.why.clone(),
                (false, false, _) => format!("not asked for; {}", option.why),
                (false, true, Some(_))
                    if option.by_rule && option.rows_at_work() < options[chosen].rows_at_work() =>
                {
                    format!(
                        "{}; that is {} rows at work, not {}",
                        option.why,
                        option.rows_at_work(),
                        options[chosen].rows_at_work()
                    )
                }
                (false, true, Some(_)) if option.by_rule => format!("not needed; {}", option.why),
                (false, true, Some(_)) => option.why.clone(),
            },
        })
        .collect();
    let option = options.into_iter().nth(chosen);
    let (choice, more) =
        option.and_then(|option| Some((option.choice?, option.reasons))).unwrap_or_else(|| {
            // Only options with a choice are chosen.
            (Choice::Independent(Vec::new()), Vec::new())
        });
    reasons.extend(more);
    let fits = |load: &Workload| holds(question.facts, load, &choice);
    Answer {
        largest_rows: fit::largest_rows(&question.load, fits),
        largest_context_tokens: fit::largest_context(
            &Workload { rows, ..question.load },
            question.facts.context_tokens,
            fits,
        ),
        choice,
        rows,
        reasons,
        alternatives,
    }
}

/// A mode with as many rows together as it can carry, the wish halved as often as it takes.
fn option(question: &Question<'_>, ways: &Ways<'_>, candidates: &[&Candidate], mode: Mode) -> Candidature {
    let mut rows = question.load.rows.max(1);
    loop {
        let question = Question { load: Workload { rows, ..question.load }, ..*question };
        let found = match mode {
            Mode::Independent => independent(&question, candidates),
            Mode::Pipeline | Mode::Tensor => sharded(&question, ways, candidates, mode),
        };
        if found.choice.is_some() || rows == 1 {
            return Candidature { rows, ..found };
        }
        rows /= 2;
    }
}

struct Candidature {
    mode: Mode,
    choice: Option<Choice>,
    /// Together, in each worker or gang.
    rows: u64,
    /// Whether rules 2 to 4 would take it, without a measurement.
    by_rule: bool,
    reasons: Vec<Reason>,
    why: String,
}

impl Candidature {
    /// Rows being generated in all.
    fn rows_at_work(&self) -> u64 {
        let workers = match &self.choice {
            Some(Choice::Independent(nodes)) => nodes.len(),
            Some(Choice::Gangs(gangs)) => gangs.len(),
            Some(Choice::Refused { .. }) | None => 0,
        };
        self.rows * workers as u64
    }
}

fn independent(question: &Question<'_>, candidates: &[&Candidate]) -> Candidature {
    let mode = Mode::Independent;
    let all: Vec<(NodeId, Stage)> = candidates
        .iter()
        .map(|candidate| {
            (candidate.node.clone(), question.facts.alone(&question.load, candidate.budget_bytes))
        })
        .collect();
    let (mut fitting, too_small): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(_, stage)| stage.free_bytes() >= 0);
    fitting.sort_by(|a, b| a.0.cmp(&b.0));
    let Some((_, first)) = fitting.first() else {
        let why = match too_small.first() {
            None => "there is no node to run on".to_owned(),
            Some((node, stage)) => format!(
                "no node holds it whole: it needs {}, and the largest budget is {} on {node}",
                gigabytes(stage.need.total()),
                gigabytes(stage.budget_bytes)
            ),
        };
        return Candidature { mode, choice: None, rows: 0, by_rule: true, reasons: Vec::new(), why };
    };
    let need = gigabytes(first.need.total());
    let why = match fitting.len() {
        1 => format!("it fits one node whole ({need}), on {}", fitting[0].0),
        count => format!("it fits one node whole ({need}), on each of {count}"),
    };
    let mut reasons = vec![Reason::new(
        "fits-one-node",
        format!(
            "{why}: whole models answer rows faster than a sharded one, because the link is far slower than memory"
        ),
    )];
    for (node, stage) in &too_small {
        reasons.push(Reason::of(
            "too-small",
            node,
            format!(
                "not on {node}: it needs {need} there, and the budget is {}",
                gigabytes(stage.budget_bytes)
            ),
        ));
    }
    Candidature { mode, choice: Some(Choice::Independent(fitting)), rows: 0, by_rule: true, reasons, why }
}

fn sharded(question: &Question<'_>, ways: &Ways<'_>, candidates: &[&Candidate], mode: Mode) -> Candidature {
    let refused =
        |why: String| Candidature { mode, choice: None, rows: 0, by_rule: true, reasons: Vec::new(), why };
    if candidates.len() < 2 {
        return refused("it takes two nodes at least".to_owned());
    }
    let mut left: Vec<&Candidate> = candidates.to_vec();
    let mut gangs: Vec<GangPlan> = Vec::new();
    let mut obstacle = None;
    while gangs.len() < question.most_gangs.max(1) {
        match one_gang(question, ways, &left, mode) {
            Ok(gang) => {
                left.retain(|candidate| gang.ranks.iter().all(|rank| rank.node != candidate.node));
                gangs.push(gang);
            }
            Err(why) => {
                obstacle.get_or_insert(why);
                break;
            }
        }
    }
    let Some(first) = gangs.first() else { return refused(obstacle.unwrap_or_default()) };
    let ranks = first.ranks.len();
    let backend = first.backend;
    let over = match (backend, first.link_kind) {
        (Backend::Jaccl, _) => "RDMA between every pair",
        (Backend::JacclRing, _) => "RDMA around the ring",
        (Backend::Ring, LinkKind::Thunderbolt) => "TCP over Thunderbolt",
        (Backend::Ring, LinkKind::Network) => "TCP over an allowed network",
        (Backend::Ring, LinkKind::Loopback) => "TCP on one machine",
    };
    let mut reasons = Vec::new();
    let largest = candidates[0];
    let alone = question.facts.alone(&question.load, largest.budget_bytes);
    if alone.free_bytes() < 0 {
        reasons.push(Reason::new(
            "too-big-for-one",
            format!(
                "no node holds it whole: it needs {}, and the largest budget is {} on {}",
                gigabytes(alone.need.total()),
                gigabytes(largest.budget_bytes),
                largest.node
            ),
        ));
    }
    reasons.push(Reason::new(
        "fewest-nodes",
        match gangs.len() {
            1 => format!("{ranks} nodes are the fewest that hold it and can reach one another"),
            count => format!("{ranks} nodes are the fewest that hold it, which makes {count} gangs"),
        },
    ));
    reasons.push(Reason::new("backend", format!("{} ({over})", backend.word())));
    for rank in gangs.iter().flat_map(|gang| &gang.ranks) {
        let stage = &rank.stage;
        let part = match mode {
            Mode::Pipeline => format!("layers {} to {}", stage.span.first, stage.span.end - 1),
            _ => format!("1/{ranks} of every layer"),
        };
        reasons.push(Reason::of(
            "share",
            &rank.node,
            format!(
                "{}: {part}, {} of a budget of {}",
                rank.node,
                gigabytes(stage.need.total()),
                gigabytes(stage.budget_bytes)
            ),
        ));
    }
    // Rule 4: tensor by rule needs both the mesh and a measurement, and then rule 5 speaks.
    let by_rule = mode == Mode::Pipeline;
    let why = match mode {
        Mode::Tensor if backend != Backend::Jaccl => {
            format!(
                "it fits {ranks} nodes, but without RDMA between every pair it would wait for the link in each layer"
            )
        }
        Mode::Tensor => {
            format!("it fits {ranks} nodes, but is not measured to be faster than the pipeline here")
        }
        _ => format!("it fits {ranks} nodes, {} ({over})", backend.word()),
    };
    Candidature { mode, choice: Some(Choice::Gangs(gangs)), rows: 0, by_rule, reasons, why }
}

/// The first gang of as few nodes as possible; candidates come largest first. The error says why there is none.
fn one_gang(
    question: &Question<'_>,
    ways: &Ways<'_>,
    candidates: &[&Candidate],
    mode: Mode,
) -> Result<GangPlan, String> {
    let mut obstacle = None;
    let mut unreachable = None;
    let most = candidates.len().min(question.facts.layers.len());
    for count in 2..=most {
        if mode == Mode::Tensor
            && let Some(why) = fit::tensor_obstacle(question.facts, count as u64)
        {
            obstacle.get_or_insert(why);
            continue;
        }
        let memory: Vec<u64> = candidates[..count].iter().map(|candidate| candidate.budget_bytes).collect();
        // The largest ones in any order: if these are too small, no others will do.
        if !memory_suffices(question, &memory, mode) {
            continue;
        }
        for combination in combinations(candidates.len(), count).take(MOST_COMBINATIONS) {
            let chosen: Vec<&Candidate> = combination.iter().map(|index| candidates[*index]).collect();
            let Some((backend, ring)) = backend_of(&chosen, ways) else {
                unreachable.get_or_insert_with(|| names(&chosen));
                continue;
            };
            let ring: Vec<&Candidate> = ring.into_iter().map(|index| chosen[index]).collect();
            if let Some(gang) = arrange(question, ways, &ring, backend, mode) {
                return Ok(gang);
            }
            if candidates.len() > TRY_ALL_NODES {
                break;
            }
        }
    }
    Err(if let Some(names) = unreachable {
        format!("no allowed links join {names} into a ring with one node that reaches all")
    } else if let Some(why) = obstacle {
        why
    } else {
        let total: u64 = candidates.iter().map(|candidate| candidate.budget_bytes).sum();
        format!(
            "{} nodes together do not hold it: {} of weights alone, and budgets of {} in all, each of which has to hold \
             its own part with caches and all",
            candidates.len(),
            gigabytes(question.facts.weight_bytes()),
            gigabytes(total)
        )
    })
}

/// A quick test before links are looked at: could any order of nodes at least as large as these hold it?
fn memory_suffices(question: &Question<'_>, budgets: &[u64], mode: Mode) -> bool {
    match mode {
        Mode::Tensor => {
            let smallest = budgets.iter().copied().min().unwrap_or(0);
            question.facts.divided(budgets.len() as u64, &question.load, smallest).free_bytes() >= 0
        }
        _ => {
            budgets.iter().map(|budget| u128::from(*budget)).sum::<u128>()
                >= u128::from(question.facts.weight_bytes())
        }
    }
}

/// Puts the nodes of a ring in order and gives each its part. The largest node is rank 0, where the head, the logits and
/// the text work are, unless only another reaches all ranks.
fn arrange(
    question: &Question<'_>,
    ways: &Ways<'_>,
    ring: &[&Candidate],
    backend: Backend,
    mode: Mode,
) -> Option<GangPlan> {
    let count = ring.len();
    let reaches_all = |index: usize| {
        (0..count).all(|other| other == index || ways.link(ring[index], ring[other]).is_some())
    };
    let mut starts: Vec<usize> = (0..count).filter(|index| reaches_all(*index)).collect();
    starts.sort_by(|a, b| {
        ring[*b].budget_bytes.cmp(&ring[*a].budget_bytes).then_with(|| ring[*a].node.cmp(&ring[*b].node))
    });
    for start in starts.into_iter().take(MOST_STARTS) {
        let by_rank: Vec<&Candidate> = (0..count).map(|rank| ring[(start + rank) % count]).collect();
        let stages = match mode {
            Mode::Pipeline => {
                let budgets: Vec<u64> =
                    by_rank.iter().rev().map(|candidate| candidate.budget_bytes).collect();
                if !fit::can_hold(question.facts, &question.load, &budgets) {
                    continue;
                }
                let mut stages = fit::split(question.facts, &question.load, &budgets)?;
                stages.reverse();
                stages
            }
            _ => by_rank
                .iter()
                .map(|candidate| question.facts.divided(count as u64, &question.load, candidate.budget_bytes))
                .collect(),
        };
        if stages.iter().all(|stage| stage.free_bytes() >= 0) {
            return Some(gang(ways, &by_rank, stages, backend, mode));
        }
    }
    None
}

fn gang(
    ways: &Ways<'_>,
    by_rank: &[&Candidate],
    stages: Vec<Stage>,
    backend: Backend,
    mode: Mode,
) -> GangPlan {
    let count = by_rank.len();
    let address_at = |rank: usize, other: usize| {
        let end = ways.link(by_rank[rank], by_rank[other])?.end_at(&by_rank[rank].node)?;
        Some(end.address)
    };
    let ranks = stages
        .into_iter()
        .enumerate()
        .map(|(rank, stage)| RankPlan {
            node: by_rank[rank].node.clone(),
            stage,
            // A rank connects to the next one and listens for the one before it.
            ring_address: address_at(rank, (rank + count - 1) % count),
            control_address: if rank == 0 { None } else { address_at(0, rank) },
            rdma_devices: (0..count)
                .map(|other| {
                    let link = ways.link(by_rank[rank], by_rank[other]).filter(|_| other != rank)?;
                    link.end_at(&by_rank[rank].node)?.rdma_device.clone()
                })
                .collect(),
        })
        .collect();
    let link_kind = (0..count)
        .filter_map(|rank| ways.link(by_rank[rank], by_rank[(rank + 1) % count]))
        .map(|link| link.kind)
        .max()
        .unwrap_or(LinkKind::Network);
    GangPlan { mode, backend, link_kind, ranks }
}

/// Links by the nodes they join, because every combination of nodes asks for many.
struct Ways<'a>(BTreeMap<(&'a NodeId, &'a NodeId), &'a Link>);

impl<'a> Ways<'a> {
    fn new(links: &'a [Link]) -> Self {
        Self(links.iter().map(|link| (ordered(&link.a.node, &link.b.node), link)).collect())
    }

    fn link(&self, one: &'a Candidate, other: &'a Candidate) -> Option<&'a Link> {
        self.0.get(&ordered(&one.node, &other.node)).copied()
    }
}

fn ordered<'a>(one: &'a NodeId, other: &'a NodeId) -> (&'a NodeId, &'a NodeId) {
    if one <= other { (one, other) } else { (other, one) }
}

/// The best backend the links of these nodes allow, and the nodes in ring order.
fn backend_of(nodes: &[&Candidate], ways: &Ways<'_>) -> Option<(Backend, Vec<usize>)> {
    let joined: BTreeMap<(usize, usize), bool> = (0..nodes.len())
        .flat_map(|one| (one + 1..nodes.len()).map(move |other| (one, other)))
        .filter_map(|(one, other)| Some(((one, other), ways.link(nodes[one], nodes[other])?.has_rdma())))
        .collect();
    let rdma = |a: usize, b: usize| joined.get(&(a.min(b), a.max(b))) == Some(&true);
    let any = |a: usize, b: usize| joined.contains_key(&(a.min(b), a.max(b)));
    if let Some(ring) = find_ring(nodes.len(), rdma) {
        let all_pairs =
            joined.len() == nodes.len() * (nodes.len() - 1) / 2 && joined.values().all(|rdma| *rdma);
        let backend =
            if all_pairs && nodes.len() <= MOST_MESH_RANKS { Backend::Jaccl } else { Backend::JacclRing };
        return Some((backend, ring));
    }
    find_ring(nodes.len(), any).map(|ring| (Backend::Ring, ring))
}

/// Rule 5: another option with a measurement that beats the rule's own.
fn faster(question: &Question<'_>, options: &[Candidature], by_rule: usize) -> Option<usize> {
    let speed_by_rule = measured(question, options[by_rule].mode)?;
    (0..options.len())
        .filter(|index| *index != by_rule && options[*index].choice.is_some())
        .filter(|index| allowed_by_links(&options[*index]))
        .filter_map(|index| Some((measured(question, options[index].mode)?, index)))
        .filter(|(speed, _)| speed * 100 >= speed_by_rule * (100 + WORTH_CHANGING_PERCENT))
        .max_by_key(|(speed, index)| (*speed, usize::MAX - index))
        .map(|(_, index)| index)
}

/// Tensor is not chosen by itself without a full mesh.
fn allowed_by_links(option: &Candidature) -> bool {
    match (&option.choice, option.mode) {
        (Some(Choice::Gangs(gangs)), Mode::Tensor) => gangs.iter().all(|gang| gang.backend == Backend::Jaccl),
        _ => true,
    }
}

fn measured(question: &Question<'_>, mode: Mode) -> Option<u64> {
    question.measurements.iter().filter(|found| found.mode == mode).map(|found| found.tokens_per_s).max()
}

/// Told for a single row: with more it is only further off.
fn refusal(question: &Question<'_>, candidates: &[&Candidate], options: &[Candidature]) -> Answer {
    let question = &Question { load: Workload { rows: 1, ..question.load }, ..*question };
    let budgets: Vec<u64> = candidates.iter().map(|candidate| candidate.budget_bytes).collect();
    let only_whole = question.wish == Wish::Only(Mode::Independent);
    let stages = match fit::split(question.facts, &question.load, &budgets) {
        Some(stages) if budgets.len() > 1 && !only_whole => stages,
        _ => budgets.iter().take(1).map(|budget| question.facts.alone(&question.load, *budget)).collect(),
    };
    let names = candidates.iter().map(|candidate| candidate.node.clone());
    let mut reasons = Vec::new();
    let alternatives: Vec<Alternative> = options
        .iter()
        .map(|option| Alternative { mode: option.mode, chosen: false, why: option.why.clone() })
        .collect();
    let asked = |mode: Mode| question.wish == Wish::Auto || question.wish == Wish::Only(mode);
    for option in options.iter().filter(|option| asked(option.mode) && option.choice.is_none()) {
        reasons.push(Reason::new("refused", format!("{}: {}", option.mode.word(), option.why)));
    }
    let considered = if only_whole { budgets.iter().take(1).copied().collect() } else { budgets.clone() };
    let fits = |load: &Workload| fit::can_hold(question.facts, load, &considered);
    Answer {
        largest_rows: fit::largest_rows(&question.load, fits),
        largest_context_tokens: fit::largest_context(&question.load, question.facts.context_tokens, fits),
        choice: Choice::Refused {
            verdict: fit::verdict(&stages),
            best_try: names.zip(stages).collect(),
            advice: fit::advice(question.facts, &question.load, &considered),
        },
        rows: 0,
        reasons,
        alternatives,
    }
}

/// Whether what was chosen, with the spans it has, carries another load.
fn holds(facts: &ModelFacts, load: &Workload, choice: &Choice) -> bool {
    match choice {
        Choice::Independent(nodes) => {
            nodes.iter().all(|(_, stage)| facts.alone(load, stage.budget_bytes).free_bytes() >= 0)
        }
        Choice::Gangs(gangs) => gangs.iter().all(|gang| {
            gang.ranks.iter().all(|rank| {
                let stage = match gang.mode {
                    Mode::Tensor => facts.divided(gang.ranks.len() as u64, load, rank.stage.budget_bytes),
                    _ => facts.part(rank.stage.span, load, rank.stage.budget_bytes),
                };
                stage.free_bytes() >= 0
            })
        }),
        Choice::Refused { .. } => false,
    }
}

/// Index combinations in the order of the sum of their places, roughly: lexicographic over candidates sorted by size.
fn combinations(of: usize, count: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut next: Option<Vec<usize>> = (count <= of).then(|| (0..count).collect());
    std::iter::from_fn(move || {
        let current = next.clone()?;
        let mut following = current.clone();
        let movable = (0..count).rev().find(|at| following[*at] < of - count + at);
        next = movable.map(|at| {
            following[at] += 1;
            for later in at + 1..count {
                following[later] = following[later - 1] + 1;
            }
            following
        });
        Some(current)
    })
}

fn names(nodes: &[&Candidate]) -> String {
    let names: Vec<&str> = nodes.iter().map(|candidate| candidate.node.as_str()).collect();
    names.join(", ")
}

/// Decimal gigabytes, as disks and downloads are measured.
pub(super) fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}
