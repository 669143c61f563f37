//! What a part of a model needs of one node for a given load.

use super::{facts::ModelFacts, split::Span};

/// What MLX holds besides weights, caches and activations: its command buffers, the allocator's rounding, the canary.
/// Measured on Linux as the rest of `mx.get_peak_memory` of ranks at work; Metal's own is not measured yet, hence the
/// generous size.
const OVERHEAD_BYTES: u64 = 64 << 20;

/// Vectors of a layer's width that are alive together while a piece of a prompt is read: the residual, its normalised
/// copy, queries, keys, values, attention's output, its projection and the sum. Counted in mlx-lm's layers.
const LIVE_HIDDEN_VECTORS: u64 = 8;

/// Of the feed-forward part: gate, up, and their product.
const LIVE_INTERMEDIATE_VECTORS: u64 = 3;

/// Copies of a row's logits: as computed, in float32, normalised, and one in work.
const LIVE_LOGITS: u64 = 4;

/// The load a worker is to carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Rows generated together.
    pub rows: u64,
    /// Tokens of one of them, prompt and answer together.
    pub context_tokens: u64,
    /// Rows whose prompts are read together.
    pub prefill_rows: u64,
    /// Tokens of a prompt read in one step.
    pub prefill_step_tokens: u64,
}

/// Bytes on one node, by cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Need {
    /// Weights of the layers.
    pub layer_weights: u64,
    /// Weights of the embeddings.
    pub embeddings: u64,
    /// Weights of norm and head.
    pub head: u64,
    /// Caches of all rows.
    pub cache: u64,
    /// What is computed on the way.
    pub activations: u64,
    /// What MLX itself takes.
    pub overhead: u64,
}

impl Need {
    /// All weights.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.layer_weights.saturating_add(self.embeddings).saturating_add(self.head)
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights()
            .saturating_add(self.cache)
            .saturating_add(self.activations)
            .saturating_add(self.overhead)
    }

    /// What does not depend on rows and context.
    #[must_use]
    pub fn fixed(&self) -> u64 {
        self.weights().saturating_add(self.overhead)
    }
}

/// Of a span of layers, with embeddings where the first layer is and the head where the last one is.
pub(super) fn span_need(facts: &ModelFacts, span: Span, load: &Workload) -> Need {
    let layers = facts.layers.get(span.first as usize..span.end as usize).unwrap_or_default();
    let is_first = span.first == 0;
    let is_last = span.end as usize == facts.layers.len();
    let embeddings = if is_first { facts.embeddings_bytes } else { 0 };
    // One matrix for both ends is in memory once where both ends are.
    let head = match (is_last, is_first && facts.tied) {
        (false, _) => 0,
        (true, true) => facts.final_norm_bytes,
        (true, false) => facts.output_bytes(),
    };
    Need {
        layer_weights: layers.iter().map(|layer| layer.weights.total()).sum::<u64>() + facts.elsewhere_bytes,
        embeddings,
        head,
        cache: layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(cache_bytes(layer.cache, load))),
        activations: activations(facts, load, is_last),
        overhead: OVERHEAD_BYTES,
    }
}

/// Of one rank of a tensor-parallel run: its part of what is divided, all of what is not.
#[must_use]
pub fn tensor_share(facts: &ModelFacts, ranks: u64, load: &Workload) -> Need {
    let ranks = ranks.max(1);
    let layer_weights = facts.layers.iter().map(|layer| {
        let divided = layer.weights.divided;
        layer.weights.total() - divided + divided.div_ceil(ranks)
    });
    // Latents belong to no head, so every rank keeps them.
    let cache_ranks = if facts.latent_attention { 1 } else { ranks };
    let cache =
        facts.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(cache_bytes(layer.cache, load)));
    Need {
        layer_weights: layer_weights.sum::<u64>() + facts.elsewhere_bytes,
        embeddings: facts.embeddings_bytes,
        head: facts.final_norm_bytes + facts.head_bytes,
        cache: cache.div_ceil(cache_ranks),
        activations: activations(facts, load, true),
        overhead: OVERHEAD_BYTES,
    }
}

fn cache_bytes(cache: super::cache::Cache, load: &Workload) -> u64 {
    cache.row_bytes(load.context_tokens, load.prefill_step_tokens).saturating_mul(load.rows)
}

/// One layer's at a time: MLX frees what nobody refers to any more.
fn activations(facts: &ModelFacts, load: &Workload, with_head: bool) -> u64 {
    let read_rows = load.prefill_rows.min(load.rows);
    let read_tokens = read_rows.saturating_mul(load.prefill_step_tokens.min(load.context_tokens));
    let per_token = (LIVE_HIDDEN_VECTORS * facts.hidden_size
        + LIVE_INTERMEDIATE_VECTORS * facts.active_intermediate_size)
        * facts.number_bytes;
    let logits = if with_head { LIVE_LOGITS * load.rows.saturating_mul(facts.vocab_size * 4) } else { 0 };
    read_tokens.saturating_mul(per_token).saturating_add(logits)
}
