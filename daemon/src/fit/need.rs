//! What a part of a model needs of one node for a given load.

use super::{
    cache::Cache,
    facts::{LayerFacts, ModelFacts},
    split::Span,
};

/// What MLX holds besides weights, caches and activations: its command buffers, the allocator's rounding, the canary.
/// On Linux the rest of `mx.get_peak_memory` of ranks at work is a few MB; Metal's own is not measured yet, hence the
/// generous size.
const OVERHEAD_BYTES: u64 = 64 << 20;

// What is computed while a piece of a prompt is read. MLX hands out memory for some ten operations before the first of
// them has been carried out and its inputs are given back, so a layer's attention and feed-forward part count together.
// The numbers are measured: `tests/tests/e2e/memory.rs` holds them against the peaks of real workers, and more than a
// hundred runs of llama, qwen3_moe, gpt_oss, deepseek_v3 and glm4_moe on MLX 0.32.4's CPU build went before.

/// Vectors of the model's width: the residual, its normalised copies, the outputs of both parts.
const LIVE_HIDDEN_VECTORS: u64 = 6;

/// Vectors as wide as all heads together: queries before and after their rotation, what attention gives, and copies.
const LIVE_HEAD_VECTORS: u64 = 6;

/// Of a feed-forward part: of gate, up and their product, two at a time.
const LIVE_INTERMEDIATE_VECTORS: u64 = 2;

/// Of each expert a token goes to: its input and output, sorted by expert and back. They come before and after the inner
/// vectors, so that the wider of the two counts.
const LIVE_EXPERT_HIDDEN_VECTORS: u64 = 2;

/// Half precision without a GPU: norms and rotations are computed in float32 there, which counts twice.
const LIVE_WIDENED_VECTORS: u64 = 2 * 4;

/// Copies of a row's logits: as computed, in float32, normalised, and one in work.
const LIVE_LOGITS: u64 = 4;

/// Heads of these lengths have a kernel on Metal that never writes attention's scores out, however long the piece
/// (`scaled_dot_product_attention.cpp` of MLX 0.32: the `full` kernels).
const FUSED_HEAD_DIMS: [u64; 3] = [64, 80, 128];

/// A piece smaller than this is not looked at: reading the weights would cost more than computing with them.
const LEAST_PREFILL_STEP_TOKENS: u64 = 128;

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
    /// Whether it runs on Metal; MLX's CPU build writes all of attention's scores out.
    pub on_gpu: bool,
}

impl Workload {
    /// The same rows with half of a prompt step's work: fewer prompts together, then smaller pieces. It costs little
    /// speed and saves most of what is computed on the way. `None` at the smallest.
    #[must_use]
    pub fn with_less_prefill(self) -> Option<Self> {
        let prefill_rows = self.prefill_rows.min(self.rows);
        if prefill_rows > 1 {
            return Some(Self { prefill_rows: prefill_rows / 2, ..self });
        }
        let half = self.prefill_step_tokens / 2;
        (half >= LEAST_PREFILL_STEP_TOKENS).then_some(Self { prefill_step_tokens: half, ..self })
    }

    /// The same rows with the least work in a prompt step.
    #[must_use]
    pub fn with_least_prefill(mut self) -> Self {
        while let Some(less) = self.with_less_prefill() {
            self = less;
        }
        self
    }
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
        activations: activations(facts, load, is_last, 1),
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
        activations: activations(facts, load, true, ranks),
        overhead: OVERHEAD_BYTES,
    }
}

/// Weights and caches of one layer.
pub(super) fn layer_bytes(layer: &LayerFacts, load: &Workload) -> u64 {
    layer.weights.total().saturating_add(cache_bytes(layer.cache, load))
}

fn cache_bytes(cache: Cache, load: &Workload) -> u64 {
    cache.row_bytes(load.context_tokens, load.prefill_step_tokens).saturating_mul(load.rows)
}

/// The largest layer's of all: MLX frees what nobody refers to any more, and a part of some layers has one of each kind.
/// `ranks` share heads and feed-forward parts.
fn activations(facts: &ModelFacts, load: &Workload, with_head: bool, ranks: u64) -> u64 {
    let layers = &facts.layers;
    let read_rows = load.prefill_rows.min(load.rows);
    let step_tokens = load.prefill_step_tokens.min(load.context_tokens);
    let read_tokens = read_rows.saturating_mul(step_tokens);
    let heads = facts.heads.div_ceil(ranks);
    let mut numbers_per_token = LIVE_HIDDEN_VECTORS * facts.hidden_size
        + LIVE_HEAD_VECTORS * heads * facts.query_dim
        + feed_forward_numbers(facts, ranks);
    if !load.on_gpu && facts.number_bytes < 4 {
        numbers_per_token += LIVE_WIDENED_VECTORS * facts.hidden_size;
    }
    // The furthest back that a layer looks.
    let past_tokens = layers.iter().map(|layer| layer.cache.kept_tokens(load.context_tokens, step_tokens));
    let past_tokens = past_tokens.max().unwrap_or(0);
    let scores = heads * score_copies(facts, load.on_gpu) * facts.number_bytes;
    // The mask is a byte for each pair of tokens.
    let per_pair = if past_tokens > 0 { scores + 1 } else { 0 };
    let unfolded_per_token = if facts.latent_attention {
        heads * (facts.query_dim + facts.value_dim) * facts.number_bytes
    } else {
        // Caches grow by copies, a layer's at a time.
        layers.iter().map(|layer| layer.cache.bytes_per_token()).max().unwrap_or(0).div_ceil(ranks)
    };
    let logits = if with_head { LIVE_LOGITS * load.rows.saturating_mul(facts.vocab_size * 4) } else { 0 };
    read_tokens
        .saturating_mul(numbers_per_token * facts.number_bytes)
        .saturating_add(read_tokens.saturating_mul(past_tokens).saturating_mul(per_pair))
        .saturating_add(read_rows.saturating_mul(past_tokens).saturating_mul(unfolded_per_token))
        .saturating_add(logits)
}

/// For one token, in the wider of dense and expert layers.
fn feed_forward_numbers(facts: &ModelFacts, ranks: u64) -> u64 {
    let inner = |width: u64| LIVE_INTERMEDIATE_VECTORS * width.div_ceil(ranks);
    let of_an_expert =
        (LIVE_EXPERT_HIDDEN_VECTORS * facts.hidden_size).max(inner(facts.expert_intermediate_size));
    inner(facts.intermediate_size)
        .max(facts.active_experts * of_an_expert + inner(facts.shared_intermediate_size))
}

/// How often the scores of a step's tokens with all tokens before them stand in memory together.
fn score_copies(facts: &ModelFacts, on_gpu: bool) -> u64 {
    let fused = on_gpu && facts.query_dim == facts.value_dim && FUSED_HEAD_DIMS.contains(&facts.query_dim);
    match facts {
        // The part of the rotated keys is computed apart and handed to attention as its mask.
        _ if facts.latent_attention => 2,
        _ if fused => 0,
        // A sink is one column more: joined, weighed, and cut off again.
        _ if facts.has_sinks => 3,
        _ => 1,
    }
}
