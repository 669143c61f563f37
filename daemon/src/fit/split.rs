//! Which layers go to which node of a pipeline.
//!
//! Promises: spans cover every layer once, in order, at least one each; if there is a split under which every part fits,
//! the one found fits; the fullest node is within a hundredth of as empty as it can be, and under that bound layers are
//! spread in proportion to the budgets; equal inputs give equal spans.

use super::{
    facts::ModelFacts,
    need::{Need, Workload, span_need},
};

/// Layers `first..end`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span {
    /// The first layer.
    pub first: u32,
    /// The layer after the last one.
    pub end: u32,
}

impl Span {
    /// How many layers.
    #[must_use]
    pub fn len(self) -> u32 {
        self.end.saturating_sub(self.first)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// One node's part of a pipeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage {
    /// Its layers.
    pub span: Span,
    /// What they need.
    pub need: Need,
    /// What the node has.
    pub budget_bytes: u64,
}

impl Stage {
    /// How much is left; negative when it does not fit.
    #[must_use]
    pub fn free_bytes(&self) -> i128 {
        i128::from(self.budget_bytes) - i128::from(self.need.total())
    }
}

/// Shares of a budget are counted in parts of this: fine enough for a layer of any model on any node.
const WHOLE: u64 = 1 << 20;

/// The worst share looked at: a node asked for this many times its budget is far from any use.
const MOST_SHARE: u64 = WHOLE << 12;

/// Splits the model over nodes with these budgets, the first of which gets the first layers. The stages are the best
/// there are; whether each fits is theirs to say. `None` when there are more nodes than layers, or no nodes, or a
/// node with no budget at all.
#[must_use]
pub fn split(facts: &ModelFacts, load: &Workload, budgets: &[u64]) -> Option<Vec<Stage>> {
    let layer_count = facts.layers.len();
    if budgets.is_empty() || budgets.len() > layer_count || budgets.contains(&0) {
        return None;
    }
    let costs = Costs::new(facts, load, budgets);
    let (mut too_small, mut enough) = (0, MOST_SHARE);
    if !costs.holds(enough) {
        return None;
    }
    while enough - too_small > 1 {
        let middle = too_small + (enough - too_small) / 2;
        if costs.holds(middle) { enough = middle } else { too_small = middle }
    }
    // A hundredth more lets spans be even where the last kilobyte would make them odd.
    let relaxed = enough + enough / 100;
    let share = if enough <= WHOLE { relaxed.min(WHOLE) } else { relaxed };
    let spans = costs.spread(share);
    let stages = spans.into_iter().zip(budgets).map(|(span, budget)| Stage {
        span,
        need: span_need(facts, span, load),
        budget_bytes: *budget,
    });
    Some(stages.collect())
}

/// Whether nodes with these budgets, in this order, hold the model.
#[must_use]
pub fn can_hold(facts: &ModelFacts, load: &Workload, budgets: &[u64]) -> bool {
    let usable = !budgets.is_empty() && budgets.len() <= facts.layers.len();
    usable && Costs::new(facts, load, budgets).holds(WHOLE)
}

struct Costs<'a> {
    /// Sum of weights and caches of the layers before each.
    before: Vec<u64>,
    /// What each stage needs besides its layers.
    ends: Vec<u64>,
    budgets: &'a [u64],
}

impl<'a> Costs<'a> {
    fn new(facts: &ModelFacts, load: &Workload, budgets: &'a [u64]) -> Self {
        let count = u32::try_from(facts.layers.len()).unwrap_or(u32::MAX);
        let mut before = Vec::with_capacity(facts.layers.len() + 1);
        let mut sum = 0_u64;
        before.push(0);
        for layer in 0..count {
            let need = span_need(facts, Span { first: layer, end: layer + 1 }, load);
            sum = sum.saturating_add(need.layer_weights - facts.elsewhere_bytes).saturating_add(need.cache);
            before.push(sum);
        }
        let last = budgets.len() - 1;
        let ends = (0..budgets.len()).map(|stage| {
            // The layers are counted above, so those of this span are taken off again.
            let span = match (stage == 0, stage == last) {
                (true, true) => Span { first: 0, end: count },
                (true, false) => Span { first: 0, end: 1.min(count - 1) },
                (false, true) => Span { first: count - 1, end: count },
                (false, false) => Span { first: 1, end: 2.min(count - 1) },
            };
            let need = span_need(facts, span, load);
            need.total() - (before[span.end as usize] - before[span.first as usize])
        });
        Self { ends: ends.collect(), before, budgets }
    }

    fn layer_count(&self) -> usize {
        self.before.len() - 1
    }

    /// What a stage has for layers when it may use this share of its budget.
    fn room(&self, stage: usize, share: u64) -> Option<u64> {
        let allowed = u128::from(self.budgets[stage]) * u128::from(share) / u128::from(WHOLE);
        u64::try_from(allowed).unwrap_or(u64::MAX).checked_sub(self.ends[stage])
    }

    /// The furthest end of a span that begins at `first` and fits into `room`.
    fn reach(&self, first: usize, room: u64) -> usize {
        let limit = self.before[first].saturating_add(room);
        self.before.partition_point(|sum| *sum <= limit) - 1
    }

    fn holds(&self, share: u64) -> bool {
        self.starts(share).is_some_and(|starts| starts[0][0] == 0)
    }

    /// For each stage and each layer, the first layer from there on at which the stage can begin so that it and the
    /// stages after it hold the rest; the number of layers plus one where there is none.
    ///
    /// It is no interval: a small node can begin before a small layer, but not before the large one in front of it.
    fn starts(&self, share: u64) -> Option<Vec<Vec<usize>>> {
        let (stages, layers) = (self.budgets.len(), self.layer_count());
        let nowhere = layers + 1;
        let mut starts = vec![vec![nowhere; layers + 1]; stages];
        let mut after = vec![layers; layers + 1];
        for stage in (0..stages).rev() {
            let room = self.room(stage, share)?;
            for first in (0..layers).rev() {
                let can = after[first + 1] <= self.reach(first, room);
                starts[stage][first] = if can { first } else { starts[stage][first + 1] };
            }
            after.clone_from(&starts[stage]);
        }
        Some(starts)
    }

    /// Spans within the share, as near to proportional as it lets them.
    fn spread(&self, share: u64) -> Vec<Span> {
        let starts = self.starts(share).unwrap_or_default();
        let (stages, layers) = (self.budgets.len(), self.layer_count());
        let total = u128::from(self.before[layers]);
        let all_budgets: u128 = self.budgets.iter().map(|budget| u128::from(*budget)).sum();
        let (mut first, mut budgets_so_far) = (0, 0_u128);
        let mut spans = Vec::with_capacity(stages);
        for stage in 0..stages {
            budgets_so_far += u128::from(self.budgets[stage]);
            let reach = self.reach(first, self.room(stage, share).unwrap_or(0));
            let fair = total * budgets_so_far / all_budgets.max(1);
            let end = match starts.get(stage + 1) {
                None => layers,
                Some(next) => (first + 1..=reach)
                    .filter(|end| next[*end] == *end)
                    .min_by_key(|end| u128::from(self.before[*end]).abs_diff(fair))
                    .unwrap_or(layers),
            };
            spans.push(Span { first: to_u32(first), end: to_u32(end) });
            first = end;
        }
        spans
    }
}

fn to_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
