//! Fits or not, with how much to spare, or how far off and what would help.

use super::{
    facts::ModelFacts,
    need::{Need, Workload},
    split::{Span, Stage, can_hold},
};

/// More rows together than this gain nothing: decoding is bound by arithmetic long before.
const MOST_ROWS: u64 = 4_096;

/// Where the model does not say how much context it was made for.
const MOST_CONTEXT_TOKENS: u64 = 1 << 20;

/// Contexts are answered in steps in which caches grow.
const CONTEXT_STEP_TOKENS: u64 = 256;

/// Nodes an advice may add: a cluster has seven at most.
const MOST_NODES_MORE: usize = 7;

/// Bits a weight that mlx-lm quantises to.
const BITS: [u64; 5] = [8, 6, 5, 4, 3];

/// Architectures whose models have a `shard` method in mlx-lm 0.32.2.
const TENSOR_ARCHITECTURES: [&str; 26] = [
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "exaone_moe",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt_oss",
    "iquestcoder",
    "joyai_llm_flash",
    "kimi_k2",
    "kimi_k25",
    "llama",
    "longcat_flash",
    "minimax",
    "minimax_m2",
    "ministral3",
    "mistral",
    "mistral4",
    "qwen2",
    "qwen3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_moe",
    "step3p5",
    "xverse",
];

/// Whether every node holds its part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It does.
    Fits {
        /// What the fullest node has left.
        headroom_bytes: u64,
    },
    /// Weights fit, but not the caches and activations of this load.
    CacheStarved {
        /// For each node, what it lacks.
        missing_bytes: Vec<u64>,
    },
    /// Not even the weights fit.
    TooBig {
        /// For each node, what it lacks.
        missing_bytes: Vec<u64>,
    },
}

impl Verdict {
    /// Whether every node holds its part.
    #[must_use]
    pub fn fits(&self) -> bool {
        matches!(self, Self::Fits { .. })
    }
}

/// Judges the parts of a model on their nodes.
#[must_use]
pub fn verdict(stages: &[Stage]) -> Verdict {
    let headroom = stages.iter().map(Stage::free_bytes).min().unwrap_or(0);
    if let Ok(headroom_bytes) = u64::try_from(headroom) {
        return Verdict::Fits { headroom_bytes };
    }
    let missing_bytes = stages.iter().map(|stage| u64::try_from(-stage.free_bytes()).unwrap_or(0)).collect();
    if stages.iter().all(|stage| stage.need.fixed() <= stage.budget_bytes) {
        Verdict::CacheStarved { missing_bytes }
    } else {
        Verdict::TooBig { missing_bytes }
    }
}

/// The most rows that fit together at this context, by a test that more rows can only make harder. 0 when not even one.
pub fn largest_rows(load: &Workload, fits: impl Fn(&Workload) -> bool) -> u64 {
    largest(MOST_ROWS, |rows| fits(&Workload { rows, ..*load }))
}

/// The largest context that fits for this many rows, in steps of 256 tokens. 0 when not even the first.
pub fn largest_context(load: &Workload, most_tokens: Option<u64>, fits: impl Fn(&Workload) -> bool) -> u64 {
    let steps = most_tokens.unwrap_or(MOST_CONTEXT_TOKENS).div_ceil(CONTEXT_STEP_TOKENS);
    let steps =
        largest(steps, |steps| fits(&Workload { context_tokens: steps * CONTEXT_STEP_TOKENS, ..*load }));
    (steps * CONTEXT_STEP_TOKENS).min(most_tokens.unwrap_or(u64::MAX))
}

fn largest(most: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut yes, mut no) = (0, most + 1);
    while no - yes > 1 {
        let middle = yes + (no - yes) / 2;
        if holds(middle) { yes = middle } else { no = middle }
    }
    yes
}

/// What would make a refused model fit, each by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// This many rows together, at the same context.
    FewerRows {
        /// How many.
        rows: u64,
    },
    /// The same rows with this much context.
    ShorterContext {
        /// How much.
        tokens: u64,
    },
    /// One row with this much context.
    OneRowShorterContext {
        /// How much.
        tokens: u64,
    },
    /// The same model with fewer bits a weight.
    FewerBits {
        /// How many.
        bits: u64,
    },
    /// More nodes like the largest one.
    MoreNodes {
        /// How many more.
        nodes: u64,
        /// The budget of each.
        budget_bytes: u64,
    },
}

/// Everything single that helps, for nodes with these budgets.
#[must_use]
pub fn advice(facts: &ModelFacts, load: &Workload, budgets: &[u64]) -> Vec<Advice> {
    let mut found = Vec::new();
    let fits = |load: &Workload| fits_somehow(facts, load, budgets);
    if fits(load) {
        return found;
    }
    let rows = largest_rows(load, fits);
    if rows > 0 {
        found.push(Advice::FewerRows { rows });
    }
    let shorter = Some(load.context_tokens);
    let tokens = largest_context(load, shorter, fits);
    if tokens > 0 {
        found.push(Advice::ShorterContext { tokens });
    } else if rows == 0 {
        let tokens = largest_context(&Workload { rows: 1, ..*load }, shorter, fits);
        if tokens > 0 {
            found.push(Advice::OneRowShorterContext { tokens });
        }
    }
    let fewer = BITS.iter().filter(|bits| **bits < facts.weight_bits);
    if let Some(bits) = fewer.into_iter().find(|bits| fits_somehow(&facts.requantised(**bits), load, budgets))
    {
        found.push(Advice::FewerBits { bits: *bits });
    }
    let largest = budgets.iter().copied().max().unwrap_or(0);
    let mut more = budgets.to_vec();
    for nodes in 1..=MOST_NODES_MORE {
        more.push(largest);
        if largest > 0 && fits_somehow(facts, load, &more) {
            found.push(Advice::MoreNodes { nodes: nodes as u64, budget_bytes: largest });
            break;
        }
    }
    found
}

/// On one of them, or over all of them.
fn fits_somehow(facts: &ModelFacts, load: &Workload, budgets: &[u64]) -> bool {
    let alone = budgets.iter().max().is_some_and(|budget| can_hold(facts, load, &[*budget]));
    alone || can_hold(facts, load, budgets)
}

/// Why the model cannot be divided tensor-wise over this many ranks; `None` when it can.
#[must_use]
pub fn tensor_obstacle(facts: &ModelFacts, ranks: u64) -> Option<String> {
    let kind = facts.architecture.as_str();
    if !TENSOR_ARCHITECTURES.contains(&kind) {
        return Some(format!("mlx-lm cannot divide architecture \"{kind}\" tensor-wise"));
    }
    let ranks = ranks.max(1);
    if !facts.heads.is_multiple_of(ranks) {
        return Some(format!("its {} attention heads do not divide by {ranks}", facts.heads));
    }
    if !facts.latent_attention && !facts.kv_heads.is_multiple_of(ranks) {
        return Some(format!("its {} key heads do not divide by {ranks}", facts.kv_heads));
    }
    let group = facts.quantization_group;
    let uneven = facts.divisible_sizes.iter().find(|size| !size.is_multiple_of(ranks * group))?;
    Some(if group > 1 {
        format!(
            "its inner size of {uneven} does not divide by {ranks} into whole quantisation groups of {group}"
        )
    } else {
        format!("its inner size of {uneven} does not divide by {ranks}")
    })
}

impl ModelFacts {
    /// The same model with another number of bits a weight: an estimate, because routers and norms are not quantised.
    #[must_use]
    pub(super) fn requantised(&self, bits: u64) -> Self {
        // A scale and a bias of two bytes for each group of 64.
        let stored = |bits: u64, is_quantised: bool| bits * 2 + u64::from(is_quantised);
        let (now, then) = (stored(self.weight_bits, self.quantization_group > 1), stored(bits, true));
        let scale = |bytes: u64| {
            u64::try_from(u128::from(bytes) * u128::from(then) / u128::from(now)).unwrap_or(bytes)
        };
        let mut facts = self.clone();
        for layer in &mut facts.layers {
            for bytes in [
                &mut layer.weights.attention,
                &mut layer.weights.mlp,
                &mut layer.weights.experts,
                &mut layer.weights.divided,
            ] {
                *bytes = scale(*bytes);
            }
        }
        facts.embeddings_bytes = scale(self.embeddings_bytes);
        facts.head_bytes = scale(self.head_bytes);
        facts
    }

    /// The whole model on one node with this budget.
    #[must_use]
    pub fn alone(&self, load: &Workload, budget_bytes: u64) -> Stage {
        let span = Span { first: 0, end: u32::try_from(self.layers.len()).unwrap_or(u32::MAX) };
        Stage { span, need: super::need::span_need(self, span, load), budget_bytes }
    }

    /// Some of the layers on a node with this budget.
    #[must_use]
    pub fn part(&self, span: Span, load: &Workload, budget_bytes: u64) -> Stage {
        Stage { span, need: super::need::span_need(self, span, load), budget_bytes }
    }

    /// One rank of a tensor-parallel run on a node with this budget.
    #[must_use]
    pub fn divided(&self, ranks: u64, load: &Workload, budget_bytes: u64) -> Stage {
        let span = Span { first: 0, end: u32::try_from(self.layers.len()).unwrap_or(u32::MAX) };
        let need: Need = super::need::tensor_share(self, ranks, load);
        Stage { span, need, budget_bytes }
    }
}
