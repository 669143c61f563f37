//! The answer to `plan`: what a model needs, how it would run, what each node would carry.

use nightshift_proto::v1;
use serde::Serialize;

use super::{mode_word, nonzero, text};

/// Where a model fits and how it would run.
#[derive(Debug, Clone, Serialize)]
pub struct PlanView {
    /// Whether it can run. If not, `parts` is the best try and `advice` what would help.
    pub fits: bool,
    /// "independent", "pipeline" or "tensor"; none where nothing was chosen.
    pub mode: Option<&'static str>,
    /// The mode that was asked for; none: whatever the rules say.
    pub asked_mode: Option<&'static str>,
    /// "ring", "jaccl" or "jaccl-ring"; none for independent workers, and where nothing was chosen.
    pub backend: Option<&'static str>,
    /// The file the nodes were read from; none: the nodes of the cluster.
    pub nodes_file: Option<String>,
    /// What the model needs.
    pub model: ModelSizeView,
    /// Rows together in each worker, or each gang: what was planned for, which can be fewer than asked for. 0 where it
    /// does not fit.
    pub rows: u64,
    /// Prompt and answer of a row together.
    pub context_tokens: u64,
    /// Rows whose prompts are read together; can be fewer than the settings say.
    pub prefill_rows: u64,
    /// Tokens of a prompt that are read in one step; can be fewer than the settings say.
    pub prefill_step_tokens: u64,
    /// The most rows that fit with this context.
    pub largest_rows: u64,
    /// The largest context that fits with these rows.
    pub largest_context_tokens: u64,
    /// What each node would carry.
    pub parts: Vec<PartView>,
    /// Why, the most important first.
    pub reasons: Vec<ReasonView>,
    /// What became of each mode.
    pub alternatives: Vec<AlternativeView>,
    /// Sentences; each would help by itself.
    pub advice: Vec<String>,
    /// Nodes that were not looked at, and why.
    pub left_out: Vec<ReasonView>,
}

impl PlanView {
    /// `asked_mode`: of the request. `nodes_file`: where the nodes came from, if not from the cluster.
    pub fn new(reply: v1::PlanReply, asked_mode: v1::Mode, nodes_file: Option<String>) -> Self {
        let backend = match reply.backend() {
            v1::Backend::Unspecified | v1::Backend::None => None,
            v1::Backend::Ring => Some("ring"),
            v1::Backend::Jaccl => Some("jaccl"),
            v1::Backend::JacclRing => Some("jaccl-ring"),
        };
        let mode = mode_word(reply.mode());
        let is_gang = matches!(reply.mode(), v1::Mode::Pipeline | v1::Mode::Tensor);
        PlanView {
            fits: reply.fits,
            mode,
            asked_mode: mode_word(asked_mode),
            backend,
            nodes_file,
            model: reply.model.unwrap_or_default().into(),
            rows: reply.rows,
            context_tokens: reply.context_tokens,
            prefill_rows: reply.prefill_rows,
            prefill_step_tokens: reply.prefill_step_tokens,
            largest_rows: reply.largest_rows,
            largest_context_tokens: reply.largest_context_tokens,
            parts: reply.parts.into_iter().map(|part| PartView::new(part, is_gang)).collect(),
            reasons: reply.reasons.into_iter().map(ReasonView::from).collect(),
            alternatives: reply.alternatives.into_iter().map(AlternativeView::from).collect(),
            advice: reply.advice,
            left_out: reply.left_out.into_iter().map(ReasonView::from).collect(),
        }
    }

    /// How many gangs there are; 0 for independent workers, and where nothing was chosen.
    pub fn gangs(&self) -> u64 {
        let mut gangs: Vec<u32> = self.parts.iter().filter_map(|part| part.gang).collect();
        gangs.sort_unstable();
        gangs.dedup();
        gangs.len() as u64
    }
}

/// A model in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct ModelSizeView {
    /// A directory, or a name on the model hub.
    pub model: String,
    /// "qwen3_moe", "llama", …
    pub architecture: Option<String>,
    /// How many.
    pub layers: u32,
    /// All weights in memory.
    pub weight_bytes: u64,
    /// The same by what they are for.
    pub weights: WeightsView,
    /// In the files, never in memory.
    pub not_loaded_bytes: u64,
    /// What one row of the plan's `context_tokens` keeps, in all layers.
    pub cache_bytes_per_row: u64,
    /// False: the cache is bounded from above.
    pub cache_is_exact: bool,
    /// The context it was made for; none where its files do not say.
    pub context_tokens: Option<u64>,
    /// Sentences about what was found in its files.
    pub notes: Vec<String>,
}

/// Weights by what they are for.
#[derive(Debug, Clone, Serialize)]
pub struct WeightsView {
    /// From tokens to vectors.
    pub embeddings_bytes: u64,
    /// From vectors to tokens; 0 where the embeddings serve for both.
    pub head_bytes: u64,
    /// Attention of all layers.
    pub attention_bytes: u64,
    /// What every token passes.
    pub mlp_bytes: u64,
    /// Of which each token passes a few.
    pub experts_bytes: u64,
    /// Routers, norms and the rest of the layers.
    pub other_bytes: u64,
}

impl From<v1::ModelSize> for ModelSizeView {
    fn from(size: v1::ModelSize) -> Self {
        ModelSizeView {
            model: size.model,
            architecture: text(size.architecture),
            layers: size.layers,
            weight_bytes: size.weight_bytes,
            weights: WeightsView {
                embeddings_bytes: size.embeddings_bytes,
                head_bytes: size.head_bytes,
                attention_bytes: size.attention_bytes,
                mlp_bytes: size.mlp_bytes,
                experts_bytes: size.experts_bytes,
                other_bytes: size.other_bytes,
            },
            not_loaded_bytes: size.not_loaded_bytes,
            cache_bytes_per_row: size.cache_bytes_per_row,
            cache_is_exact: size.cache_is_exact,
            context_tokens: nonzero(size.context_tokens),
            notes: size.notes,
        }
    }
}

/// What one node would carry.
#[derive(Debug, Clone, Serialize)]
pub struct PartView {
    /// The node.
    pub node: String,
    /// Its gang, from 0; none for an independent worker, and where nothing was chosen.
    pub gang: Option<u32>,
    /// Its place in the gang; none for an independent worker, and where nothing was chosen.
    pub rank: Option<u32>,
    /// Its first layer.
    pub first_layer: u32,
    /// The layer after its last.
    pub end_layer: u32,
    /// All its weights: layers, embeddings and head.
    pub weight_bytes: u64,
    /// Of its layers.
    pub layer_bytes: u64,
    /// Where it has them.
    pub embeddings_bytes: u64,
    /// Where it has it.
    pub head_bytes: u64,
    /// Caches of all rows.
    pub cache_bytes: u64,
    /// What a step computes.
    pub activation_bytes: u64,
    /// Of the runtime.
    pub overhead_bytes: u64,
    /// All of the above.
    pub total_bytes: u64,
    /// What the node has for a model.
    pub budget_bytes: u64,
    /// What is left of it; negative: what is missing.
    pub free_bytes: i64,
}

impl PartView {
    fn new(part: v1::PlanPart, is_gang: bool) -> Self {
        PartView {
            node: part.node_id,
            gang: is_gang.then_some(part.gang),
            rank: is_gang.then_some(part.rank),
            first_layer: part.first_layer,
            end_layer: part.end_layer,
            weight_bytes: part
                .layer_bytes
                .saturating_add(part.embeddings_bytes)
                .saturating_add(part.head_bytes),
            layer_bytes: part.layer_bytes,
            embeddings_bytes: part.embeddings_bytes,
            head_bytes: part.head_bytes,
            cache_bytes: part.cache_bytes,
            activation_bytes: part.activation_bytes,
            overhead_bytes: part.overhead_bytes,
            total_bytes: part.total_bytes,
            budget_bytes: part.budget_bytes,
            free_bytes: part.free_bytes,
        }
    }
}

/// A reason.
#[derive(Debug, Clone, Serialize)]
pub struct ReasonView {
    /// Which rule spoke: a stable word.
    pub rule: String,
    /// The node it is about, if one.
    pub node: Option<String>,
    /// One sentence.
    pub text: String,
}

impl From<v1::PlanReason> for ReasonView {
    fn from(reason: v1::PlanReason) -> Self {
        ReasonView { rule: reason.rule, node: text(reason.node_id), text: reason.text }
    }
}

/// A mode, and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct AlternativeView {
    /// "independent", "pipeline" or "tensor".
    pub mode: &'static str,
    /// Whether it was chosen.
    pub chosen: bool,
    /// Why, or why not.
    pub why: String,
}

impl From<v1::PlanAlternative> for AlternativeView {
    fn from(alternative: v1::PlanAlternative) -> Self {
        AlternativeView {
            mode: mode_word(alternative.mode()).unwrap_or("unknown"),
            chosen: alternative.chosen,
            why: alternative.why,
        }
    }
}
