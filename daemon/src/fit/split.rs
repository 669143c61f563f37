//! Which layers go to which node of a pipeline.
//!
//! Promises: spans cover every layer once, in order, at least one each; if there is a split under which every part fits,
//! the one found fits; the fullest node is within two hundredths of as empty as it can be, and under that bound layers are
//! spread in proportion to the budgets; equal inputs give equal spans.

use super::{
    facts::ModelFacts,
    need::{Need, Workload, layer_bytes, span_need},
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

/// The best share is looked for to within this part of it, and as much more is allowed: finer than a layer of most models.
const CLOSE_ENOUGH: u64 = 100;

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
    let (mut too_small, mut enough) = if costs.holds(WHOLE) { (0, WHOLE) } else { (WHOLE, MOST_SHARE) };
    if enough > WHOLE && !costs.holds(enough) {
        return None;
    }
    let most = enough;
    while enough - too_small > (enough / CLOSE_ENOUGH).max(1) {
        let middle = too_small + (enough - too_small) / 2;
        if costs.holds(middle) { enough = middle } else { too_small = middle }
    }
    // Somewhat more lets spans be even where the last kilobyte would make them odd.
    let share = (enough + enough / CLOSE_ENOUGH).min(most);
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

/// The least a pipeline needs, whatever its split: a test that costs nothing, before nodes are put in any order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Floor {
    /// On every node, besides its layers.
    each: u64,
    /// Of all layers and both ends together.
    shared: u128,
}

impl Floor {
    /// For this model and load; a model of one layer makes no pipeline.
    #[must_use]
    pub fn new(facts: &ModelFacts, load: &Workload) -> Self {
        let count = u32::try_from(facts.layers.len()).unwrap_or(u32::MAX);
        let whole = span_need(facts, Span { first: 0, end: count }, load);
        // A stage in the middle of which nothing is taken.
        let middle = span_need(facts, Span { first: 1, end: 1 }, load);
        let each = middle.total();
        Self {
            each,
            shared: (u128::from(whole.weights()) + u128::from(whole.cache))
                .saturating_sub(u128::from(facts.elsewhere_bytes)),
        }
    }

    /// Whether nodes with these budgets could hold it in some order; when not, none of them can.
    #[must_use]
    pub fn may_hold(&self, budgets: &[u64]) -> bool {
        let rooms = budgets.iter().map(|budget| budget.checked_sub(self.each));
        let room = rooms.sum::<Option<u64>>();
        room.is_some_and(|room| u128::from(room) >= self.shared)
    }
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
        for layer in &facts.layers {
            sum = sum.saturating_add(layer_bytes(layer, load));
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

    /// Whether these layers take no more than this.
    fn fits(&self, span: core::ops::Range<usize>, room: u64) -> bool {
        self.before[span.end] - self.before[span.start] <= room
    }

    fn holds(&self, share: u64) -> bool {
        let mut starts = self.all_done();
        for stage in (0..self.budgets.len()).rev() {
            let Some(room) = self.room(stage, share) else { return false };
            self.starts_before(&mut starts, room);
        }
        starts[0] == 0
    }

    /// For each stage, and then for nothing left, what `starts_before` says.
    fn starts(&self, share: u64) -> Option<Vec<Vec<usize>>> {
        let mut starts = self.all_done();
        let mut of_stages = vec![starts.clone()];
        for stage in (0..self.budgets.len()).rev() {
            self.starts_before(&mut starts, self.room(stage, share)?);
            of_stages.push(starts.clone());
        }
        of_stages.reverse();
        Some(of_stages)
    }

    fn all_done(&self) -> Vec<usize> {
        vec![self.layer_count(); self.layer_count() + 1]
    }

    /// For each layer, the first one from there on at which a stage with this room can begin so that it and the stages
    /// after it hold the rest; the number of layers plus one where there is none. Takes that of the stages after it.
    ///
    /// It is no interval: a small node can begin before a small layer, but not before the large one in front of it.
    fn starts_before(&self, starts: &mut [usize], room: u64) {
        let layers = self.layer_count();
        let mut next = layers + 1;
        // What follows is read one place further than what is written.
        let mut after = core::mem::replace(&mut starts[layers], next);
        for first in (0..layers).rev() {
            if after <= layers && self.fits(first..after, room) {
                next = first;
            }
            after = core::mem::replace(&mut starts[first], next);
        }
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
            let room = self.room(stage, share).unwrap_or(0);
            let fair = total * budgets_so_far / all_budgets.max(1);
            let end = match starts.get(stage + 1) {
                None => layers,
                Some(next) => (first + 1..=layers)
                    .take_while(|end| self.fits(first..*end, room))
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
