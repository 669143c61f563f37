//! How one model is to run on these nodes: whole on each, or sharded over several.
//!
//! Rules, in this order:
//! 1. What somebody asked for by name comes first. For a plan nothing else is looked at; for a job, where it cannot be had,
//!    the next one down the ladder: tensor, pipeline, whole on each node.
//! 2. What fits one node runs whole on every node it fits: the link is a hundred times slower than memory. Where it fits
//!    only with fewer rows together, it does so as long as no fewer rows are at work in all than in a pipeline: a step
//!    costs about the same however many rows it is for.
//! 3. What does not is a pipeline over the fewest nodes that hold it and form a ring of allowed links.
//! 4. Tensor takes the pipeline's place only where RDMA joins every pair and this cluster has measured it to be faster.
//! 5. Measurements of this cluster outrank rules 2 to 4.
//!
//! Promises: no part is over its node's budget; equal inputs give equal choices; every choice and refusal says why.

use super::{
    gangs::{Field, form_all},
    question::{Alternative, Answer, Choice, Question, Wish},
};
use crate::{
    fit::{self, ModelFacts, Stage, Workload, gigabytes},
    model::{Backend, LinkKind, Measurement, Mode, NodeId, Reason},
};

/// A measured mode takes another's place only from this much more speed on: below, a night would be spent reloading.
const WORTH_CHANGING_PERCENT: u64 = 10;

/// Decides. Cost: combinations of nodes × layers.
#[must_use]
pub fn choose(question: &Question<'_>) -> Answer {
    let field = Field::new(question.candidates, question.links);
    let mut options: Vec<Candidature> = [Mode::Independent, Mode::Pipeline, Mode::Tensor]
        .into_iter()
        .map(|mode| candidature(question, &field, mode))
        .collect();
    let Some(by_rule) = by_rule(question.wish, &options) else { return refusal(question, &field, &options) };
    let chosen = match question.wish {
        Wish::Auto => faster(question, &options, by_rule).unwrap_or(by_rule),
        Wish::Prefer(_) | Wish::Only(_) => by_rule,
    };
    let mut reasons = why_this_one(question, &options, chosen, by_rule);
    let alternatives =
        options.iter().map(|option| alternative(question.wish, option, &options[chosen])).collect();
    let chosen = options.swap_remove(chosen);
    reasons.extend(chosen.reasons);
    // Only what can be done was chosen.
    let choice = chosen.choice.unwrap_or(Choice::Gangs(Vec::new()));
    let fits = |load: &Workload| holds(question.facts, load, &choice);
    Answer {
        largest_rows: fit::largest_rows(&chosen.load, fits),
        largest_context_tokens: fit::largest_context(&chosen.load, question.facts.context_tokens, fits),
        choice,
        load: chosen.load,
        reasons,
        alternatives,
    }
}

/// Rules 1 to 4.
fn by_rule(wish: Wish, options: &[Candidature]) -> Option<usize> {
    let possible = |mode: Mode| {
        (0..options.len()).find(|index| options[*index].mode == mode && options[*index].choice.is_some())
    };
    let best = || {
        (0..options.len())
            .filter(|index| options[*index].choice.is_some() && options[*index].by_rule)
            .max_by_key(|index| (options[*index].rows_at_work(), usize::MAX - index))
    };
    match wish {
        Wish::Only(mode) => possible(mode),
        Wish::Prefer(Mode::Tensor) => {
            possible(Mode::Tensor).or_else(|| possible(Mode::Pipeline)).or_else(best)
        }
        Wish::Prefer(mode) => possible(mode).or_else(best),
        Wish::Auto => best(),
    }
}

fn why_this_one(
    question: &Question<'_>,
    options: &[Candidature],
    chosen: usize,
    by_rule: usize,
) -> Vec<Reason> {
    let (chosen, by_rule) = (&options[chosen], &options[by_rule]);
    let mut reasons = Vec::new();
    let word = chosen.mode.word();
    if let Some(asked) = question.wish.asked_for() {
        let text = format!("{} was asked for", asked.word());
        match options.iter().find(|option| option.mode == asked && asked != chosen.mode) {
            None => reasons.push(Reason::new("asked-for", text)),
            Some(option) => reasons.push(Reason::new(
                "down-the-ladder",
                format!("{text}, and is not to be had: {}; {word} instead", option.why),
            )),
        }
    }
    if chosen.mode != by_rule.mode
        && let Some(speed) = measured(question, chosen)
    {
        let instead = by_rule.mode.word();
        let text = format!("{word} is measured on this cluster at {speed} tokens/s, faster than {instead}");
        reasons.push(Reason::new("measured", text));
    }
    let (wanted, given) = (question.load, chosen.load);
    if given.rows < wanted.rows {
        let text = format!(
            "{} rows of {} tokens together rather than {}: more do not fit",
            given.rows, wanted.context_tokens, wanted.rows
        );
        reasons.push(Reason::new("fewer-rows", text));
    }
    if given.prefill_rows.min(given.rows) < wanted.prefill_rows.min(given.rows)
        || given.prefill_step_tokens < wanted.prefill_step_tokens
    {
        let together = match given.prefill_rows.min(given.rows) {
            1 => "one at a time".to_owned(),
            rows => format!("{rows} at a time"),
        };
        let text = format!(
            "prompts are read {together}, {} tokens a step: what larger steps compute on the way does not fit beside \
             weights and caches",
            given.prefill_step_tokens
        );
        reasons.push(Reason::new("less-prefill", text));
    }
    reasons
}

fn alternative(wish: Wish, option: &Candidature, chosen: &Candidature) -> Alternative {
    let is_chosen = option.mode == chosen.mode;
    let not_asked_for = wish.asked_for().is_some_and(|asked| asked != option.mode) && !is_chosen;
    let why = &option.why;
    let why = if not_asked_for {
        format!("not asked for; {why}")
    } else if is_chosen || option.choice.is_none() || !option.by_rule {
        why.clone()
    } else if option.rows_at_work() < chosen.rows_at_work() {
        format!("{why}; that is {} rows at work, not {}", option.rows_at_work(), chosen.rows_at_work())
    } else {
        format!("not needed; {why}")
    };
    Alternative { mode: option.mode, chosen: is_chosen, why }
}

/// A mode with as many rows together as it can carry, the wish halved as often as it takes. Rows at work are worth more
/// than large steps through prompts, so these are cut down first.
fn candidature(question: &Question<'_>, field: &Field<'_>, mode: Mode) -> Candidature {
    let with = |load: Workload| {
        let question = Question { load, ..*question };
        let found = match mode {
            Mode::Independent => independent(&question, field),
            Mode::Pipeline | Mode::Tensor => sharded(&question, field, mode),
        };
        Candidature { load, ..found }
    };
    let mut load = Workload { rows: question.load.rows.max(1), ..question.load };
    let wished = with(load);
    if wished.choice.is_some() {
        return wished;
    }
    let least = with(Workload { rows: 1, ..load }.with_least_prefill());
    if least.choice.is_none() {
        return least;
    }
    while load.rows > 1 && with(load.with_least_prefill()).choice.is_none() {
        load.rows /= 2;
    }
    loop {
        let found = with(load);
        if found.choice.is_some() {
            return found;
        }
        let Some(less) = load.with_less_prefill() else { return least };
        load = less;
    }
}

struct Candidature {
    mode: Mode,
    choice: Option<Choice>,
    /// What each worker or gang carries.
    load: Workload,
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
        self.load.rows * workers as u64
    }
}

impl Candidature {
    fn impossible(question: &Question<'_>, mode: Mode, why: String) -> Self {
        Self { mode, choice: None, load: question.load, by_rule: true, reasons: Vec::new(), why }
    }
}

fn independent(question: &Question<'_>, field: &Field<'_>) -> Candidature {
    let mode = Mode::Independent;
    let all: Vec<(NodeId, Stage)> = field
        .nodes()
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
        return Candidature::impossible(question, mode, why);
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
    Candidature {
        mode,
        choice: Some(Choice::Independent(fitting)),
        load: question.load,
        by_rule: true,
        reasons,
        why,
    }
}

fn sharded(question: &Question<'_>, field: &Field<'_>, mode: Mode) -> Candidature {
    let gangs = match form_all(question, field, mode) {
        Ok(gangs) => gangs,
        Err(why) => return Candidature::impossible(question, mode, why),
    };
    let (ranks, first) = (gangs[0].ranks.len(), &gangs[0]);
    let backend = first.backend;
    let over = match (backend, first.link_kind) {
        (Backend::Jaccl, _) => "RDMA between every pair",
        (Backend::JacclRing, _) => "RDMA around the ring",
        (Backend::Ring, LinkKind::Rdma | LinkKind::Thunderbolt) => "TCP over Thunderbolt",
        (Backend::Ring, LinkKind::Network) => "TCP over an allowed network",
        (Backend::Ring, LinkKind::Loopback) => "TCP on one machine",
    };
    let mut reasons = Vec::new();
    let largest = field.nodes()[0];
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
    reasons.extend(field.why_not_rdma(first).map(|why| Reason::new("no-meeting-place", why)));
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
    Candidature { mode, choice: Some(Choice::Gangs(gangs)), load: question.load, by_rule, reasons, why }
}

/// Rule 5: another option with a measurement that beats the rule's own.
fn faster(question: &Question<'_>, options: &[Candidature], by_rule: usize) -> Option<usize> {
    let speed_by_rule = measured(question, &options[by_rule])?;
    (0..options.len())
        .filter(|index| *index != by_rule && options[*index].choice.is_some())
        .filter(|index| allowed_by_links(&options[*index]))
        .filter_map(|index| Some((measured(question, &options[index])?, index)))
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

/// Of all its workers or gangs together, from what one of the same kind has been measured at.
fn measured(question: &Question<'_>, option: &Candidature) -> Option<u64> {
    let (backend, ranks, count) = match option.choice.as_ref()? {
        Choice::Independent(nodes) => (None, 1, nodes.len()),
        Choice::Gangs(gangs) => {
            let first = gangs.first()?;
            (Some(first.backend), first.ranks.len(), gangs.len())
        }
        Choice::Refused { .. } => return None,
    };
    let same = |found: &&Measurement| {
        (found.mode, found.backend, found.ranks as usize) == (option.mode, backend, ranks)
    };
    let one = question.measurements.iter().find(same)?;
    Some(one.tokens_per_s.saturating_mul(count as u64))
}

/// Told for a single row and the smallest steps: with more it is only further off.
fn refusal(question: &Question<'_>, field: &Field<'_>, options: &[Candidature]) -> Answer {
    let load = Workload { rows: 1, ..question.load }.with_least_prefill();
    let question = &Question { load, ..*question };
    let budgets: Vec<u64> = field.nodes().iter().map(|candidate| candidate.budget_bytes).collect();
    let only_whole = question.wish == Wish::Only(Mode::Independent);
    let stages = match fit::split(question.facts, &question.load, &budgets) {
        Some(stages) if budgets.len() > 1 && !only_whole => stages,
        _ => budgets.iter().take(1).map(|budget| question.facts.alone(&question.load, *budget)).collect(),
    };
    let names = field.nodes().iter().map(|candidate| candidate.node.clone());
    let mut reasons = Vec::new();
    let alternatives: Vec<Alternative> = options
        .iter()
        .map(|option| Alternative { mode: option.mode, chosen: false, why: option.why.clone() })
        .collect();
    let asked = |mode: Mode| !matches!(question.wish, Wish::Only(only) if only != mode);
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
        load,
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
